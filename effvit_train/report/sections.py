"""The upper half of `card.html`: headline, curves and mistakes, each a function of what was read."""

from __future__ import annotations

from typing import Any

from effvit_train.proportions import wilson
from effvit_train.report import format as fmt
from effvit_train.report import markup, words
from effvit_train.report import mistakes as errors
from effvit_train.report.charts import SMALL_MATRIX, Series, clip, escape, line_chart, matrix
from effvit_train.report.compare import Comparison
from effvit_train.report.inputs import Curve, RunData, read_curves
from effvit_train.report.stream_facts import stream_of
from effvit_train.runs import RunDir

HEADLINE = (
    "quality/accuracy", "privacy/epsilon", "cost/params", "cost/macs", "cost/latency_ms", "cost/size_mb",
)  # fmt: skip
MATRIX_CLASSES = 40
BAR_CLASSES = 20
PAIRS = 10


def header(data: RunData, comparison: Comparison) -> str:
    """Title, what was done, warnings and the verdict."""
    run = data.card.run
    facts = [words.what_was_done(data.card)]
    stream = stream_of(data.card)
    if stream is not None:
        facts.append(stream.title)
    if run.get("epochs") is not None:
        facts.append(f"{run['epochs']} epoch{'' if run['epochs'] == 1 else 's'}")
    if run.get("seed") is not None:
        facts.append(f"seed {run['seed']}")
    facts.append(words.when(data.card))
    line = "\u00a0· ".join(markup.text(fact) for fact in facts if fact)
    notices = "".join(f'<p class="notice">{escape(text)}</p>' for text in words.warnings(data.card))
    return (
        f"<header>\n<h1>{escape(words.title(data.card))}</h1>\n"
        f'<p class="facts">{line}</p>\n{notices}'
        f'<p class="verdict">{markup.text(words.verdict(data))}</p>\n'
        f'<p class="against">{markup.text(words.against_baseline(comparison))}</p>\n</header>'
    )


def tiles(data: RunData, comparison: Comparison) -> str:
    """Headline numbers with their change against the baseline."""
    items = []
    for key in HEADLINE:
        number = data.card.measures.get(key)
        if number is None:
            continue
        measure = fmt.measure_of(key)
        change = comparison.change(key)
        below = ""
        if change is not None:
            before = markup.text(fmt.value(key, comparison.before(key)))
            amount = markup.text(f"{change.arrow} {change.amount}")
            sign = f"<span>{amount}</span> <span>{escape(change.word)}</span>"
            below = f'<p class="change {change.verdict}">{sign}</p><p class="before">baseline {before}</p>'
        items.append(
            f'<div class="tile" title="{escape(measure.definition)}">'
            f'<p class="label">{escape(measure.label)}</p>'
            f'<p class="number">{markup.number_with_unit(fmt.value(key, number))}</p>{below}</div>'
        )
    return f'<section class="tiles" aria-label="Headline numbers">{"".join(items)}</section>' if items else ""


def curves(data: RunData, comparison: Comparison) -> str:
    """Loss terms and validation accuracy over epochs."""
    if not data.curves:
        return markup.section(
            "Training", markup.absent("No curves: " + data.absent.get("metrics", "nothing was logged."))
        )
    losses = _loss_series(data.curves)
    figures = []
    if losses:
        figures.append(figure("Loss", losses, title="Loss over epochs", write=_loss))
    accuracy = _accuracy_series(data, comparison)
    if accuracy:
        values = [y for line in accuracy for _, y in line.points]
        limits = (0.0 if min(values) < 0.5 else 0.5 if min(values) < 0.8 else 0.8, 1.0)
        figures.append(
            figure(
                "Validation accuracy",
                accuracy,
                title="Validation accuracy over epochs",
                write=_accuracy,
                y_range=limits,
            )
        )
    return markup.section("Training", f'<div class="pair">{"".join(figures)}</div>') if figures else ""


def _loss(number: float) -> str:
    return f"{number:.3g}" if abs(number) < 1000 else fmt.significant(number)


def _accuracy(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0") + " %"


def _loss_series(found: dict[str, Curve]) -> list[Series]:
    terms = [
        name for name in found if name.startswith("train/") and name not in ("train/loss", "train/accuracy")
    ]
    if len(terms) == 1 and found[terms[0]] == found.get("train/loss"):
        terms = []  # the only term is the loss
    names = {"train/loss": "training", "val/loss": "validation"}
    if terms:
        names["train/loss"] = "training, weighted sum"
    series = []
    for name in ("train/loss", *terms, "val/loss"):
        if name in found:
            order = f"term{terms.index(name) % 4}" if name in terms else name.partition("/")[0]
            label = names.get(name) or f"training, {name.removeprefix('train/')} term"
            series.append(Series(label, found[name], order))
    return series


def _accuracy_series(data: RunData, comparison: Comparison) -> list[Series]:
    series = []
    if comparison.baseline.run_dir is not None:
        try:
            other = read_curves(RunDir(comparison.baseline.run_dir).metrics).get("val/accuracy")
        except (OSError, ValueError):
            other = None
        if other:
            series.append(Series("baseline", other, "other"))
    if "val/accuracy" in data.curves:
        series.append(Series("this run", data.curves["val/accuracy"], "val"))
    return series if "val/accuracy" in data.curves else []


def figure(caption: str, series: list[Series], **options: Any) -> str:
    """A line chart with its caption, and a legend with each line's last value."""
    write = options["write"]
    legend = "".join(
        f'<li><svg class="swatch" viewBox="0 0 22 8" aria-hidden="true"><g class="series {line.style}">'
        f'<polyline points="0,4 22,4"/></g></svg>{escape(line.label)} '
        f'<span class="last">{markup.text(write(line.points[-1][1]))}</span></li>'
        for line in series
    )
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>{line_chart(series, **options)}"
        f'<ul class="legend">{legend}</ul></figure>'
    )


def mistakes(data: RunData) -> str:
    """Confusion matrix, accuracy per class and the most confused pairs."""
    if data.predictions is None:
        reason = data.absent.get("predictions", "no predictions were kept.")
        return markup.section(
            "Mistakes", markup.absent(f"No confusion matrix and no accuracy per class: {reason}")
        )
    counts = errors.confusion(data.predictions)
    names = data.classes
    if len(names) <= MATRIX_CLASSES:
        left = (
            "<figure><figcaption>Confusion matrix</figcaption>"
            f'<div class="scroll">{matrix(counts, names)}</div>'
            '<p class="hint">Rows are the true classes. Shade is the share of the row.</p></figure>'
        )
        bars, pairs = _class_bars(counts, names), _pairs(counts, names, PAIRS)
        if len(names) <= SMALL_MATRIX:
            blocks = f'<div class="pair">{left}<div class="stack">{bars}{pairs}</div></div>'
        else:
            blocks = f'{left}<div class="pair below">{pairs}{bars}</div>'
    else:
        blocks = f'<div class="pair">{_pairs(counts, names, 2 * PAIRS)}{_class_bars(counts, names)}</div>'
    return markup.section("Mistakes", blocks)


def _class_bars(counts: Any, names: list[str]) -> str:
    totals = counts.sum(1)
    order = [i for i in range(len(names)) if totals[i]]
    many = len(order) > BAR_CLASSES
    if many:
        order.sort(key=lambda i: (counts[i, i] / totals[i], -totals[i], i))
    rows = [_bar(names[i], int(counts[i, i]), int(totals[i])) for i in order]
    shown, rest = (rows[:BAR_CLASSES], rows[BAR_CLASSES:]) if many else (rows, [])
    body = f'<div class="bars">{"".join(shown)}</div>'
    if rest:
        body += f"<details><summary>{len(rest):,} more classes</summary>"
        body += f'<div class="bars">{"".join(rest)}</div></details>'
    empty = len(names) - len(order)
    note = f" {empty:,} classes have no test image." if empty else ""
    caption = "Accuracy per class, worst first" if many else "Accuracy per class"
    return (
        f"<figure><figcaption>{caption}</figcaption>{body}"
        f'<p class="hint">The thin line is the 95 % Wilson interval.{note}</p></figure>'
    )


def _bar(name: str, right: int, total: int) -> str:
    low, high = wilson(right, total)
    share = right / total
    tip = f"{name}: {right} of {total} right, 95 % interval {fmt.interval(right, total)} %"
    return (
        f'<div class="row" title="{escape(tip)}"><span class="class">{escape(clip(name, 40))}</span>'
        f'<span class="track"><span class="fill" style="width:{share * 100:.1f}%"></span>'
        f'<span class="whisker" style="left:{low * 100:.1f}%;width:{(high - low) * 100:.1f}%"></span></span>'
        f'<span class="share">{markup.text(fmt.percent(share))}</span>'
        f'<span class="of">{right:,}/{total:,}</span></div>'
    )


def _pairs(counts: Any, names: list[str], limit: int) -> str:
    pairs = errors.confused_pairs(counts, limit)
    if not pairs:
        return '<p class="hint">No test image is taken for another class.</p>'
    total = int(counts.sum() - counts.trace())
    rows = "".join(
        f'<tr><td class="name" title="{escape(names[p.true])}">{escape(clip(names[p.true], 30))}</td>'
        f'<td class="name" title="{escape(names[p.predicted])}">{escape(clip(names[p.predicted], 30))}</td>'
        f'<td class="num">{p.count:,} of {p.total:,}</td>'
        f'<td class="num">{markup.text(fmt.percent(p.count / p.total))}</td></tr>'
        for p in pairs
    )
    covered = sum(p.count for p in pairs)
    return (
        "<figure><figcaption>Most confused pairs</figcaption>"
        '<table class="pairs"><thead><tr><th scope="col">True class</th><th scope="col">Taken for</th>'
        '<th scope="col" class="num">Images</th><th scope="col" class="num">Share</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        f'<p class="hint">{covered:,} of {total:,} mistakes.</p></figure>'
    )
