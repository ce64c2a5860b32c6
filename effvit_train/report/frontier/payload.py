"""The numbers that the page draws: columns, not objects, for thousands of runs are to open at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from effvit_train.arms import settings_of
from effvit_train.budgets import Budget
from effvit_train.card import Card
from effvit_train.proportions import wilson
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import interval, number
from effvit_train.report.chart360 import RINGS
from effvit_train.report.compare import conditions
from effvit_train.report.frontier.privacy import Composed
from effvit_train.report.frontier.study import Column, Study, label_of, reason, seed, value
from effvit_train.report.inputs import is_private, test_count
from effvit_train.report.spokes import LIMIT, SAME, SPOKES
from effvit_train.runs import RunDir

_DIGITS = 7
_COUNTED = (
    "quality/",
    "robustness/",
    "calibration/",
    "fairness/",
    "transparency/",
    "privacy/mia_",
)  # with intervals


def payload(
    study: Study,
    *,
    x: str,
    y: Sequence[str],
    budgets: Sequence[Budget],
    privacy: Sequence[Composed],
    out: Path,
) -> dict[str, Any]:
    """What the scripts read.

    Args:
        study: the runs.
        x: measure of the horizontal axis.
        y: measure of the vertical axis, then further objectives.
        budgets: filters at the start.
        privacy: what searches have spent.
        out: directory of the page, from which the cards are linked.
    """
    keys = list(dict.fromkeys([*study.columns, x, *y, *(budget.key for budget in budgets)]))
    return {
        "x": x,
        "y": list(y),
        "budgets": [{"key": b.key, "sign": b.sign, "limit": b.limit, "text": b.text} for b in budgets],
        "measures": [_measure(key) for key in keys],
        "spokes": [{"key": s.key, "name": s.name, "axis": s.axis, "by": s.by} for s in SPOKES],
        "scale": {
            "limit": LIMIT,
            "same": SAME,
            "rings": [list(ring) for ring in RINGS],
            "noise": fmt.TIMED_NOISE,
        },
        "timed": list(fmt.TIMED),
        "sets": [_set(study, place) for place in range(len(study.sets))],
        "privacy": [{"sets": list(one.places), "sentences": one.sentences()} for one in privacy],
        **_items(study, keys, out),
    }


def _measure(key: str) -> dict[str, str]:
    measure = fmt.measure_of(key)
    return {
        "key": key, "label": measure.label, "title": label_of(key), "unit": measure.unit, "better": measure.better,
        "about": measure.definition,
    }  # fmt: skip


def _set(study: Study, place: int) -> dict[str, Any]:
    one = study.sets[place]
    runs = study.set_of.count(place)
    several = (
        f"{one.by_name} of them are known by the name of the data set alone (their fingerprint is sealed)."
    )
    return {"label": one.label, "runs": runs, "note": several if one.by_name and runs > 1 else ""}


def _items(study: Study, keys: Sequence[str], out: Path) -> dict[str, Any]:
    techniques, models = _Words(), _Words()
    reasons, states = _Words(), _Words()
    runs: dict[str, list[Any]] = {
        name: [] for name in ("label", "seed", "set", "tech", "model", "href", "condition")
    }  # fmt: skip
    for entry, place, arm in zip(study.entries, study.set_of, study.arm_of, strict=True):
        card = entry.card
        settings = settings_of(entry)
        runs["label"].append(f"{study.arms[arm].label}, {run_name(entry.run_dir, card)}")
        runs["seed"].append(seed(card))
        runs["set"].append(place)
        runs["tech"].append(techniques.number("+".join(settings.techniques) or "plain"))
        runs["model"].append(models.number(settings.model))
        runs["href"].append(_link(entry.run_dir, out))
        runs["condition"].append(states.number(repr(sorted(conditions(card).items(), key=str))))
    cards = [entry.card for entry in study.entries]
    columns = {key: study.column(key) for key in keys}
    arms = {
        "label": [arm.label for arm in study.arms],
        "set": list(study.set_of_arm),
        "tech": [techniques.number("+".join(arm.settings.techniques) or "plain") for arm in study.arms],
        "model": [models.number(arm.settings.model) for arm in study.arms],
        "runs": [list(rows) for rows in study.rows],
        "condition": [_one([runs["condition"][row] for row in rows]) for rows in study.rows],
        "values": {key: _short(study.means(key)) for key in keys},
        "sd": {key: _short(study.sds(key)) for key in keys},
        "count": {
            key: [sum(columns[key][row] is not None for row in rows) for rows in study.rows] for key in keys
        },
        "logs": [_short(_logs(spoke, study.means(spoke.key))) for spoke in SPOKES],
        "stands": _stands([arm.entries[0].card for arm in study.arms]),
    }
    every = {
        **runs,
        "values": {key: _short(columns[key]) for key in keys},
        "why": {
            key: [
                -1 if have is not None else reasons.number(reason(card, key))
                for card, have in zip(cards, columns[key], strict=True)
            ]
            for key in keys
        },
        "logs": [_short(_logs(spoke, study.column(spoke.key))) for spoke in SPOKES],
        "interval": [
            [_interval(card, spoke.key) for card in cards]
            if spoke.key.startswith(_COUNTED)
            else [None] * len(cards)
            for spoke in SPOKES
        ],
        "stands": _stands(cards),
    }
    return {
        "techniques": techniques.all, "models": models.all, "reasons": reasons.all, "runs": every, "arms": arms,
    }  # fmt: skip


def run_name(run_dir: Path, card: Card) -> str:
    """What tells a run from the others of its arm: its seed and its directory's name."""
    return f"seed {seed(card)} ({run_dir.resolve().name})"


class _Words:
    """Each text once, by its number."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def number(self, text: str) -> int:
        place = self._places.setdefault(text, len(self.all))
        if place == len(self.all):
            self.all.append(text)
        return place


def _logs(spoke: Any, column: Column) -> Column:
    """The logarithm of the burden of each value."""
    return [None if found is None else number(spoke.log_burden(found)) for found in column]


def _stands(cards: Sequence[Card]) -> dict[str, Column]:
    """What nulls of a reference stand for: without privacy no bound holds, attention that was not replaced is exact."""
    exact = "approximation/attention_error"
    return {
        "privacy/epsilon": [None if is_private(card) else 0.0 for card in cards],
        exact: [0.0 if "no replaced" in card.missing.get(exact, "") else None for card in cards],
    }


def _interval(card: Card, key: str) -> list[float | None] | None:
    """The 95 % interval of a spoke's measure where chance in the choice of test images is known."""
    found = interval(card, key)
    tested, share = test_count(card), value(card, key)
    if key == "quality/accuracy" and tested and share is not None and 0 <= share <= 1:
        found = wilson(round(share * tested), tested)
    return None if found is None else _short(list(found))


def _short(column: Sequence[float | None]) -> Column:
    return [None if found is None else float(f"{found:.{_DIGITS}g}") for found in column]


def _one(states: Sequence[int]) -> int | None:
    return states[0] if len(set(states)) == 1 else None


def _link(run_dir: Path, out: Path) -> str:
    """The card's address beside the page; empty where there is no page."""
    page = RunDir(run_dir).html
    return quote(os.path.relpath(page.resolve(), out.resolve()).replace(os.sep, "/")) if page.exists() else ""
