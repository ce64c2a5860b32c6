"""How important the units of a model are, by several criteria, and what is known of their activations.

Gradient criteria look at a gate of 1 on each unit. Its gradient for one sample is the sum over positions
of activation times gradient, which costs one backward pass for a whole batch and respects that losses are
per-sample terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.keys import stream_key
from effvit_train.models.deterministic import deterministic
from effvit_train.models.structure import Axis, Group, Structure, Tap, units


@dataclass
class Moments:
    """Of the entries of one tap: sums over samples and positions, in float64.

    Attributes:
        count: samples times positions.
        total: (n,) sum.
        squares: (n,) sum of squares.
        products: (n, n) sum of outer products, where asked for.
    """

    count: int
    total: Tensor
    squares: Tensor
    products: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """(n,)."""
        return self.total / self.count

    @property
    def variance(self) -> Tensor:
        """(n,), biased."""
        return (self.squares / self.count - self.mean**2).clamp_min(0)


@dataclass
class Calibration:
    """What calibration samples have shown.

    Attributes:
        samples: how many.
        absolute: group or block -> for each factor the sum over samples of |gate gradient|.
        squared: the same of its square.
        moments: of the entries of taps.
    """

    samples: int = 0
    absolute: dict[str, list[Tensor]] = field(default_factory=dict)
    squared: dict[str, list[Tensor]] = field(default_factory=dict)
    moments: dict[Tap, Moments] = field(default_factory=dict)


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    losses: Callable[[Any], Tensor],
    structure: Structure,
    kinds: Iterable[str],
    *,
    gradients: bool,
    products: bool = False,
) -> Calibration:
    """Run calibration batches through a model.

    Dropout and stochastic depth are off, everything else is as in training; nothing of the model, nor
    its gradients, changes.

    Args:
        model: on its device.
        batches: whatever `losses` takes.
        losses: a batch's per-sample losses (B,), through the model.
        structure: of the model.
        kinds: whose units are looked at.
        gradients: whether gate gradients are wanted.
        products: whether products of activations are wanted, for least squares.
    """
    kinds = set(kinds)
    groups = [group for group in structure.groups.values() if group.kind in kinds]
    wanted = {tap for group in groups for taps in group.taps for tap in taps}
    blocks = structure.blocks if "blocks" in kinds else []
    branches = {block: _branches(block) for block in blocks}
    wanted |= {tap for taps in branches.values() for tap in taps}
    result = Calibration()
    with _watch(model, sorted(wanted, key=str)) as seen, deterministic(model):
        for batch in batches:
            seen.clear()
            with torch.enable_grad() if gradients else torch.no_grad():
                loss = losses(batch)
            size = len(loss)
            result.samples += size
            _add_moments(result, seen, products)
            if gradients:
                _add_gradients(result, seen, loss, groups, branches, structure)
    return result


def importances(
    criterion: str,
    model: nn.Module,
    structure: Structure,
    calibration: Calibration | None,
    kinds: Iterable[str],
    *,
    norm: str = "l2",
    seed: int = 0,
) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, float]]:
    """Importance of the units of each group, factor by factor, and of each block.

    Args:
        criterion: `magnitude`, the norm of all weights that a unit owns; `taylor`, the mean over samples
            of |gate gradient| (Molchanov et al. 2017); `hessian`, half the mean of its square, which is
            the empirical Fisher's estimate of the loss's increase (Theis et al. 2018; Yang et al. 2023,
            NViT); `variance` of its activation (Berisha et al. 2025, VBP); `random`.
        model: whose weights are looked at.
        structure: of the model.
        calibration: what `calibrate` returned, for `taylor`, `hessian` and `variance`.
        kinds: what may be cut.
        norm: l1 | l2, of `magnitude`.
        seed: of `random`.

    Weights' norms and variances are on scales of their own in each group: they are divided by the group's
    mean.
    """
    kinds = set(kinds)
    groups = {name: group for name, group in structure.groups.items() if group.kind in kinds}
    blocks = structure.blocks if "blocks" in kinds else []
    if criterion == "magnitude":
        scores = {name: _magnitude(model, structure, group, norm) for name, group in groups.items()}
        of_blocks = {block: _block_magnitude(model, block, norm) for block in blocks}
    elif criterion == "random":
        scores = {name: _random(structure, group, seed) for name, group in groups.items()}
        of_blocks = {block: _draw(seed, block, (1,)).item() for block in blocks}
    else:
        assert calibration is not None
        samples = calibration.samples
        if criterion == "variance":
            scores = {name: _variance(structure, group, calibration) for name, group in groups.items()}
            of_blocks = {block: _block_variance(calibration, block) for block in blocks}
        else:
            sums, factor = (
                (calibration.absolute, 1.0) if criterion == "taylor" else (calibration.squared, 0.5)
            )
            scores = {name: tuple(s * factor / samples for s in sums[name]) for name in groups}
            return scores, {block: (sums[block][0] * factor / samples).item() for block in blocks}
    mean = sum(of_blocks.values()) / max(1, len(of_blocks))
    return (
        {name: tuple(score / score.mean().clamp_min(1e-30) for score in s) for name, s in scores.items()},
        {block: value / mean if mean else value for block, value in of_blocks.items()},
    )


# --- weights -----------------------------------------------------------------------------------


def _shape(structure: Structure, group: Group, factor: str) -> tuple[int, ...]:
    if group.kind == "head_width":
        return structure.sizes[structure.heads_of(group)], structure.sizes[factor]
    return (structure.sizes[factor],)


def _units(structure: Structure, group: Group, axis: Axis, factor: str) -> Tensor:
    per = structure.heads_of(group) if group.kind == "head_width" else None
    return units(axis, factor, structure.sizes, per=per)


@torch.no_grad()
def _magnitude(model: nn.Module, structure: Structure, group: Group, norm: str) -> tuple[Tensor, ...]:
    result = []
    for factor in group.factors:
        shape = _shape(structure, group, factor)
        total = torch.zeros(shape, dtype=torch.float64).view(-1)
        for name, dim, axis in structure.touched(factor):
            parameter = model.get_parameter(name)
            weight = parameter.double().movedim(dim, 0).reshape(parameter.shape[dim], -1).cpu()
            entries = (weight**2 if norm == "l2" else weight.abs()).sum(dim=1)
            _scatter(total, _units(structure, group, axis, factor), entries)
        result.append((total.sqrt() if norm == "l2" else total).view(shape))
    return tuple(result)


@torch.no_grad()
def _block_magnitude(model: nn.Module, block: str, norm: str) -> float:
    parameters = [p.double() for p in model.get_submodule(block).parameters()]
    if norm == "l1":
        return sum(float(p.abs().sum()) for p in parameters)
    return sum(float((p**2).sum()) for p in parameters) ** 0.5


def _random(structure: Structure, group: Group, seed: int) -> tuple[Tensor, ...]:
    return tuple(_draw(seed, factor, _shape(structure, group, factor)) for factor in group.factors)


def _draw(seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(stream_key("prune.random", seed, name))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _scatter(total: Tensor, unit: Tensor, entries: Tensor) -> None:
    there = unit >= 0
    total.index_add_(0, unit[there], entries[there])


# --- activations -------------------------------------------------------------------------------


def _variance(structure: Structure, group: Group, calibration: Calibration) -> tuple[Tensor, ...]:
    result = []
    for factor, taps in zip(group.factors, group.taps, strict=True):
        shape = _shape(structure, group, factor)
        total = torch.zeros(shape, dtype=torch.float64).view(-1)
        for tap in taps:
            _scatter(
                total, _units(structure, group, tap.axis, factor), calibration.moments[tap].variance.cpu()
            )
        result.append(total.view(shape))
    return tuple(result)


def _block_variance(calibration: Calibration, block: str) -> float:
    return sum(float(calibration.moments[tap].variance.sum()) for tap in _branches(block))


def _branches(block: str) -> list[Tap]:
    """What the block adds to the embedding."""
    return [Tap(f"{block}.{part}", True, ()) for part in ("attn", "mlp")]


def _flat(tap: Tap, tensor: Tensor, samples: int) -> Tensor:
    """(B, positions, n): windows of one image lie one after another."""
    return tensor.movedim(tap.dim, -1).reshape(samples, -1, tensor.shape[tap.dim])


def _add_moments(result: Calibration, seen: dict[Tap, Tensor], products: bool) -> None:
    for tap, tensor in seen.items():
        entries = tensor.detach().movedim(tap.dim, -1).flatten(0, -2).double()
        want = products and not tap.output
        outer = entries.T @ entries if want else None
        count, total, squares = len(entries), entries.sum(0), (entries**2).sum(0)
        before = result.moments.get(tap)
        if before is not None:
            count, total, squares = count + before.count, total + before.total, squares + before.squares
            outer = outer + before.products if outer is not None and before.products is not None else None
        result.moments[tap] = Moments(count, total, squares, outer)


def _add_gradients(
    result: Calibration,
    seen: dict[Tap, Tensor],
    loss: Tensor,
    groups: list[Group],
    branches: dict[str, list[Tap]],
    structure: Structure,
) -> None:
    taps = list(seen)
    found = torch.autograd.grad(loss, [seen[tap] for tap in taps], torch.ones_like(loss), allow_unused=True)
    samples = len(loss)
    gates: dict[Tap, Tensor] = {}
    for tap, gradient in zip(taps, found, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(seen[tap])
        product = seen[tap].detach().double() * gradient
        gates[tap] = _flat(tap, product, samples).sum(dim=1).cpu()
    for group in groups:
        per_factor = []
        for factor, factor_taps in zip(group.factors, group.taps, strict=True):
            shape = _shape(structure, group, factor)
            gate = torch.zeros(samples, int(torch.tensor(shape).prod()), dtype=torch.float64)
            for tap in factor_taps:
                unit = _units(structure, group, tap.axis, factor)
                there = unit >= 0
                gate.index_add_(1, unit[there], gates[tap][:, there])
            per_factor.append(gate.view(samples, *shape))
        _accumulate(result, group.name, per_factor)
    for block, block_taps in branches.items():
        gate = torch.stack([gates[tap].sum(dim=1) for tap in block_taps]).sum(dim=0)
        _accumulate(result, block, [gate[:, None]])


def _accumulate(result: Calibration, name: str, gates: list[Tensor]) -> None:
    absolute, squared = [g.abs().sum(dim=0) for g in gates], [(g**2).sum(dim=0) for g in gates]
    if name in result.absolute:
        absolute = [a + b for a, b in zip(absolute, result.absolute[name], strict=True)]
        squared = [a + b for a, b in zip(squared, result.squared[name], strict=True)]
    result.absolute[name], result.squared[name] = absolute, squared


@contextmanager
def _watch(model: nn.Module, taps: list[Tap]) -> Iterator[dict[Tap, Tensor]]:
    """Keep what is seen at the taps in the last forward."""
    seen: dict[Tap, Tensor] = {}

    def after(tap: Tap) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return keep(tap, output)

        return hook

    def before(tap: Tap) -> Any:
        def hook(module: nn.Module, inputs: Any) -> Any:
            return (keep(tap, inputs[0]), *inputs[1:])

        return hook

    def keep(tap: Tap, tensor: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not tensor.requires_grad:  # nothing before it is trained
            tensor = tensor.detach().requires_grad_()
        seen[tap] = tensor
        return tensor

    hooks = []
    for tap in taps:
        module = model.get_submodule(tap.module)
        hooks.append(
            module.register_forward_hook(after(tap))
            if tap.output
            else module.register_forward_pre_hook(before(tap))
        )
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
