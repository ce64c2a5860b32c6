"""Everything put together: runs in, advice out. What is said stands beside the numbers that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effvit_train.arms import arms
from effvit_train.budgets import Budget
from effvit_train.collect import Entry
from effvit_train.report.advice.effects import Effect, Interaction, Order, effect, interactions, order
from effvit_train.report.advice.estimate import LEVEL, Estimate
from effvit_train.report.advice.experiments import Experiment, experiments, first_steps
from effvit_train.report.advice.plan import Plan, plan_for
from effvit_train.report.advice.plan import start_of as plan_start
from effvit_train.report.advice.points import Lever, Point, is_amount, pairs_of, points_of
from effvit_train.report.advice.predict import Book, met, shown
from effvit_train.report.mistakes import Paired, paired
from effvit_train.report.spokes import SPOKES

QUALITY = "quality/accuracy"
_SUMMED = "cost/eer"  # parameters, MACs and file size once more


@dataclass(frozen=True)
class Chance:
    """Two models, one of each side of a pair, on the same test images.

    Attributes:
        effect: that a single pair tells of.
        images: who gets which right.
    """

    effect: Effect
    images: Paired


@dataclass(frozen=True)
class Advice:
    """What the runs of one data set tell.

    Attributes:
        dataset: its name.
        runs: how many.
        others: runs of other data, which are left out.
        points: the arms.
        budgets: the user's.
        quality: the measure that pays for savings.
        keys: measures that effects are told of.
        effects: of each lever on each of these.
        interactions: of two levers, on the quality and the budgets' measures.
        orders: of the arms around the start, by the same.
        chances: where one run a side is all there is: whether the test images part these two models.
        plan: what to build.
        experiments: what to run next, best first.
        too_few: why nothing can be said, and `experiments` is empty; else empty.
        first_steps: the command that runs what is needed.
    """

    dataset: str
    runs: int
    others: int
    points: tuple[Point, ...]
    budgets: tuple[Budget, ...]
    quality: str
    keys: tuple[str, ...]
    effects: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]
    orders: tuple[Order, ...]
    chances: tuple[Chance, ...]
    plan: Plan | None
    experiments: tuple[Experiment, ...]
    too_few: str
    first_steps: str

    @property
    def alpha(self) -> float:
        """Effects among those shown that look like one by chance alone: 5 % of the intervals that noise can move."""
        return LEVEL * sum(1 for one in self.effects if one.estimate.error)


def advise_on(entries: Sequence[Entry], budgets: Sequence[Budget], *, quality: str = QUALITY) -> Advice:
    """Advice from finished runs: of those on the data that most of them have.

    Args:
        entries: at least one.
        budgets: to be met, maybe none.
        quality: the measure that pays for savings.
    """
    data = [entry.data for entry in entries]
    most = max(dict.fromkeys(data), key=data.count)
    mine = [entry for entry in entries if entry.data == most]
    points = points_of(arms(mine))
    pairs = pairs_of(points)
    book = Book(points, pairs)
    keys = _keys(points, budgets, quality)
    deciding = tuple(dict.fromkeys([quality, *(budget.key for budget in budgets)]))
    effects = [found for lever in book.levers() for key in keys
               if (found := effect(lever, key, book.of(lever))) is not None]  # fmt: skip
    too_few = _too_few(points, pairs)
    plan = None if too_few else plan_for(book, budgets, quality)
    start = plan_start(book, [], quality) if pairs else None
    return Advice(
        dataset=str(mine[-1].card.run.get("dataset") or "its data"),
        runs=len(mine),
        others=len(entries) - len(mine),
        points=tuple(points),
        budgets=tuple(budgets),
        quality=quality,
        keys=keys,
        effects=tuple(effects),
        interactions=tuple(one for key in deciding for one in interactions(points, key)),
        orders=tuple(one for key in deciding if start and (one := order(start, book.pairs, key)) is not None),
        chances=tuple(_chances(effects, quality)),
        plan=plan,
        experiments=tuple(experiments(book, plan, budgets, quality)) if plan else (),
        too_few=too_few,
        first_steps=first_steps(mine[-1]),
    )  # fmt: skip


def budget_rows(advice: Advice) -> list[tuple[Point, list[tuple[float | None, bool]]]]:
    """Each arm with its mean of each budget's measure and whether that is within, best first."""
    rows = []
    for point in advice.points:
        told = [(budget, point.mean(budget.key)) for budget in advice.budgets]
        cells = [
            (None if mean is None else shown(budget.key, mean), met(budget, mean)) for budget, mean in told
        ]
        rows.append((point, cells))
    return sorted(rows, key=lambda row: -sum(ok for _, ok in row[1]))


def to_json(advice: Advice) -> dict[str, Any]:
    """All of it, with plain names and numbers; intervals are 95 %, amounts as ratios."""
    plan = advice.plan
    return {
        "schema": 1,
        "dataset": advice.dataset,
        "runs": advice.runs,
        "runs_of_other_data": advice.others,
        "quality": advice.quality,
        "too_few": advice.too_few or None,
        "first_steps": advice.first_steps,
        "arms": [_arm(point, advice.keys) for point in advice.points],
        "effects": [
            {
                "lever": one.lever.label, "measure": one.key, **_told(one.key, one.estimate),
                "p_value": one.estimate.p_value, "verdict": one.verdict,
                "beside": [pair.without.label for pair in one.pairs],
            }
            for one in advice.effects
        ],
        "interactions": [
            {
                "levers": [lever.label for lever in one.levers], "beside": sorted(x.label for x in one.beside),
                "measure": one.key, **_told(one.key, one.estimate), "p_value": one.estimate.p_value,
            }
            for one in advice.interactions
        ],
        "orders": [
            {
                "measure": one.key, "start": one.start.label, "refused": one.refused,
                "levers": [lever.label if lever else None for lever in one.levers],
                "told_from_next": list(one.parted), "comparisons": one.comparisons,
            }
            for one in advice.orders
        ],
        "budgets": [
            {"budget": budget.text, "met_by": [p.label for p, cells in budget_rows(advice) if cells[index][1]]}
            for index, budget in enumerate(advice.budgets)
        ],
        "plan": None if plan is None else {
            "start": plan.start.label, "add": [lever.label for lever in plan.added],
            "unmet": [budget.text for budget in plan.unmet],
            "rules": [{"rule": rule.name, "says": rule.says} for rule in plan.rules],
        },
        "experiments": [
            {
                "kind": one.kind, "commands": list(one.commands), "why": one.why,
                "expected": {key: _told(key, told, level=True) for key, told in one.expected.items()},
            }
            for one in advice.experiments
        ],
    }  # fmt: skip


def _keys(points: Sequence[Point], budgets: Sequence[Budget], quality: str) -> tuple[str, ...]:
    """The quality, the headline of every axis that was measured, and what budgets name."""
    wanted = dict.fromkeys(
        [
            quality,
            *(budget.key for budget in budgets),
            *(spoke.key for spoke in SPOKES if spoke.key != _SUMMED),
        ]
    )
    return tuple(key for key in wanted if any(point.samples(key) for point in points))


def _too_few(points: Sequence[Point], pairs: Sequence[Any]) -> str:
    if pairs:
        return ""
    count = len(points)
    if count == 1:
        return "all runs have the same settings, but for the seed: nothing to compare"
    return (
        f"no two of the {count} settings differ in one technique or setting only: nothing can be told apart"
    )


def _chances(effects: Sequence[Effect], quality: str) -> list[Chance]:
    from effvit_train.report.inputs import read_predictions
    from effvit_train.runs import RunDir

    found = []
    for one in effects:
        if one.key != quality or one.estimate.runs != 1 or len(one.pairs) != 1:
            continue
        pair = one.pairs[0]
        here, there = pair.having.arm.entries[-1], pair.without.arm.entries[-1]
        try:
            both = [read_predictions(RunDir(entry.run_dir).predictions) for entry in (here, there)]
        except Exception:  # absent or damaged predictions: the card alone does not say
            continue
        images = paired(both[0], both[1])
        if images is not None:
            found.append(Chance(one, images))
    return found


def _arm(point: Point, keys: Sequence[str]) -> dict[str, Any]:
    return {
        "label": point.label, "runs": [str(entry.run_dir) for entry in point.arm.entries],
        "levers": sorted(lever.label for lever in point.levers),
        "measures": {key: _told(key, told, level=True) for key in keys if (told := point.mean(key)) is not None},
    }  # fmt: skip


def _told(key: str, told: Estimate, *, level: bool = False) -> dict[str, Any]:
    def out(value: float) -> float:
        return shown(key, Estimate(value, None, 0, 0))

    found = told.interval()
    what = "mean" if level else ("ratio" if is_amount(key) else "difference")
    return {
        what: out(told.value), "interval": None if found is None else [out(found[0]), out(found[1])],
        "runs": told.runs, "paired": told.paired,
    }  # fmt: skip


def levers_of(advice: Advice) -> list[Lever]:
    """The levers that effects are told of, in order."""
    return list(dict.fromkeys(one.lever for one in advice.effects))
