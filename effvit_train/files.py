"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What a write fails with where there is no room: disk full, quota reached, file too large.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_path(path: Path, previous: Path | None = None, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`.

    What stood at `path` is kept as `previous` where that is given. An `OSError` inside names `path`. The file
    is readable as the umask says, or as `mode` says: never for longer or by more.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask() if mode is None else mode)
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:  # a failed write does not name its file
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def remove_temporaries(directory: Path) -> None:
    """Remove what processes that were killed while writing left in `directory`."""
    for path in Path(directory).glob(".*.tmp"):
        path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """See that a renamed file keeps its name when the machine stops."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str, mode: int | None = None) -> None:
    """Write `text` (UTF-8) to `path` atomically."""
    with atomic_path(path, mode=mode) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, mode: int | None = None) -> None:
    """Write strict JSON (no NaN) to `path` atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", mode)


def read_json(path: Path) -> Any:
    """Read JSON from `path`."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
