"""Cost of a training step in the whole framework, against a bare PyTorch loop, paired.

    python scripts/bench/step_overhead.py [--json] [--model vit_ti] [--pairs 12] [--batch 128]

Same model, weights, batch size, precision and data in memory (`synthetic`). Each pair runs some
steps of the framework (Lightning, our module, loader, callbacks, curves, offline W&B) and the same
number of a bare loop over ready tensors, in turn and in alternating order, in one process; the
figure is the median over pairs of the ratio of CPU-bound wall times per step.
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
from rich.console import Console
from timm.optim import create_optimizer_v2
from torch.nn import functional as F

from effvit_train.build import make_trainer
from effvit_train.progress import ProgressBar
from effvit_train.report.tracking import start
from effvit_train.runs import RunDir


class _Pairs(pl.Callback):
    """Runs the bare loop between stretches of the framework's training, and times both."""

    def __init__(self, bare: Any, steps: int, warmup: int) -> None:
        self.bare, self.steps, self.warmup = bare, steps, warmup
        self.pairs: list[tuple[float, float]] = []
        self._done = 0
        self._bare_first: float | None = None
        self._start = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if self._done == self.warmup:
            self.bare(self.warmup)
            self._begin()

    def _begin(self) -> None:
        # every other pair measures the bare loop first
        self._bare_first = self.bare(self.steps) if len(self.pairs) % 2 else None
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._done += 1
        measured = self._done - self.warmup
        if measured > 0 and measured % self.steps == 0:
            ours = (time.perf_counter() - self._start) / self.steps
            bare = self._bare_first if self._bare_first is not None else self.bare(self.steps)
            self.pairs.append((ours, bare))
            self._begin()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="vit_ti")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="steps per half of a pair")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warmup = 4
    total = warmup + options.steps * options.pairs + 1
    overrides = [
        f"model={options.model}", "dataset=synthetic", f"dataset.num_samples={options.batch * 32}",
        f"recipe.batch_size={options.batch}", "logger.mode=offline", "trainer.max_epochs=100000",
        "trainer.check_val_every_n_epoch=100000",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        config, built = build_run(overrides, directory)
        run_dir = RunDir(Path(directory))
        tracker = start(
            config.logger,
            run_dir=run_dir.path,
            run_id="bench",
            name="bench",
            settings={},
            resumed=False,
            say=print,
        )
        trainer = make_trainer(
            config, built, run_dir=run_dir, tracker=tracker, bar=ProgressBar(Console(stderr=True, quiet=True))
        )
        bare = _bare_loop(built, config)
        pairs = _Pairs(bare, options.steps, warmup)
        trainer.callbacks.insert(0, pairs)  # type: ignore[attr-defined]
        trainer.fit_loop.epoch_loop.max_steps = total
        trainer.fit(built.module, datamodule=built.data)
        tracker.finish()
    ratios = [ours / plain for ours, plain in pairs.pairs]
    result = {
        "framework_over_bare": statistics.median(ratios),
        "min": min(ratios), "max": max(ratios), "pairs": len(ratios), "model": options.model,
        "batch": options.batch, "precision": built.precision.name, "threads": options.threads,
        "framework_ms": 1e3 * statistics.median(ours for ours, _ in pairs.pairs),
        "bare_ms": 1e3 * statistics.median(plain for _, plain in pairs.pairs),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{options.model}, batch {options.batch}, {result['precision']}, {options.threads} threads: framework / bare = "
        f"{result['framework_over_bare']:.3f} (median of {len(ratios)} pairs, {min(ratios):.3f} to {max(ratios):.3f}); "
        f"{result['framework_ms']:.1f} ms / {result['bare_ms']:.1f} ms"
    )


def _bare_loop(built: Any, config: Any) -> Any:
    """Return `run(steps) -> seconds per step` of a plain loop on a copy of the same model."""
    import copy

    model = copy.deepcopy(built.module.model).train()
    optimizer = create_optimizer_v2(
        model, opt=config.recipe.optimizer, lr=config.recipe.lr, weight_decay=config.recipe.weight_decay
    )
    batch = next(iter(built.data.train_dataloader()))
    images = built.module.normalise(batch.images)
    labels = batch.labels
    autocast = built.precision.name == "bf16-mixed"

    def run(steps: int) -> float:
        start_time = time.perf_counter()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=config.recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return (time.perf_counter() - start_time) / steps

    return run


if __name__ == "__main__":
    main()
