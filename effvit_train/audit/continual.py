"""The axis `continual/*`: what a model that learnt task by task knows in the end, and what it has forgotten.

R[i][j] is the accuracy on the test images of task j after training on task i (Lopez-Paz & Ranzato 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from effvit_train.card import Measured

Matrix = Sequence[Sequence[float]]

AVERAGE, FORGETTING = "continual/average_accuracy", "continual/forgetting"
BACKWARD, FORWARD = "continual/backward_transfer", "continual/forward_transfer"
WITHIN, INCREMENTAL = "continual/task_incremental_accuracy", "continual/average_incremental_accuracy"

MEMORY, SECONDS = "continual/kept_mb", "continual/seconds_per_task"
KEYS = (AVERAGE, INCREMENTAL, FORGETTING, BACKWARD, FORWARD, WITHIN, MEMORY, SECONDS)


def average_accuracy(matrix: Matrix) -> float:
    """Mean over all T tasks of R[T][j] (Lopez-Paz & Ranzato 2017, eq. 2)."""
    last = matrix[-1]
    return sum(last) / len(last)


def average_incremental_accuracy(matrix: Matrix) -> float:
    """Mean over i of the mean of R[i][j] over the tasks j <= i (Rebuffi et al. 2017, iCaRL)."""
    return sum(sum(row[: i + 1]) / (i + 1) for i, row in enumerate(matrix)) / len(matrix)


def forgetting(matrix: Matrix) -> float:
    """Mean over j < T of max over i < T of R[i][j] - R[T][j] (Chaudhry et al. 2018, eqs. 3 and 4; i from j on)."""
    last = len(matrix) - 1
    lost = [max(matrix[i][j] for i in range(j, last)) - matrix[last][j] for j in range(last)]
    return sum(lost) / last


def backward_transfer(matrix: Matrix) -> float:
    """Mean over j < T of R[T][j] - R[j][j] (Lopez-Paz & Ranzato 2017, eq. 3)."""
    last = len(matrix) - 1
    return sum(matrix[last][j] - matrix[j][j] for j in range(last)) / last


def forward_transfer(matrix: Matrix, before: Sequence[float]) -> float:
    """Mean over j > 1 of R[j - 1][j] - b[j], b the accuracy before any training (Lopez-Paz & Ranzato, eq. 4)."""
    count = len(matrix)
    return sum(matrix[j - 1][j] - before[j] for j in range(1, count)) / (count - 1)


def measure_continual(
    accuracy: Sequence[Sequence[float | None]],
    within: Sequence[Sequence[float | None]],
    before: Sequence[float | None],
    *,
    kind: str,
    costs: Sequence[Mapping[str, float]],
) -> Measured:
    """The measures of a stream that has been trained to its end.

    Args:
        accuracy: R (T, T), among all classes seen so far (class-incremental); None where a task's test images are
            not at hand.
        within: R (T, T), among the classes of the task (task-incremental).
        before: accuracy on each task before training; empty where new classes could not be predicted then.
        kind: of the stream.
        costs: of each task that was trained: `seconds`, and `memory_bytes` kept after it.
    """
    measured = Measured()
    measured.values[MEMORY] = costs[-1]["memory_bytes"] / 1e6
    measured.values[SECONDS] = sum(cost["seconds"] for cost in costs) / len(costs)
    whole, inside, start = _known(accuracy), _known(within), _known([before])
    if whole is None or inside is None or start is None:
        reason = "the test images of an earlier task are not at hand"
        measured.missing |= dict.fromkeys((key for key in KEYS if key not in measured.values), reason)
        return measured
    _of_matrix(measured, whole, inside, start[0], kind)
    return measured


def _known(matrix: Sequence[Sequence[float | None]]) -> list[list[float]] | None:
    """The matrix, if it has all its numbers."""
    rows = [[value for value in row if value is not None] for row in matrix]
    return None if any(len(a) < len(b) for a, b in zip(rows, matrix, strict=True)) else rows


def _of_matrix(
    measured: Measured, accuracy: Matrix, within: Matrix, before: Sequence[float], kind: str
) -> None:
    measured.values[AVERAGE] = average_accuracy(accuracy)
    measured.values[INCREMENTAL] = average_incremental_accuracy(accuracy)
    if kind == "data":
        reason = "all portions are tested on the same images"
        measured.missing |= dict.fromkeys((FORGETTING, BACKWARD, FORWARD), reason)
    else:
        measured.values[FORGETTING] = forgetting(accuracy)
        measured.values[BACKWARD] = backward_transfer(accuracy)
        if before:
            measured.values[FORWARD] = forward_transfer(accuracy, before)
        else:
            known = "the model knew the first task before this training"
            unseen = "classes that have not come yet cannot be predicted"
            measured.missing[FORWARD] = unseen if kind == "class" else known
    if kind == "class":
        measured.values[WITHIN] = average_accuracy(within)
    else:
        measured.missing[WITHIN] = "all tasks have the same classes"
