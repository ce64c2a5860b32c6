"""`synthetic`: any number of images of any shape, for benchmarks; the class can be learnt."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws
from effvit_train.keys import stream_key

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
_COARSE = 4  # cells per side of a class's pattern


class SyntheticSource:
    """Image i is noise plus the coarse pattern of class i mod K, as a function of i and the size alone.

    Args:
        channels: of the images.
        num_classes: K.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        self._channels, self._num_classes = channels, num_classes
        self._key = stream_key("synthetic")

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size): half the brightness is noise, half the pattern of the class."""
        shape = (self._channels, size, size)
        words = -(-int(np.prod(shape)) // 8)
        counters = np.asarray(ids)[:, None] * words + np.arange(words)
        noise = draws.bits(self._key, counters).view(np.uint8)[:, : int(np.prod(shape))]
        cell = np.arange(size) * _COARSE // size
        labels = np.asarray(ids) % self._num_classes
        pattern = self._patterns()[labels][:, :, cell][:, :, :, cell]
        return (noise.reshape(-1, *shape) >> np.uint8(1)) + pattern

    def _patterns(self) -> Pixels:
        shape = (self._num_classes, self._channels, _COARSE, _COARSE)
        cells = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        return (draws.bits(self._key, cells, draw=1) >> np.uint64(57)).astype(np.uint8)  # 0..127
