"""The lower half of `card.html`: measures, provenance and commands."""

from __future__ import annotations

from collections import Counter
from typing import Any

from effvit_train.card import MEASURES
from effvit_train.report import format as fmt
from effvit_train.report import markup, words
from effvit_train.report.charts import escape
from effvit_train.report.commands import next_commands, repeat_command
from effvit_train.report.compare import Comparison
from effvit_train.report.inputs import RunData, as_dict, as_list


def measures(data: RunData, comparison: Comparison) -> str:
    """Every measure with its unit, definition, baseline and change; then those not taken."""
    card, against = data.card, comparison.baseline.card is not None
    keys = [key for key in MEASURES if key in card.measures] + sorted(set(card.measures) - set(MEASURES))
    taken = [key for key in keys if card.measures[key] is not None]
    columns = (
        '<th scope="col" class="num before">Baseline</th><th scope="col" class="change">Change</th>'
        if against
        else ""
    )
    body = []
    for axis in dict.fromkeys(key.partition("/")[0] for key in taken):
        rows = "".join(
            _measure_row(key, card.measures[key], comparison, against)
            for key in taken
            if key.startswith(axis + "/")
        )
        head = (
            f'<tr class="axis"><th scope="col">{escape(axis.capitalize())}</th>'
            f'<th scope="col" class="num">This run</th>{columns}</tr>'
        )
        body.append(f"<tbody>{head}{rows}</tbody>")
    table = f'<table class="measures">{"".join(body)}</table>' if body else ""
    return markup.section("Measures", table + _conditions(data, comparison) + _missing(data, keys))


def _measure_row(key: str, number: float | None, comparison: Comparison, against: bool) -> str:
    measure = fmt.measure_of(key)
    reference = f" {measure.reference}." if measure.reference else ""
    meaning = f"{measure.definition}{reference} {measure.better.capitalize()} is better."
    cells = ""
    if against:
        change = comparison.change(key)
        style, text = (change.verdict, markup.text(change)) if change else ("", fmt.NONE)
        cells = (
            f'<td class="num before">{markup.text(fmt.value(key, comparison.before(key)))}</td>'
            f'<td class="change {style}">{text}</td>'
        )
    exact = "" if number is None else f"{key} = {number:.10g} {measure.unit}"
    return (
        f'<tr><th scope="row"><details><summary>{escape(measure.label)}</summary>'
        f"<p>{escape(meaning)}</p></details></th>"
        f'<td class="num" title="{escape(exact)}">{markup.text(fmt.value(key, number))}</td>{cells}</tr>'
    )


def _conditions(data: RunData, comparison: Comparison) -> str:
    """How cost was measured."""
    stated = as_dict(data.card.provenance.get("cost_conditions"))
    machine = as_dict(data.card.provenance.get("machine"))
    facts = {"processor": machine.get("processor"), **stated}
    text = "; ".join(
        f"{markup.plain(k)} {markup.scalar(v)}" for k, v in facts.items() if v not in (None, "", [], {})
    )
    parts = [f"Measured with: {text}."] if text else []
    if not comparison.same_conditions:
        parts.append("The baseline was measured under other conditions: times are shown without a verdict.")
    if comparison.baseline.card is not None:
        parts.append("Differences of times and memory below 10 % count as noise.")
    return f'<p class="hint">{markup.text(" ".join(parts))}</p>' if parts else ""


def _missing(data: RunData, keys: list[str]) -> str:
    rows = "".join(
        f"<div><dt>{escape(fmt.measure_of(key).label)}</dt>"
        f"<dd>{escape(data.card.missing.get(key, 'no reason given'))}</dd></div>"
        for key in keys
        if data.card.measures[key] is None
    )
    return f'<h3>Not measured</h3><dl class="facts quiet">{rows}</dl>' if rows else ""


def provenance(data: RunData, comparison: Comparison) -> str:
    """Where the model comes from: data, training, teacher, baseline, machine, versions."""
    card = data.card
    run, model, more = card.run, card.model, card.provenance
    blocks = [markup.facts("Data", _data_facts(data.dataset))]
    shape = model.get("input_shape") or (data.record.input_shape if data.record else None)
    changes = Counter(str(cut.get("kind")) for cut in data.record.cuts) if data.record else Counter[str]()
    told = ", ".join(kind if times == 1 else f"{kind} × {times}" for kind, times in changes.items())
    attention = Counter(
        str(as_dict(entry).get("kind"))
        for entry in (data.record.kwargs.get("attention") or [] if data.record else [])
    )
    blocks.append(
        markup.facts("Model", {
            "timm name": model.get("name"), "input": _shape(shape), "classes": model.get("num_classes"),
            "attention": ", ".join(f"{kind} in {n} blocks" for kind, n in attention.items()) or None,
            "changes": f"{told}; listed in model.json" if told else None,
        })
    )  # fmt: skip
    teacher = as_dict(more.get("teacher"))
    accuracy, params = teacher.get("accuracy"), teacher.get("params")
    blocks.append(
        markup.facts("Teacher", {
            "name": teacher.get("name"),
            "test accuracy": fmt.percent(accuracy) if isinstance(accuracy, (int, float)) else None,
            "parameters": fmt.parameters(params) if isinstance(params, (int, float)) else None,
            "source": teacher.get("source"), "training": teacher.get("training"),
            "run": teacher.get("run_dir"),
        })
    )  # fmt: skip
    reason = (
        f"{run.get('precision')}: {run['precision_reason']}"
        if run.get("precision_reason")
        else run.get("precision")
    )
    blocks.append(
        markup.facts("Run", {
            "id": run.get("id"), "directory": run.get("run_dir"), "started": words.moment(run.get("started")),
            "status": run.get("status"), "seed": run.get("seed"), "precision": reason,
            "overrides": " ".join(as_list(run.get("overrides"))) or "none: the defaults",
        })
    )  # fmt: skip
    blocks.append(markup.facts("Update", _update_facts(as_dict(more.get("lineage")))))
    other = comparison.baseline
    if other.card is not None:
        blocks.append(
            markup.facts("Baseline", {
                "run": other.card.run.get("run_dir") or other.run_dir, "seed": other.card.run.get("seed"),
                "started": words.moment(other.card.run.get("started")), "note": other.reason,
            })
        )  # fmt: skip
    for name in ("privacy", "pruning", "machine", "versions"):
        content = more.get(name)
        facts = as_dict(content) if not isinstance(content, list) else {"entries": len(content)}
        blocks.append(markup.facts(name.capitalize(), facts))
    return markup.section("Provenance", f'<div class="blocks">{"".join(blocks)}</div>')


def _update_facts(lineage: dict[str, Any]) -> dict[str, Any]:
    parent, before = as_dict(lineage.get("parent")), as_dict(lineage.get("epsilon_before"))
    return {
        "of": parent.get("run_dir"), "its card": parent.get("card"),
        "its data": as_dict(parent.get("data")).get("fingerprint"),
        "earlier updates": len(as_list(lineage.get("ancestors"))) or None,
        "new data": as_dict(lineage.get("new_data")).get("name"),
        "earlier images": lineage.get("earlier_images"), "epsilon before": before.get("epsilon"),
        "verdict": "update.html" if parent else None,
    }  # fmt: skip


def _data_facts(dataset: dict[str, Any]) -> dict[str, Any]:
    counts, split = as_dict(dataset.get("counts")), as_dict(dataset.get("split"))
    return {
        "set": dataset.get("name"),
        "images": ", ".join(f"{n:,} {name}" for name, n in counts.items() if isinstance(n, int) and n),
        "split": ", ".join(
            f"{markup.plain(k)} {markup.scalar(v)}" for k, v in split.items() if v not in (None, "")
        ),
        "groups": ", ".join(as_dict(dataset.get("groups"))),
        "bad images skipped": dataset.get("skipped") or None,
        "other files ignored": dataset.get("ignored") or None,
        "fingerprint": dataset.get("fingerprint"),
    }


def commands(data: RunData, comparison: Comparison) -> str:
    """The command that repeats the run, and the next ones worth trying."""
    entries = [(repeat_command(data.card), "this run again")]
    entries += next_commands(data.card, comparison.baseline)
    items = "".join(
        f"<li><p>{escape(why[:1].upper() + why[1:])}</p><pre><code>{escape(line)}</code></pre></li>"
        for line, why in entries
    )
    return markup.section("Commands", f'<ul class="commands">{items}</ul>')


def _shape(shape: Any) -> str | None:
    if not isinstance(shape, (list, tuple)) or len(shape) != 3:
        return None
    channels, height, width = shape
    return f"{height} × {width} pixels, {channels} channel{'' if channels == 1 else 's'}"
