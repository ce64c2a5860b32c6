"""Latency as a function of widths, from a table measured on this device before training."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from effvit_train.compress.prune.costs import Sizes, block_of
from effvit_train.models.factored import shape_of
from effvit_train.models.structure import Structure, read_structure
from effvit_train.models.surgery import Drop, apply, cut_group, first_units

_POINTS = 8  # widths that are measured of each kind of layer
_COARSE = 4  # where two widths vary at once
_ROUNDS = 31
_SCALES = (0.5, 2.0)


@dataclass(frozen=True)
class Grid:
    """Milliseconds of one kind of module at a grid of widths.

    Attributes:
        widths: for each factor that varies the widths that were measured, ascending.
        milliseconds: in the order of the product of the widths, the last running fastest.
    """

    widths: list[list[int]]
    milliseconds: list[float]

    def at(self, widths: Sequence[int]) -> float:
        """Interpolated, linearly in each width; the ends go on."""
        values = np.array(self.milliseconds).reshape([len(w) for w in self.widths])
        for points, width in zip(self.widths, widths, strict=True):
            values = _interpolate(points, values, width)
        return float(values)


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        whole_ms: the uncut model.
        grids: one for each kind of module.
        modules: module -> number of its grid, and its factors.
        scale: what is saved in the whole model, over what its modules save by themselves.
    """

    whole_ms: float
    grids: list[Grid]
    modules: dict[str, tuple[int, list[str]]]
    scale: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """What is kept in the run directory."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Table:
        """What `to_json` gave."""
        grids = [
            Grid([list(w) for w in grid["widths"]], list(grid["milliseconds"])) for grid in value["grids"]
        ]
        modules = {name: (int(grid), list(factors)) for name, (grid, factors) in value["modules"].items()}
        return cls(float(value["whole_ms"]), grids, modules, float(value.get("scale", 1.0)))


class Latency:
    """Milliseconds of one image: the uncut model's, less what its attentions and MLPs have become cheaper.

    Args:
        table: what was measured.
        structure: of the uncut model.
    """

    def __init__(self, table: Table, structure: Structure) -> None:
        self._table = table
        self._block = {name: block_of(name, structure) for name in table.modules}
        known = self._sum(structure.sizes, frozenset())
        self._rest = table.whole_ms - known

    def total(self, sizes: Sizes, dropped: frozenset[str] = frozenset()) -> float:
        """Of a model of these widths, without the dropped blocks."""
        return self._rest + self._sum(sizes, dropped)

    def _sum(self, sizes: Sizes, dropped: frozenset[str]) -> float:
        return sum(self._of(name, sizes) for name in self._table.modules if self._block[name] not in dropped)

    def saving(self, sizes: Sizes, dropped: frozenset[str], change: Sizes, block: str | None = None) -> float:
        """What is saved by a change of widths, or by dropping a block."""
        if block is not None:
            return sum(self._of(name, sizes) for name, of in self._block.items() if of == block)
        after = {**sizes, **change}
        return sum(
            self._of(name, sizes) - self._of(name, after)
            for name, (_, factors) in self._table.modules.items()
            if self._block[name] not in dropped and set(factors) & set(change)
        )

    def _of(self, name: str, sizes: Sizes) -> float:
        grid, factors = self._table.modules[name]
        return self._table.scale * self._table.grids[grid].at([sizes[factor] for factor in factors])


def measure(
    model: nn.Module, structure: Structure, input_shape: tuple[int, int, int], kinds: Sequence[str]
) -> Table:
    """Measure the table for a model, with one image at a time, in evaluation mode.

    Modules that are alike and see inputs of the same shape share a grid. All grids and the whole model are
    measured in turn, and the median of the rounds is taken, so that other work on the machine falls on all.
    A module by itself has the caches to itself: so a model that is cut to half everywhere is measured too, and
    tells by how much more or less the whole saves.
    """
    model = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    image = torch.zeros(1, *input_shape, device=device)
    inputs = _inputs(model, structure, image)
    kinds_of: dict[tuple[Any, ...], int] = {}
    modules: dict[str, tuple[int, list[str]]] = {}
    works: list[Callable[[], Any]] = []
    plans: list[tuple[list[list[int]], list[int]]] = []
    for name, given in inputs.items():
        factors = _factors(structure, name, kinds)
        if not factors and "blocks" not in kinds:
            continue
        module = model.get_submodule(name)
        shapes = tuple(tuple(p.shape) for p in module.parameters())
        heads = tuple(structure.sizes[factor] for factor in structure.attention.get(name, ()))
        # of swapped attention the settings tell what it does
        key = (type(module), module.extra_repr(), shapes, heads, tuple(given.shape))
        if key not in kinds_of:
            points = _POINTS if len(factors) < 2 else _COARSE
            widths = [_widths(structure.sizes[factor], points) for factor in factors]
            numbers = []
            for combination in np.ndindex(*(len(w) for w in widths)):
                wanted = dict(
                    zip(factors, (w[k] for w, k in zip(widths, combination, strict=True)), strict=True)
                )
                numbers.append(len(works))
                works.append(_work(model, structure, name, given, wanted))
            kinds_of[key] = len(plans)
            plans.append((widths, numbers))
        modules[name] = (kinds_of[key], factors)
    half, sizes, dropped = _half(model, structure, kinds)
    works += [_forward(model, image), _forward(half, image)]
    medians = _medians(works, device)
    *_, whole_ms, half_ms = medians
    grids = [Grid(widths, [medians[number] for number in numbers]) for widths, numbers in plans]
    table = Table(whole_ms, grids, modules)
    saved = whole_ms - Latency(table, structure).total(sizes, dropped)
    # a clock that was disturbed shows anything: a budget must not become absurd by it
    scale = min(_SCALES[1], max(_SCALES[0], (whole_ms - half_ms) / saved)) if saved > 0 else 1.0
    return dataclasses.replace(table, scale=scale)


def _forward(model: nn.Module, image: Tensor) -> Callable[[], Any]:
    return lambda: model(image)


def _half(
    model: nn.Module, structure: Structure, kinds: Sequence[str]
) -> tuple[nn.Module, Sizes, frozenset[str]]:
    """A copy that is cut to half in all kinds, its sizes, and the blocks that it lacks."""
    model = copy.deepcopy(model)
    # what reads the embedding outside the blocks is not in the table
    kinds = [kind for kind in kinds if kind != "embed"] or list(kinds)
    dropped = frozenset(structure.blocks[1::2]) if list(kinds) == ["blocks"] else frozenset()
    apply(model, [Drop(block) for block in sorted(dropped)])
    for name, group in structure.groups.items():
        if group.kind in kinds and group.block not in dropped:
            now = read_structure(model)
            width = max(1, round(structure.size(group) / 2))
            apply(model, cut_group(now, now.groups[name], first_units(now, now.groups[name], width)))
    return model, {**structure.sizes, **read_structure(model).sizes}, dropped


def _inputs(model: nn.Module, structure: Structure, image: Tensor) -> dict[str, Tensor]:
    """What each attention and MLP is given for one image."""
    names = [*structure.attention, *(g.name for g in structure.groups.values() if g.kind == "mlp")]
    given: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: given.__setitem__(name, inputs[0].detach())
        )
        for name in names
    ]
    with torch.inference_mode():
        model(image)
    for hook in hooks:
        hook.remove()
    return given


def _factors(structure: Structure, name: str, kinds: Sequence[str]) -> list[str]:
    """What of a module's cost may vary."""
    factors = []
    if name in structure.attention:
        heads, qk, _ = structure.attention[name]
        factors += [heads] if "heads" in kinds else []
        factors += [qk] if "head_width" in kinds else []
    elif "mlp" in kinds:
        factors.append(name)
    if "embed" in kinds:
        axis = (
            structure.axis(f"{name}.qkv", 1)
            if name in structure.attention
            else structure.axis(f"{name}.fc2", 0)
        )
        factors += [factor for factor in axis[0] if isinstance(factor, str)]
    return factors


def _widths(size: int, points: int) -> list[int]:
    return sorted({max(1, round(size * k / points)) for k in range(1, points + 1)})


def _work(
    model: nn.Module, structure: Structure, name: str, given: Tensor, wanted: dict[str, int]
) -> Callable[[], Any]:
    """One forward of a copy of the module that has these widths."""
    holder = nn.Module()
    whole = copy.deepcopy(structure)
    parts = name.split(".")
    node = holder
    for part in parts[:-1]:
        node.add_module(part, nn.Module())
        node = getattr(node, part)
    node.add_module(parts[-1], copy.deepcopy(model.get_submodule(name)))
    inside = {parameter for parameter in whole.axes if parameter.startswith(f"{name}.")}
    whole.axes = {parameter: whole.axes[parameter] for parameter in inside}
    for group in whole.groups.values():
        width = wanted.get(group.factors[0])
        if width is not None and width < whole.size(group):
            apply(holder, cut_group(whole, group, first_units(whole, group, width)))
    module = holder.get_submodule(name)
    columns = shape_of(module.get_submodule("qkv" if name in structure.attention else _first(module)))[1]
    shown = given[..., :columns].contiguous() if columns != given.shape[-1] else given
    return lambda: module(shown)


def _first(module: nn.Module) -> str:
    return "fc1" if hasattr(module, "fc1") else "fc1_g"


def _medians(works: Sequence[Callable[[], Any]], device: torch.device) -> list[float]:
    times: list[list[float]] = [[] for _ in works]
    with torch.inference_mode():
        for work in works:
            work()
        for turn in range(_ROUNDS):
            order = range(len(works)) if turn % 2 == 0 else reversed(range(len(works)))
            for number in order:
                works[number]()  # brings into the caches what it needs, as image after image would
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                start = time.perf_counter()
                works[number]()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[number].append((time.perf_counter() - start) * 1e3)
    return [statistics.median(one) for one in times]


def _interpolate(points: Sequence[int], values: Any, width: float) -> Any:
    """Along the first axis."""
    if len(points) == 1:
        return values[0] * (width / points[0])
    k = int(np.clip(np.searchsorted(points, width) - 1, 0, len(points) - 2))
    share = (width - points[k]) / (points[k + 1] - points[k])
    return values[k] * (1 - share) + values[k + 1] * share
