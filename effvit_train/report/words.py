"""Sentences made from the numbers of a card."""

from __future__ import annotations

from datetime import UTC, datetime

from effvit_train.card import Card
from effvit_train.report import format as fmt
from effvit_train.report.baseline import Baseline
from effvit_train.report.compare import Comparison
from effvit_train.report.inputs import RunData, added, as_dict, as_list, is_private


def title(card: Card) -> str:
    """`vit_micro on digits`."""
    name = card.run.get("model") or card.model.get("name") or "A model"
    data = card.run.get("dataset") or as_dict(card.provenance.get("dataset")).get("name") or "its data"
    return f"{name} on {data}"


def what_was_done(card: Card) -> str:
    """`Distilled (soft, feature) from resnet18 (99.2 %)`, or that it was trained without compression."""
    done = as_list(card.run.get("compress"))
    teacher = as_dict(card.provenance.get("teacher"))
    parts = []
    for technique in done:
        if technique == "distill" and teacher.get("name"):
            accuracy = teacher.get("accuracy")
            right = f" ({fmt.percent(accuracy)})" if isinstance(accuracy, (int, float)) else ""
            kinds = [str(kind) for kind in as_list(teacher.get("kinds"))]
            learnt = f" ({', '.join(kinds)})" if kinds not in ([], ["soft"]) else ""
            source = "itself" if teacher.get("source") == "self" else f"{teacher['name']}{right}"
            parts.append(f"distilled{learnt} from {source}")
        else:
            parts.append({"distill": "distilled", "prune": "pruned"}.get(technique, technique))
    if is_private(card):
        parts.append(f"private training ({card.run['privacy']})")
    text = ", ".join(parts) or "trained without compression"
    return text[0].upper() + text[1:]


def verdict(data: RunData) -> str:
    """One sentence: how often it is right, how large it is and how long one image takes."""
    measures, parts = data.card.measures, []
    accuracy = measures.get("quality/accuracy")
    if accuracy is not None:
        tested = data.tested
        if tested:
            right = round(accuracy * tested)
            parts.append(
                f"{fmt.percent(accuracy)} of {tested:,} test images right "
                f"(95 % interval {fmt.interval(right, tested)})"
            )
        else:
            parts.append(f"{fmt.percent(accuracy)} of the test images right")
    if measures.get("cost/params") is not None:
        parts.append(f"{fmt.value('cost/params', measures['cost/params'])} parameters")
    if measures.get("cost/latency_ms") is not None:
        parts.append(f"{fmt.value('cost/latency_ms', measures['cost/latency_ms'])} per image")
    epsilon = measures.get("privacy/epsilon")
    if epsilon is not None:
        parts.append(f"privacy loss ε at most {fmt.significant(epsilon)}")
    return ", ".join(parts) + "." if parts else "Nothing was measured."


def against_baseline(comparison: Comparison) -> str:
    """What the accuracies say about the two runs, or why there is nothing to compare with."""
    baseline = comparison.baseline
    if baseline.card is None:
        return no_baseline(comparison.card, baseline)
    change = comparison.change("quality/accuracy")
    if change is None:
        return f"Compared with the same model trained without {added(comparison.card)}."
    if change.verdict == "same":
        text = f"As accurate as the same model trained without {added(comparison.card)}"
    else:
        way = "more" if change.arrow == "▲" else "less"
        text = (
            f"{change.amount[1:].removesuffix(' pp')} points {way} accurate than the same model "
            f"{plain(comparison.card)}"
        )
    paired = comparison.paired
    if paired is not None and paired.only_here + paired.only_there:
        text += f": {paired.only_here} images only this run gets right, {paired.only_there} only the baseline"
    if change.verdict == "unclear":
        text += ", no more than chance explains"
    return text + "."


def plain(card: Card) -> str:
    """What the baseline of this run is: `uncompressed`, `without privacy`, or both."""
    return "uncompressed" if not is_private(card) else f"without {added(card)}"


def no_baseline(card: Card, baseline: Baseline) -> str:
    """Why there is nothing to compare with."""
    if not added(card):
        return f"{baseline.reason[:1].upper()}{baseline.reason[1:]}."
    return f"No baseline: {baseline.reason}."


def warnings(card: Card) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    if card.run.get("fast_dev_run"):
        found.append("One batch only (fast_dev_run): these numbers show that everything runs, nothing more.")
    status = card.run.get("status", "done")
    if status in ("interrupted", "failed"):
        found.append(f"This run is {status}: its numbers are of an unfinished training.")
    return found


def when(card: Card) -> str:
    """The day that the run started: `24 November 2026`."""
    started = card.run.get("started")
    try:
        moment = datetime.fromisoformat(str(started))
    except ValueError:
        return ""
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def moment(stamp: object) -> str | None:
    """An ISO time as `2026-11-24 02:08 UTC`; other text as it is."""
    try:
        found = datetime.fromisoformat(str(stamp))
    except ValueError:
        return None if stamp is None else str(stamp)
    zone = " UTC" if found.utcoffset() is not None else ""
    if found.utcoffset() is not None:
        found = found.astimezone(UTC)
    return f"{found:%Y-%m-%d %H:%M}{zone}"


_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
