"""Which parts of a model can be cut away, and which entries of its tensors each of them owns.

A *group* is a set of like units: the heads of an attention, the hidden units of an MLP, the dimensions
of the embedding. Every dimension of a parameter is described by an *axis*: a row of segments, each the
product of factors, such as `((heads, qk), (heads, qk), (heads, v))` for the rows of a fused query, key
and value projection. What a unit owns, what it costs and how it is cut follow from that description.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import Attention, GluMlp, LayerScale, Mlp, SwiGLU
from timm.models.swin_transformer import (
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from effvit_train.models.attention.base import Swapped
from effvit_train.models.factored import FactoredLinear, is_linear, shape_of
from effvit_train.models.few_bits import FakeQuantLinear
from effvit_train.models.flexible import FLEXIBLE
from effvit_train.models.spectral import FourierMixer, WaveletMixer
from effvit_train.models.tokens.blocks import TokenAttention, TokenBlock

Segment = tuple[str | int, ...]  # the product of factors: a factor's name, or a constant
Axis = tuple[Segment, ...]  # segments one after another


@dataclass(frozen=True)
class Tap:
    """A place where a group's units can be seen: a dimension of what a module takes or gives.

    Attributes:
        module: name of the submodule.
        output: what it gives, not what it takes.
        axis: of that dimension.
        dim: the last, or 1 of images (B, C, H, W).
    """

    module: str
    output: bool
    axis: Axis
    dim: int = -1


@dataclass(frozen=True)
class Group:
    """Units that can be cut.

    Attributes:
        name: such as `blocks.3.mlp`, `blocks.3.attn.heads`, `embed`.
        kind: heads | head_width | mlp | embed.
        factors: names in the axes; of a `head_width` two, which have to be equally wide.
        block: the block that it lies in, or None.
        taps: where its units are seen, factor by factor.
    """

    name: str
    kind: str
    factors: tuple[str, ...]
    block: str | None = None
    taps: tuple[tuple[Tap, ...], ...] = ()


@dataclass
class Structure:
    """What can be cut of one model, as it is now.

    Attributes:
        sizes: factor -> number of its units; of a width, per head.
        axes: parameter -> the axis of each of its dimensions.
        groups: by name.
        blocks: names of the blocks that can be left out, in order.
        attention: attention module -> its factors (heads, qk, v).
    """

    sizes: dict[str, int] = field(default_factory=dict)
    axes: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    attention: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def size(self, group: Group) -> int:
        """Units that the group has now."""
        return self.sizes[group.factors[0]]

    def heads_of(self, group: Group) -> str:
        """The factor that counts the heads of the attention whose heads or widths these are."""
        return self.attention[group.name.rpartition(".")[0]][0]

    def length(self, axis: Axis) -> int:
        """Entries of an axis."""
        return sum(segment_length(segment, self.sizes) for segment in axis)

    def axis(self, layer: str, dim: int) -> Axis:
        """Of a linear layer's outputs (0) or inputs (1), whether it is one matrix or a product."""
        return (self.axes.get(f"{layer}.weight") or self.axes[f"{layer}.{'down' if dim else 'up'}.weight"])[
            dim
        ]

    def touched(self, factor: str) -> Iterator[tuple[str, int, Axis]]:
        """Parameter, dimension and axis wherever the factor occurs."""
        for name, axes in self.axes.items():
            for dim, axis in enumerate(axes):
                if any(factor in segment for segment in axis):
                    yield name, dim, axis


def segment_length(segment: Segment, sizes: Mapping[str, int]) -> int:
    """Entries of a segment."""
    return math.prod(factor if isinstance(factor, int) else sizes[factor] for factor in segment)


def units(axis: Axis, factor: str, sizes: dict[str, int], *, per: str | None = None) -> Tensor:
    """The unit that each entry of the axis belongs to, or -1.

    With `per`, a factor that stands before it, a unit of `factor` within each unit of `per` counts on
    its own: units are numbered `per's unit * size + unit`.
    """
    parts = []
    for segment in axis:
        shape = [factor_ if isinstance(factor_, int) else sizes[factor_] for factor_ in segment]
        if factor not in segment:
            parts.append(torch.full((math.prod(shape),), -1))
            continue
        number = torch.zeros(shape, dtype=torch.long)
        for name in (factor,) if per is None else (per, factor):
            at = segment.index(name)
            view = [1] * len(shape)
            view[at] = shape[at]
            number = number * sizes[name] + torch.arange(shape[at]).view(view)
        parts.append(number.reshape(-1))
    return torch.cat(parts)


def read_structure(model: nn.Module) -> Structure:
    """What can be cut of a timm model; a structure without groups and blocks where nothing can."""
    structure = Structure()
    for name, module in model.named_modules():
        if type(module) in (Attention, TokenAttention, WindowAttention) or isinstance(module, Swapped):
            _read_attention(structure, name, module)
        elif type(module) in (Mlp, GluMlp, SwiGLU):
            _read_mlp(structure, name, module)
    if type(model) in (*FLEXIBLE, *FLEXIBLE.values()):
        _read_vit(structure, model)
    elif type(model) is SwinTransformer:
        _read_swin(structure, model)
    for name, parameter in model.named_parameters():
        known = structure.axes.get(name)
        if known is not None:
            lengths = tuple(structure.length(axis) for axis in known)
            if lengths != tuple(parameter.shape):
                raise ValueError(f"{name} is {tuple(parameter.shape)}, its description says {lengths}")
    return structure


def _read_attention(structure: Structure, name: str, module: Any) -> None:
    if not isinstance(getattr(module, "norm", nn.Identity()), nn.Identity):
        return  # normalises over all heads: they cannot be taken away one by one
    heads, qk, v = f"{name}.heads", f"{name}.qk", f"{name}.v"
    rows = {part: getattr(module, part) for part in ("qkv", "proj")}
    if not all(_can_be_cut(layer) for layer in rows.values()):
        return
    width = shape_of(rows["proj"])[1] // module.num_heads
    structure.sizes |= {heads: module.num_heads, qk: width, v: width}
    structure.attention[name] = (heads, qk, v)
    fused: Axis = ((heads, qk), (heads, qk), (heads, v))
    inner: Axis = ((heads, v),)
    _describe(structure, module, name, "qkv", 0, fused)
    _describe(structure, module, name, "proj", 1, inner)
    if getattr(module, "gate", None) is not None:
        _describe(structure, module, name, "gate", 0, inner)
    table = getattr(module, "relative_position_bias_table", None)
    if table is not None:
        _axis(structure, f"{name}.relative_position_bias_table", table, 1, ((heads,),))
    seen = Tap(f"{name}.proj", False, inner)
    block = name.removesuffix(".attn") if name.endswith(".attn") else None
    structure.groups[heads] = Group(heads, "heads", (heads,), block, ((seen,),))
    narrows = getattr(module, "narrows", True)
    if narrows and isinstance(getattr(module, "q_norm", nn.Identity()), nn.Identity):
        # a norm of queries and keys has one scale for all heads, which here choose their own dimensions
        query = Tap(f"{name}.qkv", True, ((heads, qk), (structure.length(inner) * 2,)))
        group = f"{name}.head_width"
        structure.groups[group] = Group(group, "head_width", (qk, v), block, ((query,), (seen,)))


def _read_mlp(structure: Structure, name: str, module: Any) -> None:
    if not isinstance(getattr(module, "norm", nn.Identity()), nn.Identity):
        return  # normalises over the hidden units
    first = ("fc1_g", "fc1_x") if type(module) is SwiGLU else ("fc1",)
    if not all(_is_pointwise(getattr(module, part)) for part in (*first, "fc2")):
        return
    structure.sizes[name] = shape_of(module.fc2)[1]
    own: Axis = ((name,),)
    for part in first:
        _describe(structure, module, name, part, 0, own * 2 if type(module) is GluMlp else own)
    _describe(structure, module, name, "fc2", 1, own)
    block = name.removesuffix(".mlp") if name.endswith(".mlp") else None
    seen = Tap(f"{name}.fc2", False, own, 1 if isinstance(module.fc2, nn.Conv2d) else -1)
    structure.groups[name] = Group(name, "mlp", (name,), block, ((seen,),))


def _read_vit(structure: Structure, model: Any) -> None:
    blocks = {f"blocks.{k}": block for k, block in enumerate(model.blocks)}
    kept = {name: block for name, block in blocks.items() if type(block) is not nn.Identity}
    if any(type(block) is not Block and not isinstance(block, TokenBlock) for block in kept.values()):
        return
    # without a block that takes tokens away, what comes after it would cost more: no block's own cost to save
    structure.blocks = [name for name, block in kept.items() if not _takes_tokens(block)]
    if model.attn_pool is not None:
        return
    embed = "embed"
    stem = [name for name in ("cls_token", "reg_token", "dist_token", "pos_embed")
            if isinstance(getattr(model, name, None), nn.Parameter)]  # fmt: skip
    norms = ("patch_embed.norm", "norm_pre", "norm", "fc_norm")
    known = all(_is_known(structure, name, block) for name, block in kept.items())
    known = known and type(getattr(model.patch_embed, "proj", None)) is nn.Conv2d
    if not (known and all(_is_norm(_submodule(model, name)) for name in norms)):
        return
    structure.sizes[embed] = model.embed_dim
    own: Axis = ((embed,),)
    taps = _embed_of_blocks(structure, kept, embed)
    for name in stem:
        _axis(structure, name, getattr(model, name), 2, own)
    _describe(structure, model.patch_embed, "patch_embed", "proj", 0, own)
    for name in norms:
        _describe_norm(structure, model, name, own)
    for name in ("head", "head_dist"):
        if isinstance(getattr(model, name, None), (nn.Linear, FactoredLinear)):
            _describe(structure, model, "", name, 1, own, bias=False)
    if type(model.head) is nn.Sequential:  # sees every token
        tokens = model.head[1].in_features // model.embed_dim
        _describe(structure, model.head, "head", "1", 1, ((tokens, embed),), bias=False)
    last = "fc_norm" if not isinstance(model.fc_norm, nn.Identity) else "norm"
    if not isinstance(model.get_submodule(last), nn.Identity):
        taps.append(Tap(last, True, own))
    structure.groups[embed] = Group(embed, "embed", (embed,), None, (tuple(taps),))


def _takes_tokens(block: nn.Module) -> bool:
    return isinstance(block, TokenBlock) and block.takes_tokens


def _read_swin(structure: Structure, model: Any) -> None:
    stages = [f"layers.{k}" for k in range(len(model.layers))]
    blocks: dict[str, dict[str, nn.Module]] = {}
    for stage in stages:
        names = {f"{stage}.blocks.{k}": b for k, b in enumerate(model.get_submodule(f"{stage}.blocks"))}
        blocks[stage] = {name: b for name, b in names.items() if type(b) is not nn.Identity}
        if any(type(block) is not SwinTransformerBlock for block in blocks[stage].values()):
            return
    structure.blocks = [name for stage in stages for name in blocks[stage]]
    known = all(_is_known(structure, name, b) for stage in stages for name, b in blocks[stage].items())
    if not (known and is_linear(model.head.fc)):
        return
    embeds = {stage: f"{stage}.embed" for stage in stages}
    taps = {stage: _embed_of_blocks(structure, blocks[stage], embeds[stage]) for stage in stages}
    first, last = embeds[stages[0]], embeds[stages[-1]]
    structure.sizes[first] = model.patch_embed.proj.out_channels
    _describe(structure, model.patch_embed, "patch_embed", "proj", 0, ((first,),))
    _describe_norm(structure, model, "patch_embed.norm", ((first,),))
    for before, stage in itertools.pairwise(stages):
        merging = model.get_submodule(f"{stage}.downsample")
        assert isinstance(merging, PatchMerging)
        four: Axis = ((4, embeds[before]),)
        structure.sizes[embeds[stage]] = merging.reduction.out_features
        _describe_norm(structure, model, f"{stage}.downsample.norm", four)
        _describe(structure, merging, f"{stage}.downsample", "reduction", 0, ((embeds[stage],),))
        _describe(structure, merging, f"{stage}.downsample", "reduction", 1, four)
        taps[before].append(Tap(f"{stage}.downsample.norm", True, four))
    _describe_norm(structure, model, "norm", ((last,),))
    _describe(structure, model.head, "head", "fc", 1, ((last,),), bias=False)
    taps[stages[-1]].append(Tap("norm", True, ((last,),)))
    for stage in stages:
        embed = embeds[stage]
        structure.groups[embed] = Group(embed, "embed", (embed,), None, (tuple(taps[stage]),))


def _is_known(structure: Structure, name: str, block: nn.Module) -> bool:
    """Whether all is understood that the block reads from and writes to the embedding."""
    return (
        (f"{name}.attn" in structure.attention or _mixes_channels_apart(block.attn))
        and f"{name}.mlp" in structure.groups
        and _is_norm(block.norm1)
        and _is_norm(block.norm2)
        and all(
            isinstance(getattr(block, scale, None), (LayerScale, nn.Identity, type(None)))
            for scale in ("ls1", "ls2")
        )
    )


def _embed_of_blocks(structure: Structure, blocks: dict[str, nn.Module], embed: str) -> list[Tap]:
    """Describe what the blocks read from and write to the embedding; returns where it is read."""
    own: Axis = ((embed,),)
    taps = []
    for name, block in blocks.items():
        for scale in ("ls1", "ls2"):
            if isinstance(getattr(block, scale, None), LayerScale):
                _axis(structure, f"{name}.{scale}.gamma", getattr(block, scale).gamma, 0, own)
        for norm in ("norm1", "norm2"):
            _describe_norm(structure, block, norm, own, path=f"{name}.{norm}")
            taps.append(Tap(f"{name}.{norm}", True, own))
        inner = [("attn", "qkv"), ("attn", "gate"), ("mlp", "fc1"), ("mlp", "fc1_g"), ("mlp", "fc1_x")]
        for part, layer in inner:
            if getattr(block.get_submodule(part), layer, None) is not None:
                _describe(structure, block.get_submodule(part), f"{name}.{part}", layer, 1, own)
        outer = [("mlp", "fc2")]
        if _mixes_channels_apart(block.get_submodule("attn")):
            _describe_mixer(structure, block.get_submodule("attn"), f"{name}.attn", own)
        else:
            outer.append(("attn", "proj"))
        for part, layer in outer:
            _describe(structure, block.get_submodule(part), f"{name}.{part}", layer, 0, own)
    return taps


def _mixes_channels_apart(module: object) -> bool:
    return type(module) in (FourierMixer, WaveletMixer)


def _describe_mixer(structure: Structure, mixer: Any, path: str, own: Axis) -> None:
    _axis(structure, f"{path}.filter.weight", mixer.filter.weight, 2, own)
    if mixer.prefix is not None:
        ((embed,),) = own
        _axis(structure, f"{path}.prefix.weight", mixer.prefix.weight, 0, ((mixer.prefix.tokens, embed),))


def _is_pointwise(module: object) -> bool:
    """A linear layer, or a convolution that is one at every position."""
    if type(module) is nn.Conv2d:
        return module.kernel_size == (1, 1) and module.groups == 1
    return _can_be_cut(module)


def _can_be_cut(module: object) -> bool:
    return is_linear(module) or type(module) is FakeQuantLinear


def _is_norm(module: object) -> bool:
    return isinstance(module, (nn.LayerNorm, nn.Identity))


def _describe(
    structure: Structure, parent: nn.Module, path: str, layer: str, dim: int, axis: Axis, *, bias: bool = True
) -> None:
    """Describe a dimension of a layer's weight, and its bias where the dimension is that of its outputs."""
    module = getattr(parent, layer)
    name = f"{path}.{layer}" if path else layer
    if isinstance(module, FactoredLinear):  # its outputs are those of one factor, its inputs of the other
        _describe(structure, module, name, "down" if dim else "up", dim, axis, bias=bias)
        return
    _axis(structure, f"{name}.weight", module.weight, dim, axis)
    if dim == 0 and bias and module.bias is not None:
        _axis(structure, f"{name}.bias", module.bias, 0, axis)


def _describe_norm(
    structure: Structure, parent: nn.Module, norm: str, axis: Axis, *, path: str | None = None
) -> None:
    for part, parameter in _submodule(parent, norm).named_parameters(recurse=False):
        _axis(structure, f"{path or norm}.{part}", parameter, 0, axis)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    """A submodule, or what does nothing where there is none."""
    for part in name.split("."):
        model = getattr(model, part, None) or nn.Identity()
    return model


def _axis(structure: Structure, name: str, parameter: Tensor, dim: int, axis: Axis) -> None:
    before = structure.axes.get(name) or tuple(((size,),) for size in parameter.shape)
    structure.axes[name] = (*before[:dim], axis, *before[dim + 1 :])
