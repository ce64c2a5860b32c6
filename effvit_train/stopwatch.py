"""Timing a function by the clock, and what is said of the times. Needs no torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

MIN_RUNS = 5
ROUNDS = 10  # of a race
MIN_ROUNDS = 3

# Of each runner: the seconds of its timed runs, round by round.
Times = dict[str, list[list[float]]]


def time_runs(
    run: Callable[[], object],
    runs: int,
    budget: float,
    *,
    warmup: int,
) -> list[float]:
    """Seconds of each of `runs` runs, or of as many as `budget` allows, at least MIN_RUNS."""
    for _ in range(warmup):
        run()
    times: list[float] = []
    begin = time.perf_counter_ns()
    while len(times) < runs:
        before = time.perf_counter_ns()
        run()
        after = time.perf_counter_ns()
        times.append((after - before) * 1e-9)
        if len(times) >= MIN_RUNS and (after - begin) * 1e-9 > budget:
            break
    return times


def fitting_batch(wanted: int, latency: float, budget: float) -> int:
    """The batch halved until MIN_RUNS runs and the warm-up fit into the budget."""
    while wanted > 1 and latency * wanted * (MIN_RUNS + 1) > budget:
        wanted //= 2
    return wanted


def race(
    runners: Mapping[str, Callable[[], object]], *, runs: int, budget: float, rounds: int = ROUNDS
) -> Times:
    """Time several functions in turn, so that what else the machine does falls on all of them alike.

    In each round every runner has its turn: one run that warms the caches, then timed ones. Who comes
    first rotates from round to round.

    Args:
        runners: by name.
        runs: timed runs of each, over all rounds.
        budget: seconds of all of them together; whole rounds are left out beyond it, but for `MIN_ROUNDS`.
        rounds: at most; fewer where there are not so many runs.
    """
    names = list(runners)
    times: Times = {name: [] for name in names}
    for run in runners.values():
        run()
    begin = time.perf_counter()
    rounds = min(rounds, runs)
    for number in range(rounds):
        if number >= MIN_ROUNDS and time.perf_counter() - begin > budget:
            break
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(time_runs(runners[name], math.ceil(runs / rounds), math.inf, warmup=1))
    return times


def ratio(times: Times, name: str, reference: str) -> float:
    """How long a runner took against another: the median over rounds of the ratio of their turns' medians."""
    pairs = zip(times[name], times[reference], strict=True)
    return median([median(mine) / median(other) for mine, other in pairs])


def median(values: list[float]) -> float:
    """The middle one, or the mean of the two."""
    return percentile(values, 0.5)


def percentile(values: list[float], share: float) -> float:
    """Linear interpolation between the closest ranks, as numpy does."""
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (position - low) * (ordered[high] - ordered[low])
