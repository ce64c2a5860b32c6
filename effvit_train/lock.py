"""One process a run directory: a lock that dies with its holder, and signs of life for other machines.

`run.lock` is locked by the kernel (POSIX record lock: not inherited by loader processes, gone with the
process however it ended) and holds who has it. Where a file system does not carry locks between
machines, the holder's signs of life (the file's modification time) decide.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from effvit_train.errors import UserError
from effvit_train.runs import slurm_job

NAME = "run.lock"
BEAT = 10.0  # seconds between two signs of life
PATIENCE = 40.0  # seconds without one (network file systems show them late) until a holder counts as dead
_HELD: dict[str, RunLock] = {}  # a process may open its own lock file again, and closing it would unlock it


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a run directory.

    Attributes:
        host: name of the machine.
        boot: tells two machines of one name, or two starts of one machine, apart.
        pid: process.
        since: UTC time, ISO 8601.
        job: Slurm's job id, where there is one: a job runs once at a time, wherever it is requeued.
    """

    host: str
    boot: str
    pid: int
    since: str
    job: str | None = None

    @property
    def here(self) -> bool:
        """Whether this is the machine that it was taken on."""
        return (self.host, self.boot) == (socket.gethostname(), _boot())

    def __str__(self) -> str:
        where = "on this machine" if self.here else f"on {self.host}"
        return f"process {self.pid} {where}, since {self.since.replace('T', ' ')[:16]} UTC"


class RunLock:
    """Holds a run directory while the process lives.

    Args:
        run_dir: the directory; must exist.
        say: prints one line.

    Raises:
        UserError: on entry, when another process holds it.
    """

    def __init__(self, run_dir: Path, say: Callable[[str], None] = print) -> None:
        self.path, self._say = Path(run_dir).resolve() / NAME, say
        self.holder = Holder(socket.gethostname(), _boot(), os.getpid(), _now(), slurm_job())
        self._fd = -1
        self._stop = threading.Event()

    def __enter__(self) -> RunLock:
        if str(self.path) in _HELD:
            raise self._refused(_HELD[str(self.path)].holder)
        self._fd = self._open()
        try:
            self._wait_for_other_machines(_read(self._fd))
        except BaseException:
            os.close(self._fd)
            raise
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(asdict(self.holder)).encode(), 0)
        _HELD[str(self.path)] = self
        self._stop.clear()
        threading.Thread(target=self._beat, name="run.lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        del _HELD[str(self.path)]
        self.path.unlink(missing_ok=True)  # while it is locked: nobody else can have taken it
        os.close(self._fd)

    def _open(self) -> int:
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            if not _lock(fd):
                holder = _read(fd)
                os.close(fd)
                raise self._refused(holder)
            try:
                if os.stat(self.path).st_ino == os.fstat(fd).st_ino:
                    return fd
            except FileNotFoundError:
                pass
            os.close(fd)  # its holder removed the file between our opening and our locking it

    def _wait_for_other_machines(self, before: Holder | None) -> None:
        """The kernel gave us the lock; another machine's may not have told ours."""
        if before is None or before.here or (before.job is not None and before.job == slurm_job()):
            return
        seen = os.fstat(self._fd).st_mtime_ns
        if time.time() - seen / 1e9 > 10 * PATIENCE:
            return
        self._say(f"{self.path.parent} was held by {before}: waiting {PATIENCE:.0f} s for a sign of life")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(min(1.0, PATIENCE / 10))
            try:
                now = os.stat(self.path).st_mtime_ns
            except FileNotFoundError:
                raise self._refused(before) from None  # it ended just now; its files may still be on the way
            if now != seen:
                raise self._refused(before)

    def _beat(self) -> None:
        while not self._stop.wait(BEAT):
            try:
                os.utime(self._fd)
            except OSError:
                return

    def _refused(self, holder: Holder | None) -> UserError:
        return UserError(
            f"is running ({holder or 'another process'})",
            key="run_dir",
            value=self.path.parent,
            remedy="wait for it, or stop it and resume",
        )


def holder(run_dir: Path) -> Holder | None:
    """Who runs `run_dir` now; None when nobody does, also where a dead process left its lock behind."""
    path = Path(run_dir).resolve() / NAME
    if str(path) in _HELD:
        return _HELD[str(path)].holder
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # none, or not ours to look at
        return None
    try:
        found = _read(fd)
        if found is None or not _lock(fd):
            return found
        if found.here or time.time() - os.fstat(fd).st_mtime > PATIENCE:
            return None
        return found
    finally:
        os.close(fd)


def _lock(fd: int) -> bool:
    """Whether we have the lock now; a file system without locks leaves it to the signs of life."""
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EAGAIN)
    return True


def _read(fd: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(fd, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
