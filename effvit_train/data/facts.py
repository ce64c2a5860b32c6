"""Facts of a prepared set: pixel statistics and the fingerprint of its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


def mean_and_std(chunks: Iterable[Pixels], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel mean and (population) standard deviation of pixels / 255, exact from histograms.

    Args:
        chunks: images (B, C, H, W), a few at a time.
        channels: C.
    """
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for images in chunks:
        for channel in range(channels):
            histogram[channel] += np.bincount(images[:, channel].ravel(), minlength=256)
    count = histogram.sum(axis=1)
    values = np.arange(256) / 255
    mean = (histogram * values).sum(axis=1) / count
    variance = (histogram * (values - mean[:, None]) ** 2).sum(axis=1) / count
    # a channel without any contrast would be divided by zero (or by what rounding leaves of it)
    std = np.where(variance > 1e-12, np.sqrt(variance), 1.0)
    return tuple(mean.tolist()), tuple(std.tolist())


def fingerprint(kind: str, content: Iterable[bytes | Pixels], labels: Ints, split: Ints) -> str:
    """`kind:` and the SHA-256 over content, labels and splits.

    Args:
        kind: `pixels` (of the decoded images), `files` (path, size and both ends of each file) or
            `rule` (of generated images that are not held in memory).
        content: what the kind says, in the order of the sample ids.
        labels: (n,).
        split: (n,).
    """
    digest = hashlib.sha256()
    for part in content:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    digest.update(labels.astype("<i8").tobytes())
    digest.update(split.astype("<i8").tobytes())
    return f"{kind}:{digest.hexdigest()}"
