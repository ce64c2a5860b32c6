"""Random draws that are a function of a key and a coordinate, never of what was drawn before (contract C6).

A draw is a hash of (key, sample id, number of the draw): the same on any number of workers, ranks and
restarts, in any order and in any batch. The hash is the finaliser of splitmix64 (Steele et al. 2014,
"Fast splittable pseudorandom number generators", section 4), applied twice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ODD = np.uint64(0xD1B54A32D192ED03)

Bits = npt.NDArray[np.uint64]


def mix(x: Bits) -> Bits:
    """The bijection of splitmix64 on 64-bit words; `x` keeps its shape."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def bits(key: int, ids: npt.NDArray[np.int64], draw: int = 0) -> Bits:
    """64 random bits for each id, shape of `ids`.

    Args:
        key: of the stream, from `keys.stream_key`.
        ids: sample ids.
        draw: which of the draws that one sample needs.
    """
    offset = np.array([(key + draw * int(_ODD)) % 2**64], dtype=np.uint64)
    return mix(mix(np.asarray(ids).astype(np.uint64) * _GOLDEN + offset) ^ offset)


def uniform(key: int, ids: npt.NDArray[np.int64], draw: int = 0) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each id, with 53 random bits."""
    return (bits(key, ids, draw) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(
    key: int, ids: npt.NDArray[np.int64], count: int | npt.NDArray[np.int64], draw: int = 0
) -> npt.NDArray[np.int64]:
    """An integer in 0..count-1 for each id; `count` may differ per id."""
    return (uniform(key, ids, draw) * count).astype(np.int64)


def permutation(key: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The ids in random order."""
    return ids[np.argsort(bits(key, ids), kind="stable")]


def passes(
    ids: npt.NDArray[np.int64], start: int, stop: int, key: Callable[[int], int]
) -> npt.NDArray[np.int64]:
    """Samples number `start` to `stop` of passes over the ids, one pass after another, in random order each.

    Args:
        ids: at least one.
        start, stop: counted from the first sample of the first pass.
        key: of the pass with this number.
    """
    parts = [ids[:0]]
    while start < stop:
        number, offset = divmod(start, len(ids))
        parts.append(permutation(key(number), ids)[offset : offset + stop - start])
        start += len(parts[-1])
    return np.concatenate(parts)
