"""Where pixels come from: `read(ids, size)` gives the same uint8 images from memory as from files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from effvit_train.data.decode import BadImage, Decoder
from effvit_train.hardware import cores

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
_CHUNK = 64  # images per task of the pool


class Source(Protocol):
    """The stored images of a set, addressed by sample id."""

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size)."""
        ...


class ArraySource:
    """Images of one size that are in memory anyway; other sizes are resized when read.

    Args:
        images: (n, C, H, W).
        decoder: how to resize and convert.
    """

    def __init__(self, images: Pixels, decoder: Decoder) -> None:
        self.images, self._decoder = images, decoder

    def is_stored(self, size: int) -> bool:
        """Whether images of this size are there as they are."""
        return self.images.shape[1:] == (self._decoder.channels, size, size)

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size)."""
        if self.is_stored(size):
            return self.images[ids]
        return np.stack([self._decoder.square(to_pil(self.images[i]), size) for i in ids])


class FileSource:
    """Images decoded from files when read.

    Args:
        root: directory of the set.
        paths: path of each sample, relative to `root`.
        decoder: how files become pixels.
    """

    def __init__(self, root: Path, paths: Sequence[str], decoder: Decoder) -> None:
        self.root, self._decoder = root, decoder
        # one array, not a list: forked workers would copy a list page by page as they count references
        self._paths = np.array([os.fsencode(path) for path in paths])

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.root / os.fsdecode(bytes(self._paths[index]))

    def read_one(self, index: int, size: int) -> Pixels:
        """One image (C, size, size); raises `BadImage`."""
        return self._decoder.read(self.path(index), size)

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size); a file that went bad after it was checked is named."""
        images = []
        for index in ids:
            try:
                images.append(self.read_one(index, size))
            except BadImage as error:
                raise RuntimeError(f"{self.path(index)} changed since it was checked: {error}") from None
        return np.stack(images)


class MemorySource:
    """Decoded images, held at the sizes at which they are used.

    Args:
        origin: where other sizes and samples come from.
        total: number of samples in the set.
    """

    def __init__(self, origin: Source, total: int) -> None:
        self._origin, self._total = origin, total
        self._pools: dict[int, tuple[Pixels, Ints]] = {}

    def hold(self, ids: Ints, images: Pixels) -> None:
        """Keep `images` (n, C, S, S) of samples `ids` (n,)."""
        rows = np.full(self._total, -1, dtype=np.int64)
        rows[ids] = np.arange(len(ids))
        self._pools[images.shape[-1]] = (images, rows)

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size)."""
        if size in self._pools:
            images, rows = self._pools[size]
            found = rows[ids]
            if (found >= 0).all():
                return images[found]
        return self._origin.read(ids, size)


def decode_all(
    source: FileSource, sizes: Ints, channels: int, *, keep: bool, threads: int | None = None
) -> tuple[dict[int, tuple[Ints, Pixels]], dict[int, str]]:
    """Decode every file wholly, on a pool of threads (Pillow decodes without Python's lock).

    Args:
        source: the files.
        sizes: (n,) size wanted of each sample.
        channels: of the images.
        keep: hold the pixels; else only find the bad ones.
        threads: of the pool; None takes the cores of this process.

    Returns:
        Per size the sample ids and images (n, C, size, size), and per bad sample the reason.
    """
    pools = {}
    place = np.empty(len(sizes), dtype=np.int64)
    for size in np.unique(sizes).tolist():
        ids = np.flatnonzero(sizes == size)
        place[ids] = np.arange(len(ids))
        shape = (len(ids), channels, size, size) if keep else (0, channels, size, size)
        pools[size] = (ids, np.zeros(shape, dtype=np.uint8))
    bad: dict[int, str] = {}

    def decode(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(sizes))):
            size = int(sizes[index])
            try:
                pixels = source.read_one(index, size)
            except BadImage as error:
                bad[index] = str(error)
                continue
            if keep:
                pools[size][1][place[index]] = pixels

    each(decode, range(0, len(sizes), _CHUNK), threads)
    return pools, bad


def each(task: Callable[[int], object], items: Sequence[int], threads: int | None = None) -> list:
    """Run `task` on every item on a pool of threads; results in order."""
    with ThreadPoolExecutor(threads or cores()) as pool:
        return list(pool.map(task, items))


def to_pil(image: Pixels) -> Image.Image:
    """An image (C, H, W) for Pillow."""
    return Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
