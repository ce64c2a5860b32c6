"""Studies for tests: a known test function through the worker's own loop, and its hypervolume."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

from effvit_train.search.config import SweepConfig
from effvit_train.search.definition import Definition
from effvit_train.search.study import COMPLETE, Outcome, SharedStudy, Turn
from effvit_train.search.worker import work

CORNER = 1.1  # of the hypervolume, in both objectives
# ZDT1's front is f2 = 1 - sqrt(f1) on [0, 1]: below it lies 1 - 2/3 of the unit square.
TRUE_HYPERVOLUME = CORNER**2 - 1 / 3


def definition(trials: int, **sweep) -> Definition:
    """Two variables in [0, 1], two objectives that are less the better."""
    space = {f"x{k}": {"low": 0.0, "high": 1.0} for k in range(2)}
    settings = {"space": space, "objectives": ["cost/params", "cost/macs"], **sweep}
    return Definition("zdt1", "pareto", SweepConfig(trials=trials, **settings), (), {}, (), "/")


def zdt1(params) -> list[float]:
    """Zitzler, Deb & Thiele 2000, equation 7."""
    first, *rest = (params[f"x{k}"] for k in range(2))
    g = 1 + 9 * sum(rest) / len(rest)
    return [first, g * (1 - math.sqrt(first / g))]


def evaluate(turn: Turn) -> Outcome:
    return Outcome(COMPLETE, zdt1(turn.params))


def hypervolume(points) -> float:
    """Area between the points and the corner, both objectives less the better: a sweep over the first one."""
    area, lowest = 0.0, CORNER
    for first, second in sorted(points):
        if first < CORNER and second < lowest:
            area += (CORNER - first) * (lowest - second)
            lowest = second
    return area


def main(directory: Path, trials: int, sampler: str, name: str, stuck_at: int) -> None:
    """A worker; it notes what it has evaluated, and stops moving in its evaluation number `stuck_at`."""
    done = 0

    def noted(turn: Turn) -> Outcome:
        nonlocal done
        if done == stuck_at:
            (directory / f"stuck-{name}").write_text(str(turn.number))
            time.sleep(600)
        done += 1
        with open(directory / f"evaluated-{name}", "a") as file:
            file.write(f"{turn.number}\n")
        return evaluate(turn)

    work(SharedStudy(directory, definition(trials, sampler=sampler)), noted, pause=0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
