"""Which run to recommend, by a rule that a page can state in a sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from effvit_train.arms import Arm
from effvit_train.budgets import Budget, Verdict
from effvit_train.collect import Entry
from effvit_train.paired import difference_interval
from effvit_train.proportions import wilson
from effvit_train.report import format as fmt
from effvit_train.report.baseline import Baseline
from effvit_train.report.compare import Comparison
from effvit_train.report.frontier.study import Study, reason, value
from effvit_train.report.inputs import test_count

ACCURACY = "quality/accuracy"


@dataclass(frozen=True)
class Option:
    """An arm with the run that stands for it: the one nearest to the arm's mean, not its luckiest.

    Attributes:
        arm: runs that differ in the seed only.
        entry: the run.
        x, y: the arm's means; None where it has none.
        verdicts: of the run, per budget.
    """

    arm: Arm
    entry: Entry
    x: float | None
    y: float | None
    verdicts: tuple[Verdict, ...]

    @property
    def met(self) -> bool:
        """Whether the run meets every budget."""
        return all(verdict.met for verdict in self.verdicts)


@dataclass(frozen=True)
class Choice:
    """What is recommended.

    Attributes:
        x, y: measures of what it costs and of what it is worth.
        chosen: the recommended option, or where none meets the budgets the one that comes nearest; None where no
            run has `y`.
        met: whether `chosen` meets every budget.
        best: the best by `y` among those that meet them (or among all, if none does).
        cheapest: by `x`, likewise; None where nobody has `x`.
        unbounded: the best by `y` whatever the budgets.
        meeting, arms, runs: how many arms meet the budgets, and how many arms and runs there are on these data.
        nearest: of each budget that no arm meets, the best value that any run has.
        elsewhere: runs on other data, which are not compared.
    """

    x: str
    y: str
    chosen: Option | None
    met: bool
    best: Option | None
    cheapest: Option | None
    unbounded: Option | None
    meeting: int
    arms: int
    runs: int
    nearest: tuple[tuple[Budget, float | None], ...]
    elsewhere: int


def choose(study: Study, *, x: str, y: str, budgets: Sequence[Budget]) -> Choice:
    """Among the runs of the data set that has most, and of these among those that meet every budget, if any does: the best
    by `y`; or one that is cheaper by `x`, by more than times scatter, if chance alone may part it from the best: the
    cheapest such.
    """  # fmt: skip
    means = zip(study.arms, study.set_of_arm, study.means(x), study.means(y), strict=True)
    options = [_option(arm, of_x, of_y, y, budgets) for arm, place, of_x, of_y in means if place == 0]
    arms = [option.arm for option in options]
    meeting = [option for option in options if option.met]
    rated = [option for option in meeting or options if option.y is not None]
    runs = study.set_of.count(0)
    nearest = tuple(
        (budget, _nearest(budget, arms))
        for budget in budgets
        if not any(
            verdict.met for option in options for verdict in option.verdicts if verdict.budget is budget
        )
    )

    def first(among: list[Option]) -> Option | None:
        return min(among, key=lambda option: (_burden(y, option.y), _burden(x, option.x)), default=None)

    best, unbounded = first(rated), first([option for option in options if option.y is not None])
    cheapest = min(
        (o for o in rated if o.x is not None), key=lambda option: _burden(x, option.x), default=None
    )
    chosen = best
    if best is not None and meeting:
        cheaper = sorted(
            (option for option in rated if _cheaper(x, option, best)),
            key=lambda option: (_burden(x, option.x), _burden(y, option.y)),
        )
        chosen = next((option for option in cheaper if not _differs(y, option, best)), best)
    elif rated:
        chosen = min(rated, key=lambda option: (*_shortfall(option), _burden(y, option.y)))
    return Choice(
        x, y, chosen, bool(meeting) and chosen is not None, best, cheapest, unbounded, len(meeting), len(arms), runs,
        nearest, len(study.entries) - runs,
    )  # fmt: skip


def _option(
    arm: Arm, mean_x: float | None, mean_y: float | None, y: str, budgets: Sequence[Budget]
) -> Option:
    def judged(entry: Entry) -> tuple[Verdict, ...]:
        found = []
        for budget in budgets:
            number = value(entry.card, budget.key)
            why = "" if number is not None else reason(entry.card, budget.key)
            found.append(Verdict(budget, number, budget.met(number), why))
        return tuple(found)

    def rank(entry: Entry) -> tuple[int, float]:
        own = value(entry.card, y)
        far = math.inf if own is None or mean_y is None else abs(own - mean_y)
        return sum(not verdict.met for verdict in judged(entry)), far

    entry = min(arm.entries, key=rank)
    return Option(arm, entry, mean_x, mean_y, judged(entry))


def chance(share: float, tested: int) -> tuple[float, float]:
    """The 95 % interval of a share of `tested` images."""
    return wilson(round(share * tested), tested)


def within_chance(one: float, two: float, tested: int) -> bool:
    """Whether the choice of test images explains the difference of two accuracies (Newcombe 1998, method 10)."""
    low, high = difference_interval(two, chance(two, tested), one, chance(one, tested))
    return low <= 0 <= high


def _cheaper(x: str, option: Option, best: Option) -> bool:
    """Whether the difference is one that pays: a tenth, which is also what times scatter by."""
    if option.x is None or best.x is None:
        return False
    if fmt.measure_of(x).better == "lower":
        return option.x < best.x * (1 - fmt.TIMED_NOISE)
    return option.x > best.x * (1 + fmt.TIMED_NOISE)


def _differs(y: str, option: Option, best: Option) -> bool:
    """Whether more than chance parts the two: of an accuracy by the two intervals, and then image by image."""
    assert option.y is not None
    assert best.y is not None
    tested = test_count(best.entry.card)
    if y != ACCURACY or tested is None:
        return option.y != best.y
    if not within_chance(option.y, best.y, tested):
        return True
    # McNemar's test where both left their predictions
    other = Baseline(best.entry.run_dir, best.entry.card, "")
    return not Comparison(option.entry.card, other, option.entry.run_dir).in_noise(ACCURACY)


def _burden(key: str, number: float | None) -> float:
    if number is None:
        return math.inf
    return number if fmt.measure_of(key).better == "lower" else -number


def _shortfall(option: Option) -> tuple[int, int, float]:
    """How many budgets are missed, of how many of them nothing is known, and by how much the others, of their limits."""
    missed = [verdict for verdict in option.verdicts if not verdict.met]
    far = [
        abs(v.value - v.budget.limit) / (abs(v.budget.limit) or 1.0) for v in missed if v.value is not None
    ]
    return len(missed), len(missed) - len(far), math.fsum(far)


def _nearest(budget: Budget, arms: Sequence[Arm]) -> float | None:
    numbers = [
        found for arm in arms for entry in arm.entries if (found := value(entry.card, budget.key)) is not None
    ]
    return (min if "<" in budget.sign else max)(numbers, default=None)
