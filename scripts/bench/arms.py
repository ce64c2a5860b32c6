"""What experiments over arms and seeds share: each run is a `train.py` process on one thread.

Runs that are there are not repeated and those that were stopped go on: a script can be stopped and started
again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def parser(description: str, *, arms: Sequence[str], fraction: float, out: str) -> argparse.ArgumentParser:
    """The options that all of them take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--dataset", default="fashion_mnist", choices=["fashion_mnist", "cifar10", "image_folder"]
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default=",".join(arms))
    parser.add_argument("--fraction", type=float, default=fraction)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("overrides", nargs="*")
    return parser


def common(options: argparse.Namespace) -> list[str]:
    """Overrides of every run."""
    return [
        f"dataset={options.dataset}", f"dataset.root={options.root.resolve()}",
        f"dataset.train_fraction={options.fraction}", f"trainer.max_epochs={options.epochs}",
        "trainer.check_val_every_n_epoch=10", "trainer.num_threads=1", "logger=none", "audit=none",
        "trainer.progress_bar=false", *options.overrides,
    ]  # fmt: skip


def run_all(
    arms: Sequence[str], options: argparse.Namespace, run: Callable[[str, int], Any]
) -> dict[tuple[str, int], Any]:
    """What `run(arm, seed)` gives for all arms and seeds, `options.jobs` at a time."""
    wanted = [(arm, seed) for seed in range(1, options.seeds + 1) for arm in arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        return dict(zip(wanted, pool.map(lambda job: run(*job), wanted), strict=True))


def run_dir(arm: str, seed: int, options: argparse.Namespace) -> Path:
    """Where the run lies."""
    return options.out / options.dataset / f"{arm}-{seed}"


def train(arm: str, seed: int, overrides: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The card of a run, which is trained, or goes on, where it is not there."""
    run = run_dir(arm, seed, options)
    if not (run / "card.json").exists():
        arguments = [*common(options), *overrides, f"seed={seed}", f"run_dir={run}"]
        if (run / "state.json").exists():  # stopped on the way
            arguments = [f"resume={run}"]
        process(arm, seed, [str(ROOT / "train.py"), *arguments])
    return json.loads((run / "card.json").read_text())


def process(arm: str, seed: int, arguments: Sequence[str]) -> None:
    """Run Python with these arguments, on one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    print(f"{arm} {seed}: done", file=sys.stderr, flush=True)


def sd(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample, where it has one."""
    return statistics.stdev(values) if len(values) > 1 else None
