"""Which lever to add next, and in which order: rules, each with the numbers that made it fire."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from effvit_train.budgets import Budget
from effvit_train.paired import holm
from effvit_train.report import format as fmt
from effvit_train.report.advice.effects import amount, verdict
from effvit_train.report.advice.estimate import LEVEL, Estimate, combination
from effvit_train.report.advice.points import Lever, Levers, Pair, Point, composes, is_amount, name_of
from effvit_train.report.advice.predict import (
    DIALS,
    Book,
    level_of,
    met,
    shown,
    turned,
    unmet,
    wanted_level,
)  # fmt: skip

_CLOSE = 0.15  # a setting that was run serves where it cuts at most this share more than needed
_MOST_STEPS = 6


@dataclass(frozen=True)
class Rule:
    """A rule that fired.

    Attributes:
        name: of the rule, in docs/advice.md.
        says: the sentence, with its numbers.
    """

    name: str
    says: str


@dataclass(frozen=True)
class Plan:
    """What to build.

    Attributes:
        start: the arm that it begins with.
        levers: of the model to build.
        added: in the order in which to add them.
        unmet: budgets that it is not expected to meet.
        rules: why.
        rival: where it begins with an arm that meets every budget, the next best one, if noise does not part them.
    """

    start: Point
    levers: Levers
    added: tuple[Lever, ...]
    unmet: tuple[Budget, ...]
    rules: tuple[Rule, ...]
    rival: Point | None = None


@dataclass(frozen=True)
class Closer:
    """A lever that brings a measure towards its budget.

    Attributes:
        lever: to add.
        share: of the gap that it closes, at most 1.
        toll: what it costs in quality, in the measure's own direction reversed: positive is a loss; None untold.
        elsewhere: the arm beside which that was measured, where it is not the one in question.
    """

    lever: Lever
    share: float
    toll: Estimate | None
    elsewhere: str = ""


def start_of(book: Book, budgets: Sequence[Budget], quality: str) -> Point:
    """The arm from which most others lead away, where the arms are nearest to the budgets."""
    sign = _sign(quality)

    def nearness(point: Point) -> tuple[int, float]:
        told = point.mean(quality)
        return -len(unmet(book, budgets, point.base, point.levers)), sign * told.value if told else -float(
            "inf"
        )

    nearest = max(book.points, key=nearness)
    base = nearest.base if budgets or not book.pairs else _largest(book)

    def rank(point: Point) -> tuple[int, int, int]:
        leading = sum(pair.without == point for pair in book.pairs)
        return leading, -len(point.levers), len(point.arm.entries)

    leaving = [pair.without for pair in book.pairs if pair.without.base == base]
    return max(leaving, key=rank) if leaving else nearest


def plan_for(book: Book, budgets: Sequence[Budget], quality: str) -> Plan:
    """Close the gaps one after the other, costs first; then add what gives quality back for free.

    Where an arm meets every budget already, that one is where it begins.
    """
    rules: list[Rule] = []
    picked, rival = _pick(book, budgets, quality, rules)
    start = picked or start_of(book, budgets, quality)
    state, added = start.levers, []
    for _ in range(_MOST_STEPS):
        open_ = unmet(book, budgets, start.base, state)
        gaps = sorted(open_, key=lambda budget: budget.key == quality)
        chosen = next(
            (c for gap in gaps if (c := _close(book, start, state, gap, budgets, quality, rules))), None
        )
        if chosen is None:
            break
        state = added_to(state, chosen)
        added.append(chosen)
    for lever in _free(book, start, state, budgets, quality, rules):
        state |= {lever}
        added.append(lever)
    missed = tuple(unmet(book, budgets, start.base, state))
    return Plan(start, state, tuple(added), missed, tuple(dict.fromkeys(rules)), rival)


def added_to(state: Levers, lever: Lever) -> Levers:
    """The levers with one more, in the place of one that an arm cannot have beside it."""
    return frozenset(one for one in state if one.slot != lever.slot) | {lever}


def closers(
    book: Book, start: Point, state: Levers, budget: Budget, budgets: Sequence[Budget], quality: str
) -> tuple[float, list[Closer]]:
    """How far a budget is away, and what closes it beyond doubt (Holm at 5 % over all levers looked at).

    What would lose another budget that is met, other than that of quality, is left out.

    Returns:
        The gap on the scale of `Point.samples`, signed as the measure must move; and the levers.
    """
    now = book.predict(start.base, state, budget.key)
    slots = {lever.slot for lever in state}
    # quality may be lost on the way: it is given back last
    others = [other for other in budgets if other.key not in (budget.key, quality)]
    kept = [other for other in others if met(other, book.predict(start.base, state, other.key))]
    tried, dialled = book.levers(), _dialled(book, start, state, budget)

    def closer(lever: Lever, share: float) -> Closer:
        toll = _toll(book, start, state, lever, quality)
        pair = book.nearest(lever, start.base, state, quality)
        there = "" if pair is None or pair.without.levers == state else pair.without.label
        return Closer(lever, share, toll, there)

    free = [lever for lever in tried if lever.slot not in slots]
    free = [lever for lever in free if composes(added_to(state, lever))]
    free = [lever for lever in free if not unmet(book, kept, start.base, added_to(state, lever))]
    found = []
    if dialled is not None and not composes(added_to(state, dialled)):
        dialled = None
    if dialled is not None and (now is None or dialled.slot in slots):
        free = [lever for lever in free if lever != dialled]
        if not unmet(book, [budget, *kept], start.base, added_to(state, dialled)):
            found.append(closer(dialled, 1.0))
    elif dialled is not None:
        free.append(dialled)
    if now is None:
        for lever in free:
            if met(budget, book.predict(start.base, added_to(state, lever), budget.key)):
                found.append(closer(lever, 1.0))
        return math.nan, found
    gap = _limit(budget) - now.value
    effects = [(lever, told) for lever in free
               if (told := book.effect(lever, start.base, state, budget.key)) is not None]  # fmt: skip
    adjusted = holm([told.p_value for _, told in effects])
    for (lever, told), p_value in zip(effects, adjusted, strict=True):
        if p_value < LEVEL and told.value * gap > 0:
            whole = met(budget, book.predict(start.base, state | {lever}, budget.key))
            share = 1.0 if whole else min(told.value / gap, 1.0)
            found.append(closer(lever, share))
    return gap, found


def choose(options: Sequence[Closer]) -> tuple[Closer, bool]:
    """The lever that closes a gap at the least loss of quality.

    Those that close it alone come first; without one, the loss is taken per share closed. A loss that is not told
    counts as the largest.

    Returns:
        The choice, and whether its loss is told from that of every other one in question.
    """
    whole = [option for option in options if option.share >= 1]
    pool = whole or list(options)

    def rate(option: Closer) -> float:
        return float("inf") if option.toll is None else option.toll.value / option.share

    best = min(pool, key=lambda option: (rate(option), -option.share, option.lever))
    others = [option for option in pool if option is not best]
    told = all(_told_apart(best.toll, other.toll) for other in others)
    return best, told


def _pick(
    book: Book, budgets: Sequence[Budget], quality: str, rules: list[Rule]
) -> tuple[Point | None, Point | None]:
    """The arm of the best quality among those that meet every budget; and the next, if noise does not part them."""
    fitting = [
        point for point in book.points if budgets and not unmet(book, budgets, point.base, point.levers)
    ]
    ranked = sorted(
        ((told, point) for point in fitting if (told := point.mean(quality)) is not None),
        key=lambda item: -_sign(quality) * item[0].value,
    )
    if not ranked:
        return None, None
    told, point = ranked[0]
    label = fmt.measure_of(quality).label.lower()
    rival = None
    says = (
        f"{point.label} meets every budget with the best {label}, {fmt.value(quality, shown(quality, told))}"
    )
    if len(ranked) > 1:
        second, other = ranked[1]
        found = Pair(Lever(""), other, point).difference(quality)
        rival = other if found is None or found.p_value >= LEVEL else None
        says += f"; next: {other.label}, {fmt.value(quality, shown(quality, second))}"
        says += ", a difference that noise hides" if rival else ""
    rules.append(Rule("pick", f"{says}."))
    return point, rival


def _close(
    book: Book,
    start: Point,
    state: Levers,
    budget: Budget,
    budgets: Sequence[Budget],
    quality: str,
    rules: list[Rule],
) -> Lever | None:
    gap, options = closers(book, start, state, budget, budgets, quality)
    now = book.predict(start.base, state, budget.key)
    here = name_of(start.base, state)
    value = "not measured" if now is None else fmt.value(budget.key, shown(budget.key, now))
    label = fmt.measure_of(budget.key).label
    distance = "" if now is None else f", {amount(budget.key, gap)} away"
    rules.append(
        Rule("gap", f"{label} of {here} is {value}; wanted {budget.sign} {_limit_text(budget)}{distance}.")
    )
    if not options:
        rules.append(
            Rule("gap", f"Nothing that was run in pairs moves {label.lower()} that way beyond doubt.")
        )
        return None
    best, told = choose(options)
    listed = "; ".join(
        _closer_text(option, quality) for option in sorted(options, key=lambda o: o is not best)
    )
    why = "the only one that is told from noise" if len(options) == 1 else (
        "the least loss of quality" if told else
        "the least loss of quality as measured, though noise hides whether another costs less"
    )  # fmt: skip
    rules.append(Rule("close", f"Add {best.lever.label}: {why}. Choices: {listed}."))
    return best.lever


def _free(
    book: Book, start: Point, state: Levers, budgets: Sequence[Budget], quality: str, rules: list[Rule]
) -> list[Lever]:
    """Levers that add quality beyond doubt and leave every budget that is met as it is."""
    sign, label = _sign(quality), fmt.measure_of(quality).label.lower()
    kept = [budget for budget in budgets if budget not in unmet(book, budgets, start.base, state)]
    slots = {lever.slot for lever in state}
    effects = [(lever, told) for lever in book.levers() if lever.slot not in slots and composes(state | {lever})
               and (told := book.effect(lever, start.base, state, quality)) is not None]  # fmt: skip
    adjusted = holm([told.p_value for _, told in effects])
    gains = [
        (lever, told)
        for (lever, told), p in zip(effects, adjusted, strict=True)
        if p < LEVEL and sign * told.value > 0
    ]
    found: list[Lever] = []
    for lever, told in sorted(gains, key=lambda item: -sign * item[1].value):
        whole = state | set(found)
        if lever.slot in {one.slot for one in whole} or unmet(book, kept, start.base, whole | {lever}):
            continue
        found.append(lever)
        does = f"{amount(quality, told.value)} {_interval(quality, told)}"
        rules.append(Rule("gain", f"Add {lever.label}: {label} {does}, and no budget is lost."))
    if not found:
        tried = "; ".join(f"{lever.label} {amount(quality, told.value)} {_interval(quality, told)}".rstrip()
                          for lever, told in effects)  # fmt: skip
        why = f": {tried}" if tried else f": nothing else was run in pairs with {start.base[1]}"
        rules.append(Rule("gain", f"Nothing else adds {label} beyond doubt{why}."))
    return found


def _dialled(book: Book, start: Point, state: Levers, budget: Budget) -> Lever | None:
    """A dial turned to just what is needed, where nothing that was run in pairs fits; else None."""
    dial, wanted = DIALS.get(budget.key), wanted_level(book, budget, start.base, state)
    if dial is None or wanted is None:
        return None
    known = {lever for point in book.points if point.base == start.base for lever in point.levers}
    mine = [(lever, level) for lever in sorted(known) if (level := level_of(lever, dial)) is not None]
    paired = set(book.levers())
    fits = any(lever in paired and wanted * (1 - _CLOSE) <= level <= wanted for lever, level in mine)
    return None if not mine or fits else turned(mine[0][0], dial, wanted)


def _toll(book: Book, start: Point, state: Levers, lever: Lever, quality: str) -> Estimate | None:
    beside = frozenset(one for one in state if one.slot != lever.slot)
    told = book.effect(lever, start.base, beside, quality)
    parts = [] if told is None else [(-float(_sign(quality)), told)]
    for replaced in state - beside:
        before = book.effect(replaced, start.base, beside, quality)
        parts += [] if before is None else [(float(_sign(quality)), before)]
    return combination(parts) if len(parts) == 1 + len(state - beside) else None


def _told_apart(one: Estimate | None, other: Estimate | None) -> bool:
    if one is None or other is None:
        return False
    return combination([(1.0, one), (-1.0, other)]).p_value < LEVEL


def _closer_text(option: Closer, quality: str) -> str:
    if option.toll is None:
        toll = "its toll was not measured"
    else:
        change = combination([(-float(_sign(quality)), option.toll)])
        doubt = {"hidden": ", noise hides it", "untold": ", too few runs to tell"}
        label = fmt.measure_of(quality).label.lower()
        toll = f"{label} {amount(quality, change.value)} {_interval(quality, change)}".rstrip()
        toll += doubt.get(verdict(quality, change), "")
        toll += f" (beside {option.elsewhere})" if option.elsewhere else ""
    return f"{option.lever.label} closes {option.share * 100:.0f} %, {toll}"


def _interval(key: str, told: Estimate) -> str:
    found = told.interval()
    return "" if found is None or told.error == 0 else f"[{amount(key, found[0])}, {amount(key, found[1])}]"


def _limit(budget: Budget) -> float:
    return math.log(budget.limit) if is_amount(budget.key) and budget.limit > 0 else budget.limit


def _limit_text(budget: Budget) -> str:
    return fmt.value(budget.key, budget.limit)


def _sign(key: str) -> int:
    return 1 if fmt.measure_of(key).better == "higher" else -1


def _largest(book: Book) -> tuple[str, str, int | None]:
    bases = [pair.without.base for pair in book.pairs]
    return max(dict.fromkeys(bases), key=bases.count)
