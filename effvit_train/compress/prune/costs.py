"""What a model of given widths costs: sums of products of widths, exact for MACs and parameters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from effvit_train.audit.operations import count_operations
from effvit_train.models.attention.base import Swapped
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import Axis, Structure, segment_length
from effvit_train.models.surgery import Drop, apply
from effvit_train.models.tokens.blocks import TokenBlock

Sizes = dict[str, int]


class Cost(Protocol):
    """A cost that a budget can be set for."""

    def total(self, sizes: Sizes, dropped: frozenset[str]) -> float:
        """Of a model of these widths, without the dropped blocks."""
        ...

    def saving(self, sizes: Sizes, dropped: frozenset[str], change: Sizes, block: str | None) -> float:
        """What is saved by a change of widths, or by dropping a block."""
        ...


@dataclass(frozen=True)
class Product:
    """A term of a cost: a coefficient times the lengths of axes.

    Attributes:
        coefficient: such as the number of positions that a layer is applied to.
        axes: whose lengths are multiplied.
        block: that it belongs to; nothing remains of it when the block is dropped.
    """

    coefficient: int
    axes: tuple[Axis, ...]
    block: str | None

    def value(self, sizes: Sizes) -> int:
        """At these widths."""
        lengths = (sum(segment_length(segment, sizes) for segment in axis) for axis in self.axes)
        return self.coefficient * math.prod(lengths)

    def factors(self) -> set[str]:
        """What it depends on."""
        return {f for axis in self.axes for segment in axis for f in segment if isinstance(f, str)}


class Products:
    """A cost that is a constant and a sum of products.

    Args:
        terms: the products.
        constant: the rest.
    """

    def __init__(self, terms: Iterable[Product], constant: int) -> None:
        self.terms, self.constant = list(terms), constant
        self._of: dict[str, list[Product]] = {}
        for term in self.terms:
            for factor in term.factors():
                self._of.setdefault(factor, []).append(term)

    def total(self, sizes: Sizes, dropped: frozenset[str] = frozenset()) -> float:
        """Of a model of these widths, without the dropped blocks."""
        return self.constant + sum(term.value(sizes) for term in self.terms if term.block not in dropped)

    def saving(self, sizes: Sizes, dropped: frozenset[str], change: Sizes, block: str | None = None) -> float:
        """What is saved by a change of widths, or by dropping a block."""
        if block is not None:
            return sum(term.value(sizes) for term in self.terms if term.block == block)
        after = {**sizes, **change}
        touched = {id(term): term for factor in change for term in self._of.get(factor, ())}
        return sum(
            term.value(sizes) - term.value(after) for term in touched.values() if term.block not in dropped
        )


def parameters(model: nn.Module, structure: Structure) -> Products:
    """The number of parameters, as a function of widths."""
    terms = [
        Product(1, structure.axes.get(name) or _whole(parameter), block_of(name, structure))
        for name, parameter in model.named_parameters()
    ]
    return Products(terms, 0)


def macs(record: ArchitectureRecord, structure: Structure) -> Products:
    """Multiply-accumulates of one image, as a function of widths.

    Counted on the meta device; the products are those of the described layers and of attention, the rest is
    a constant, or one of its block.
    """
    with torch.device("meta"):
        model = build(record)
    positions: Counter[str] = Counter()
    given: dict[str, int] = {}
    attended: Counter[tuple[str, int]] = Counter()  # tokens that attend to one another, and how often

    def count(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            positions[name] += output.numel() // module.weight.shape[0]

        return hook

    def attend(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            batch, tokens, _ = inputs[0].shape
            given[name] = tokens
            attended[name, tokens] += batch

        return hook

    layers = {
        name.removesuffix(".weight")
        for name in structure.axes
        if name.endswith(".weight")
        and isinstance(model.get_submodule(name.removesuffix(".weight")), (nn.Linear, nn.Conv2d))
    }
    hooks = [model.get_submodule(name).register_forward_hook(count(name)) for name in layers]
    hooks += [
        model.get_submodule(name).register_forward_pre_hook(attend(name)) for name in structure.attention
    ]
    total = count_operations(model, record.input_shape).macs
    for hook in hooks:
        hook.remove()
    terms = [
        Product(positions[name], structure.axes[f"{name}.weight"], block_of(name, structure))
        for name in sorted(layers)
    ]
    for name, (heads, qk, _) in structure.attention.items():
        around = model.get_submodule(name.rpartition(".")[0])
        if isinstance(around, TokenBlock):
            judged, each_head = around.judging(given[name] - around.prefix)
            terms.append(
                Product(judged, ((((heads, qk) if each_head else (qk,)),),), block_of(name, structure))
            )
    for (name, tokens), times in attended.items():
        heads, qk, v = structure.attention[name]
        block, module = block_of(name, structure), model.get_submodule(name)
        if not isinstance(module, Swapped):
            terms.append(Product(times * tokens**2, (((heads, qk), (heads, v)),), block))
            continue
        constant, width, square = (times * work for work in module.work(tokens))
        for coefficient, axes in ((constant, ((heads,),)), (width, ((heads, qk),))):
            terms.append(Product(coefficient, (axes,), block))
        terms.append(Product(square, (((heads, qk),), ((v,),)), block))
    rest = total
    for block in structure.blocks:
        if f"{block}.attn" not in structure.attention or f"{block}.mlp" not in structure.groups:
            # it can be left out, but not all of it is described
            apply(model, [Drop(block)])
            before, rest = rest, count_operations(model, record.input_shape).macs
            known = sum(term.value(structure.sizes) for term in terms if term.block == block)
            terms.append(Product(before - rest - known, (), block))
    return Products(terms, total - sum(term.value(structure.sizes) for term in terms))


def block_of(name: str, structure: Structure) -> str | None:
    """The block that a parameter or a module lies in."""
    return next((block for block in structure.blocks if name.startswith(f"{block}.")), None)


def _whole(parameter: Tensor) -> tuple[Axis, ...]:
    return (((parameter.numel(),),),)
