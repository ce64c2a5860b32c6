"""Put blocks with fewer tokens into a model, or into one that is built again from its record (contract C5).

Nothing is learnt and no parameter changes: a record tells, block by block, how many tokens merge (`merge_tokens`)
or which share of them stays (`drop_tokens`). Weights of the model as it was load into the changed one, and the
other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from typing_extensions import override

from effvit_train.models.make import FLAT
from effvit_train.models.surgery import Change, Operation
from effvit_train.models.tokens.blocks import (
    DroppingBlock,
    MergingBlock,
    TokenAttention,
    TokenBlock,
    TokenBlocks,
    adopt,
)

MERGE, DROP = "merge_tokens", "drop_tokens"  # the `kind` of our entries in an architecture record
_OF = {MERGE: MergingBlock, DROP: DroppingBlock}


@dataclass(frozen=True)
class Merge(Change):
    """Merge tokens in these blocks.

    Attributes:
        r: block -> how many merge into others.
        proportional: see `MergingBlock`.
    """

    r: Mapping[str, int] = field(default_factory=dict)
    proportional: bool = True

    @override
    def carry_out(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Parameters stay what they are: the optimizer has nothing to do."""
        # the mean over all patches, and a head with weights for each, are those of the patches (ToMe's own code
        # weighs the mean of MAE's models by sizes, which is the same)
        whole = getattr(model, "global_pool", "token") != "token"
        _replace(
            model, MergingBlock, {name: {"r": r} for name, r in self.r.items()},
            {"r": 0, "proportional": self.proportional}, whole=whole,
        )  # fmt: skip


@dataclass(frozen=True)
class Drop(Change):
    """Drop tokens in these blocks.

    Attributes:
        keep: block -> share of the tokens that stay.
        fuse: see `DroppingBlock`.
    """

    keep: Mapping[str, float] = field(default_factory=dict)
    fuse: bool = True

    @override
    def carry_out(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Parameters stay what they are: the optimizer has nothing to do."""
        _replace(
            model, DroppingBlock, {name: {"keep": keep} for name, keep in self.keep.items()},
            {"keep": 1.0, "fuse": self.fuse}, whole=False,
        )  # fmt: skip


def recorded(model: nn.Module, entry: Mapping[str, Any]) -> list[Operation]:
    """The operation that makes a recorded change.

    Raises `ValueError` for a change that cannot be made: the record is not of this model.
    """
    kind = str(entry.get("kind"))
    reason = why_not(model, kind)
    if reason is not None:
        raise ValueError(f"{kind}: the model {reason}")
    named = entry.get("r" if kind == MERGE else "keep")
    if not isinstance(named, Mapping):
        raise ValueError(f"{kind} in the architecture record does not tell its blocks")
    for name, value in named.items():
        if name not in blocks_of(model):
            raise ValueError(f"{kind}: no block {name!r}")
        whole = type(value) is int and value >= 0
        share = type(value) in (int, float) and 0 < value <= 1
        if not (whole if kind == MERGE else share):
            raise ValueError(f"{kind}: {value!r} of {name} cannot be")
    switch = entry.get("proportional" if kind == MERGE else "fuse")
    if type(switch) is not bool:
        raise ValueError(f"{kind} in the architecture record lacks a setting")
    return [Merge(dict(named), switch) if kind == MERGE else Drop(dict(named), switch)]


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    """The blocks that are left of a plain vision transformer, by name, in order."""
    blocks = getattr(model, "blocks", ())
    return {f"blocks.{k}": block for k, block in enumerate(blocks) if type(block) is not nn.Identity}


def reduced(model: nn.Module) -> bool:
    """Whether tokens of this model are merged or dropped on their way."""
    return isinstance(getattr(model, "blocks", None), TokenBlocks)


def why_not(model: nn.Module, kind: str) -> str | None:
    """Why tokens of a model cannot be merged or dropped, what follows `the model ...`; None if they can.

    Args:
        model: on any device.
        kind: `merge_tokens` | `drop_tokens`.
    """
    if any(isinstance(getattr(module, "window_area", None), int) for module in model.modules()):
        return "attends within windows, which need a full grid of tokens"
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        return "is not a plain vision transformer (ViT, DeiT)"
    blocks = blocks_of(model)
    if not blocks:
        return "has no blocks left"
    for name, block in blocks.items():
        attention = getattr(block, "attn", None)
        if isinstance(block, TokenBlock):
            if type(block) is not _OF[kind]:
                other = DROP if kind == MERGE else MERGE
                return f"has a {other} already, which decides by itself which tokens stay"
        elif type(block) is not Block:
            return f"has another kind of block ({name} is a {type(block).__name__})"
        elif type(attention) is not Attention:
            return f"has no attention between all tokens ({name}.attn is a {type(attention).__name__})"
    if kind == DROP:
        if getattr(model, "cls_token", None) is None:
            return "has no class token, whose attention tells which tokens to keep"
        if has_flat_head(model):
            return f"has a head with weights for every patch (model.pool={FLAT}), which needs all of them"
    return None


def has_flat_head(model: nn.Module) -> bool:
    """Whether the classifier has weights of its own for every token (`model.pool=flat`)."""
    head = getattr(model, "head", None)
    return isinstance(head, nn.Sequential) and isinstance(head[0], nn.Flatten)


def _replace(
    model: Any, kind: type[TokenBlock], named: Mapping[str, Mapping[str, Any]], others: Mapping[str, Any], *, whole: bool
) -> None:  # fmt: skip
    prefix = int(model.num_prefix_tokens)
    model.blocks = adopt(TokenBlocks, model.blocks, prefix=prefix, whole=whole)
    for name, block in blocks_of(model).items():
        settings = {**others, **named.get(name, {}), "prefix": prefix}
        made = adopt(kind, block, **settings)
        made.attn = adopt(TokenAttention, made.attn)
        model.blocks._modules[name.removeprefix("blocks.")] = made
