"""What each lever does to each measure: on its own, beside others, and together with them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from effvit_train.paired import holm
from effvit_train.report import format as fmt
from effvit_train.report.advice.estimate import LEVEL, Estimate, by_seed, combination
from effvit_train.report.advice.points import COUNTED, Lever, Levers, Pair, Point, is_amount

_NOTHING = 0.0005  # of what is counted: a few bytes of a file's header
Verdict = Literal["better", "worse", "same", "hidden", "untold"]


@dataclass(frozen=True)
class Effect:
    """The marginal effect of a lever on a measure.

    Attributes:
        lever, key: what, on what.
        pairs: the matched arms that tell.
        estimate: mean over these, each counting once; of logarithms for amounts.
    """

    lever: Lever
    key: str
    pairs: tuple[Pair, ...]
    estimate: Estimate

    @property
    def verdict(self) -> Verdict:
        """What its own 95 % interval says."""
        return verdict(self.key, self.estimate)


@dataclass(frozen=True)
class Interaction:
    """By how much two levers together do more than the sum of what each does alone.

    Attributes:
        levers: the two.
        beside: what else all four arms have.
        key: of the measure.
        together, apart: the effect of both at once, and the sum of the single effects.
        estimate: the first minus the second.
    """

    levers: tuple[Lever, Lever]
    beside: Levers
    key: str
    together: float
    apart: float
    estimate: Estimate


@dataclass(frozen=True)
class Order:
    """Neighbouring arms by a measure, best first.

    Attributes:
        key: of the measure.
        start: the arm that the others differ from by one lever each.
        levers: best first; None stands for the arm without any of them.
        parted: for each lever but the last, whether it is told from the next one.
        comparisons: how many pairs were looked at: all of them, by Holm at 5 % together.
        values: effect of each, in the same order.
        runs: of the arm that has fewest.
    """

    key: str
    start: Point
    levers: tuple[Lever | None, ...]
    parted: tuple[bool, ...]
    comparisons: int
    values: tuple[float, ...]
    runs: int

    @property
    def refused(self) -> bool:
        """Whether noise hides the whole order."""
        return not any(self.parted)


def verdict(key: str, estimate: Estimate) -> Verdict:
    """Whether an effect is told from none by its 95 % interval, and if so, which way it points."""
    if estimate.error is None:
        return "untold"
    if estimate.error == 0 and abs(estimate.value) < _NOTHING:
        return "same"
    if estimate.p_value >= LEVEL:
        return "hidden"
    higher = fmt.measure_of(key).better == "higher"
    return "better" if (estimate.value > 0) == higher else "worse"


def effect(lever: Lever, key: str, pairs: Sequence[Pair]) -> Effect | None:
    """Of the pairs of one lever; None where none has the measure."""
    told = [(pair, found) for pair in pairs if (found := pair.difference(key)) is not None]
    # a single run a side tells no spread: it waits until nothing else is there
    told = [item for item in told if item[1].error is not None] or told
    if not told:
        return None
    weight = 1 / len(told)
    if len(told) == 1:
        estimate = told[0][1]
    else:
        groups = []
        for pair, _ in told:
            groups += [(weight, pair.having.samples(key)), (-weight, pair.without.samples(key))]
        # seed by seed where it can be: one seed's runs may be good or bad in all arms alike
        estimate = by_seed(groups, exact=key in COUNTED) or combination((weight, found) for _, found in told)
    return Effect(lever, key, tuple(pair for pair, _ in told), estimate)


def interactions(points: Sequence[Point], key: str) -> list[Interaction]:
    """Of every two levers of which the runs show none, each and both."""
    places = {(point.base, point.levers): point for point in points}
    found = []
    for both in points:
        for first, second in combinations(sorted(both.levers), 2):
            beside = both.levers - {first, second}
            corners = [places.get((both.base, beside | kept)) for kept in (set(), {first}, {second})]
            if any(corner is None or not corner.samples(key) for corner in corners) or not both.samples(key):
                continue
            none, one, other = (corner for corner in corners if corner is not None)
            sides = (Pair(first, none, both), Pair(second, one, other))
            if key in fmt.TIMED and not all(pair.same_conditions for pair in sides):
                continue
            signed = [(1.0, both), (-1.0, one), (-1.0, other), (1.0, none)]
            exact = key in COUNTED
            means = [(weight, point.mean(key)) for weight, point in signed]
            known = [(weight, told) for weight, told in means if told is not None]
            estimate = by_seed([(w, point.samples(key)) for w, point in signed], exact=exact)
            estimate = estimate or combination(known)
            base = known[3][1].value
            together = known[0][1].value - base
            apart = known[1][1].value + known[2][1].value - 2 * base
            found.append(Interaction((first, second), beside, key, together, apart, estimate))
    return found


def order(start: Point, pairs: Sequence[Pair], key: str) -> Order | None:
    """The neighbours of an arm by a measure; None where fewer than two arms have it.

    Every two of them are compared, and the p-values are Holm's: the order shown is one that all these looks allow.

    Args:
        start: the arm.
        pairs: those that lead away from it.
        key: of the measure.
    """
    arms: list[tuple[Lever | None, Point]] = [(None, start)]
    arms += [(pair.lever, pair.having) for pair in pairs if pair.without == start]
    arms = [(lever, point) for lever, point in arms if point.samples(key)]
    if len(arms) < 2 or arms[0][0] is not None:
        return None
    if key in fmt.TIMED and not all(pair.same_conditions for pair in pairs if pair.without == start):
        return None
    means = {lever: told.value for lever, point in arms if (told := point.mean(key)) is not None}
    sign = -1 if fmt.measure_of(key).better == "higher" else 1
    ranked = sorted(arms, key=lambda item: sign * means[item[0]])
    looks = list(combinations(range(len(ranked)), 2))
    p_values = []
    for first, second in looks:
        told = Pair(Lever(""), ranked[first][1], ranked[second][1]).difference(key)
        p_values.append(1.0 if told is None else told.p_value)
    adjusted = dict(zip(looks, holm(p_values), strict=True))
    parted = tuple(adjusted[index, index + 1] < LEVEL for index in range(len(ranked) - 1))
    values = tuple(means[lever] - means[None] for lever, _ in ranked)
    runs = min(len(point.samples(key)) for _, point in arms)
    return Order(key, start, tuple(lever for lever, _ in ranked), parted, len(looks), values, runs)


def amount(key: str, value: float) -> str:
    """An effect in words: `+0.6 pp`, `−49 %`, `2.1×`."""
    if is_amount(key):
        ratio = math.exp(value)
        if ratio > 2:
            return f"{ratio:.3g}×"
        shown = abs(ratio - 1) * 100
        return f"{'+' if ratio >= 1 else fmt.MINUS}{shown:.{0 if shown >= 9.5 else 1}f} %"
    sign = "+" if value >= 0 else fmt.MINUS
    if fmt.measure_of(key).unit == "fraction":
        return f"{sign}{abs(value) * 100:.{1 if abs(value) >= 0.00095 else 2}f} pp"
    return f"{sign}{fmt.significant(abs(value))}"
