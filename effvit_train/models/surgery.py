"""Cut units and blocks out of a model that is being trained, or rebuild one that was cut (contract C5).

A cut is a list of operations on named parameters. The same list is applied to everything that follows
the model: the optimizer's state, the moving average of the weights. Parameters keep their identity, so
that optimizers, schedules and averages still hold the ones that are trained: new `nn.Parameter`s would
silently never be trained again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from effvit_train.models.attention.base import Swapped
from effvit_train.models.factored import FactoredLinear, shape_of
from effvit_train.models.structure import Axis, Group, Structure, read_structure, segment_length

CUT = "prune"  # the `kind` of our entries in an architecture record
# How often a factor on a parameter stands in its optimizer's averages of gradients.
_POWERS = {
    **dict.fromkeys(("exp_avg", "exp_avg_diff", "momentum_buffer", "momentum", "exp_inf"), -1),
    **dict.fromkeys(("last_grad", "neg_pre_grad"), -1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "exp_avg_var", "sum"), -2),
}


@dataclass(frozen=True)
class Slice:
    """Keep these entries (k,) of a dimension of a parameter."""

    parameter: str
    dim: int
    index: Tensor


@dataclass(frozen=True)
class Scale:
    """Multiply the first `rows` rows of a parameter by `factor`."""

    parameter: str
    rows: int
    factor: float


@dataclass(frozen=True)
class Fold:
    """Let kept inputs of a linear layer stand in for removed ones.

    `weight[:, kept] += weight[:, removed] @ mix` and `bias += weight[:, removed] @ constant`, where
    `mix` is (removed, kept) or None, `constant` (removed,).
    """

    layer: str
    kept: Tensor
    removed: Tensor
    mix: Tensor | None
    constant: Tensor


@dataclass(frozen=True)
class Drop:
    """Leave a block out: nothing stands in its place."""

    block: str


@dataclass(frozen=True)
class Attend:
    """Let an attention know how many heads it has, and how wide they are."""

    module: str
    heads: int
    width: int


class Change:
    """An operation of another kind, which knows itself how it is carried out."""

    def carry_out(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Change the model, and the state of the optimizer that trains it (None: nothing does).

        A parameter that stays keeps its identity. New ones stand in the optimizer's groups where an optimizer
        that is built for the changed model would have them.
        """
        raise NotImplementedError


Operation = Slice | Scale | Fold | Drop | Attend | Change
# What is kept of a group: for each of its factors the kept units (k,), of a width (heads, k).
Keep = tuple[Tensor, ...]


def cut_group(structure: Structure, group: Group, keep: Keep) -> list[Operation]:
    """The operations that leave these units of a group, and the structure brought up to date."""
    operations: list[Operation] = []
    before = structure.size(group)
    for factor, kept in zip(group.factors, keep, strict=True):
        for name, dim, axis in structure.touched(factor):
            operations.append(Slice(name, dim, kept_entries(axis, factor, kept, structure.sizes)))
        structure.sizes[factor] = kept.shape[-1]
    after = structure.size(group)
    if group.kind in ("heads", "head_width"):
        module = group.name.rpartition(".")[0]
        heads, width, _ = structure.attention[module]
        operations.append(Attend(module, structure.sizes[heads], structure.sizes[width]))
    if group.kind == "head_width" and after != before:
        # attention divides by the root of the width: without this, queries would count for more
        rows = segment_length(structure.attention[module][:2], structure.sizes)
        scale = math.sqrt(after / before)
        operations += [
            Scale(name, rows, scale)
            for layer in (f"{module}.qkv", f"{module}.qkv.up")
            for name in (f"{layer}.weight", f"{layer}.bias")
            if name in structure.axes
        ]
    return operations


def kept_entries(axis: Axis, factor: str, kept: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """The entries of an axis that are left when `kept` units of a factor are.

    `kept` is (k,), or (n, k): k units of their own within each unit of the factor before.
    """
    parts, start = [], 0
    for segment in axis:
        length = segment_length(segment, sizes)
        entries = torch.arange(start, start + length)
        start += length
        if factor in segment:
            at = segment.index(factor)
            shape = [f if isinstance(f, int) else sizes[f] for f in segment]
            entries = entries.view(shape)
            if kept.ndim == 1:
                entries = entries.index_select(at, kept)
            else:
                assert at == len(segment) - 1
                entries = entries.view(-1, shape[-1]).gather(1, kept)
        parts.append(entries.reshape(-1))
    return torch.cat(parts)


def drop_block(structure: Structure, block: str) -> list[Operation]:
    """The operation that leaves a block out, and the structure brought up to date."""
    structure.blocks.remove(block)
    for name in [name for name in structure.axes if name.startswith(f"{block}.")]:
        del structure.axes[name]
    for name, group in list(structure.groups.items()):
        if group.block == block:
            del structure.groups[name]
    for name in [name for name in structure.attention if name.startswith(f"{block}.")]:
        del structure.attention[name]
    return [Drop(block)]


@torch.no_grad()
def apply(
    model: nn.Module, operations: Iterable[Operation], optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Carry out operations on a model and on the optimizer that trains it.

    No autograd graph that holds the parameters may be alive. What the optimizer keeps of an entry that
    stays, stays as it is.
    """
    for operation in operations:
        if isinstance(operation, Slice):
            slice_parameter(
                model.get_parameter(operation.parameter), operation.dim, operation.index, optimizer
            )
        elif isinstance(operation, Scale):
            _scale(model.get_parameter(operation.parameter), operation, optimizer)
        elif isinstance(operation, Fold):
            _fold(model.get_submodule(operation.layer), operation)
        elif isinstance(operation, Attend):
            _attend(model.get_submodule(operation.module), operation)
        elif isinstance(operation, Change):
            operation.carry_out(model, optimizer)
        else:
            _drop(model, operation.block, optimizer)
    _refresh(model)


def slice_parameter(
    parameter: nn.Parameter, dim: int, index: Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Keep these entries of one dimension of a parameter, its gradient and its optimizer's state."""
    index = index.to(parameter.device)
    shape = parameter.shape
    if optimizer is not None and parameter in optimizer.state:
        state = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                state[key] = value.index_select(dim, index)
    gradient = parameter.grad
    parameter.grad = None
    parameter.data = parameter.data.index_select(dim, index)
    if gradient is not None:
        parameter.grad = gradient.index_select(dim, index)


def _scale(parameter: nn.Parameter, operation: Scale, optimizer: torch.optim.Optimizer | None) -> None:
    rows, factor = operation.rows, operation.factor
    parameter.data[:rows] *= factor
    if parameter.grad is not None:
        parameter.grad[:rows] /= factor
    if optimizer is not None and parameter in optimizer.state:
        for key, value in optimizer.state[parameter].items():
            if key in _POWERS and isinstance(value, Tensor) and value.shape == parameter.shape:
                value[:rows] *= factor ** _POWERS[key]


def _fold(layer: nn.Module, operation: Fold) -> None:
    # what reads the inputs, and what makes outputs of that: nothing where the layer is one matrix
    first, second = (layer.down, layer.up.weight) if isinstance(layer, FactoredLinear) else (layer, None)
    weight, bias = first.weight, layer.bias
    assert isinstance(weight, Tensor)
    kept, removed, constant = (
        part.to(weight.device) for part in (operation.kept, operation.removed, operation.constant)
    )
    lost = weight.data.index_select(1, removed)
    lost = lost.flatten(1)  # of a 1x1 convolution
    if operation.mix is not None:
        more = (lost.double() @ operation.mix.to(weight.device).double()).to(weight.dtype)
        weight.data.index_add_(1, kept, more.view(more.shape + (1,) * (weight.ndim - 2)))
    if isinstance(bias, Tensor):
        more = lost.double() @ constant.double()
        bias.data += (more if second is None else second.data.double() @ more).to(bias.dtype)


def _drop(model: nn.Module, block: str, optimizer: torch.optim.Optimizer | None) -> None:
    module = model.get_submodule(block)
    if optimizer is not None:
        gone = {id(parameter) for parameter in module.parameters()}
        for parameter in module.parameters():
            optimizer.state.pop(parameter, None)
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
        # an optimizer that is built for what is left has no empty groups either
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    model.set_submodule(block, nn.Identity())


def _attend(module: Any, operation: Attend) -> None:
    module.num_heads, module.scale = operation.heads, operation.width**-0.5
    if isinstance(module, (Attention, Swapped)):
        module.head_dim, module.attn_dim = operation.width, operation.heads * operation.width


def _refresh(model: nn.Module) -> None:
    """Make what modules say about their widths agree with their parameters."""
    for module in model.modules():
        _refresh_module(module)
    if isinstance(model, VisionTransformer):
        _refresh_vit(model)
    elif isinstance(model, SwinTransformer):
        _refresh_swin(model)


def _refresh_module(module: Any) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d) and module.groups == 1:
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, WindowAttention):
        module.dim = shape_of(module.qkv)[1]
    elif isinstance(module, SwinTransformerBlock):
        module.dim = len(module.get_parameter("norm1.weight"))
    elif isinstance(module, PatchMerging):
        module.out_dim, four = shape_of(module.reduction)
        module.dim = four // 4


def _refresh_vit(model: Any) -> None:
    if not isinstance(getattr(model.patch_embed, "proj", None), nn.Conv2d):
        return  # another stem, whose width is never cut
    model.embed_dim = model.num_features = model.head_hidden_size = model.patch_embed.proj.out_channels
    for entry in model.feature_info:
        entry["num_chs"] = model.embed_dim


def _refresh_swin(model: Any) -> None:
    first = model.patch_embed.proj.out_channels
    widths = [first, *(stage.downsample.out_dim for stage in model.layers[1:])]
    model.embed_dim, model.num_features = first, widths[-1]
    model.head.in_features = model.head.num_features = widths[-1]
    for stage, before, width, entry in zip(
        model.layers, [first, *widths[:-1]], widths, model.feature_info, strict=True
    ):
        stage.dim, entry["num_chs"] = before, width


def recorded(model: nn.Module, cut: Mapping[str, Any]) -> list[Operation]:
    """The operations that bring a model to the widths of a recorded cut; which units are left is of no account.

    Raises `ValueError` for a cut that cannot be made: the record is not of this model.
    """
    blocks, widths = cut.get("blocks"), cut.get("widths")
    if not isinstance(blocks, list) or not isinstance(widths, Mapping):
        raise ValueError("a cut in the architecture record does not tell its blocks and widths")
    structure = read_structure(model)
    operations: list[Operation] = []
    for block in blocks:
        if block not in structure.blocks:
            raise ValueError(f"no block {block!r} to leave out")
        operations += drop_block(structure, block)
    for name, width in widths.items():
        group = structure.groups.get(name)
        if group is None or type(width) is not int or not 1 <= width <= structure.size(group):
            raise ValueError(f"{name!r} cannot be cut to {width!r}")
        operations += cut_group(structure, group, first_units(structure, group, width))
    return operations


def first_units(structure: Structure, group: Group, width: int) -> Keep:
    """Keep the first units of a group."""
    kept = torch.arange(width)
    if group.kind == "head_width":
        kept = kept.expand(structure.sizes[structure.heads_of(group)], -1)
    return tuple(kept for _ in group.factors)
