"""Which rank each layer gets, so that budgets are met and least is lost. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Costs = Mapping[str, float]


@dataclass(frozen=True)
class Option:
    """What a layer may become.

    Attributes:
        rank: None leaves it as it is.
        costs: budget -> what it costs.
        loss: what is lost.
    """

    rank: int | None
    costs: Costs
    loss: float


class CannotMeetError(ValueError):
    """A budget that cannot be met; the message says how low it goes."""


def allocate(options: Mapping[str, Sequence[Option]], whole: Costs, budgets: Costs) -> dict[str, Option]:
    """Choose an option for each layer.

    Always the step is taken that loses least for what it saves: along the lower convex hull of each layer's losses
    over its costs, in the order of the slopes, as a Lagrange multiplier that grows from 0 would (Everett 1963). That
    is the least loss for what it costs in the end. The last step would often go further than it must: of all that
    meet the budgets the one that loses least is taken instead, and what is then to spare is given back where it
    gains most.

    Args:
        options: of each layer, the costliest first, which is the layer as it is.
        whole: what the whole model costs as it is.
        budgets: what it may cost, of one or more of the costs; all are met.

    Raises:
        CannotMeetError: the cheapest options cost more.
    """
    chosen = dict.fromkeys(options, 0)
    costs = dict(whole)
    steps: dict[str, tuple[float, float, int] | None] = {}
    unmet: tuple[str, ...] = ()
    while over := tuple(name for name in budgets if not _met(costs, {name: budgets[name]})):
        if over != unmet:
            steps, unmet = {}, over
        for layer in options:
            if layer not in steps:
                steps[layer] = _next_step(options[layer], chosen[layer], whole, over)
        best = min(
            ((step, layer) for layer, step in steps.items() if step is not None),
            default=None,
        )
        if best is None:
            name = over[0]
            raise CannotMeetError(f"{name} comes down to {costs[name] / whole[name]:.3f}, no further")
        (_, _, to), layer = best
        if _met(_moved(costs, options[layer][chosen[layer]], options[layer][to]), budgets):
            layer, to = _last_step(options, chosen, costs, budgets)
        costs = _moved(costs, options[layer][chosen[layer]], options[layer][to])
        chosen[layer] = to
        del steps[layer]
    _give_back(options, chosen, costs, whole, budgets)
    return {layer: options[layer][index] for layer, index in chosen.items()}


def _next_step(
    options: Sequence[Option], at: int, whole: Costs, over: Sequence[str]
) -> tuple[float, float, int] | None:
    """Of the cheaper options that with the least loss for what is saved: (slope, saving, index)."""
    here, best = options[at], None
    for index in range(at + 1, len(options)):
        option = options[index]
        saving = sum((here.costs[name] - option.costs[name]) / whole[name] for name in over)
        if saving > 0:
            step = ((option.loss - here.loss) / saving, saving, index)
            best = step if best is None else min(best, step)
    return best


def _last_step(
    options: Mapping[str, Sequence[Option]], chosen: Mapping[str, int], costs: Costs, budgets: Costs
) -> tuple[str, int]:
    """Of the single steps that meet the budgets the one that loses least."""
    steps = [
        (own[index].loss - own[chosen[layer]].loss, layer, index)
        for layer, own in options.items()
        for index in range(chosen[layer] + 1, len(own))
        if _met(_moved(costs, own[chosen[layer]], own[index]), budgets)
    ]
    _, layer, index = min(steps)
    return layer, index


def _give_back(
    options: Mapping[str, Sequence[Option]], chosen: dict[str, int], costs: dict[str, float], whole: Costs,
    budgets: Costs,
) -> None:  # fmt: skip
    """Spend what the budgets have to spare where it gains most."""
    while True:
        best: tuple[float, str, int] | None = None
        for layer, own in options.items():
            here = own[chosen[layer]]
            for index in range(chosen[layer]):
                after = _moved(costs, here, own[index])
                gain = here.loss - own[index].loss
                if gain <= 0 or not _met(after, budgets):
                    continue
                spent = sum((after[name] - costs[name]) / whole[name] for name in budgets)
                rate = gain / spent if spent > 0 else float("inf")
                if best is None or rate > best[0]:
                    best = rate, layer, index
        if best is None:
            return
        _, layer, index = best
        costs = _moved(costs, options[layer][chosen[layer]], options[layer][index])
        chosen[layer] = index


def _met(costs: Costs, budgets: Costs) -> bool:
    return all(costs[name] <= budget * (1 + 1e-12) for name, budget in budgets.items())


def _moved(costs: Costs, before: Option, after: Option) -> dict[str, float]:
    return {name: cost - before.costs[name] + after.costs[name] for name, cost in costs.items()}
