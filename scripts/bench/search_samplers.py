"""How many trials each sampler needs: the hypervolume of ZDT1's front with two variables, by `sweep.sampler`.

python scripts/bench/search_samplers.py [--trials 300] [--seeds 3]
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from effvit_train.search.config import SweepConfig
from effvit_train.search.definition import Definition
from effvit_train.search.study import COMPLETE, Outcome, SharedStudy, Turn
from effvit_train.search.worker import work

CORNER = 1.1
WHOLE = CORNER**2 - 1 / 3  # below f2 = 1 - sqrt(f1) lies a third of the unit square


def zdt1(turn: Turn) -> Outcome:
    first, second = turn.params["x0"], turn.params["x1"]
    g = 1 + 9 * second
    return Outcome(COMPLETE, [first, g * (1 - math.sqrt(first / g))])


def hypervolume(points: list[list[float]]) -> float:
    area, lowest = 0.0, CORNER
    for first, second in sorted(points):
        if first < CORNER and second < lowest:
            area, lowest = area + (CORNER - first) * (lowest - second), second
    return area


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    space = {f"x{k}": {"low": 0.0, "high": 1.0} for k in range(2)}
    counts = [n for n in (40, 100, 200, options.trials) if n <= options.trials]
    print("sampler    " + "".join(f"{count:>8}" for count in counts))
    for sampler in ("tpe", "nsga2", "random"):
        shares = [0.0] * len(counts)
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as directory:
                sweep = SweepConfig(
                    trials=options.trials, objectives=["cost/params", "cost/macs"], space=space, sampler=sampler, seed=seed
                )  # fmt: skip
                study = SharedStudy(Path(directory), Definition("zdt1", "", sweep, (), {}, (), directory))
                work(study, zdt1)
                values = [trial.values for trial in study.study.get_trials(deepcopy=False)]
            for place, count in enumerate(counts):
                shares[place] += hypervolume(values[:count]) / WHOLE / options.seeds
        print(f"{sampler:11}" + "".join(f"{share:8.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
