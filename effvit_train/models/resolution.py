"""The change that lets a plain ViT take images of several sizes and patches, and its record (contract C5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Format, PatchEmbed
from torch import nn

from effvit_train.models.flexible import FLEXIBLE, FlexiblePatchEmbed, buffer_name
from effvit_train.models.resample import interpolation
from effvit_train.models.surgery import Change

KIND = "resolution"  # the `kind` of our entries in an architecture record


@dataclass(frozen=True)
class Flexible(Change):
    """Let a plain ViT take images of other sizes.

    Attributes:
        grids: patches per side whose resampling is made ready; others are made when they come.
        patch: pixels per side of the patches that it cuts images into from now on; None = its own.
    """

    grids: tuple[int, ...]
    patch: int | None = None

    def carry_out(self, model: Any, optimizer: torch.optim.Optimizer | None) -> None:
        """Change what computes; every parameter stays, with its state."""
        embed = model.patch_embed
        if type(model) in FLEXIBLE:
            model.__class__ = FLEXIBLE[type(model)]
            model.dynamic_img_size = True
            embed.__class__ = FlexiblePatchEmbed
            embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
        embed.cut_into(self.patch or int(embed.patch_size[0]))
        like = embed.proj.weight
        for old in sorted(set(embed.grid_size)):
            for new in self.grids:
                if new != old:
                    matrix = interpolation(old, new).to(like.device, torch.float32)
                    model.register_buffer(buffer_name(old, new), matrix, persistent=False)


def why_not(model: Any) -> str:
    """Why a model cannot take images of other sizes, as a clause that follows its name; empty where it can.

    A module that works on one grid of tokens only says so by an attribute `any_grid = False`.
    """
    for name, module in model.named_modules():
        if getattr(module, "any_grid", True) is False:
            return f"has {type(module).__name__} ({name}), which is made for one grid of patches"
    if isinstance(model, tuple(FLEXIBLE.values())):
        return ""
    if any(hasattr(module, "window_size") for module in model.modules()):
        return "attends within windows, which are laid out for images of one size"
    if type(model) not in FLEXIBLE:
        return "is no plain ViT or DeiT, whose position embedding can be resampled"
    if type(model.patch_embed) is not PatchEmbed:
        return f"has a stem ({type(model.patch_embed).__name__}) that is made for images of one size"
    if type(model.head) is nn.Sequential:
        return "has a head that gives every token weights of its own (model.pool=flat), for a fixed number of them"
    if model.patch_embed.patch_size[0] != model.patch_embed.patch_size[1]:
        return "has patches that are no squares"
    if getattr(model.attn_pool, "pos_embed", None) is not None:
        return "pools its tokens with positions of their own"
    return ""


def entry_of(sizes: Sequence[int], patches: Sequence[int]) -> dict[str, Any]:
    """The entry of an architecture record: images of these sizes were shown, cut into these patches (pixels)."""
    return {"kind": KIND, "sizes": list(sizes), "patches": list(patches), "patch": None}


def operations_of(model: Any, entry: Mapping[str, Any]) -> list[Change]:
    """The operations that change a model as an entry says."""
    grids = {size // patch for size in entry["sizes"] for patch in entry["patches"] if size % patch == 0}
    return [Flexible(tuple(sorted(grids)), entry.get("patch"))]


def recorded(model: nn.Module, entry: Mapping[str, Any]) -> list[Change]:
    """The operations of a recorded change; raises `ValueError` for one that is not of this model."""
    for name in ("sizes", "patches"):
        values = entry.get(name)
        if not isinstance(values, list) or not values or any(type(v) is not int or v < 1 for v in values):
            raise ValueError(f"a change of resolution in the architecture record does not tell its {name}")
    patch = entry.get("patch")
    if patch is not None and (type(patch) is not int or patch < 1):
        raise ValueError(f"the architecture record cuts images into patches of {patch!r} pixels")
    reason = why_not(model)
    if reason:
        raise ValueError(f"a change of resolution was recorded of a model that {reason}")
    return operations_of(model, entry)


def entry_in(cuts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The last entry of our kind among a record's, or None."""
    return next((cut for cut in reversed(cuts) if cut.get("kind") == KIND), None)
