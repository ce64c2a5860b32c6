"""Accuracy and cost of one model at each size and patch that it takes, and which of them suffices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from effvit_train.audit.operations import count_operations
from effvit_train.audit.scaling import Job, Times
from effvit_train.axes.subject import Subject
from effvit_train.errors import first_line
from effvit_train.models.factory import build
from effvit_train.models.flexible import cut_into
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.resample import resize
from effvit_train.models.resolution import entry_in
from effvit_train.paired import Table, interval
from effvit_train.predictions import predict

Row = dict[str, Any]
Timer = Callable[[list[Job]], Times]


def measure_sizes(subject: Subject, *, tolerance: float, timer: Timer) -> dict[str, Any] | None:
    """What a model that takes several sizes is worth and costs at each; None for one that takes one.

    Args:
        subject: the model, with its predictions at its full size.
        tolerance: points of accuracy that a size may lose and still suffices.
        timer: usually `scaling.time_jobs` with threads and device.

    Returns:
        For the card's `provenance.resolution`: a row for each size and patch, the fewest MACs first. Accuracies
        are of all test images, `difference` and its 95 % interval (Newcombe) are against the full size in the
        model's own patches, on the same images; times are the fastest of rounds in which all take turns.
    """
    entry = entry_in(subject.record.cuts)
    if entry is None:
        return None
    full = (subject.record.input_shape[1], int(subject.model.patch_embed.patch_size[0]))  # type: ignore[union-attr,index]
    shown = {(s, p) for s in entry["sizes"] for p in entry["patches"] if s % p == 0}
    own = _right(subject.logits, subject.labels)
    rows: list[Row] = []
    jobs: list[Job] = []
    for size, patch in sorted(shown | {full}):
        record = at(subject.record, size, patch)
        with torch.device("meta"):
            operations = count_operations(build(record), record.input_shape)
        right = own if (size, patch) == full else _right_at(subject, size, patch)
        rows.append(
            {
                "size": size, "patch": patch, "tokens": (size // patch) ** 2, "full": (size, patch) == full,
                "shown": (size, patch) in shown, "accuracy": int(right.sum()) / len(right), "right": int(right.sum()),
                "macs": operations.macs, **_against(own, right),
            }
        )  # fmt: skip
        batch = subject.config.audit.throughput_batch
        jobs += [Job(record, 1, operations.flops), Job(record, batch, operations.flops)]
    timing = _time(rows, jobs, timer)
    rows.sort(key=lambda row: row["macs"])
    return {
        "sizes": list(entry["sizes"]), "patches": list(entry["patches"]), "images": len(own), "tolerance": tolerance,
        "rows": rows, "advice": advise(rows, len(own), tolerance), "timing": timing,
    }  # fmt: skip


def at(record: ArchitectureRecord, size: int, patch: int) -> ArchitectureRecord:
    """The record of the same model when it is given images of one size, cut into patches of one size."""
    cuts = list(record.cuts)
    last = max(k for k, cut in enumerate(cuts) if cut is entry_in(cuts))
    cuts[last] = {**cuts[last], "patch": patch}
    return dataclasses.replace(record, input_shape=(record.input_shape[0], size, size), cuts=cuts)


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)


def _right_at(subject: Subject, size: int, patch: int) -> Tensor:
    """Which test images (N,) are right at a size, in the order of their ids."""
    cut_into(subject.model, patch)
    try:
        logits, labels, index = predict(
            subject.model, lambda images: resize(subject.normalise(images), size),
            # all of them, also where each process tests a part
            subject.data.loader_of(subject.ids.numpy()), subject.device, subject.precision,
        )  # fmt: skip
    finally:
        cut_into(subject.model)
    return _right(logits, labels)[index.argsort()]


def _against(own: Tensor, right: Tensor) -> dict[str, Any]:
    both, neither = int((own & right).sum()), int((~own & ~right).sum())
    table = Table(both, int((own & ~right).sum()), int((~own & right).sum()), neither)
    return {"difference": table.difference, "interval": list(interval(table)), "p_value": table.p_value}


def _time(rows: Sequence[Row], jobs: list[Job], timer: Timer) -> dict[str, Any]:
    """Put the times into the rows, or say why there are none."""
    order = sorted(range(len(jobs)), key=lambda k: jobs[k].flops * jobs[k].batch)
    try:
        times = timer([jobs[k] for k in order])
    except RuntimeError as error:  # a finished training is not lost for it
        for row in rows:
            row |= {"latency_ms": None, "throughput": None}
        return {"failed": f"the measuring process failed: {first_line(error)}"}
    seconds = dict(zip(order, times.seconds, strict=True))
    for k, row in enumerate(rows):
        single, many = seconds[2 * k], seconds[2 * k + 1]
        row["latency_ms"] = None if single is None else single * 1e3
        row["throughput"] = None if many is None else jobs[2 * k + 1].batch / many
    left_out = sorted({reason for reason in times.reasons if reason})
    return {**times.conditions, "batch": jobs[1].batch, "left_out": left_out}


def advise(rows: Sequence[Row], images: int, tolerance: float) -> dict[str, Any]:
    """Which row suffices: `row`, its place among the rows (None: none is known to), and `words`.

    From the full size down, by MACs: a size suffices when the 95 % interval of its difference rules out that it
    loses more than the tolerance, and so do all above it. In this order no correction for several looks is needed
    (a fixed sequence of tests, Maurer et al. 1995).

    Args:
        rows: of `measure_sizes`.
        images: that they were measured on.
        tolerance: in points.
    """
    whole = next(row for row in rows if row["full"])
    smaller = sorted((row for row in rows if row["macs"] < whole["macs"]), key=lambda row: -row["macs"])
    several = len({row["patch"] for row in rows}) > 1
    best, stopped = None, None
    for row in smaller:
        if 100 * row["interval"][0] < -tolerance - 1e-9:
            stopped = row
            break
        best = row
    words = []
    if best is not None:
        share = best["macs"] / whole["macs"]
        words.append(
            f"{name(best, several)} suffices: {_difference(best, whole, several)}, for {share:.2f} of the MACs"
        )
    if stopped is not None:
        found = _difference(stopped, whole, several)
        if 100 * stopped["interval"][1] < -tolerance:
            words.append(f"{name(stopped, several)} loses too much: {found}")
        else:
            words.append(
                f"whether {name(stopped, several)} suffices {images:,} test images do not tell: {found}, where at most "
                f"{tolerance:g} may be lost"
            )
    return {
        "row": None if best is None else [row is best for row in rows].index(True), "words": "; ".join(words),
    }  # fmt: skip


def name(row: Row, several: bool) -> str:
    """`24 px`, or with the patch where there are several."""
    return f"{row['size']} px" + (f" in patches of {row['patch']}" if several else "")


def _difference(row: Row, whole: Row, several: bool) -> str:
    difference, low, high = (_signed(100 * value) for value in (row["difference"], *row["interval"]))
    return f"{difference} points against {name(whole, several)} (95 % interval {low} to {high})"


def _signed(points: float) -> str:
    text = f"{points:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")
