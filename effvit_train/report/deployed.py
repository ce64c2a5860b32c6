"""The model as a file in other runtimes and on other devices: rows of `provenance["runtimes"]`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effvit_train.card import Card
from effvit_train.export.rows import KEY
from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.charts import escape
from effvit_train.report.inputs import RunData, as_dict, as_dicts


@dataclass(frozen=True)
class _Column:
    """A column: heading, key of the row, how a number is written, and whether a narrow page does without it."""

    heading: str
    key: str
    write: Callable[[float], str]
    wide: bool = False


_COLUMNS = (
    _Column("Latency", "latency_ms", fmt.milliseconds),
    _Column("p95", "latency_p95_ms", fmt.milliseconds, wide=True),
    _Column("× PyTorch", "latency_ratio", fmt.significant),
    _Column("Images/s", "throughput", fmt.significant, wide=True),
    _Column("Size", "size_mb", fmt.megabytes, wide=True),
    _Column("Memory", "memory_mb", fmt.megabytes, wide=True),
    _Column("Energy", "energy_j", lambda joules: f"{fmt.significant(joules)} J", wide=True),
    _Column("Accuracy", "accuracy", fmt.percent),
)


def section(data: RunData) -> str:
    """One table per device, what the files have in common with the trained model, and reasons of what is missing."""
    rows = _rows(data.card)
    if not rows:
        return ""
    groups = _groups(rows)
    columns = _used(rows)
    tables = "".join(_table(device, own, columns) for device, own in groups.items())
    hints = "".join(f'<p class="hint">{markup.text(line)}</p>' for line in _sentences(rows, columns))
    return markup.section(
        "Deployed", f'<div class="scroll"><table class="measures">{tables}</table></div>{hints}'
    )


def terminal_table(card: Card) -> RenderableType:
    """The same in the terminal; nothing where there are no rows."""
    rows = _rows(card)
    if not rows:
        return Group()
    columns = [column for column in _used(rows) if column.key != "latency_p95_ms"]  # 80 characters
    parts: list[RenderableType] = [Text("Deployed", "bold")]
    for device, own in _groups(rows).items():
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        for _ in columns:
            table.add_column(justify="right", no_wrap=True)
        table.add_row("", *(Text(column.heading, "dim") for column in columns))
        for entry in own:
            table.add_row(_name(entry), *(_written(entry, column) for column in columns))
        parts += [Text(device, "dim"), table, Text("")]
    parts += [Text(line, "dim") for line in _sentences(rows, columns)]
    return Group(*parts)


def _rows(card: Card) -> list[dict[str, Any]]:
    return [entry for entry in as_dicts(card.provenance.get(KEY)) if entry]


def _groups(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows by where they were measured; what was measured by itself, on the same machine, stands apart."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in rows:
        threads = entry.get("threads")
        device = str(entry.get("device") or "an unknown device")
        if isinstance(threads, int):
            device += f", {threads} thread{'' if threads == 1 else 's'}"
        if entry.get("made_by") == "effvit bench":
            device += ", effvit bench"
        groups.setdefault(device, []).append(entry)
    return groups


def _used(rows: list[dict[str, Any]]) -> list[_Column]:
    return [
        column for column in _COLUMNS if any(_number(entry.get(column.key)) is not None for entry in rows)
    ]


def _table(device: str, rows: list[dict[str, Any]], columns: list[_Column]) -> str:
    head = "".join(
        f'<th scope="col" class="num{" before" if column.wide else ""}">{markup.text(column.heading)}</th>'
        for column in columns
    )
    body = "".join(
        f'<tr><th scope="row" title="{escape(_tip(entry))}">{escape(_name(entry))}</th>'
        + "".join(
            f'<td class="num{" before" if column.wide else ""}"{_reason(entry, column)}>'
            f"{markup.text(_written(entry, column))}</td>"
            for column in columns
        )
        + "</tr>"
        for entry in rows
    )
    return f'<tbody><tr class="axis"><th scope="col">{escape(device)}</th>{head}</tr>{body}</tbody>'


def _name(entry: dict[str, Any]) -> str:
    return f"{entry.get('runtime') or 'unknown runtime'} {entry.get('precision') or ''}".strip()


def _written(entry: dict[str, Any], column: _Column) -> str:
    number = _number(entry.get(column.key))
    return fmt.NONE if number is None else column.write(number)


def _reason(entry: dict[str, Any], column: _Column) -> str:
    reason = as_dict(entry.get("missing")).get(column.key)
    return f' title="{escape(str(reason))}"' if reason else ""


def _tip(entry: dict[str, Any]) -> str:
    return f"{entry.get('file')}, measured {entry.get('when')}"


def _sentences(rows: list[dict[str, Any]], columns: list[_Column]) -> list[str]:
    """What was compared on which images, then how it was timed, then why a column has gaps."""
    lines = [_compared(rows)]
    batches = sorted(
        {entry["throughput_batch"] for entry in rows if isinstance(entry.get("throughput_batch"), int)}
    )
    at = ", ".join(f"{batch:,}" for batch in batches)
    lines.append(
        f"Latency is the median of one image at a time (p95: 95 % take less); images/s are at a batch of {at or 'several'}."
        + (
            " × PyTorch is the ratio of the latencies, of runs that were timed in turn."
            if any(column.key == "latency_ratio" for column in columns)
            else ""
        )
    )
    reasons: dict[str, list[str]] = {}
    for column in columns:
        for entry in rows:
            reason = str(as_dict(entry.get("missing")).get(column.key) or "")
            if reason and _number(entry.get(column.key)) is None:
                reasons.setdefault(reason, []).append(column.heading[:1].lower() + column.heading[1:])
    if reasons:
        told = (f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in reasons.items())
        lines.append(f"Not measured where there is a dash: {'; '.join(told)}.")
    return [line for line in lines if line]


def _compared(rows: list[dict[str, Any]]) -> str:
    """How files differ from the trained model, by the number of images that they were compared on."""
    found: dict[int, list[str]] = {}
    for entry in rows:
        difference, equal = _number(entry.get("max_difference")), _number(entry.get("equal_predictions"))
        images = entry.get("images")
        if difference is None or equal is None or not isinstance(images, int):
            continue
        apart = f"logits apart by at most {fmt.significant(difference)}" if difference else "equal logits"
        same = "all predictions equal" if equal == 1 else f"{fmt.percent(equal)} of predictions equal"
        found.setdefault(images, []).append(f"{_name(entry)}: {apart}, {same}")
    return " ".join(
        f"Against the trained model, on {images:,} test images: {'; '.join(dict.fromkeys(parts))}."
        for images, parts in found.items()
    )


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
