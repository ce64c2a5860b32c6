"""The measures of R by hand, and against second implementations of the published formulas."""

from __future__ import annotations

import numpy as np
import pytest

from effvit_train.audit.continual import (
    average_accuracy,
    average_incremental_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    measure_continual,
)

R = [[0.9, 0.1, 0.2], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]]
BEFORE = [0.3, 0.2, 0.1]
COSTS = [{"seconds": 1.0, "memory_bytes": 1_000_000}, {"seconds": 3.0, "memory_bytes": 2_500_000}]


def test_by_hand():
    assert average_accuracy(R) == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    assert average_incremental_accuracy(R) == pytest.approx((0.9 + (0.6 + 0.8) / 2 + 2.2 / 3) / 3)
    # of the first task the best was 0.9, of the second 0.8: 0.2 and 0.3 are lost
    assert forgetting(R) == pytest.approx(0.25)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    # before its own training the second task had 0.1 and the third 0.3
    assert forward_transfer(R, BEFORE) == pytest.approx(((0.1 - 0.2) + (0.3 - 0.1)) / 2)


def test_what_came_back_is_forgotten_all_the_same():
    """Forgetting counts from the best accuracy, backward transfer from the first."""
    gained = [[0.5, 0, 0], [0.8, 0.5, 0], [0.7, 0.5, 0.5]]
    assert forgetting(gained) == pytest.approx((0.1 + 0.0) / 2)
    assert backward_transfer(gained) == pytest.approx((0.2 + 0.0) / 2)


def _lopez_paz(matrix, before):
    """Lopez-Paz & Ranzato 2017, equations 2 to 4, word for word, with tasks 1..T."""
    count = len(matrix)

    def value(i, j):
        return matrix[i - 1, j - 1]

    acc = 1 / count * sum(value(count, i) for i in range(1, count + 1))
    bwt = 1 / (count - 1) * sum(value(count, i) - value(i, i) for i in range(1, count))
    fwt = 1 / (count - 1) * sum(value(i - 1, i) - before[i - 1] for i in range(2, count + 1))
    return acc, bwt, fwt


def _chaudhry(matrix):
    """Chaudhry et al. 2018, equations 3 and 4: f_j = max over l < k of a_lj - a_kj, over tasks that were learnt."""
    k = len(matrix)
    seen = np.where(np.tri(k, dtype=bool), matrix, -np.inf)  # a_lj is of l >= j
    return float((seen[: k - 1, : k - 1].max(axis=0) - matrix[k - 1, : k - 1]).mean())


class _Avalanche:
    """How Avalanche (ContinualAI, commit eb075be, evaluation/metrics) counts: first minus last, task by task.

    `forgetting_bwt.py`: the value right after a task's training, minus the last one, averaged over the tasks that
    have both; BWT is its negative. `forward_transfer.py`: the value after the task before, minus that at the start.
    """

    def __init__(self, matrix, before):
        initial, last, previous = {}, {}, {}
        for trained, row in enumerate(matrix):
            for task, value in enumerate(row):
                if task == trained:
                    initial[task] = value
                elif task < trained:
                    last[task] = value
                elif task == trained + 1:
                    previous[task] = value
        self.forgetting = float(np.mean([initial[k] - last[k] for k in initial if k in last]))
        self.backward = -self.forgetting
        self.forward = float(np.mean([previous[k] - before[k] for k in previous]))


@pytest.mark.parametrize("seed", range(20))
def test_against_the_published_formulas_on_random_matrices(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 9))
    matrix, before = generator.random((count, count)), generator.random(count)
    acc, bwt, fwt = _lopez_paz(matrix, before)
    assert average_accuracy(matrix.tolist()) == pytest.approx(acc)
    assert backward_transfer(matrix.tolist()) == pytest.approx(bwt)
    assert forward_transfer(matrix.tolist(), before.tolist()) == pytest.approx(fwt)
    assert forgetting(matrix.tolist()) == pytest.approx(_chaudhry(matrix))
    theirs = _Avalanche(matrix, before)
    assert backward_transfer(matrix.tolist()) == pytest.approx(theirs.backward)
    assert forward_transfer(matrix.tolist(), before.tolist()) == pytest.approx(theirs.forward)
    # from the best instead of from the first: never less
    assert forgetting(matrix.tolist()) >= theirs.forgetting - 1e-12


def test_each_kind_of_stream_has_the_measures_that_mean_something():
    def keys(kind, before):
        found = measure_continual(R, R, before, kind=kind, costs=COSTS)
        return found, {key.removeprefix("continual/") for key in found.missing}

    found, missing = keys("class", [])
    assert missing == {"forward_transfer"}
    assert found.values["continual/kept_mb"] == 2.5
    assert found.values["continual/seconds_per_task"] == 2.0
    assert keys("domain", BEFORE)[1] == {"task_incremental_accuracy"}
    assert keys("data", BEFORE)[1] == {
        "task_incremental_accuracy", "forgetting", "backward_transfer", "forward_transfer",
    }  # fmt: skip
    assert all(found.missing.values())
