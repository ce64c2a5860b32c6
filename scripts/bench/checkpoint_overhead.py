"""What saving costs: stretches of training with one checkpoint in them against stretches without, paired.

    python scripts/bench/checkpoint_overhead.py [--json] [--model vit_s] [--pairs 20] [--every 60]

The whole framework trains on `synthetic` images in memory. Each pair trains the same number of steps
twice in turn, in alternating order, in one process: once the run's own checkpoint (weights, optimizer,
checksum, fsync, rename) is due after the first step, once none is. The overhead is the difference of
the two wall times as a share of `--every` seconds, the time between two checkpoints; `--stretch 60`
makes each half as long as that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import build_run  # isort: skip  # before torchvision, as `effvit_train` itself
import pytorch_lightning as pl
import torch

from effvit_train.build import make_trainer
from effvit_train.checkpoints import Checkpoints
from effvit_train.report.tracking import Tracker
from effvit_train.runs import RunDir

NEVER = float("inf")


class _Pairs(pl.Callback):
    """Times stretches of training; every other one has a checkpoint in it."""

    def __init__(self, checkpoints: Checkpoints, seconds: float, pairs: int) -> None:
        self.checkpoints, self.seconds, self.wanted = checkpoints, seconds, 2 * pairs
        self.times: list[tuple[bool, float]] = []
        self.steps = 0  # of a stretch; found out while warming up
        self._count = -5
        self._since = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        self.checkpoints._due_at = NEVER
        self._count += 1
        if self._count == -2:
            self._since = now
        elif self._count == 0 and not self.steps:
            self.steps = max(2, round(self.seconds / ((now - self._since) / 2)))
        elif self._count == self.steps and self.steps:
            saves = len(self.times) in self._with
            self.times.append((saves, now - self._since))
            self._count = 0
            if len(self.times) == self.wanted:
                trainer.should_stop = True
        if self._count == 0:
            self._since = time.perf_counter()
            if len(self.times) in self._with:
                self.checkpoints._due_at = 0.0

    @property
    def _with(self) -> set[int]:
        """Stretches with a checkpoint: 0, 3, 4, 7, 8 ...: the order within the pairs alternates."""
        return {k for k in range(self.wanted) if k % 4 in (0, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="vit_s")
    parser.add_argument("--size", type=int, default=32, help="pixels of an image's side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--stretch", type=float, default=6.0, help="seconds of training per half of a pair")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--dir", type=Path, help="a directory on the disk to measure; default: the temporary one"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = [
        f"model={options.model}", "dataset=synthetic", f"dataset.num_samples={options.batch * 64}",
        f"dataset.image_size={options.size}", f"recipe.batch_size={options.batch}", "logger=none",
        "trainer.max_epochs=100000", "trainer.check_val_every_n_epoch=100000", "trainer.checkpoint_every=1000d",
        "trainer.progress_bar=false",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.dir) as directory:
        config, built = build_run(overrides, directory)
        run_dir = RunDir(Path(directory))
        trainer = make_trainer(config, built, run_dir=run_dir, tracker=Tracker(None), bar=None)
        (checkpoints,) = [c for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
        pairs = _Pairs(checkpoints, options.stretch, options.pairs)
        trainer.callbacks.insert(0, pairs)  # type: ignore[attr-defined]
        trainer.fit(built.module, datamodule=built.data)
        megabytes = run_dir.last.stat().st_size / 1e6
    halves = [dict(pairs.times[k : k + 2]) for k in range(0, len(pairs.times), 2)]
    shares = [(half[True] - half[False]) / options.every for half in halves]
    result = {
        "overhead": statistics.median(shares), "min": min(shares), "max": max(shares), "pairs": len(shares),
        "model": options.model, "checkpoint_mb": megabytes, "precision": built.precision.name,
        "threads": options.threads, "steps_per_half": pairs.steps,
        "seconds_per_half": statistics.median(half[False] for half in halves),
        "seconds_per_save": statistics.median(half[True] - half[False] for half in halves),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{options.model}, {megabytes:.0f} MB, one checkpoint in {options.every:.0f} s: overhead "
        f"{result['overhead']:.2%} (median of {len(shares)} pairs, {min(shares):.2%} to {max(shares):.2%}); "
        f"{result['seconds_per_save']:.2f} s a save, halves of {result['seconds_per_half']:.1f} s, "
        f"{built.precision.name}, {options.threads} threads"
    )


if __name__ == "__main__":
    main()
