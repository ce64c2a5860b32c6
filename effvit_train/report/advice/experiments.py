"""The missing runs that would tell most, best first, each with the command that makes them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effvit_train.arms import PRIVATE, Arm
from effvit_train.budgets import Budget
from effvit_train.collect import Entry
from effvit_train.report import format as fmt
from effvit_train.report.advice.effects import amount
from effvit_train.report.advice.estimate import LEVEL, Estimate
from effvit_train.report.advice.plan import Plan
from effvit_train.report.advice.points import Lever, Levers, Pair, composes, name_of
from effvit_train.report.advice.predict import DIALS, Book, turned, wanted_level
from effvit_train.report.commands import SEEDS
from effvit_train.report.inputs import as_list, is_private
from effvit_train.runs import program

_TECHNIQUES = ("distill", "prune", PRIVATE)
# What a technique that was never run is there for.
_PURPOSE = {
    "prune": ("cost/params", "cost/macs", "cost/flops", "cost/latency_ms", "cost/throughput", "cost/size_mb"),
    PRIVATE: ("privacy/epsilon",),
    "distill": ("quality/accuracy", "quality/balanced_accuracy", "quality/nll", "quality/top5"),
}
_OF_ONE_RUN = ("seed", "run_dir", "resume", "hydra")
_MOST_SEEDS = 30
_KEPT, _KEPT_IN_PUBLIC = ("dataset", "trainer", "cache_dir", "logger", "audit"), ("model", "recipe")


@dataclass(frozen=True)
class Experiment:
    """Runs that are missing.

    Attributes:
        kind: plan | seeds | match | both | untried.
        commands: to copy, in this order.
        why: what they would tell.
        expected: measure -> what is expected of the mean of the new arm; empty where nothing tells.
    """

    kind: str
    commands: tuple[str, ...]
    why: str
    expected: dict[str, Estimate]


def experiments(book: Book, plan: Plan, budgets: Sequence[Budget], quality: str) -> list[Experiment]:
    """What to run next, the most informative first.

    The order: what the plan ends with and was not run; the arm with the best of two that noise does not part, with
    more seeds; a technique that no run has and a budget wants; what was run and has no partner; two levers whose
    being together was not run; any technique that no run has.
    """
    found = [*_planned(book, plan, budgets, quality)]
    wanted = [e for name in _TECHNIQUES for e in _untried(book, plan, name, budgets)]
    missed = {budget.key for budget in plan.unmet}
    found += [e for name, e in wanted if missed & set(_PURPOSE[name])]
    found += _seeds(book, plan, quality)
    found += _matches(book)
    found += _both(book, plan, quality)
    found += [e for name, e in wanted if not missed & set(_PURPOSE[name])]
    return found


def command(arm: Arm, before: Levers, after: Levers, seeds: str) -> str:
    """The command line of an arm like another, with other levers.

    Args:
        arm: the other.
        before, after: its levers, and those wanted.
        seeds: `seed=1,2,3`, or one seed.
    """
    overrides = [item for item in as_list(arm.entries[-1].card.run.get("overrides")) if not _of_one_run(item)]
    gone = {item for lever in before - after for item in lever.settings}
    lost = {lever.technique for lever in before} - {lever.technique for lever in after}
    groups = tuple("privacy." if name == PRIVATE else f"compress.{name}." for name in lost if name)
    overrides = [item for item in overrides if item.lstrip("+") not in gone]
    overrides = [item for item in overrides if not item.lstrip("+").startswith(groups or ("\0",))]
    new = sorted(after - before)
    if {lever.technique for lever in before ^ after} - {"", PRIVATE}:
        techniques = sorted(lever.technique for lever in after if lever.technique not in ("", PRIVATE))
        overrides = [item for item in overrides if _key(item) != "compress"]
        overrides.append(f"compress={techniques[0] if len(techniques) == 1 else '[' + ','.join(techniques) + ']'}"
                         if techniques else "compress=none")  # fmt: skip
    if PRIVATE in {lever.technique for lever in before ^ after}:
        overrides = [item for item in overrides if _key(item) != "privacy"]
        overrides.append(
            f"privacy={PRIVATE if any(lever.technique == PRIVATE for lever in after) else 'none'}"
        )
    replaced = {_key(item) for lever in new for item in lever.settings}
    overrides = [item for item in overrides if _key(item) not in replaced]
    overrides += [item for lever in new for item in lever.settings]
    several = " -m" if "," in seeds else ""
    return " ".join([program() + several, *(shlex.quote(item) for item in [*overrides, seeds])])


def first_steps(entry: Entry, more: Sequence[str] = ()) -> str:
    """The command of the small set of runs, on the data, the model and for as long as a run.

    Args:
        entry: the run.
        more: further overrides.
    """
    overrides = as_list(entry.card.run.get("overrides"))
    # the set has a model and a recipe of its own for privacy
    public = not is_private(entry.card) and not {"recipe=dp", "model=vit_scatter"} & set(overrides)
    groups = (*_KEPT, *(_KEPT_IN_PUBLIC if public else ()))
    kept = [item for item in overrides if item.lstrip("+").partition("=")[0].partition(".")[0] in groups]
    return " ".join([program(), "experiment=first_steps", *map(shlex.quote, [*kept, *more])])


def _planned(book: Book, plan: Plan, budgets: Sequence[Budget], quality: str) -> list[Experiment]:
    base = plan.start.base
    if not plan.added or book.at(base, plan.levers) is not None:
        return []
    keys = dict.fromkeys([quality, *(budget.key for budget in budgets)])
    expected = {key: told for key in keys if (told := book.predict(base, plan.levers, key)) is not None}
    why = f"{name_of(base, plan.levers)} is what the rules lead to, and was not run"
    line = command(plan.start.arm, plan.start.levers, plan.levers, _same_seeds(plan.start.arm))
    return [Experiment("plan", (line,), why, expected)]


def _untried(
    book: Book, plan: Plan, technique: str, budgets: Sequence[Budget]
) -> list[tuple[str, Experiment]]:
    if any(lever.technique == technique for point in book.points for lever in point.levers):
        return []
    lever = Lever(technique)
    for budget in budgets:
        dial = DIALS.get(budget.key)
        level = wanted_level(book, budget, plan.start.base, plan.start.levers)
        if dial is not None and dial.technique == technique and level is not None:
            lever = turned(lever, dial, level)
    if technique == "prune" and any(one.technique == PRIVATE for one in plan.start.levers):
        lever = Lever(technique, (*lever.settings, "compress.prune.importance=magnitude"))
    levers = plan.start.levers | {lever}
    last = plan.start.arm.entries[-1]
    if technique == PRIVATE and "recipe=dp" not in as_list(last.card.run.get("overrides")):
        # an ordinary model and recipe learn next to nothing under privacy: the steps that do, and their partner
        line = first_steps(last, [*lever.settings, "hydra.sweeper.only=[open,private]"])
    elif not composes(levers):
        return []
    else:
        line = command(plan.start.arm, plan.start.levers, levers, _same_seeds(plan.start.arm))
    return [(technique, Experiment("untried", (line,), f"no run has {technique}", {}))]


def _seeds(book: Book, plan: Plan, quality: str) -> list[Experiment]:
    """More runs of both sides where noise hides which is better: of the pick, of the plan, of the start."""
    if plan.rival is not None:
        return [_more(Pair(Lever(""), plan.rival, plan.start), quality, "which of the two is better")]
    hidden = []
    for pair in book.pairs:
        told = pair.difference(quality)
        if pair.without.base != plan.start.base or told is None or told.p_value < LEVEL or told.error == 0:
            continue
        added = pair.lever in plan.added and pair.having.levers <= plan.levers
        hidden.append((added, pair.without == plan.start, told.half_width() or float("inf"), pair))
    if not hidden:
        return []
    pair = max(hidden, key=lambda item: item[:3])[3]
    return [_more(pair, quality, f"what {pair.lever.label} does")]


def _more(pair: Pair, quality: str, what: str) -> Experiment:
    told = pair.difference(quality)
    assert told is not None
    label = fmt.measure_of(quality).label.lower()
    half = told.half_width()
    width = "no interval yet" if half is None else f"± {amount(quality, half).lstrip('+')}"
    needed = runs_needed(told)
    if needed is None:
        more = "with one run more a side there is an interval"
    elif needed > _MOST_SEEDS:
        more = f"a difference as small as seen needs more than {_MOST_SEEDS} runs a side: it may be taken for none"
    else:
        more = f"a difference as large as seen needs about {needed} runs a side"
    why = (f"noise hides {what}: {label} of {pair.having.label} against {pair.without.label} "
           f"({amount(quality, told.value)}, {width}, {_runs(told.runs)}); {more}")  # fmt: skip
    count = 2 if needed is None else min(max(needed - told.runs, 2), 6)
    seeds = _new_seeds((pair.without.arm, pair.having.arm), count)
    lines = tuple(command(p.arm, p.levers, p.levers, seeds) for p in (pair.without, pair.having))
    return Experiment("seeds", lines, why, {})


def runs_needed(told: Estimate) -> int | None:
    """Runs a side that would show this difference with 80 % power at 5 %; None without a standard error.

    The normal approximation, and two more for a spread that is estimated (Guenther 1981).
    """
    if told.error is None or told.value == 0:
        return None
    spread = told.error * math.sqrt(told.runs)
    return math.ceil((2.8015852 * spread / told.value) ** 2) + 2


def _matches(book: Book) -> list[Experiment]:
    """Arms with a technique and without the partner that would tell what it does; those with most runs first."""
    found = []
    for point in book.points:
        for lever in sorted(point.levers):
            if not lever.technique or book.of(lever):
                continue
            partner = point.levers - {lever}
            line = command(point.arm, point.levers, partner, _same_seeds(point.arm))
            why = f"nothing tells what {lever.label} does: {point.label} was run, {name_of(point.base, partner)} was not"
            found.append((len(point.arm.entries), line, Experiment("match", (line,), why, {})))
    unique = {line: (count, one) for count, line, one in found}
    return [one for _, one in sorted(unique.values(), key=lambda item: -item[0])]


def _both(book: Book, plan: Plan, quality: str) -> list[Experiment]:
    """Two techniques that were run from the same start, each alone: do they add up?"""
    away = [pair for pair in book.pairs if pair.without == plan.start and pair.lever.technique]
    found = []
    for number, first in enumerate(away):
        for second in away[number + 1 :]:
            levers = plan.start.levers | {first.lever, second.lever}
            if not composes(levers):
                continue
            if first.lever.slot == second.lever.slot or book.at(plan.start.base, levers) is not None:
                continue
            told = book.predict(plan.start.base, levers, quality)
            line = command(plan.start.arm, plan.start.levers, levers, _same_seeds(plan.start.arm))
            why = f"{first.lever.label} and {second.lever.label} were run, both together were not: do they add up?"
            found.append(Experiment("both", (line,), why, {} if told is None else {quality: told}))
    return found


def _same_seeds(arm: Arm) -> str:
    """The seeds of an arm, that runs may be paired; three at least."""
    seeds = sorted({seed for entry in arm.entries if isinstance(seed := entry.card.run.get("seed"), int)})
    if len(seeds) < 3:
        return (
            SEEDS if set(seeds) <= {1, 2, 3} else f"seed={_listed([*seeds, *_unused(seeds, 3 - len(seeds))])}"
        )
    return f"seed={_listed(seeds)}"


def _new_seeds(arms: Iterable[Arm], count: int) -> str:
    used = [
        seed for arm in arms for entry in arm.entries if isinstance(seed := entry.card.run.get("seed"), int)
    ]
    return f"seed={_listed(_unused(used, count))}"


def _unused(seeds: Sequence[int], count: int) -> list[int]:
    first = max(seeds, default=0) + 1
    return list(range(first, first + count))


def _listed(seeds: Iterable[int]) -> str:
    return ",".join(map(str, seeds))


def _runs(count: int) -> str:
    return f"{count} run{'s' * (count != 1)} a side"


def _of_one_run(override: str) -> bool:
    key = _key(override)
    return any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in _OF_ONE_RUN)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
