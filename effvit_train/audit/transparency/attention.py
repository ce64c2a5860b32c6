"""Attention matrices of timm's vision transformers, and their gradients, without a second forward of our own.

timm's attention modules pass their probabilities through `attn_drop`, unless a fused kernel computes the
product in one go. So the kernel is switched off for the while, and that dropout's output is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DiffAttention
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor, nn

from effvit_train.models.tokens.change import reduced
from effvit_train.taps import Taps

_ROUNDING = 0.02  # of sums of probabilities, in bfloat16 too


@dataclass(frozen=True)
class Attention:
    """What one forward pass attended to; only of the blocks that are left.

    Attributes:
        logits: (B, K).
        matrices: of each block (B, heads, N, N), rows = queries, which sum to one. Blocks of a pruned model
            differ in their heads.
        gradients: of the logit of each image's class with respect to them; empty where not asked for.
    """

    logits: Tensor
    matrices: list[Tensor]
    gradients: list[Tensor]


class NoAttentionError(ValueError):
    """The model has no attention from every token to every token; the message says why in one line."""


def read_attention(model: nn.Module, images: Tensor, classes: Tensor | None = None) -> Attention:
    """The attention of one forward pass.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W) normalised.
        classes: (B,) whose logits are differentiated; None: no gradients.

    Raises:
        NoAttentionError: its attention cannot be followed from the logits to the patches.
    """
    _check(model)
    taps = Taps(model, [f"{name}.attn.attn_drop" for name, _ in _blocks(model)])
    try:
        with plain_attention(model), torch.set_grad_enabled(classes is not None):
            # Frozen parameters leave no graph; one that starts at the images is there in any case.
            logits = model(images.detach().requires_grad_(classes is not None))
            # Images do not see each other in evaluation mode: the gradient of the sum holds each one's own.
            chosen = None if classes is None else logits.gather(1, classes[:, None]).sum()
        matrices = list(taps.take().values())  # in the order of the forward pass
    finally:
        taps.remove()
    tokens = num_prefix_tokens(model) + _product(token_grid(model))
    if len(matrices) != len(_blocks(model)) or any(
        matrix.ndim != 4 or matrix.shape[2:] != (tokens, tokens) for matrix in matrices
    ):
        raise NoAttentionError("its blocks do not attend from each of its tokens to each")
    if any(bool(((matrix.detach().float().sum(dim=3) - 1).abs() > _ROUNDING).any()) for matrix in matrices):
        raise NoAttentionError("its attention does not sum to one")
    gradients = [] if chosen is None else list(torch.autograd.grad(chosen, matrices))
    return Attention(logits.detach(), [matrix.detach() for matrix in matrices], gradients)


def unsupported(model: nn.Module, images: Tensor) -> str | None:
    """Why the attention of a model cannot be followed from its logits to its patches; None where it can.

    Tried on `images` (B, C, H, W), of which one is enough.
    """
    try:
        read_attention(model, images)
    except NoAttentionError as error:
        return str(error)
    return None


def queries(model: nn.Module) -> slice:
    """The tokens that the classifier reads.

    The class token; in a distilled DeiT the class and distillation tokens, whose heads are averaged; without
    a class token all tokens that are pooled.
    """
    prefix = num_prefix_tokens(model)
    if isinstance(model, VisionTransformerDistilled):
        return slice(0, 2)
    if getattr(model, "global_pool", "token") == "token" and prefix:
        return slice(0, 1)
    return slice(0 if getattr(model, "pool_include_prefix", False) else prefix, None)


def num_prefix_tokens(model: nn.Module) -> int:
    """Class, distillation and register tokens, which stand before the patches."""
    return int(getattr(model, "num_prefix_tokens", 0))


def token_grid(model: nn.Module) -> tuple[int, int] | None:
    """Rows and columns of the patches; None for a model without them."""
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    return (int(grid[0]), int(grid[1])) if isinstance(grid, (tuple, list)) and len(grid) == 2 else None


@contextmanager
def plain_attention(model: nn.Module) -> Iterator[None]:
    """Compute attention without the fused kernel: the same function, whose probabilities are there to see."""
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", None) is True]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True


def _check(model: nn.Module) -> None:
    """Raise `NoAttentionError` for a model whose attention cannot be read."""
    if token_grid(model) is None or not isinstance(
        getattr(model, "blocks", None), (nn.Sequential, nn.ModuleList)
    ):
        windows = any(isinstance(getattr(module, "window_area", None), int) for module in model.modules())
        raise NoAttentionError(
            "it attends within windows, which no product of matrices joins"
            if windows
            else "it is not a plain vision transformer"
        )
    if getattr(model, "attn_pool", None) is not None:
        raise NoAttentionError("its pooling is an attention of its own")
    attentions = [getattr(block, "attn", None) for _, block in _blocks(model)]
    if not attentions:
        raise NoAttentionError("none of its blocks is left")
    if reduced(model):
        raise NoAttentionError("its tokens become fewer from block to block (merge_tokens, drop_tokens)")
    if any(isinstance(attention, DiffAttention) for attention in attentions):
        raise NoAttentionError("its attention is a difference of two")
    if not all(
        isinstance(getattr(attention, "fused_attn", None), bool)
        and isinstance(getattr(attention, "attn_drop", None), nn.Dropout)
        for attention in attentions
    ):
        raise NoAttentionError("its blocks hold no attention whose probabilities can be read")


def _blocks(model: Any) -> list[tuple[str, nn.Module]]:
    """The blocks that pruning left, by name."""
    return [(f"blocks.{k}", block) for k, block in enumerate(model.blocks) if type(block) is not nn.Identity]


def _product(grid: tuple[int, int] | None) -> int:
    assert grid is not None
    return grid[0] * grid[1]
