"""Timing several things in turn, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Seconds(NamedTuple):
    """Of one run, by the processor's clock and by the wall's."""

    cpu: float
    wall: float


def take_turns(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, least: float = 0.0
) -> dict[str, list[Seconds]]:
    """The times of each run, round by round; every round begins with another one.

    Args:
        runs: by name; each is run once or twice before, which is not timed.
        rounds: how many.
        least: seconds of one timing: what takes less is repeated.
    """
    names, repeats = list(runs), {}
    for name, run in runs.items():
        run()
        repeats[name] = math.ceil(least / _time(run, 1).wall) if least else 1
    times: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(_time(runs[name], repeats[name]))
    return times


def ratios(
    times: Mapping[str, list[Seconds]], name: str, reference: str, *, clock: str = "cpu"
) -> list[float]:
    """How long a run took against another one in the same round."""
    pairs = zip(times[name], times[reference], strict=True)
    return [getattr(own, clock) / getattr(other, clock) for own, other in pairs]


def _time(run: Callable[[], object], repeats: int) -> Seconds:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        run()
    return Seconds((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)
