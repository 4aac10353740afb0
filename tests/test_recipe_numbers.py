"""Full-size recipes have the numbers of their sources, such as a rate of base · batch / 256."""

import pytest

from sslkit import recipe
from sslkit_plugins.views import Colours, colours_of

IMAGENET = {
    "simclr": {
        "train.batch_size": 4096,
        "train.epochs": 100,
        "optimizer.use": "lars",
        "optimizer.lr": 0.075 * 4096**0.5,
        "optimizer.weight_decay": 1e-4 / 2,
        "schedule.warmup_epochs": 10,
        "loss.temperature": 0.1,
        "heads.projector.layers": 3,
        "heads.projector.out_dim": 128,
        "train.sync_batchnorm": True,
    },
    "moco": {
        "train.batch_size": 256,
        "train.epochs": 200,
        "optimizer.lr": 0.03,
        "optimizer.weight_decay": 1e-4,
        "optimizer.exempt_norms_and_biases": False,
        "method.momentum": 0.999,
        "sampler.size": 65536,
        "loss.temperature": 0.2,
        "schedule.use": "cosine",
        "schedule.per": "epoch",
        "transform.min_area": 0.2,
        "heads.projector.hidden_dim": 2048,
        "heads.projector.hidden_norm": False,
    },
    "moco_v1": {"loss.temperature": 0.07, "schedule.milestones": [120, 160]},
    "byol": {
        "train.batch_size": 4096,
        "train.epochs": 1000,
        "optimizer.lr": 0.2 * 4096 / 256,
        "optimizer.weight_decay": 1.5e-6,
        "optimizer.trust_coeff": 1e-3,
        "method.momentum": 0.996,
        "heads.projector.hidden_dim": 4096,
        "heads.predictor.out_dim": 256,
    },
    "simsiam": {
        "train.batch_size": 512,
        "train.epochs": 100,
        "optimizer.lr": 0.05 * 512 / 256,
        "optimizer.weight_decay": 1e-4,
        "optimizer.exempt_norms_and_biases": False,
        "schedule.per": "epoch",
        "schedule.constant": ["predictor"],
        "schedule.warmup_epochs": 0,
        "heads.projector.layers": 3,
        "heads.predictor.hidden_dim": 512,
    },
    "swav": {
        "train.batch_size": 4096,
        "optimizer.lr": 4.8,
        "optimizer.weight_decay": 1e-6,
        "optimizer.trust_coeff": 1e-3,
        "optimizer.exempt_norms_and_biases": False,
        "schedule.final_lr": 4.8 / 1000,
        "method.freeze_steps": 313,
        "method.epsilon": 0.05,
        "method.iterations": 3,
        "loss.temperature": 0.1,
        "heads.prototypes.out_dim": 3000,
        "transform.min_area": 0.14,
        "transform.local.count": 6,
        "transform.local.max_area": 0.14,
        "encoder.std": [0.228, 0.224, 0.225],
    },
    "deepcluster": {
        "train.batch_size": 256,
        "optimizer.lr": 0.05,
        "optimizer.weight_decay": 1e-5,
        "heads.classifier.out_dim": 10_000,
        "method.components": 256,
        "method.iterations": 20,
        "encoder.sobel": True,
        "schedule.use": "constant",
    },
    "deepcluster_v2": {
        "method.clusters": [3000] * 3,
        "method.iterations": 10,
        "optimizer.lr": 4.8,
        "loss.temperature": 0.1,
    },
    "cmc": {
        "train.batch_size": 128,
        "train.epochs": 240,
        "optimizer.lr": 0.03,
        "optimizer.weight_decay": 1e-4,
        "schedule.milestones": [120, 160, 200],
        "sampler.negatives": 16384,
        "sampler.momentum": 0.5,
        "loss.temperature": 0.07,
        "transform.min_area": 0.08,
        "encoder.width": 0.5,
    },
    "cpc": {
        "transform.size": 256,
        "transform.patch": 64,
        "transform.stride": 32,
        "heads.predictor.out_dim": 64,
        "heads.context.blocks": 5,
        "heads.context.hidden_dim": 256,
        "method.scale": 0.1,
        "encoder.norm": "layer",
    },
    "amdim": {
        "train.batch_size": 480,
        "train.epochs": 50,
        "optimizer.lr": 2e-4,
        "optimizer.betas": [0.8, 0.999],
        "optimizer.weight_decay": 1e-5,
        "schedule.milestones": [30, 45],
        "schedule.factor": 0.2,
        "transform.min_area": 0.3,
        "transform.shared": "flip",
        "encoder.base_width": 192,
        "encoder.out_dim": 1536,
        "encoder.depth": 8,
        "loss.clip": 20,
        "loss.penalty": 0.05,
    },
    "barlow_twins": {
        "train.batch_size": 2048,
        "train.epochs": 1000,
        "optimizer.lr": 0.2 * 2048 / 256,
        "optimizer.weight_decay": 1e-6 * 0.0048 / 0.2,
        "loss.scale": 0.0048 / 0.2,
        "loss.off_diagonal": 0.0051,
        "schedule.final_lr": 1.6 / 1000,
        "heads.projector.out_dim": 8192,
    },
    "vicreg": {
        "train.batch_size": 2048,
        "train.epochs": 1000,
        "optimizer.lr": 0.2 * 2048 / 256,
        "optimizer.weight_decay": 1e-6,
        "loss.invariance": 25,
        "loss.variance": 25,
        "loss.covariance": 1,
        "heads.projector.out_dim": 8192,
    },
    "nnclr": {
        "sampler.size": 98304,
        "loss.temperature": 0.1,
        "heads.projector.out_dim": 256,
        "heads.projector.layers": 3,
        "heads.projector.bias": False,
    },
    "dino": {
        "train.batch_size": 64 * 8,
        "train.epochs": 100,
        "train.clip_grad": 3.0,
        "optimizer.lr": 5e-4 * 512 / 256,
        "optimizer.weight_decay": 0.04,
        "schedule.final_weight_decay": 0.4,
        "schedule.final_lr": 1e-6,
        "schedule.warmup_epochs": 10,
        "method.momentum": 0.996,
        "method.teacher_temperature": 0.04,
        "method.freeze_epochs": 1,
        "encoder.drop_path_rate": 0.1,
        "heads.prototypes.out_dim": 65536,
        "transform.min_area": 0.4,
        "transform.local.count": 8,
        "transform.local.min_area": 0.05,
    },
    "mae": {
        "train.batch_size": 4096,
        "train.epochs": 800,
        "optimizer.lr": 1.5e-4 * 4096 / 256,
        "optimizer.betas": [0.9, 0.95],
        "optimizer.weight_decay": 0.05,
        "schedule.warmup_epochs": 40,
        "method.masked": 0.75,
        "method.norm_pix": True,
        "transform.min_area": 0.2,
        "heads.decoder.depth": 8,
        "heads.decoder.dim": 512,
    },
    "bigan": {
        "train.batch_size": 128,
        "optimizer.lr": 2e-4,
        "optimizer.betas": [0.5, 0.999],
        "optimizer.weight_decay": 2.5e-5,
        "heads.latent.out_dim": 200,
        "transform.size": 64,
    },
    "jigsaw": {
        "train.batch_size": 256,
        "train.epochs": 105,
        "optimizer.lr": 0.1,
        "schedule.milestones": [30, 60, 90, 100],
        "schedule.warmup_epochs": 5,
        "schedule.warmup_lr": 0.025,
        "heads.order.patch_dim": 1000,
        "transform.resize": 255,
        "transform.patch": 64,
    },
    "rotnet": {
        "train.batch_size": 192,
        "train.epochs": 50,
        "optimizer.lr": 0.01,
        "optimizer.nesterov": True,
        "optimizer.weight_decay": 5e-4,
        "schedule.milestones": [15, 30, 45],
        "transform.copies": "all",
    },
    "npid": {
        "train.batch_size": 256,
        "train.epochs": 200,
        "optimizer.lr": 0.03,
        "optimizer.weight_decay": 1e-4,
        "schedule.milestones": [120, 160],
        "sampler.negatives": 4096,
        "loss.temperature": 0.07,
        "transform.min_area": 0.2,
    },
    "pirl_jigsaw": {
        "train.batch_size": 1024,
        "train.epochs": 800,
        "optimizer.lr": 0.12,
        "optimizer.weight_decay": 1e-4,
        "schedule.final_lr": 1.2e-4,
        "sampler.negatives": 32000,
        "loss.lambda": 0.5,
        "loss.temperature": 0.07,
        "transform.min_area": 0.6,
        "encoder.conv_init": "uniform",
    },
    "single_image": {
        "data.crops": 1_281_167,
        "data.distortion": "paper",
    },
}

SOLO_LEARN = {
    "barlow_twins": {"lr": 0.3, "weight_decay": 1e-4},
    "byol": {"lr": 1.0, "weight_decay": 1e-5},
    "deepcluster_v2": {"lr": 0.6, "weight_decay": 1e-6},
    "dino": {"lr": 0.3, "weight_decay": 1e-6},
    "nnclr": {"lr": 0.4, "weight_decay": 1e-5},
    "simclr": {"lr": 0.4, "weight_decay": 1e-4},
    "swav": {"lr": 0.6, "weight_decay": 1e-6},
    "vicreg": {"lr": 0.3, "weight_decay": 1e-4},
}
"""Rate and weight decay of LARS with η = 0.02, clipped, for 1,000 epochs of batches of 256."""

CIFAR = {
    "barlow_twins": {"heads.projector.out_dim": 2048, "loss.scale": 0.1},
    "byol": {"method.momentum": 0.99, "heads.projector.hidden_dim": 4096},
    "deepcluster_v2": {"schedule.final_lr": 0.0006, "schedule.warmup_epochs": 11},
    "dino": {"method.momentum": 0.9995, "heads.prototypes.out_dim": 4096},
    "nnclr": {"sampler.size": 65536, "loss.temperature": 0.2, "heads.predictor.hidden_dim": 4096},
    "simclr": {"loss.temperature": 0.2, "heads.projector.out_dim": 256},
    "simsiam": {
        "optimizer.use": "sgd",
        "optimizer.lr": 0.5,
        "optimizer.weight_decay": 1e-5,
        "train.batch_size": 256,
    },
    "swav": {"method.queue": 3840, "method.queue_from": 50, "heads.prototypes.out_dim": 3000},
    "vicreg": {"transform.min_area": 0.2, "loss.variance": 2 * 25},
    "moco": {
        "train.batch_size": 512,
        "train.epochs": 800,
        "optimizer.lr": 2 * 0.06,
        "optimizer.weight_decay": 5e-4 / 2,
        "method.momentum": 0.99,
        "sampler.size": 4096,
        "loss.temperature": 0.1,
        "encoder.norm_splits": 8,
    },
    "mae": {
        "optimizer.lr": 2e-4,
        "encoder.options.patch_size": 4,
        "encoder.std": [0.247, 0.2435, 0.2616],
        "transform.min_area": 0.08,
    },
    "cpc": {"transform.patch": 8, "transform.stride": 4, "optimizer.lr": 4e-5},
}


def differences(name, expected):
    """The keys whose value differs, with both values."""
    found, sections = {}, recipe.read(name).as_dict()
    for key, value in expected.items():
        given = sections
        for part in key.split("."):
            given = given[part]
        if given != (pytest.approx(value) if isinstance(value, int | float) else value):
            found[key] = given, value
    return found


@pytest.mark.parametrize("name", IMAGENET)
def test_recipes_for_imagenet_have_the_numbers_of_the_source(name):
    assert not differences(f"imagenet/{name}", IMAGENET[name])


@pytest.mark.parametrize("name", CIFAR)
def test_recipes_for_cifar_have_the_numbers_of_the_source(name):
    assert not differences(f"cifar10/{name}", CIFAR[name])


@pytest.mark.parametrize("name", SOLO_LEARN)
def test_recipes_of_solo_learn_have_its_optimizer_and_encoder(name):
    expected = {f"optimizer.{key}": value for key, value in SOLO_LEARN[name].items()}
    expected |= {"optimizer.use": "larc", "optimizer.trust_coeff": 0.02}
    expected |= {"train.batch_size": 256, "train.epochs": 1000, "train.sync_batchnorm": True}
    expected |= {"encoder.options.zero_init_last": False, "encoder.stem": "small"}
    expected |= {"encoder.std": [0.247, 0.2435, 0.2616], "transform.interpolation": "bicubic"}
    assert not differences(f"cifar10/{name}", expected)


STRENGTHS = {
    "imagenet/simclr": [((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0)],
    "imagenet/moco": [((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0)],
    "imagenet/moco_v1": [((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.0)],
    "imagenet/byol": [
        ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.0),
        ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.1, 0.2),
    ],
    "imagenet/simsiam": [((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0)],
    "imagenet/npid": [((0.4, 0.4, 0.4, 0.4), 1.0, 0.2, 0.0, 0.0)],
    "imagenet/amdim": [((0.4, 0.4, 0.4, 0.1), 0.8, 0.25, 0.0, 0.0)],
    "imagenet/jigsaw": [((0.0, 0.0, 0.0, 0.0), 1.0, 0.66, 0.0, 0.0)],
    "imagenet/rotnet": [((0.0, 0.0, 0.0, 0.0), 1.0, 0.0, 0.0, 0.0)],
    "imagenet/mae": [((0.0, 0.0, 0.0, 0.0), 1.0, 0.0, 0.0, 0.0)],
    "cifar10/simclr": [((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.0)],
    "cifar10/simsiam": [((0.4, 0.4, 0.4, 0.1), 0.8, 0.2, 0.5, 0.0)],
    "cifar10/byol": [
        ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.0, 0.0),
        ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.0, 0.2),
    ],
    "cifar10/vicreg": [((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.0, 0.1)],
}
"""Jitter, its chance, and the chances of gray, blur and solarize, of each crop."""


@pytest.mark.parametrize("name", STRENGTHS)
def test_colours_have_the_strengths_of_the_source(name):
    given = recipe.read(name).transform.options["colours"]
    count = 2 if isinstance(given, list | tuple) else 1
    lists = colours_of(_parsed(given), count=count)
    found = [(c.jitter, c.jitter_chance, c.gray, c.blur, c.solarize) for c in lists]
    assert found == STRENGTHS[name]


def _parsed(given):
    """Colours as a transform gets them."""
    if isinstance(given, list | tuple):
        return tuple(_parsed(one) for one in given)
    if isinstance(given, dict):
        rest = dict(given)
        return Colours(**{**Colours.presets[rest.pop("preset", "none")], **rest})
    return given
