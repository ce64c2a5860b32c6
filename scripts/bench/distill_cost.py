"""Cost of a training step: plain, with a live teacher, with a cached one; paired. And peak memory.

    python scripts/bench/distill_cost.py [--json] [--model vit_ti] [--teacher vit_base_patch16_224] [--rounds 6]

Student and teacher at 32/4, batch 128, `synthetic` data. One training runs in the whole framework; in each
round its loss is for some steps that of the labels alone, then with the live, then with the cached teacher,
every other round the other way round. The figures are medians over the rounds of the ratio of wall times
per step, data loading and all callbacks included. The cache is complete before the clock starts, as it is
in all but the first N epochs. Peak memory is the resident set of fresh processes, one each, that train six
steps. The teacher's weights are random: what it says costs the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import build_run, peak_mb  # isort: skip  # before torchvision, as `effvit_train` itself
import pytorch_lightning as pl
import torch

from effvit_train.build import Built, make_trainer
from effvit_train.card import Card, Measured
from effvit_train.config import Config
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, save_model
from effvit_train.report.tracking import Tracker
from effvit_train.runs import RunDir

CASES = ("plain", "live", "cached")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="vit_ti")
    parser.add_argument("--teacher", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3, help="of each case in a round")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--directory", type=Path, help="keep teacher and cache there")
    parser.add_argument("--memory-of", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        _train_alone(options.memory_of, options)
        return
    with tempfile.TemporaryDirectory() as directory:
        options.directory = options.directory or Path(directory)
        _make_teacher(options)
        _fill_cache(options)
        memory = {case: _memory(case, options) for case in CASES}
        rounds = _rounds(options)
    result: dict[str, Any] = {}
    for case in CASES[1:]:
        ratios = [times[case] / times["plain"] for times in rounds]
        result |= {
            f"{case}_over_plain": statistics.median(ratios),
            f"{case}_range": [min(ratios), max(ratios)],
        }
    result |= {f"{case}_ms": 1e3 * statistics.median(times[case] for times in rounds) for case in CASES}
    result |= {f"{case}_peak_mb": memory[case] for case in CASES}
    result |= {
        "cached_memory_over_plain": memory["cached"] / memory["plain"],
        "rounds": len(rounds), "model": options.model, "teacher": options.teacher,
        "batch": options.batch, "threads": options.threads,
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    for case in CASES[1:]:
        low, high = result[f"{case}_range"]
        print(
            f"{case} / plain: {result[f'{case}_over_plain']:.3f} ({low:.3f} to {high:.3f}, {len(rounds)} rounds)"
        )
    print("peak memory: " + ", ".join(f"{case} {memory[case]:.0f} MB" for case in CASES))


def _build(case: str, options: argparse.Namespace) -> tuple[Config, Built]:
    overrides = [
        f"model={options.model}", "dataset=synthetic", f"dataset.num_samples={options.batch * 6}",
        f"recipe.batch_size={options.batch}", "recipe.lr=1e-5", "logger=none", "trainer.max_epochs=100000",
        "trainer.check_val_every_n_epoch=100000", f"cache_dir={options.directory}",
        f"trainer.num_threads={options.threads}",
    ]  # fmt: skip
    if case != "plain":
        overrides += ["compress=distill", f"compress.distill.teacher={options.directory / 'teacher'}"]
    if case == "cached":
        overrides += ["compress.distill.cache.epochs=1"]
    return build_run(overrides, str(options.directory / "run"))


def _make_teacher(options: argparse.Namespace) -> None:
    """A run directory with a model of random weights, of the very data that the student sees."""
    run = RunDir(options.directory / "teacher")
    if run.card.exists():
        return
    info = _build("plain", options)[1].data.info
    torch.manual_seed(0)
    model, record = create(
        ModelConfig(name=options.teacher, patch_size=4), input_shape=info.input_shape, classes=info.classes,
        mean=info.mean, std=info.std,
    )  # fmt: skip
    run.path.mkdir(parents=True, exist_ok=True)
    save_model(model, record, run.path)
    provenance = {"dataset": info.to_json()}
    Card.of(run={}, model={}, measured=Measured({"quality/accuracy": 0.1}), provenance=provenance).write(
        run.card
    )


def _fill_cache(options: argparse.Namespace) -> None:
    built = _build("cached", options)[1]
    (ahead,) = built.ahead
    batches = [ids for ids in built.data.train_batches(0) if ahead.missing(ids, 0).any()]
    for batch in built.data.augmented_loader(batches, 0):
        ahead.fill(built.module.augmented(batch, 0), batch.index.numpy(), 0)
    ahead.finish()


class _Cases(pl.Callback):
    """Changes the loss from stretch to stretch, and times the stretches."""

    def __init__(self, terms: dict[str, list[Any]], steps: int, rounds: int) -> None:
        self.terms, self.steps = terms, steps
        self.plan = [case for k in range(rounds + 1) for case in (CASES if k % 2 else CASES[::-1])]
        self.times: list[tuple[str, float]] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        stretch, step = divmod(trainer.global_step, self.steps)
        if step == 0:
            if stretch:
                self.times.append((self.plan[stretch - 1], (time.perf_counter() - self._start) / self.steps))
            if stretch == len(self.plan):
                trainer.should_stop = True
                return
            module.terms = self.terms[self.plan[stretch]]
            self._start = time.perf_counter()


def _rounds(options: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds per step of each case, in each round; the first round warms up."""
    terms = {case: _build(case, options)[1].module.terms for case in CASES}
    config, built = _build("cached", options)  # every epoch shows the views that the cache holds
    cases = _Cases(terms, options.steps, options.rounds)
    trainer = _trainer(config, built, options)
    trainer.callbacks.insert(0, cases)  # type: ignore[attr-defined]
    trainer.fit_loop.epoch_loop.max_steps = options.steps * len(cases.plan) + 1
    trainer.fit(built.module, datamodule=built.data)
    rounds = [dict(cases.times[k : k + len(CASES)]) for k in range(0, len(cases.times), len(CASES))]
    return rounds[1:]


def _trainer(config: Config, built: Built, options: argparse.Namespace) -> pl.Trainer:
    return make_trainer(
        config, built, run_dir=RunDir(options.directory / "run"), tracker=Tracker(None), bar=None, say=lambda line: None
    )  # fmt: skip


def _train_alone(case: str, options: argparse.Namespace) -> None:
    config, built = _build(case, options)
    trainer = _trainer(config, built, options)
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(built.module, datamodule=built.data)
    print(peak_mb())


def _memory(case: str, options: argparse.Namespace) -> float:
    """Peak resident memory of a fresh process, MB."""
    command = [
        sys.executable, __file__, "--memory-of", case, "--model", options.model, "--teacher", options.teacher,
        "--batch", str(options.batch), "--threads", str(options.threads), "--directory", str(options.directory),
    ]  # fmt: skip
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


if __name__ == "__main__":
    main()
