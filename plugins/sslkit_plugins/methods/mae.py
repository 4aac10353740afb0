"""MAE (He, Chen, Xie, Li, Dollár & Girshick 2022, arXiv:2111.06377).

"Masked Autoencoders Are Scalable Vision Learners". Official code: `models_mae.py` of
github.com/facebookresearch/mae. Letters: N images, C×S×S pixels, L patches of p×p pixels, k kept
patches, P prefix tokens such as the class token, D = C·p² numbers of a patch.
"""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sslkit.errors import Fault, RecipeError, SslkitError
from sslkit.interfaces import Batch, Head, Method, Output, Parts, Progress


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut [N,C,S,S] into patches, row by row: [N,L,p²·C], with channels last."""
    rows = images.unfold(2, patch, patch).unfold(3, patch, patch)
    return rows.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Join patches of square images, the inverse of `patchify`: [N,L,p²·C] → [N,C,S,S]."""
    side = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def normalised(patches: Tensor) -> Tensor:
    """Return [N,L,D] with mean 0 and unbiased variance 1 in every patch; flat patches become 0."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / (patches.var(-1, keepdim=True) + 1.0e-6).sqrt()


def chosen(rows: Tensor, index: Tensor) -> Tensor:
    """Return the rows `index` int64 [N,k] of each image: [N,L,D] → [N,k,D]."""
    return rows.gather(1, index.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


class MaeDecoder(Head):
    """A small transformer that predicts all patches from the tokens of a few.

    The paper's section 3, "MAE decoder". Reads tokens and the order of the patches, not features.
    """

    roles = ("decoder",)
    special = True

    def __init__(
        self,
        in_dim: int,
        shape: tuple[int, int, int],
        /,
        *,
        patch_size: Annotated[
            int,
            Field(ge=1, description="Side p of a patch, px, that of the encoder, usually 16."),
        ] = 16,
        dim: Annotated[
            int, Field(ge=4, multiple_of=4, description="Width of the tokens. MAE: 512.")
        ] = 512,
        depth: Annotated[int, Field(ge=1, le=100, description="Number of blocks. MAE: 8.")] = 8,
        num_heads: Annotated[int, Field(ge=1, description="Attention heads. MAE: 16.")] = 16,
    ) -> None:
        super().__init__()
        channels, side, _ = shape
        if side % patch_size:
            message = f"{patch_size} does not divide the image side, {side} px; use another size"
            raise RecipeError(Fault("heads.decoder.patch_size", message))
        if dim % num_heads:
            message = f"{num_heads} does not divide the width, {dim}; use another number"
            raise RecipeError(Fault("heads.decoder.num_heads", message))
        self.patch_size, self.dim = patch_size, dim
        self.patches = (side // patch_size) ** 2
        self.out_dim = channels * patch_size**2
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        grid = [side // patch_size] * 2
        self.positions: Tensor
        self.register_buffer("positions", build_sincos2d_pos_embed(grid, dim))
        self.blocks = nn.Sequential(
            *[Block(dim, num_heads, qkv_bias=True) for _ in range(depth)], nn.LayerNorm(dim)
        )
        self.predict = nn.Linear(dim, self.out_dim)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights as the official code does."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(  # type: ignore[override]
        self, tokens: Tensor, restore: Tensor, prefix: int = 1
    ) -> Tensor:
        """Predict all patches, in order.

        `tokens` [N,P+k,in_dim] belong to the first k patches of a shuffled order; `prefix` is P.
        `restore` int64 [N,L] is the place of each patch in that order. Returns [N,L,D].
        """
        rows = self.embed(tokens)
        hidden = self.patches + prefix - rows.shape[1]
        masked = self.mask_token.to(rows.dtype).expand(len(rows), hidden, -1)
        patches = chosen(torch.cat([rows[:, prefix:], masked], 1), restore) + self.positions
        return self.predict(self.blocks(torch.cat([rows[:, :prefix], patches], 1)))[:, prefix:]


class Mae(Method):
    """Reconstruct the pixels of masked patches from the other patches."""

    reads: ClassVar = {"decoder": "image"}
    needs: ClassVar = {"encoder": "tokens", "heads.decoder": "decoder", "loss": "elements"}

    def __init__(
        self,
        parts: Parts,
        /,
        *,
        masked: Annotated[
            float, Field(gt=0, lt=1, description="Masked fraction of the patches. MAE: 0.75.")
        ] = 0.75,
        norm_pix: Annotated[
            bool,
            Field(
                description="Normalise the pixels of each target patch by their mean and standard "
                "deviation. MAE: true for representations."
            ),
        ] = True,
    ) -> None:
        super().__init__(parts)
        decoder = self.decoder
        self.norm_pix = norm_pix
        self.kept = int(decoder.patches * (1 - masked))
        if not 0 < self.kept < decoder.patches:
            message = f"keeps {self.kept} of {decoder.patches} patches; use another fraction"
            raise RecipeError(Fault("method.masked", message))
        self._check_encoder()

    @property
    def decoder(self) -> MaeDecoder:
        """The decoder."""
        decoder = self.heads["decoder"]
        if not isinstance(decoder, MaeDecoder):
            message = f"method 'mae' needs mae_decoder, not {type(decoder).__name__}"
            raise RecipeError(Fault("heads.decoder.use", message))
        return decoder

    @torch.no_grad()
    def _check_encoder(self) -> None:
        """Raise RecipeError if the encoder has no tokens, or patches of another size."""
        decoder = self.decoder
        side = round(decoder.patches**0.5) * decoder.patch_size
        channels = decoder.out_dim // decoder.patch_size**2
        image = torch.zeros(1, channels, side, side)
        kept = torch.zeros(1, 1, dtype=torch.int64)
        try:
            found = self.encoder.tokens(image).shape[1] - self.encoder.prefix_tokens
            self.encoder.tokens(image, kept)
        except SslkitError as error:
            raise RecipeError(Fault("encoder.model", str(error))) from error
        if found != decoder.patches:
            size = side / found**0.5
            message = (
                f"is {decoder.patch_size}, but the encoder cuts {found} patches of {size:g} px; "
                f"set it to {size:g}"
            )
            raise RecipeError(Fault("heads.decoder.patch_size", message))

    def forward(self, batch: Batch, progress: Progress) -> Output:
        """Mask at random, encode the kept patches, decode all, compare the masked ones.

        The mask of an image does not depend on the number of ranks.
        """
        images = batch.views["image"]
        noise = progress.draws.uniform(len(images), self.decoder.patches).to(images.device)
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        kept, hidden = shuffle[:, : self.kept], shuffle[:, self.kept :]
        tokens = self.encoder.tokens(images, kept)
        predicted = self.decoder(tokens, restore, self.encoder.prefix_tokens)
        loss = self.loss(chosen(predicted, hidden), chosen(self.target(images), hidden))
        return Output(loss)

    def target(self, images: Tensor) -> Tensor:
        """Return the pixels of all patches, normalised if `norm_pix`: [N,C,S,S] → [N,L,D]."""
        patches = patchify(images, self.decoder.patch_size)
        return normalised(patches) if self.norm_pix else patches

    def at_start(self, images: int) -> float | None:
        """Return the loss of the initial decoder: the target's variance plus the output's.

        The output layer has variance 2 / (fan-in + fan-out) and reads normalised tokens.
        """
        if not self.norm_pix:
            return None
        width, numbers = self.decoder.dim, self.decoder.out_dim
        return (numbers - 1) / numbers + 2 * width / (width + numbers)

    def at_chance(self, images: int) -> dict[str, float]:
        """Return the loss of the prediction 0, the mean of every normalised patch."""
        if not self.norm_pix:
            return {}
        return {"loss": (self.decoder.out_dim - 1) / self.decoder.out_dim}
