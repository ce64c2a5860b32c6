"""Stop requests: SIGINT, SIGTERM and Slurm's SIGUSR1 and SIGUSR2 end a run after a save, not in the middle.

While training, a signal only leaves a note that the loop reads after each batch. Elsewhere (reading
data, measuring) it ends the work at once: nothing there is worth waiting for.
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TOLD = signal.SIGTERM  # stands for the signal of a process that none has reached, but another of its run
_NOTE = b"\nstopping after this step; Ctrl-C once more ends at once, without saving\n"
_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it, and the second Ctrl-C leaves no time to show it again


class Interrupted(BaseException):
    """A signal stopped the run; it can be resumed.

    Not an `Exception`: whoever catches those around a file or a batch must not swallow it.
    """

    def __init__(self, signum: int) -> None:
        self.signum = signum
        super().__init__(signal.Signals(signum).name)


class Stop:
    """Listens for `SIGNALS` while entered; entering again inside changes nothing.

    Attributes:
        requested: the first signal that arrived, or None.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._pid = os.getpid()
        self._depth = 0
        self._deferred = self._raised = self._sigint = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if self._depth == 0:
            self._pid = os.getpid()
            self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self.listen()
        self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0 and _in_main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler if handler is not None else signal.SIG_DFL)

    def listen(self) -> None:
        """Install the handlers (again, after a library has put its own there)."""
        if _in_main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def defer(self, deferred: bool) -> None:
        """Choose whether a signal only leaves a note (`requested`) or raises `Interrupted`."""
        self._deferred = deferred
        if deferred:
            self.check()

    def check(self) -> None:
        """Raise `Interrupted` where a signal has arrived."""
        if self.requested is not None:
            self._raised = True
            raise Interrupted(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked process: its parent decides
            return
        self.requested = self.requested or signum
        if signum == signal.SIGINT:
            # from now on the kernel ends the process, even while it waits inside a library
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            if self._sigint:
                os.kill(self._pid, signal.SIGINT)
            self._sigint = True
            if os.isatty(2):
                os.write(2, _SHOW_CURSOR)
            if self._deferred and _first_process():
                os.write(2, _NOTE)
        if not self._deferred and not self._raised:
            self._raised = True
            raise Interrupted(signum)


def ignore_in_worker(_: int = 0) -> None:
    """Let a loader process leave signals to its parent: Ctrl-C and Slurm reach all processes at once."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _end_daemons() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


# multiprocessing ends daemonic children at exit by SIGTERM, which loader processes ignore, and waits
# for them; this was registered later and so runs before.
atexit.register(_end_daemons)


def _first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
