"""`frontier.csv` and `frontier.json`: what the page shows, for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from effvit_train.arms import settings_of
from effvit_train.budgets import Budget
from effvit_train.report import format as fmt
from effvit_train.report.frontier.pareto import front
from effvit_train.report.frontier.privacy import Composed
from effvit_train.report.frontier.study import Column, Study, reason, seed

SCHEMA = 1
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would take for one


def to_json(
    study: Study, *, x: str, y: Sequence[str], budgets: Sequence[Budget], privacy: Sequence[Composed]
) -> dict[str, Any]:
    """Every run with all its measures and the reasons for its nulls, every arm, and both fronts.

    A front is of one data set, over those that meet every budget.
    """
    objectives = [x, *y]
    needed = list(dict.fromkeys([*study.columns, *objectives, *(b.key for b in budgets)]))
    columns, means, sds = ({key: of(key) for key in needed} for of in (study.column, study.means, study.sds))
    on_front, meets = fronts(study, objectives, budgets)
    arm_front, arm_meets = arm_fronts(study, objectives, budgets)
    runs = []
    for place, entry in enumerate(study.entries):
        card = entry.card
        runs.append({
            **_facts(study, place),
            "overrides": [str(item) for item in card.run.get("overrides") or []],
            "meets_budgets": meets[place], "on_front": on_front[place],
            "measures": {key: columns[key][place] for key in needed},
            "missing": {key: reason(card, key) for key in needed if columns[key][place] is None},
        })  # fmt: skip
    arms = [
        {
            "label": arm.label, "data": study.sets[study.set_of_arm[place]].label,
            "runs": [str(entry.run_dir) for entry in arm.entries],
            "meets_budgets": arm_meets[place], "on_front": arm_front[place],
            "mean": {key: means[key][place] for key in needed},
            "sd": {key: sds[key][place] for key in needed},
        }
        for place, arm in enumerate(study.arms)
    ]  # fmt: skip
    return {
        "schema": SCHEMA,
        "objectives": [{"key": key, "better": fmt.measure_of(key).better} for key in objectives],
        "budgets": [budget.text for budget in budgets],
        "privacy": [{**asdict(one), "words": one.sentences()} for one in privacy],
        "arms": arms,
        "runs": runs,
        "left_out": {
            "damaged": study.found.damaged,
            "without_a_card": [str(path) for path in study.found.unfinished],
            "of_one_batch": [str(path) for path in study.found.trials],
        },
    }


def to_csv(study: Study, *, x: str, y: Sequence[str], budgets: Sequence[Budget]) -> str:
    """One row per run; what was not measured is empty."""
    on_front, meets = fronts(study, [x, *y], budgets)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = list(_facts(study, 0))
    writer.writerow([*names, "meets_budgets", "on_front", *study.columns])
    for place in range(len(study.entries)):
        facts = [_cell(found) for found in _facts(study, place).values()]
        numbers = ["" if column[place] is None else repr(column[place]) for column in study.columns.values()]
        writer.writerow([*facts, _yes(meets[place]), _yes(on_front[place]), *numbers])
    return file.getvalue()


def fronts(
    study: Study, objectives: Sequence[str], budgets: Sequence[Budget]
) -> tuple[list[bool], list[bool]]:
    """Of each run: whether it is on the front of its data set, and whether it meets every budget."""
    return _judged(study.set_of, study.column, objectives, budgets)


def arm_fronts(
    study: Study, objectives: Sequence[str], budgets: Sequence[Budget]
) -> tuple[list[bool], list[bool]]:
    """The same of each arm, by its means."""
    return _judged(study.set_of_arm, study.means, objectives, budgets)


def _judged(
    sets: Sequence[int], column: Callable[[str], Column], objectives: Sequence[str], budgets: Sequence[Budget]
) -> tuple[list[bool], list[bool]]:
    limits = {budget.key: column(budget.key) for budget in budgets}
    meets = [all(budget.met(limits[budget.key][place]) for budget in budgets) for place in range(len(sets))]
    rows = list(zip(*(column(key) for key in objectives), strict=True))
    return _by_set(sets, rows, meets, objectives), meets


def _by_set(
    sets: Sequence[int],
    rows: Sequence[Sequence[float | None]],
    meets: Sequence[bool],
    objectives: Sequence[str],
) -> list[bool]:
    found = [False] * len(rows)
    for one in set(sets):
        places = [n for n, (place, met) in enumerate(zip(sets, meets, strict=True)) if place == one and met]
        for place, best in zip(places, front([rows[n] for n in places], objectives), strict=True):
            found[place] = best
    return found


def _facts(study: Study, place: int) -> dict[str, Any]:
    entry = study.entries[place]
    run, settings = entry.card.run, settings_of(entry)
    return {
        "run_dir": str(entry.run_dir), "name": str(run.get("name", "")), "id": str(run.get("id", "")),
        "data": study.sets[study.set_of[place]].label, "model": settings.model,
        "techniques": "+".join(settings.techniques), "arm": study.arms[study.arm_of[place]].label,
        "seed": seed(entry.card), "epochs": settings.epochs, "started": str(run.get("started", "")),
    }  # fmt: skip


def _cell(found: object) -> str:
    """Text that no spreadsheet runs."""
    text = "" if found is None else str(found)
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _yes(found: bool) -> str:
    return "yes" if found else "no"
