"""What the machine can do and what it counts: peak speeds, perf's events.

What a machine does not offer is None with the reason: many virtual machines hide the counters, and many
kernels show them to root alone.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

EVENTS = ("instructions", "cycles", "cache-references", "cache-misses")
_PIECE, _PIECES = 4_000_000, 10  # numbers of 4 bytes
_PERF_SECONDS = 10.0  # for perf to attach, and to end


@dataclass(frozen=True)
class Machine:
    """Measured peaks: the two lines of a roofline (Williams et al. 2009).

    Attributes:
        flops_per_second: of a large matrix product in 32 bits.
        bytes_per_second: read and written by a copy that no cache holds.
        threads: of the CPU.
        device: `cpu` or `cuda`.
    """

    flops_per_second: float
    bytes_per_second: float
    threads: int
    device: str

    @property
    def ridge(self) -> float:
        """FLOPs per byte from which on arithmetic is the limit."""
        return self.flops_per_second / self.bytes_per_second

    def seconds(self, flops: float, moved: float) -> float:
        """The least time for so many FLOPs and bytes, if they overlap perfectly."""
        return max(flops / self.flops_per_second, moved / self.bytes_per_second)


def measure_machine(device: torch.device | str = "cpu", *, seconds: float = 1.0) -> Machine:
    """Measure the peaks with the threads that torch has now, each for so many `seconds` on `device`.

    The fastest run counts, for other work only adds time, and every run is short enough for a fair chance that
    nothing interrupts it: a few milliseconds of matrix product, and a piece of a copy that goes round and round
    arrays several times larger than the last cache.
    """
    device = torch.device(device)
    size = 4096 if device.type == "cuda" else 512 * round(torch.get_num_threads() ** (1 / 3))
    left, right, product = (torch.ones(size, size, device=device) for _ in range(3))
    source = torch.ones(_PIECES, _PIECE, device=device)
    target = torch.empty_like(source)
    pieces = itertools.cycle(range(_PIECES))

    def copy() -> None:
        at = next(pieces)
        target[at].copy_(source[at])

    return Machine(
        flops_per_second=2 * size**3 / _fastest(lambda: torch.mm(left, right, out=product), seconds, device),
        bytes_per_second=2 * _PIECE * source.element_size() / _fastest(copy, seconds, device),
        threads=torch.get_num_threads(), device=device.type,
    )  # fmt: skip


def _fastest(work: Callable[[], object], budget: float, device: torch.device) -> float:
    """Seconds of the fastest run within the budget, once every piece of memory has been touched."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 2 + _PIECES or time.perf_counter() - begin < budget:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[_PIECES:])


def count_events(
    work: Callable[[], object], events: tuple[str, ...] = EVENTS
) -> tuple[dict[str, float | None], str]:
    """Count hardware events of this process while `work` runs, with Linux's `perf stat`.

    Returns the count of each event, None for one that the machine does not count, and the reason if any is
    None. Events are on from just before `work` to just after, on all threads that exist then, in user mode.
    """
    nothing: dict[str, float | None] = dict.fromkeys(events)
    perf = shutil.which("perf")
    if perf is None:
        return nothing, "perf is not installed"
    commands, answers = os.pipe(), os.pipe()
    process = subprocess.Popen(
        [
            perf, "stat", "-x", ";", "-e", ",".join(f"{event}:u" if event in EVENTS else event for event in events),
            "--delay", "-1", "--control", f"fd:{commands[0]},{answers[1]}", "-p", str(os.getpid()),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        pass_fds=(commands[0], answers[1]), env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    os.close(commands[0])
    os.close(answers[1])
    try:
        attached = _tell(commands[1], answers[0], b"enable\n")
        if attached:
            work()
            _tell(commands[1], answers[0], b"disable\n")
        process.send_signal(signal.SIGINT)
        _, report = process.communicate(timeout=_PERF_SECONDS)
    except subprocess.TimeoutExpired:
        return nothing, "perf did not end"
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        os.close(commands[1])
        os.close(answers[0])
    if not attached:
        lines = report.strip().splitlines()
        return nothing, f"perf cannot count: {lines[0] if lines else 'no answer'}"
    counts = nothing | _parse(report, events)
    silent = [event for event, count in counts.items() if count is None]
    return counts, f"this machine does not count {', '.join(silent)}" if silent else ""


def _tell(commands: int, answers: int, command: bytes) -> bool:
    """Send perf a command and wait until it has obeyed; False if it went away."""
    with contextlib.suppress(BrokenPipeError):
        os.write(commands, command)
        return os.read(answers, 16).startswith(b"ack")  # empty once perf has closed its end
    return False


def _parse(report: str, events: tuple[str, ...]) -> dict[str, float | None]:
    """`value;unit;event;...` for each event; the value is in brackets where there is none."""
    counts: dict[str, float | None] = {}
    for line in report.splitlines():
        fields = line.split(";")
        name = fields[2].removesuffix(":u") if len(fields) > 2 else ""
        if name in events:
            with contextlib.suppress(ValueError):
                counts[name] = float(fields[0])
    return counts
