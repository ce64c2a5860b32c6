"""Which trials are hopeless: a median rule among the trials that cost no more.

Optuna's pruners refuse studies with several objectives. Here a trial is stopped when, at the same share of
training, its best validation figure so far is worse than the median of its rivals' (the median stopping
rule, Golovin et al. 2017, section 3.2.1). Rivals are finished trials that are no worse in any other
objective, so that a small model is never stopped for being less accurate than larger ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from effvit_train.search.objectives import Objective

RIVALS = 3  # a median of fewer says little

Curve = Sequence[tuple[float, float]]  # (share of training, value), in order


@dataclass(frozen=True)
class Finished:
    """A complete trial.

    Attributes:
        values: of all objectives, by key.
        curves: of the objectives with validation figures, by key.
    """

    values: Mapping[str, float]
    curves: Mapping[str, Curve]


def hopeless(
    objectives: Sequence[Objective],
    bounds: Mapping[str, float],
    curves: Mapping[str, Curve],
    finished: Sequence[Finished],
    *,
    after: float,
) -> str | None:
    """Why a trial should be stopped, in one line; None where it should not.

    Args:
        objectives: of the study.
        bounds: for objectives without validation figures, the best value that the trial can still have;
            an objective that is not in it can have any.
        curves: of the trial so far, by objective.
        finished: the trials to compare with.
        after: share of training before which nothing is stopped.
    """
    validated = [objective for objective in objectives if objective.column is not None]
    others = [objective for objective in objectives if objective.column is None]
    if not validated or not all(curves.get(objective.key) for objective in validated):
        return None
    share = min(curves[objective.key][-1][0] for objective in validated)
    if share < after or share >= 1 or any(objective.key not in bounds for objective in others):
        return None
    rivals = [
        trial
        for trial in finished
        if not any(o.worse(trial.values[o.key], bounds[o.key]) for o in others)
        and all(_best(o, trial.curves[o.key], share) is not None for o in validated)
    ]
    if len(rivals) < RIVALS:
        return None
    told = []
    for objective in validated:
        own = _best(objective, curves[objective.key], share)
        theirs = [_best(objective, rival.curves[objective.key], share) for rival in rivals]
        median = statistics.median(value for value in theirs if value is not None)
        if own is None or not objective.worse(own, median):
            return None
        told.append(f"{objective.key} {own:.4g} against {median:.4g}")
    cost = "that cost no more" if others else "before it"
    return f"stopped at {share:.0%} of training: {', '.join(told)}, the median of {len(rivals)} trials {cost}"


def _best(objective: Objective, curve: Curve, share: float) -> float | None:
    """The best value up to this share of training; None before the first validation."""
    values = [value for at, value in curve if at <= share + 1e-9]
    if not values:
        return None
    return max(values) if objective.higher else min(values)
