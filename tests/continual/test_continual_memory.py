"""What a memory holds after each task: uniform or balanced, within its budget, and never again what it dropped."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi2

from effvit_train.continual.memory import keep
from effvit_train.continual.memory.keep import balanced, fair_shares, reservoir
from effvit_train.data import draws
from effvit_train.keys import stream_key

SEEDS, CAPACITY, TASKS = 600, 10, 3
ARRIVALS = [np.arange(20) + 20 * task for task in range(TASKS)]


def p_uniform(held: list[np.ndarray], count: int) -> float:
    """p of a chi-squared test that all `count` ids are held equally often in samples without replacement.

    The number of samples that hold an id has the variance S q (1 - q), q = capacity / count, and the numbers sum
    to S times the capacity: hence the factor (count - 1) / count for a statistic of count - 1 degrees of freedom.
    """
    size = len(held[0])
    often = np.bincount(np.concatenate(held), minlength=count)
    expected, q = len(held) * size / count, size / count
    statistic = ((often - expected) ** 2).sum() / (expected * (1 - q)) * (count - 1) / count
    return float(chi2.sf(statistic, count - 1))


@pytest.mark.parametrize("task", range(TASKS))
def test_reservoir_is_uniform(task):
    held = [reservoir(ARRIVALS, CAPACITY, seed)[task] for seed in range(SEEDS)]
    assert p_uniform(held, 20 * (task + 1)) > 0.001


def test_a_biased_reservoir_would_be_found(monkeypatch):
    """Places drawn from one too few, and new samples that are always taken."""
    for biased in (
        lambda key, number, count: draws.integers(key, number, np.maximum(1, count * 3 // 4)),
        lambda key, number, count: draws.integers(key, number, CAPACITY),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(keep, "draws", _With(integers=biased))
            held = [reservoir(ARRIVALS, CAPACITY, seed)[-1] for seed in range(SEEDS)]
        assert p_uniform(held, 20 * TASKS) < 1e-6


class _With:
    """`draws` with something else in it."""

    def __init__(self, **others):
        self.__dict__.update({"permutation": draws.permutation, "bits": draws.bits, **others})


def test_reservoir_by_hand(monkeypatch):
    # 10 and 11 fill it; 12 draws place 0 of 3; 13 place 3 of 4 and is not kept; 14 place 1; 15 place 5
    places = {2: 0, 3: 3, 4: 1, 5: 5}

    def integers(key, number, count):
        assert (count == number + 1).all()
        return np.array([places.get(int(t), 0) for t in number])

    monkeypatch.setattr(keep, "draws", _With(integers=integers, permutation=lambda key, ids: ids))
    after = reservoir([np.array([10, 11]), np.array([12, 13]), np.array([14, 15])], 2, seed=0)
    assert [ids.tolist() for ids in after] == [[10, 11], [11, 12], [12, 14]]


def by_the_book(arrivals, capacity, seed):
    """Algorithm R as Vitter 1985 states it, sample by sample, on the same numbers."""
    places: dict[int, int] = {}
    after, t = [], 0
    for task, ids in enumerate(arrivals):
        for sample in draws.permutation(stream_key("arrival", seed, task), np.array(ids)).tolist():
            u = float(draws.uniform(stream_key("reservoir", seed), np.array([t]))[0])
            place = t if t < capacity else int(u * (t + 1))
            if place < capacity:
                places[place] = sample
            t += 1
        after.append(sorted(places.values()))
    return after


def some_streams(count):
    """Random streams: ids and classes of some tasks, of which some are small, and a capacity."""
    random = np.random.default_rng(0)
    for seed in range(count):
        sizes = random.integers(1, 40, random.integers(1, 6))
        ids = np.split(random.permutation(sizes.sum()), np.cumsum(sizes)[:-1])
        labels = [random.choice(6, len(part), p=random.dirichlet(np.full(6, 0.4))) for part in ids]
        yield [np.sort(part) for part in ids], labels, int(random.integers(1, 60)), seed


def test_reservoir_is_another_implementation_s():
    for ids, _, capacity, seed in some_streams(40):
        assert [held.tolist() for held in reservoir(ids, capacity, seed)] == by_the_book(ids, capacity, seed)


def test_never_above_the_capacity_and_nothing_comes_back():
    for ids, labels, capacity, seed in some_streams(150):
        for after in (reservoir(ids, capacity, seed), balanced(ids, labels, capacity, seed)):
            before: set[int] = set()
            arrived = 0
            for task, held in enumerate(after):
                arrived += len(ids[task])
                assert len(held) == min(capacity, arrived)  # and no room is left unused
                assert len(set(held.tolist())) == len(held)
                assert set(held.tolist()) <= before | set(ids[task].tolist())
                before = set(held.tolist())


def test_a_function_of_the_seed():
    ids, labels, _, _ = next(some_streams(1))
    for make in (lambda seed: reservoir(ids, 5, seed), lambda seed: balanced(ids, labels, 5, seed)):
        assert [held.tolist() for held in make(1)] == [held.tolist() for held in make(1)]
        assert any(make(1)[-1].tolist() != make(seed)[-1].tolist() for seed in range(2, 6))


@pytest.mark.parametrize(
    ("counts", "capacity", "shares"),
    [
        ([50, 50], 10, [5, 5]),
        ([50, 50, 50], 11, [4, 4, 3]),  # the rest to the lowest ranks
        ([1, 50, 50], 11, [1, 5, 5]),  # what the first has not goes to the others
        ([2, 3, 50], 20, [2, 3, 15]),
        ([2, 3, 4], 20, [2, 3, 4]),  # there is room for all
        ([50, 50, 50], 2, [1, 1, 0]),
        ([1, 50, 50], 12, [1, 6, 5]),
        ([3, 0, 3], 4, [2, 0, 2]),
    ],
)
def test_fair_shares_by_hand(counts, capacity, shares):
    rank = np.arange(len(counts), dtype=np.uint64)
    assert fair_shares(np.array(counts), capacity, rank).tolist() == shares


def test_balanced_by_hand():
    """Classes 0 and 1, then class 2, then 3 of which there are two only; the memory holds 12."""
    arrivals = [np.arange(40), np.arange(40, 60), np.array([60, 61])]
    labels = [np.arange(40) % 2, np.full(20, 2), np.full(2, 3)]
    after = balanced(arrivals, labels, 12, seed=3)
    known = np.concatenate(labels)
    counts = [np.bincount(known[held], minlength=4).tolist() for held in after]
    assert counts[:2] == [[6, 6, 0, 0], [4, 4, 4, 0]]
    assert sorted(counts[2][:3]) == [3, 3, 4]
    assert counts[2][3] == 2


def test_balanced_keeps_a_uniform_sample_of_each_class():
    """Of class 0, which comes in both tasks, 5 of 40; class 1 comes in the second."""
    arrivals = [np.arange(20), np.arange(20, 60)]
    labels = [np.zeros(20, int), np.repeat([0, 1], 20)]
    held = [balanced(arrivals, labels, 10, seed)[-1] for seed in range(SEEDS)]
    assert p_uniform([ids[ids < 40] for ids in held], 40) > 0.001
    assert p_uniform([ids[ids >= 40] - 40 for ids in held], 20) > 0.001
