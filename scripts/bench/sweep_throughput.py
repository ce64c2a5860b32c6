"""What a sweep brings: N single-thread jobs at once against one job alone, and what each job costs to start.

    python scripts/bench/sweep_throughput.py [--json] [--jobs N] [--rounds 3] [--epochs 60] [-- overrides ...]

Paired: each round runs one job alone, then N at once (`hydra/launcher=parallel`), all on one thread. The rate is
training images per second of the training loop (`train_seconds`); the figure is the median over the rounds of
(sum of the N rates) / (N x the rate alone). Start-up is the time from a job's process to its first epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXED = ("trainer=cpu", "trainer.progress_bar=false", "trainer.num_threads=1", "audit=none", "logger=none")


@dataclass(frozen=True)
class Measured:
    """One sweep.

    Attributes:
        rates: training images/s of each job.
        startups: seconds from each job's process to its training.
        wall: seconds of the whole command.
    """

    rates: list[float]
    startups: list[float]
    wall: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    overrides = [*options.overrides, f"trainer.max_epochs={options.epochs}"]
    alone, together = [], []
    for _ in range(options.rounds):
        alone.append(sweep(1, overrides))
        together.append(sweep(options.jobs, overrides))
    ratios = [
        sum(many.rates) / (options.jobs * one.rates[0]) for one, many in zip(alone, together, strict=True)
    ]
    figures = {
        "jobs": options.jobs,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "rate_alone": statistics.median(one.rates[0] for one in alone),
        "rate_together": statistics.median(sum(many.rates) for many in together),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "startup_alone_s": statistics.median(one.startups[0] for one in alone),
        "startup_together_s": statistics.median(second for many in together for second in many.startups),
        "wall_alone_s": statistics.median(one.wall for one in alone),
        "wall_together_s": statistics.median(many.wall for many in together),
    }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(
        f"{figures['cores']} cores, load before {figures['load_before']}; median of {options.rounds} rounds"
    )
    print(f"one job alone          {figures['rate_alone']:10,.0f} images/s")
    print(f"{options.jobs} jobs, together       {figures['rate_together']:10,.0f} images/s")
    spread = " ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"together / (N x alone) {figures['ratio']:10.2f} ({spread})")
    print(
        f"start-up of a job      {figures['startup_alone_s']:10.1f} s alone, {figures['startup_together_s']:.1f} s together"
    )
    print(
        f"whole command          {figures['wall_alone_s']:10.1f} s alone, {figures['wall_together_s']:.1f} s together"
    )


def sweep(jobs: int, overrides: list[str]) -> Measured:
    """Run a sweep of `jobs` seeds, all at once."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = Path(directory) / "sweep"
        seeds = ",".join(str(seed) for seed in range(1, jobs + 1))
        command = [
            sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=parallel", f"hydra.launcher.jobs={jobs}",
            "hydra.launcher.threads=1", f"seed={seeds}", f"run_dir={run_dir}", *FIXED, *overrides,
        ]  # fmt: skip
        begun = time.monotonic()
        process = subprocess.Popen(command, cwd=directory, stdout=subprocess.DEVNULL)
        started: dict[int, float] = {}
        training: dict[int, float] = {}
        while process.poll() is None:
            for job in range(jobs):
                log = run_dir / "logs" / f"{job}.log"
                if job not in training and log.exists():
                    started.setdefault(job, time.monotonic())
                    if "train: " in log.read_text():
                        training[job] = time.monotonic()
            time.sleep(0.02)
        wall = time.monotonic() - begun
        if process.returncode:
            sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
        rates = []
        for job in range(jobs):
            card = json.loads((run_dir / str(job) / "card.json").read_text())
            images = card["provenance"]["dataset"]["counts"]["train"] * card["run"]["epochs"]
            rates.append(images / card["measures"]["cost/train_seconds"])
        return Measured(rates, [training[job] - started[job] for job in range(jobs)], wall)


if __name__ == "__main__":
    main()
