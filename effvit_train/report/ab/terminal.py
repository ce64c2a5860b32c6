"""A comparison in the terminal: a short table and one sentence."""

from __future__ import annotations

import os

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effvit_train.report import format as fmt
from effvit_train.report.ab import cards, words
from effvit_train.report.ab.cards import Cost
from effvit_train.report.ab.outcome import Outcome
from effvit_train.report.ab.rows import Row
from effvit_train.report.ab.sides import Side
from effvit_train.report.stream_facts import SAMPLED
from effvit_train.report.terminal import COLOURS

_MEASURES = ("quality/balanced_accuracy", "quality/nll", "calibration/brier", "calibration/ece", *SAMPLED)
_PARTS = 8  # classes and groups that are named
_SHORT = {"quality/nll": "Neg. log-likelihood", "calibration/ece": "Calibration error"}
_COSTS = (
    "cost/params", "cost/macs", "cost/latency_ms", "cost/throughput", "cost/memory_mb", "cost/size_mb",
    "cost/energy_j", "cost/train_seconds",
)  # fmt: skip


def table(outcome: Outcome) -> RenderableType:
    """Sides, accuracy and scores with their intervals, flips, costs, and the verdict last."""
    rows = [row for row in outcome.measures if row.name in _MEASURES or row.verdict in ("better", "worse")]
    headline = outcome.headline.accuracy
    return Group(
        _sides(outcome), Text(""),
        *([] if headline is None else [_tested(outcome, [headline, *rows]), Text("")]),
        *[Text(line, "dim") for line in _flipped(outcome)],
        _costs(outcome), *_continual(outcome), Text(""), Text(words.verdict(outcome), "bold"),
        *([Text(note, "yellow")] if (note := words.streams(outcome)) else []),
        *([Text(note, "dim")] if (note := words.scope(outcome)) else []),
    )  # fmt: skip


def _sides(outcome: Outcome) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    for side in (outcome.a, outcome.b):
        grid.add_row(Text(side.name, "bold"), Text(side.label, "bold"), Text(_runs(side), "dim"))
    return grid


def _runs(side: Side) -> str:
    first = os.path.relpath(side.entries[0].run_dir)
    if len(side.entries) == 1:
        return f"{first}, seed {side.seeds[0]}"
    return f"{len(side.entries)} runs, seeds {', '.join(map(str, side.seeds))}"


def _tested(outcome: Outcome, rows: list[Row]) -> RenderableType:
    grid = _grid(7)
    head = ("", "A", "B", "B − A", f"{words.coverage(outcome)} interval", "p", "B is")
    grid.add_row(*(Text(title, "dim") for title in head))
    for row in rows:
        key = row.name
        grid.add_row(
            _SHORT.get(key, fmt.measure_of(key).label), words.value(key, row.a), words.value(key, row.b),
            words.signed(key, row.difference), words.ends(key, row), words.p_value(row.corrected),
            Text(words.word(row), COLOURS[row.verdict]),
        )  # fmt: skip
    return grid


def _flipped(outcome: Outcome) -> list[str]:
    found = outcome.flips
    if found is None:
        return [f"Images are not paired: {outcome.why_not}.", ""]
    lines = [
        f"Flipped: {len(found.only_a):,} images are right in A only, {len(found.only_b):,} in B only"
        + (" (most runs)." if outcome.scope != "models" else ".")
    ]
    parts = [(f"class {row.name}", row) for row in outcome.classes]
    parts += [(f"{one.column}={row.name}", row) for one in outcome.groups for row in one.rows]
    told = [(name, row) for name, row in parts if row.verdict in ("better", "worse")]
    lines += [
        f"{name}: B is {row.verdict}, {words.signed('quality/accuracy', row.difference)} "
        f"(p {words.p_value(row.corrected)}, corrected for all)"
        for name, row in told[:_PARTS]
    ]
    if told[_PARTS:]:
        lines.append(f"and {len(told) - _PARTS} more classes or groups")
    return [*lines, ""]


def _costs(outcome: Outcome) -> RenderableType:
    grid = _grid(4)
    grid.add_row(*(Text(title, "dim") for title in ("", "A", "B", "B is")))
    for cost in outcome.costs:
        if cost.key in _COSTS and (cost.a is not None or cost.b is not None):
            grid.add_row(*_cost(cost))
    priced = outcome.priced
    if priced is not None:
        for number, (name, (of_a, of_b), change) in enumerate(words.priced(priced)):
            grid.add_row(
                name, words.amount(priced.currency, of_a), words.amount(priced.currency, of_b),
                _change(change, priced.reason if number == 0 else ""),
            )  # fmt: skip
    return grid


def _continual(outcome: Outcome) -> list[RenderableType]:
    """What both cards say of one stream, where no test over seeds has told it."""
    tested = {row.name for row in outcome.measures}
    rows = [cost for cost in cards.continual(outcome.a, outcome.b) if cost.key not in tested]
    if not rows:
        return []
    grid = _grid(4)
    grid.add_row(*(Text(title, "dim") for title in ("Continual", "A", "B", "B is")))
    for cost in rows:
        grid.add_row(*_cost(cost))
    return [Text(""), grid]


def _cost(cost: Cost) -> list[RenderableType]:
    label = fmt.measure_of(cost.key).label
    return [
        label,
        fmt.value(cost.key, cost.a),
        fmt.value(cost.key, cost.b),
        _change(cost.change, cost.reason),
    ]


def _change(change: fmt.Change | None, reason: str) -> Text:
    return Text(str(change), COLOURS[change.verdict]) if change is not None else Text(reason, "dim")


def _grid(columns: int) -> Table:
    grid = Table.grid(padding=(0, 1 if columns > 4 else 2))
    for number in range(columns):
        grid.add_column(
            justify="left" if number in (0, columns - 1) else "right", no_wrap=number < columns - 1
        )
    return grid
