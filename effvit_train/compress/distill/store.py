"""Records of what a teacher said, on disk: sharded, memory-mapped, each with its checksum.

A record belongs to (sample, variant), the view of the sample, and has a fixed place: it is found without
an index, written by any process in any order, and a build that was interrupted goes on. Nothing of a
record is believed before its checksum, which covers sample and variant too, is right: a hole in a sparse
file, half a record after a power cut and a record at the wrong place are all just missing.

The first writer wins: a record that is there is never replaced by another, so that a step which is
replayed after a kill finds what it used before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from effvit_train.files import read_json, write_json

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
_SHARD_BYTES = 32 << 20
_LOWEST = -6e4  # a float16 ends there; the probability is 0 long before


@dataclass(frozen=True)
class Format:
    """What a record holds: the `top_k` likeliest classes and their log-probabilities, and one number for the rest.

    With `top_k == classes` the log-probabilities stand in the order of the classes, without their names.

    Attributes:
        classes: K of the teacher.
        top_k: how many are kept.
        dtype: float16 or float32.
    """

    classes: int
    top_k: int
    dtype: str

    @property
    def record(self) -> np.dtype[Any]:
        """The record's layout, packed."""
        fields: list[Any] = [("crc", "<u4")]
        if self.top_k < self.classes:
            fields += [("class", "<u2", (self.top_k,)), ("rest", "<f4")]
        return np.dtype([*fields, ("value", "<f2" if self.dtype == "float16" else "<f4", (self.top_k,))])

    def encode(self, log_probs: Floats) -> npt.NDArray[Any]:
        """Records (B,) of log-probabilities (B, K), without checksums."""
        records = np.zeros(len(log_probs), dtype=self.record)
        if self.top_k == self.classes:
            kept = log_probs
        else:
            order = np.argsort(-log_probs, axis=1, kind="stable")
            top, others = order[:, : self.top_k], order[:, self.top_k :]
            kept = np.take_along_axis(log_probs, top, axis=1)
            records["class"] = top
            # each other class gets an equal share of what is left (Wu et al. 2022, eq. 3)
            left = np.logaddexp.reduce(
                np.take_along_axis(log_probs, others, axis=1).astype(np.float64), axis=1
            )
            records["rest"] = np.clip(left - np.log(others.shape[1]), _LOWEST, None)
        records["value"] = _half(kept) if self.dtype == "float16" else kept
        return records

    def decode(self, records: npt.NDArray[Any]) -> Floats:
        """Log-probabilities (B, K) of records (B,)."""
        values = records["value"].astype(np.float32)
        if self.top_k == self.classes:
            return values
        dense = np.repeat(records["rest"][:, None], self.classes, axis=1)
        np.put_along_axis(dense, records["class"].astype(np.int64), values, axis=1)
        return dense


class Store:
    """The records of one teacher for one data set and recipe.

    Args:
        path: directory, made if missing.
        key: everything that shapes the records; a directory with another key is not believed.
        ids: sample ids of the training split (n,), ascending.
        layout: of the records.
        say: prints one line.

    Attributes:
        damaged: number of records that were found damaged.
    """

    def __init__(
        self, path: Path, key: dict[str, Any], ids: Ints, layout: Format, say: Callable[[str], None]
    ) -> None:
        self.path, self.layout, self._ids, self._say = path, layout, ids, say
        self._record = layout.record
        self._rows = max(1, _SHARD_BYTES // self._record.itemsize)  # per shard
        self._maps: dict[tuple[int, int], npt.NDArray[Any]] = {}
        self._dirty: set[Path] = set()
        self.damaged = 0
        self._failing = False
        self._lock = FileLock(f"{path}.lock")
        self._open(key)

    @property
    def bytes_per_variant(self) -> int:
        """Size of the records of one view of each sample."""
        return self._record.itemsize * len(self._ids)

    def read(self, ids: Ints, variant: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Log-probabilities (B, K) and whether each record is there (B,); the others' rows are arbitrary."""
        log_probs, there, damaged = self._find(ids, variant)
        self.damaged += damaged
        return log_probs, there

    def _find(self, ids: Ints, variant: int) -> tuple[Floats, npt.NDArray[np.bool_], int]:
        rows = np.searchsorted(self._ids, ids)
        records = np.zeros(len(ids), dtype=self._record)
        for shard in np.unique(rows // self._rows).tolist():
            mine = rows // self._rows == shard
            with contextlib.suppress(OSError):  # a shard that cannot be had is one that is not there
                records[mine] = self._map(variant, shard)[rows[mine] % self._rows]
        there = self._good(records, ids, variant)
        written = records.view(np.uint8).reshape(len(ids), -1).any(axis=1)
        return self.layout.decode(records), there, int((written & ~there).sum())

    def write(self, log_probs: Floats, ids: Ints, variant: int) -> Floats:
        """Keep what the teacher said of samples (B,); returns what is kept of it, (B, K).

        A record that somebody else wrote meanwhile stays, and is what is returned. A disk that is full
        costs a line, not the run.
        """
        records = self.layout.encode(log_probs)
        for record, index in zip(records, ids.tolist(), strict=True):
            record["crc"] = _checksum(record.tobytes(), index, variant)
        try:
            with self._lock:
                kept, there, _ = self._find(ids, variant)
                self._put(records[~there], np.searchsorted(self._ids, ids[~there]), variant)
            self._failing = False
        except OSError as error:
            if not self._failing:
                self._say(
                    f"teacher cache: {self.path} not written ({error.strerror}); training goes on without it"
                )
            self._failing = True
            kept, there = self.layout.decode(records), np.ones(len(ids), dtype=bool)
        return np.where(there[:, None], kept, self.layout.decode(records))

    def missing(self, ids: Ints, variant: int) -> npt.NDArray[np.bool_]:
        """Which records (B,) are not there."""
        return ~self.read(ids, variant)[1]

    def sync(self) -> None:
        """See that what was written is on the disk: a checkpoint that relies on it is about to be."""
        for path in self._dirty:
            with contextlib.suppress(OSError), open(path, "rb") as file:
                os.fsync(file.fileno())
        self._dirty.clear()

    def _open(self, key: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            if self.path.exists() and not _is_of(self.path, key):
                self._say(f"teacher cache: {self.path} is damaged or of something else: built again")
                shutil.rmtree(self.path)
            if not self.path.exists():
                self.path.mkdir()
                write_json(self.path / "key.json", key)

    def _good(self, records: npt.NDArray[Any], ids: Ints, variant: int) -> npt.NDArray[np.bool_]:
        good = np.empty(len(ids), dtype=bool)
        size, raw = self._record.itemsize, records.tobytes()
        found = records["crc"].tolist()
        for k, index in enumerate(ids.tolist()):
            good[k] = found[k] != 0 and found[k] == _checksum(raw[k * size : (k + 1) * size], index, variant)
        return good

    def _put(self, records: npt.NDArray[Any], rows: Ints, variant: int) -> None:
        size = self._record.itemsize
        for shard in np.unique(rows // self._rows).tolist():
            path = self._file(variant, shard)
            mine = np.flatnonzero(rows // self._rows == shard)
            with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
                for k in mine.tolist():
                    # by the file, not by the map: a full disk is an error there and a dead process here
                    if (
                        os.pwrite(file.fileno(), records[k].tobytes(), int(rows[k] % self._rows) * size)
                        != size
                    ):
                        raise OSError(28, os.strerror(28), str(path))
            self._dirty.add(path)

    def _map(self, variant: int, shard: int) -> npt.NDArray[Any]:
        if (variant, shard) not in self._maps:
            path = self._file(variant, shard)
            rows = min(self._rows, len(self._ids) - shard * self._rows)
            path.parent.mkdir(exist_ok=True)
            with open(path, "a+b") as file:  # of its full size from the start, without taking the room
                file.truncate(rows * self._record.itemsize)
            self._maps[variant, shard] = np.memmap(path, dtype=self._record, mode="r", shape=(rows,))
        return self._maps[variant, shard]

    def _file(self, variant: int, shard: int) -> Path:
        return self.path / f"variant-{variant:05d}" / f"{shard:05d}.bin"


def _half(log_probs: Floats) -> npt.NDArray[np.float16]:
    """Rounded to float16, without a tie where there is none: the likeliest class stays the likeliest."""
    rounded = np.clip(log_probs, _LOWEST, None).astype(np.float16)
    best = log_probs.argmax(axis=1)[:, None]
    tie = rounded == np.take_along_axis(rounded, best, axis=1)
    np.put_along_axis(tie, best, False, axis=1)
    return np.where(tie, np.nextafter(rounded, np.float16(-np.inf)), rounded)


def _checksum(record: bytes, index: int, variant: int) -> int:
    # 0 stands for a record that is not there
    return zlib.crc32(record[4:], zlib.crc32(struct.pack("<qq", index, variant))) or 1


def _is_of(path: Path, key: dict[str, Any]) -> bool:
    try:
        return read_json(path / "key.json") == key
    except (OSError, ValueError):
        return False
