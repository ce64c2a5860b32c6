"""How far chance in the choice of test images moves the measures of a stream."""

from __future__ import annotations

import math
from collections.abc import Iterable

from effvit_train.card import Card
from effvit_train.proportions import Z95, wilson
from effvit_train.report.audit_facts import number
from effvit_train.report.stream_facts import DATA, StreamFacts, stream_of

Weights = dict[tuple[int, int], float]  # (after task, on task) -> weight of R


def stream_interval(card: Card, key: str) -> tuple[float, float] | None:
    """The 95 % interval of a measure that is a weighted sum of accuracies; None where it is none, or untold.

    Tasks have test images of their own, whose errors are independent. The accuracies on one task are of the same
    images: those of one sign are taken to err together, and those of the other not to follow them, so that the
    interval is too wide rather than too narrow.
    """
    stream, value = stream_of(card), number(card.measures.get(key))
    if stream is None or value is None or stream.first or len(stream.accuracy) < len(stream.tasks):
        return None
    weights = _weights(stream, key)
    matrix = stream.within if key == "continual/task_incremental_accuracy" else stream.accuracy
    if not weights or not matrix:
        return None
    errors = []
    for task, facts in enumerate(stream.tasks):
        if not facts.test:
            return None
        parts = [(w, _error(matrix[i][j], facts.test)) for (i, j), w in weights.items() if j == task]
        errors.append(math.hypot(_together(parts, 1), _together(parts, -1)))
    half = Z95 * (sum(errors) if stream.kind == DATA else math.hypot(*errors))
    return value - half, value + half


def _weights(stream: StreamFacts, key: str) -> Weights:
    """As audit.continual has them."""
    tasks = range(len(stream.tasks))
    last, share = len(stream.tasks) - 1, 1 / (len(stream.tasks) - 1)
    if key in ("continual/average_accuracy", "continual/task_incremental_accuracy"):
        return {(last, j): 1 / len(tasks) for j in tasks}
    if key == "continual/average_incremental_accuracy":
        return {(i, j): 1 / (len(tasks) * (i + 1)) for i in tasks for j in range(i + 1)}
    if key == "continual/backward_transfer":
        return {cell: w for j in range(last) for cell, w in (((last, j), share), ((j, j), -share))}
    if key == "continual/forgetting":
        best = [max(range(j, last), key=lambda i: stream.accuracy[i][j]) for j in range(last)]
        return {cell: w for j in range(last) for cell, w in (((best[j], j), share), ((last, j), -share))}
    return {}


def _together(parts: Iterable[tuple[float, float]], sign: int) -> float:
    return sum(abs(weight) * error for weight, error in parts if weight * sign > 0)


def _error(accuracy: float, tested: int) -> float:
    """Standard error of a share of `tested` images: of Wilson's interval, which is not 0 at 0 and 1."""
    low, high = wilson(round(accuracy * tested), tested)
    return (high - low) / (2 * Z95)
