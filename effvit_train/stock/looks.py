"""What every image looks like, in one pass: its size, a small grey picture of it, and a hash of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from effvit_train.data.decode import BadImage, Decoder
from effvit_train.data.source import Source, each, to_pil

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

SIDE = 16  # of the small pictures, in pixels
_CHUNK = 64  # images per task of the pool
_BLOCK = 1024  # images read at once from memory
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap the sides
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Looks:
    """Facts of n images, in the order of `ids`.

    Attributes:
        ids: (n,) sample ids.
        small: (n, SIDE, SIDE) grey, whatever the shape of the image.
        digests: (n,) 16 bytes: equal where the content is equal, byte for byte.
        sizes: (n, 2) width and height as they are stored, upright.
        modes: (n) Pillow's names, such as `RGB` and `L`.
    """

    ids: Ints
    small: Pixels
    digests: npt.NDArray[np.bytes_]
    sizes: Ints
    modes: list[str]


def of_files(root: Path, paths: list[str], ids: Ints, *, max_pixels: int) -> Looks:
    """Look at image files.

    Args:
        root: of the set.
        paths: of all samples, relative to `root`.
        ids: of those to look at; each can be read.
        max_pixels: larger images are refused.

    Raises:
        BadImage: a file went bad after it was checked.
    """
    decoder = Decoder(1, "squash", max_pixels)
    looks = _empty(ids)

    def look(start: int) -> None:
        for row in range(start, min(start + _CHUNK, len(ids))):
            path = root / paths[ids[row]]
            looks.small[row] = decoder.read(path, SIDE)[0]
            looks.digests[row] = _digest(path.read_bytes())
            with Image.open(path) as image:
                looks.modes[row] = image.mode
                width, height = image.size
                turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
            looks.sizes[row] = (height, width) if turned else (width, height)

    each(look, range(0, len(ids), _CHUNK))
    return looks


def of_arrays(source: Source, ids: Ints, size: int, *, mode: str) -> Looks:
    """Look at images of one size that are at hand as pixels.

    Args:
        source: of the pixels.
        ids: of the samples.
        size: height = width.
        mode: `L` or `RGB`.
    """
    decoder = Decoder(1, "squash", size * size)
    looks = _empty(ids)

    def look(start: int) -> None:
        for row, image in enumerate(source.read(ids[start : start + _BLOCK], size), start):
            looks.small[row] = decoder.square(to_pil(image), SIDE)[0]
            looks.digests[row] = _digest(image.tobytes())
            looks.sizes[row] = size
            looks.modes[row] = mode

    each(look, range(0, len(ids), _BLOCK))
    return looks


def reason(root: Path, path: str, *, max_pixels: int) -> str:
    """Why a file cannot be used."""
    try:
        Decoder(1, "squash", max_pixels).read(root / path, SIDE)
    except BadImage as error:
        return str(error)
    return "could not be read before, and can be now"


def _empty(ids: Ints) -> Looks:
    count = len(ids)
    return Looks(
        ids,
        np.zeros((count, SIDE, SIDE), np.uint8),
        np.zeros(count, "S16"),
        np.zeros((count, 2), np.int64),
        [""] * count,
    )


def _digest(content: bytes) -> bytes:
    # hexadecimal: numpy would drop zero bytes at the end
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode()
