"""Small files in the formats of the public sets, and where the real ones are."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from effvit_train.data import known

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """A directory of the shared image sets; skips the test loudly where it is absent."""
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs the shared image set {name}, which is not at {SHARED}")
    return SHARED / name


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return gzip.compress(header + array.tobytes())


def write_idx(folder, counts=(60, 20)):
    """Four small files of the right form: labels k mod 10, every pixel of image k equal to k."""
    folder.mkdir(parents=True, exist_ok=True)
    published = {}
    for prefix, count in zip(("train", "t10k"), counts, strict=True):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, 28, 28))
        for kind, array in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            content = idx(array)
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(content)
            published[f"{prefix}-{kind}-ubyte.gz"] = hashlib.md5(content).hexdigest()
    return published


def cifar_batches():
    """Six tiny batches: pixel value = number of the sample, label = number mod 10."""
    files = {}
    for k, name in enumerate(name for name in known.CIFAR10_MD5 if name != known.CIFAR10_ARCHIVE):
        numbers = np.arange(20 * k, 20 * k + 20)
        data = np.repeat(numbers.astype(np.uint8)[:, None], 3072, axis=1)
        files[name] = pickle.dumps({"data": data, "labels": (numbers % 10).tolist()}, protocol=2)
    return files
