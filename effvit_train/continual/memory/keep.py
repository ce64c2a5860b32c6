"""Which samples a memory holds after each task.

A memory keeps or drops what it holds and what has just arrived: a sample that was dropped never comes back.
Samples arrive task by task, within a task in an order by seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws
from effvit_train.keys import stream_key

Ints = npt.NDArray[np.int64]


def reservoir(arrivals: Sequence[Ints], capacity: int, seed: int) -> tuple[Ints, ...]:
    """A uniform sample of all that has arrived (Vitter 1985, Algorithm R).

    The first `capacity` samples fill the memory. Number t after them draws a place from t + 1, counted from 0:
    it takes that place if the memory has it, and is not kept otherwise.

    Args:
        arrivals: the sample ids (n,) of each task.
        capacity: images that the memory holds.
        seed: of the order of arrival and of the places.

    Returns:
        The ids that are held after each task, ascending.
    """
    held: list[int] = []
    after, seen = [], 0
    for task, ids in enumerate(arrivals):
        order = draws.permutation(stream_key("arrival", seed, task), ids)
        number = np.arange(seen, seen + len(ids))
        places = draws.integers(stream_key("reservoir", seed), number, number + 1)
        for sample, place in zip(order.tolist(), places.tolist(), strict=True):
            if len(held) < capacity:
                held.append(sample)
            elif place < capacity:
                held[place] = sample
        seen += len(ids)
        after.append(np.array(sorted(held), dtype=np.int64))
    return tuple(after)


def balanced(arrivals: Sequence[Ints], labels: Sequence[Ints], capacity: int, seed: int) -> tuple[Ints, ...]:
    """As many samples of each class that has come, and a uniform sample of each.

    Every sample has a rank by seed, and of each class those of the lowest ranks stay. The share of a class that
    gave samples up never grows, so that what stays are the lowest ranks of all that has arrived of it.

    Args:
        arrivals: the sample ids (n,) of each task.
        labels: their classes (n,).
        capacity: images that the memory holds.
        seed: of the ranks, and of which classes get one more where the capacity cannot be shared equally.

    Returns:
        The ids that are held after each task, ascending.
    """
    held = classes = np.zeros(0, dtype=np.int64)
    after = []
    for ids, found in zip(arrivals, labels, strict=True):
        held, classes = np.concatenate([held, ids]), np.concatenate([classes, found])
        rank = draws.bits(stream_key("memory rank", seed), held)
        order = np.lexsort((rank, classes))
        names, first, counts = np.unique(classes[order], return_index=True, return_counts=True)
        shares = fair_shares(counts, capacity, draws.bits(stream_key("memory class", seed), names))
        number = np.arange(len(order)) - np.repeat(first, counts)  # within its class
        chosen = np.sort(order[number < np.repeat(shares, counts)])
        held, classes = held[chosen], classes[chosen]
        after.append(np.sort(held))
    return tuple(after)


def fair_shares(counts: Ints, capacity: int, rank: npt.NDArray[np.uint64]) -> Ints:
    """Share a capacity among classes (max-min fair).

    No class gets more than it has; what it leaves goes equally to the others; what cannot be shared equally
    goes, one each, to those of the lowest rank that have more.

    Args:
        counts: samples of each class (k,).
        capacity: to be shared.
        rank: of each class (k,).
    """
    shares, left = np.zeros_like(counts), capacity
    while True:
        more = counts > shares
        equally = left // more.sum() if more.any() else 0
        if not equally:
            break
        step = min(equally, int((counts - shares)[more].min()))
        shares[more] += step
        left -= step * int(more.sum())
    wanting = np.flatnonzero(more)
    shares[wanting[np.argsort(rank[wanting], kind="stable")][:left]] += 1
    return shares
