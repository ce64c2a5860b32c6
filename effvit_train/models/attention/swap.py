"""From entries of an architecture record to modules, and which of them the exact attention can be compared with."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import Attention
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from effvit_train.models.attention.base import Site
from effvit_train.models.attention.forms import Entry
from effvit_train.models.attention.kinds import EXACT, KINDS

NAME = "attention"  # the argument of an architecture record
_NOT_SETTINGS = frozenset(("self", "exact", "site", "dim", "grid", "prefix"))


def swap(model: Any, entries: Sequence[Any]) -> None:
    """Put the attention of a record in the place of a ViT's own; blocks that were left out stay out.

    Modules that keep the projections take over those that are there, with their weights.

    Args:
        model: as timm built it, cut or not.
        entries: one for each block, concrete.

    Raises:
        ValueError: this model has no attention that can be swapped, or an entry is of no kind or does not fit.
    """
    why = unsuitable(model)
    if why:
        raise ValueError(why)
    if len(entries) != len(model.blocks):
        raise ValueError(f"{len(entries)} kinds of attention for {len(model.blocks)} blocks")
    for number, entry in enumerate(entries):
        if not isinstance(entry, Mapping) or entry.get("kind") not in (EXACT, *KINDS):
            raise ValueError(f"{entry!r} is no kind of attention")
        block = model.blocks[number]
        if entry["kind"] == EXACT or type(block) is nn.Identity:
            continue
        block.attn = construct(entry, block.attn, model, number)


def construct(entry: Mapping[str, Any], exact: Any, model: Any, number: int) -> nn.Module:
    """The module of an entry, from the exact attention of block `number`."""
    settings = {name: value for name, value in entry.items() if name != "kind"}
    kind = KINDS[entry["kind"]]
    if kind.keeps:
        module: nn.Module = class_of(entry["kind"])(exact, site_of(model, number), **settings)
        return module.train(exact.training)
    grid, prefix = model.patch_embed.grid_size, model.num_prefix_tokens
    module = class_of(entry["kind"])(exact.proj.out_features, grid=tuple(grid), prefix=prefix, **settings)
    weight = exact.proj.weight
    return module.to(weight.device, weight.dtype).train(exact.training)


def site_of(model: Any, number: int) -> Site:
    """Where the attention of a block stands."""
    rows, columns = model.patch_embed.grid_size
    return Site(number, (rows, columns), model.num_prefix_tokens, model.blocks[number].attn.head_dim)


def class_of(kind: str) -> Any:
    """The class of a kind's module."""
    module, _, name = KINDS[kind].where.partition(":")
    return getattr(importlib.import_module(module), name)


def settings_of(kind: str) -> dict[str, Any]:
    """The names and defaults of a kind's settings; `inspect.Parameter.empty` where there is none."""
    parameters = inspect.signature(class_of(kind).__init__).parameters
    return {name: p.default for name, p in parameters.items() if name not in _NOT_SETTINGS}


def unsuitable(model: nn.Module) -> str:
    """Why the attention of a model, as timm built it, cannot be swapped; nothing where it can."""
    if type(model) not in (VisionTransformer, VisionTransformerDistilled):
        return (
            "only a plain ViT (ViT, DeiT, DeiT-III) has attention between all its tokens that can be swapped"
        )
    if not hasattr(model.patch_embed, "grid_size"):
        return "its stem does not say how many rows and columns of patches it gives"
    if not isinstance(getattr(model, "patch_drop", None), nn.Identity):
        return "model.args.patch_drop_rate drops patches, and what is left is no grid"
    blocks = [block for block in model.blocks if type(block) is not nn.Identity]  # type: ignore[union-attr]
    if any(type(getattr(block, "attn", None)) is not Attention for block in blocks):
        return "its blocks have an attention of their own kind, not timm's plain one"
    return ""


def without(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the same model with exact attention."""
    return {name: value for name, value in kwargs.items() if name != NAME}


def comparable(kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of the exact counterpart that takes the same weights; None where nothing was swapped.

    Exact stands for every kind that keeps the projections. What else stands in a block has no exact counterpart and
    stays.
    """
    entries: list[Entry] = list(kwargs.get(NAME) or [])
    if not any(_keeps(entry) for entry in entries):
        return None
    left: list[Entry] = [{"kind": EXACT} if _keeps(entry) else entry for entry in entries]
    mixed = any(entry["kind"] != EXACT for entry in left)
    return without(kwargs) | ({NAME: left} if mixed else {})


def _keeps(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] != EXACT and KINDS[entry["kind"]].keeps
