"""Faster R-CNN on the stages of an encoder (Ren et al. 2015, arXiv:1506.01497)."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

Neck = Literal["c4", "fpn"]

ANCHORS = (32, 64, 128, 256, 512)
"""Sides of the anchors, px."""
RATIOS = (0.5, 1.0, 2.0)
"""Height / width of the anchors."""
PYRAMID_LEVELS, PYRAMID_WIDTH = 4, 256
"""Last stages in the pyramid, and its channels (Lin et al. 2017, arXiv:1612.03144, section 4)."""
SHORT_SIDES, LONG_SIDE = tuple(range(480, 801, 32)), 1333
"""Short sides in training, px; tests have the last one. Largest long side, px."""
REGIONS, PROPOSALS = 512, {"training": 2000, "testing": 1000}
"""Regions per training image, and proposals after suppression, for a short side of 800 px."""
FEWEST = 64
"""Smallest number of regions and proposals."""


class Scale(NamedTuple):
    """Image sizes, px, and the numbers of regions and proposals per image."""

    short_sides: tuple[int, ...]
    long_side: int
    regions: int
    training_proposals: int
    test_proposals: int

    @classmethod
    def of(cls, size: int | None) -> "Scale":
        """Return the scale for a short side of `size` px; None for Detectron2's 480 … 800.

        Images smaller than 800 px have fewer regions and proposals, in proportion to their area.
        """
        if size is None:
            return cls(SHORT_SIDES, LONG_SIDE, REGIONS, *PROPOSALS.values())
        area = min(1.0, (size / SHORT_SIDES[-1]) ** 2)
        numbers = [max(FEWEST, round(area * number)) for number in (REGIONS, *PROPOSALS.values())]
        return cls((size,), round(size * LONG_SIDE / SHORT_SIDES[-1]), *numbers)


class Detector(FasterRCNN):
    """Faster R-CNN whose modules `frozen` stay in evaluation mode.

    Takes normalised images [C,h,w] of any sizes.
    """

    def __init__(
        self, backbone: nn.Module, scale: Scale, frozen: Sequence[nn.Module], **options: Any
    ) -> None:
        super().__init__(
            backbone,
            min_size=scale.short_sides,
            max_size=scale.long_side,
            image_mean=[0.0],
            image_std=[1.0],
            box_batch_size_per_image=scale.regions,
            rpn_post_nms_top_n_train=scale.training_proposals,
            rpn_post_nms_top_n_test=scale.test_proposals,
            **options,
        )
        self.frozen = tuple(frozen)

    def train(self, mode: bool = True) -> Self:
        """Set training mode, except for frozen modules."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


class Pyramid(nn.Module):
    """A feature pyramid on the outputs of the last stages."""

    out_channels = PYRAMID_WIDTH

    def __init__(self, stages: Sequence[nn.Module], channels: Sequence[int]) -> None:
        super().__init__()
        self.first = nn.Sequential(*stages[:-PYRAMID_LEVELS])
        self.stages = nn.ModuleList(stages[-PYRAMID_LEVELS:])
        inputs = list(channels[-PYRAMID_LEVELS:])
        self.neck = FeaturePyramidNetwork(inputs, PYRAMID_WIDTH, extra_blocks=LastLevelMaxPool())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """[N,C,H,W] → {"0": [N,256,h,w], "1": …, "pool": …}, fine to coarse."""
        maps, values = {}, self.first(images)
        for number, stage in enumerate(self.stages):
            values = stage(values)
            maps[str(number)] = values
        return self.neck(maps)


def build(
    stages: Sequence[nn.Module],
    example: Tensor,
    classes: int,
    scale: Scale,
    *,
    neck: Neck = "c4",
    frozen_stages: int = 2,
    trains_norms: bool = False,
    extra_norm: bool = False,
) -> Detector:
    """Build a detector of `classes` classes from the stages of an encoder, shallow to deep.

    `example` is a normalised image [1,C,H,W], which shows the channels of each stage. C4 has all
    stages but the last as body, and the last as box head. The first `frozen_stages` stages are not
    trained, nor are batch norms unless `trains_norms`. `extra_norm` adds a batch norm to the box
    head of C4 (MoCo's Res5ROIHeadsExtraNorm).
    """
    channels = _channels(stages, example)
    for stage in stages[:frozen_stages]:
        stage.requires_grad_(False)
    frozen = list(stages[:frozen_stages])
    if not trains_norms:
        for norm in batch_norms(stages):
            norm.requires_grad_(False)
            frozen.append(norm)
    if neck == "fpn":
        return _pyramid(stages, channels, classes, scale, frozen)
    return _c4(stages, channels, classes, scale, frozen, extra_norm=extra_norm)


def batch_norms(modules: Sequence[nn.Module]) -> list[_BatchNorm]:
    """Return all batch norms, including timm's with an activation."""
    found: list[_BatchNorm] = []
    for module in modules:
        found += [one for one in module.modules() if isinstance(one, _BatchNorm)]
    return found


@torch.no_grad()
def _channels(stages: Sequence[nn.Module], example: Tensor) -> list[int]:
    """Return the number of output channels of each stage."""
    channels, values = [], example
    for stage in stages:
        values = stage.eval()(values)
        channels.append(values.shape[1])
    return channels


def _c4(
    stages: Sequence[nn.Module],
    channels: list[int],
    classes: int,
    scale: Scale,
    frozen: Sequence[nn.Module],
    *,
    extra_norm: bool,
) -> Detector:
    body: Any = nn.Sequential(*stages[:-1])
    body.out_channels = channels[-2]
    norm = [nn.BatchNorm2d(channels[-1])] if extra_norm else []
    head = nn.Sequential(stages[-1], *norm, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Detector(
        body,
        scale,
        frozen,
        rpn_anchor_generator=AnchorGenerator((ANCHORS,), (RATIOS,)),
        rpn_pre_nms_top_n_train=12000,
        rpn_pre_nms_top_n_test=6000,
        box_roi_pool=MultiScaleRoIAlign(["0"], 14, sampling_ratio=0),
        box_head=head,
        box_predictor=_predictor(channels[-1], classes),
    )


def _pyramid(
    stages: Sequence[nn.Module],
    channels: list[int],
    classes: int,
    scale: Scale,
    frozen: Sequence[nn.Module],
) -> Detector:
    backbone = Pyramid(stages, channels)
    levels = len(backbone.stages)
    sides = tuple((side,) for side in ANCHORS[: levels + 1])
    width = 1024
    return Detector(
        backbone,
        scale,
        frozen,
        rpn_anchor_generator=AnchorGenerator(sides, (RATIOS,) * len(sides)),
        box_roi_pool=MultiScaleRoIAlign([*map(str, range(levels))], 7, sampling_ratio=0),
        box_head=TwoMLPHead(PYRAMID_WIDTH * 7 * 7, width),
        box_predictor=_predictor(width, classes),
    )


def _predictor(features: int, classes: int) -> FastRCNNPredictor:
    """Return the last layer, for the classes and background, initialised as in Detectron2."""
    predictor = FastRCNNPredictor(features, classes + 1)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    return predictor
