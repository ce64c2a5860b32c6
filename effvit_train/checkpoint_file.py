"""Checkpoint files: what `torch.save` writes, followed by a SHA-256 of it; nothing in them can run code.

`torch.load(path, weights_only=True)` reads such a file as well: a zip archive may be followed by more
bytes. A file that was cut short or changed is told from a good one without being parsed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from effvit_train.errors import UserError, first_line
from effvit_train.files import atomic_path
from effvit_train.runs import RunDir

_MARK = b"effvit_train checkpoint 1 sha256\n"
_TRAILER = len(_MARK) + hashlib.sha256().digest_size
_CHUNK = 1 << 20


class DamagedError(ValueError):
    """A checkpoint file that is not what was written; the message says how it can be told."""


@dataclass
class Found:
    """The checkpoint to go on from.

    Attributes:
        path: the file.
        content: the checkpoint.
        passed_over: newer files that could not be used: name and reason.
    """

    path: Path
    content: dict[str, Any]
    passed_over: list[str] = field(default_factory=list)


def write(checkpoint: dict[str, Any], path: Path, previous: Path | None = None) -> None:
    """Write a checkpoint atomically, keeping the file that was there as `previous`.

    Raises:
        OSError: it could not be written; what was there is still there.
    """
    with atomic_path(path, previous) as temporary, open(temporary, "wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(checkpoint, hashed)  # type: ignore[arg-type]
            file.write(_MARK + hashed.digest.digest())
        except Exception as error:
            # torch reports a failed write as an error of its archive
            raise hashed.error or error from None


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is not what was written.
        UserError: it is whole, but no checkpoint of ours: it was made by somebody else.
    """
    _verify(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol: ours says what matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds Python objects, which could run code: refused",
            key="resume", remedy="remove the file, and find out who wrote it",
        ) from None  # fmt: skip
    except Exception as error:  # zip, tar, EOF: as many errors as ways to be no checkpoint
        raise UserError(
            f"{path} is not a checkpoint of effvit_train ({first_line(error)[:120]})",
            key="resume",
            remedy="remove the file",
        ) from None
    wanted = {"architecture", "state_dict", "position"}
    if not isinstance(content, dict) or not wanted <= set(content):
        raise UserError(f"{path} is not a checkpoint of effvit_train", key="resume", remedy="remove the file")
    return content


def find(run_dir: RunDir) -> Found | None:
    """The newest good checkpoint of a run; None when none was written yet.

    Raises:
        UserError: there are files and none of them is good.
    """
    passed_over: list[str] = []
    there = False
    for path in (run_dir.last, run_dir.previous, run_dir.best):
        try:
            return Found(path, read(path), passed_over)
        except FileNotFoundError:
            passed_over.append(f"{path.name} is missing")
        except DamagedError as error:
            there = True
            passed_over.append(f"{path.name} {error}")
        except OSError as error:
            there = True
            passed_over.append(f"{path.name} cannot be read ({error.strerror})")
    if not there:
        return None
    raise UserError(
        f"no good checkpoint in {run_dir.last.parent} ({'; '.join(passed_over)})",
        key="resume", value=run_dir.path,
        remedy="give back the files, or remove checkpoints/ to start the run again",
    )  # fmt: skip


def _verify(path: Path) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise DamagedError("is empty")
        if size <= _TRAILER:
            raise DamagedError("is cut short")
        digest = hashlib.sha256()
        left = size - _TRAILER
        while left:
            chunk = file.read(min(_CHUNK, left))
            if not chunk:
                raise DamagedError("is cut short")
            digest.update(chunk)
            left -= len(chunk)
        trailer = file.read(_TRAILER)
    if not trailer.startswith(_MARK):
        raise DamagedError("is cut short or was changed: it does not end in a checksum")
    if trailer != _MARK + digest.digest():
        raise DamagedError("was changed: its checksum does not match")


class _Hashed:
    """A file that hashes what is written to it, and remembers what went wrong."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()
