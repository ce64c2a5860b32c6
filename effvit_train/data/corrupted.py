"""A stream of corruptions: each task shows a part of the set under one kind of corruption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws
from effvit_train.data.config import CLEAN, STREAM_KINDS, STREAM_SEVERITY, STREAM_TASKS, DatasetConfig
from effvit_train.data.prepare import Prepared
from effvit_train.data.source import Source
from effvit_train.data.splits import SPLITS
from effvit_train.keys import stream_key

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


def kinds_of_tasks(config: DatasetConfig) -> tuple[str, ...]:
    """The kinds of corruption in the order of the configuration, one for each task."""
    if config.stream_kinds is not None:
        return tuple(config.stream_kinds)
    return STREAM_KINDS[: config.tasks or STREAM_TASKS]


def severity_of(config: DatasetConfig) -> int:
    """How strong they are, 1..5."""
    return config.stream_severity or STREAM_SEVERITY


def portions(prepared: Prepared, count: int, seed: int) -> Ints:
    """(n,) which of `count` equal portions each sample is in; -1 for one that is in no split.

    Each split is dealt out class by class, in random order: the portions differ by at most one image, in each
    class too.

    Args:
        prepared: the set.
        count: of portions.
        seed: of the order.
    """
    portion = np.full(len(prepared.labels), -1, dtype=np.int64)
    for part in ("train", "val", "test"):
        ids = np.flatnonzero(prepared.split == SPLITS.index(part))
        random = draws.bits(stream_key("portions", seed, part), ids)
        dealt = ids[np.lexsort((random, prepared.labels[ids]))]
        portion[dealt] = np.arange(len(dealt)) % count
    return portion


class CorruptedSource:
    """Images as a stream of corruptions shows them: each always in the same way.

    Args:
        origin: of the images.
        portion: (n,) number of each sample's kind; -1 leaves it as it is.
        kinds: of corruption, `none` among them.
        severity: 1..5.
        seed: of what is random in a corruption.
        keep: hold what has been read, as the origin does.
    """

    def __init__(
        self, origin: Source, portion: Ints, kinds: Sequence[str], *, severity: int, seed: int, keep: bool
    ) -> None:
        self._origin, self._portion, self._kinds = origin, portion, tuple(kinds)
        self._severity, self._seed, self._keep = severity, seed, keep
        self._held: dict[int, tuple[Pixels, npt.NDArray[np.bool_]]] = {}

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size)."""
        if not self._keep or not len(ids):
            return self._corrupted(ids, size)
        if size not in self._held:
            total = len(self._portion)
            shape = self._origin.read(ids[:1], size).shape[1:]
            self._held[size] = np.zeros((total, *shape), np.uint8), np.zeros(total, np.bool_)
        images, there = self._held[size]
        missing = np.unique(ids[~there[ids]])
        if len(missing):
            images[missing] = self._corrupted(missing, size)
            there[missing] = True
        return images[ids]

    def _corrupted(self, ids: Ints, size: int) -> Pixels:
        import torch

        from effvit_train.audit.robustness.corruptions import corrupt

        images = self._origin.read(ids, size).copy()
        for number, kind in enumerate(self._kinds):
            rows = np.flatnonzero(self._portion[ids] == number)
            if kind != CLEAN and len(rows):
                shown = corrupt(
                    torch.from_numpy(images[rows]),
                    kind,
                    self._severity,
                    seed=self._seed,
                    ids=ids[rows].tolist(),
                )
                images[rows] = shown.numpy()
        return images
