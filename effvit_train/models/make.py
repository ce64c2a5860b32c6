"""timm's models, and what is ours in them: a stem that is not learnt, a head that sees every token, attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.layers import Format, PatchEmbed, nchw_to
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.models.attention import swap
from effvit_train.models.scattering import Scattering, channels

FLAT = "flat"


class Unsuitable(ValueError):
    """A model or an image that one of our parts cannot be put into.

    Args:
        key: of the setting that asks for the part.
        why: one line.
    """

    def __init__(self, key: str, why: str) -> None:
        super().__init__(why)
        self.key = key


def make(name: str, kwargs: Mapping[str, Any], **more: Any) -> nn.Module:
    """`timm.create_model` for the arguments of an architecture record.

    Three arguments are ours: `stem`, `scattering`, takes the place of timm's patch embedding,
    `global_pool=flat` gives every token weights of its own in the classifier, and `attention` says of each block
    what takes the place of its attention.

    Args:
        name: timm model name.
        kwargs: of the record.
        more: further arguments for `timm.create_model`.

    Raises:
        Unsuitable: the stem or the head cannot be put into this model, or does not suit the image.
        ValueError: the attention cannot be put into this model.
    """
    arguments = {**kwargs, **more}
    if "stem" in arguments:
        arguments["embed_layer"] = _STEMS[arguments.pop("stem")]
    attention = arguments.pop(swap.NAME, None)
    flat = arguments.get("global_pool") == FLAT
    if flat:
        arguments["global_pool"] = ""  # timm hands the tokens to the head as they are
    try:
        model = timm.create_model(name, **arguments)
    except TypeError as error:
        if "'embed_layer'" in str(error):
            raise Unsuitable("model.stem", f"{name} has no patch embedding that can be replaced") from None
        raise
    if flat:
        _give_flat_head(model)
    if attention is not None:
        swap.swap(model, attention)
    return model


def is_ours(kwargs: Mapping[str, Any]) -> bool:
    """Whether a part of the model is not timm's, so that timm's loader cannot adapt weights to it.

    Swapped attention is none: weights are loaded before it is swapped.
    """
    return "stem" in kwargs or kwargs.get("global_pool") == FLAT


def _give_flat_head(model: Any) -> None:
    try:
        tokens = model.patch_embed.num_patches + model.num_prefix_tokens
        classes, width = model.num_classes, model.embed_dim
        known = type(model.head) is nn.Linear and not hasattr(model, "head_dist")
    except AttributeError:
        known = False
    if not known:
        raise Unsuitable(
            "model.pool", "only a plain ViT with one head can be given a head that sees every token"
        )
    linear = nn.Linear(tokens * width, classes)
    nn.init.trunc_normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    model.head = nn.Sequential(nn.Flatten(1), linear)


class ScatteringEmbed(PatchEmbed):
    """Patch embedding of scattering coefficients: a patch of 2^J pixels is a cell of J scales.

    The coefficients of an image are brought to mean 0 and variance 1, channel by channel; what is learnt is the
    projection of a cell's coefficients alone.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        **others: Any,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, **others)
        side = self.patch_size[0]
        scales = int(math.log2(side))
        if side != self.patch_size[1] or 2**scales != side or scales < 1:
            raise Unsuitable("model.stem", f"needs patches of 2, 4, 8, ... pixels, not {side}")
        if not self.strict_img_size:
            raise Unsuitable("model.stem", "takes images of one size")
        if any(size % side or size < 2 * side for size in self.img_size):
            raise Unsuitable("model.stem", f"needs images of two or more patches of {side} pixels")
        self.scatter = Scattering(scales, *self.img_size)
        bias, given = self.proj.bias is not None, self.proj.weight
        self.proj = nn.Conv2d(
            in_chans * channels(scales), embed_dim, 1, bias=bias, device=given.device, dtype=given.dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to tokens, in timm's layout."""
        if x.shape[-2:] != torch.Size(self.img_size):
            raise ValueError(f"images of {tuple(x.shape[-2:])} pixels where the model takes {self.img_size}")
        coefficients = self.scatter(x)
        x = self.proj(F.group_norm(coefficients, coefficients.shape[1]))
        if self.flatten:
            x = x.flatten(2).transpose(1, 2)
        elif self.output_fmt != Format.NCHW:
            x = nchw_to(x, self.output_fmt)
        return self.norm(x)


_STEMS = {"scattering": ScatteringEmbed}
