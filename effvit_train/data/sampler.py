"""Which samples make up a batch: a function of (seed, epoch) and of nothing that ran before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Sampler

from effvit_train.data import draws
from effvit_train.keys import stream_key


def rank_and_world() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) outside distributed training."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class _EpochSampler(Sampler[Any]):
    """Knows the epoch of the next iteration, and where in it to start."""

    def __init__(self) -> None:
        self._epoch = 0
        self._start = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; Lightning calls this at the start of each epoch."""
        self._epoch = epoch

    def set_start(self, epoch: int, batch: int) -> None:
        """Let iterations of this epoch, and only these, start at this batch."""
        self._start = (epoch, batch)

    def _first(self) -> int:
        """The batch that the next iteration starts at."""
        return self._start[1] if self._start[0] == self._epoch else 0


class TrainSampler(_EpochSampler):
    """The training samples of this rank, in the order of the epoch.

    Yields `epoch * total + id`, so that worker processes learn the epoch with each sample and need no
    state of their own. All ranks see one order and take every world-th sample of it; what does not
    fill a batch on every rank is dropped, another remainder each epoch.

    Args:
        ids: sample ids of the training split, shape (n,).
        total: number of samples in the whole set.
        seed: of the run.
        batch_size: samples per batch and rank.
    """

    def __init__(self, ids: npt.NDArray[np.int64], *, total: int, seed: int, batch_size: int) -> None:
        super().__init__()
        self._ids, self._total, self._seed, self._batch_size = ids, total, seed, batch_size

    def __len__(self) -> int:
        _, world = rank_and_world()
        return len(self._ids) // (self._batch_size * world) * self._batch_size

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world()
        order = draws.permutation(stream_key("order", self._seed, self._epoch), self._ids)
        mine = order[rank::world][self._first() * self._batch_size : len(self)]
        yield from (mine + self._epoch * self._total).tolist()


class Selection(Protocol):
    """Draws the batches of a training."""

    def __len__(self) -> int:
        """Batches of an epoch."""
        ...

    def batch(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Sample ids (n,) that this rank has in a batch; there may be none."""
        ...


class DrawnSampler(_EpochSampler):
    """The batches that a selection draws, each as a list of `epoch * total + id`.

    Args:
        selection: draws them.
        total: number of samples in the whole set.
        views: how often a sample stands in its batch, one beside the other.
    """

    def __init__(self, selection: Selection, *, total: int, views: int = 1) -> None:
        super().__init__()
        self._selection, self._total, self._views = selection, total, views

    def __len__(self) -> int:
        return len(self._selection)

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self._first(), len(self)):
            ids = self._selection.batch(self._epoch, number)
            yield (np.repeat(ids, self._views) + self._epoch * self._total).tolist()


class EvalSampler(Sampler[int]):
    """The samples of a split in their own order; rank r takes `ids[r::world]`."""

    def __init__(self, ids: npt.NDArray[np.int64]) -> None:
        self._ids = ids

    def __len__(self) -> int:
        rank, world = rank_and_world()
        return len(self._ids[rank::world])

    def __iter__(self) -> Iterator[int]:
        rank, world = rank_and_world()
        yield from self._ids[rank::world].tolist()
