"""Plain ViTs that take images of several sizes, cut into patches of several sizes.

Nothing is learnt that the plain model has not: parameters keep their names and shapes, and at its own size and patch
the model computes what it did.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from effvit_train.models.resample import interpolation, patch_inverse, recut, resample_grid


class FlexiblePatchEmbed(PatchEmbed):
    """timm's patch embedding for images of any size, cut into patches of `cut` pixels (see `resample.recut`)."""

    cut: int
    inverse: Tensor | None

    def cut_into(self, patch: int) -> None:
        """From now on, cut images into patches of so many pixels; its own patch leaves them as they are."""
        base, weight = int(self.patch_size[0]), self.proj.weight
        inverse = None if patch == base else patch_inverse(base, patch).to(weight.device, weight.dtype)
        self.cut = patch
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens (B, H / cut, W / cut, D)."""
        return super().forward(x if self.inverse is None else recut(x, self.inverse))


class _AnyGrid:
    """timm's `_pos_embed` for tokens on any grid, and a position embedding (B, ...) as well as (1, ...)."""

    def _pos_embed(self: Any, x: Tensor) -> Tensor:
        grid = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)
        first = [getattr(self, name, None) for name in ("cls_token", "dist_token", "reg_token")]
        prefix = [token.expand(x.shape[0], -1, -1) for token in first if token is not None]
        if self.pos_embed is None:
            return torch.cat([*prefix, x], dim=1)
        positions = self._positions(grid)
        if self.no_embed_class:
            x = x + positions
            return self.pos_drop(torch.cat([*prefix, x], dim=1) if prefix else x)
        return self.pos_drop((torch.cat([*prefix, x], dim=1) if prefix else x) + positions)

    def _positions(self: Any, grid: tuple[int, int]) -> Tensor:
        own, positions = self.patch_embed.grid_size, self.pos_embed
        if grid == tuple(own):
            return positions
        prefix = 0 if self.no_embed_class else self.num_prefix_tokens
        rows, columns = (self._matrix(old, new, positions) for old, new in zip(own, grid, strict=True))
        patches = resample_grid(positions[:, prefix:].float(), own, rows, columns).to(positions.dtype)
        return torch.cat([positions[:, :prefix], patches], dim=1) if prefix else patches

    def _matrix(self: Any, old: int, new: int, like: Tensor) -> Tensor:
        known = getattr(self, buffer_name(old, new), None)
        return interpolation(old, new).to(like.device, torch.float32) if known is None else known


class FlexibleViT(_AnyGrid, VisionTransformer):
    """timm's `VisionTransformer` for images of any size that its patches divide."""


class FlexibleDistilledViT(_AnyGrid, VisionTransformerDistilled):
    """The same of `VisionTransformerDistilled`."""


FLEXIBLE: dict[type[nn.Module], type[nn.Module]] = {
    VisionTransformer: FlexibleViT,
    VisionTransformerDistilled: FlexibleDistilledViT,
}


def buffer_name(old: int, new: int) -> str:
    """Of the matrix that resamples positions from one number of patches per side to another."""
    return f"positions_{old}_to_{new}"


def cut_into(model: Any, patch: int | None = None) -> None:
    """Let a flexible ViT cut images into patches of so many pixels from now on; None = its own.

    Raises `ValueError` for a model that was not made flexible.
    """
    embed = getattr(model, "patch_embed", None)
    if not isinstance(embed, FlexiblePatchEmbed):
        raise ValueError(f"{type(model).__name__} was not made to take other patches")
    embed.cut_into(patch or int(embed.patch_size[0]))
