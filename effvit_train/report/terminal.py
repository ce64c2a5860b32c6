"""The card in the terminal, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from effvit_train.card import MEASURES, Card
from effvit_train.report import continual, deployed, resolution, teacher
from effvit_train.report import format as fmt
from effvit_train.report.baseline import Baseline
from effvit_train.report.commands import next_commands
from effvit_train.report.compare import Comparison
from effvit_train.report.inputs import as_list, is_private, test_count
from effvit_train.report.stream_facts import stream_of
from effvit_train.report.words import no_baseline, plain

__all__ = ["card_table", "cost_table", "next_commands"]

COLOURS = {"better": "green", "worse": "red", "same": "dim", "unclear": "dim"}


def card_table(card: Card, baseline: Baseline) -> RenderableType:
    """The card axis by axis: value with unit, baseline, change with sign and word, reasons of nulls."""
    return Group(
        _title(card),
        *_axes(card, Comparison(card, baseline)),
        continual.terminal_table(card),
        deployed.terminal_table(card),
        _footer(card, baseline),
    )


def cost_table(card: Card, kwargs: Mapping[str, Any], conditions: Mapping[str, Any]) -> RenderableType:
    """The measures of a model that was not trained, with the conditions they were taken under."""
    shape = "x".join(str(n) for n in card.model["input_shape"])
    title = Text.assemble(
        (str(card.model["name"]), "bold"), (f"  {shape}, {kwargs.get('num_classes')} classes\n", "dim")
    )
    alone = Comparison(card, Baseline(None, None, ""))
    how = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in conditions.items() if value is not None
    )
    return Group(title, *_axes(card, alone), Text(f"Measured with: {how}", "dim"))


def _axes(card: Card, comparison: Comparison) -> list[RenderableType]:
    """One table per axis, then the axis's measures that were not taken, with the reasons."""
    keys = [key for key in MEASURES if key in card.measures] + sorted(set(card.measures) - set(MEASURES))
    labels = {key: fmt.measure_of(key).label for key in keys}
    width = max((len(label) for label in labels.values()), default=0)
    parts: list[RenderableType] = []
    untouched: dict[str, list[str]] = {}  # reason -> axes of which nothing was measured
    for axis in dict.fromkeys(key.partition("/")[0] for key in keys):
        mine = [key for key in keys if key.partition("/")[0] == axis]
        reasons: dict[str, list[str]] = {}
        for key in mine:
            if card.measures[key] is None:
                reasons.setdefault(card.missing.get(key, "no reason given"), []).append(labels[key])
        if len(reasons) == 1 and sum(map(len, reasons.values())) == len(mine) > 1:
            untouched.setdefault(next(iter(reasons)), []).append(axis.capitalize())
            continue
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=width, no_wrap=True)
        table.add_column(justify="right", min_width=14, no_wrap=True)
        head = [Text(axis.capitalize(), "bold")]
        if comparison.baseline.card is not None:
            table.add_column(justify="right", min_width=14, no_wrap=True, style="dim")
            table.add_column(no_wrap=True)
            head += [Text("this run", "dim"), Text("baseline", "dim"), Text("change", "dim")]
        table.add_row(*head)
        absent = Table.grid(padding=(0, 2))
        absent.add_column(min_width=width, no_wrap=True, style="dim")
        absent.add_column(style="dim")
        for key in mine:
            if card.measures[key] is not None:
                table.add_row(*_row(key, card, comparison))
        for reason, whose in reasons.items():
            absent.add_row(whose[0] + ("" if len(whose) == 1 else " …"), Text(f"{fmt.NONE} {reason}"))
        parts.append(table)
        if absent.row_count:
            parts.append(absent)
        parts.append(Text(""))
    parts += [Text(f"{', '.join(axes)}: {reason}", "dim") for reason, axes in untouched.items()]
    return [*parts, Text("")] if untouched else parts


def _row(key: str, card: Card, comparison: Comparison) -> list[RenderableType]:
    now = card.measures[key]
    cells: list[RenderableType] = [fmt.measure_of(key).label, Text(fmt.value(key, now), "bold")]
    if comparison.baseline.card is None:
        tested = test_count(card)
        if key == "quality/accuracy" and now is not None and tested:
            cells.append(Text(f"95 % interval {fmt.interval(round(now * tested), tested)}", "dim"))
        return cells
    found = comparison.change(key)
    change = Text(str(found), COLOURS[found.verdict]) if found else Text(fmt.NONE, "dim")
    return [*cells, fmt.value(key, comparison.before(key)), change]


def _title(card: Card) -> Text:
    name = card.run.get("model") or card.model.get("name") or "model"
    title = Text.assemble((str(name), "bold"), " on ", (str(card.run.get("dataset") or "its data"), "bold"))
    done = as_list(card.run.get("compress"))
    done += [str(card.run["privacy"])] if is_private(card) else []
    facts = [", ".join(done) if done else "uncompressed"]
    stream = stream_of(card)
    if stream is not None:
        facts.append(stream.title)
    if card.run.get("seed") is not None:
        facts.append(f"seed {card.run['seed']}")
    if card.run.get("epochs") is not None:
        facts.append(f"{card.run['epochs']} epochs")
    tested = test_count(card)
    if tested:
        facts.append(f"{tested:,} test images")
    title.append("  " + " · ".join(facts), "dim")
    title.append("\n")
    return title


def _footer(card: Card, baseline: Baseline) -> Text:
    lines = [line for line in (continual.line(card), resolution.line(card), teacher.line(card)) if line]
    text = Text("".join(f"{line}\n" for line in lines), "dim")
    if baseline.card is None:
        return text.append(no_baseline(card, baseline))
    where = _relative(baseline.run_dir) if baseline.run_dir else ""
    note = f" ({baseline.reason})" if baseline.reason else ""
    return text.append(f"Baseline: the same model {plain(card)}, {where}{note}.")


def _relative(path: Path) -> str:
    """The path as the user would type it from here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
