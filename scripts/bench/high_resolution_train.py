"""Accuracy, time and memory of attention and its replacements on images of a folder, at several sizes.

    python scripts/bench/high_resolution_train.py --root DIR [--sizes 112 160 224] [--epochs 5] [--seeds 1] [--jobs 2]
        [--arms exact windowed ...] [--arm 'NAME=OVERRIDE ...'] [--out runs/high_resolution] [--json] [overrides]

Arms are those of `high_resolution.py`. All train from random weights with one recipe, for the same number of epochs
on the same images: a small ViT with patches of 16 pixels, unless overrides say otherwise. Balanced accuracy is the mean
of the classes' accuracies on the test images, as sets of defects need it. Time and memory are those of the cards
(`cost/latency_ms`, `cost/memory_mb`) on one thread; with `--jobs` above 1 times are those of a busy machine.

Runs that are there are not repeated and those that were stopped go on. An arm that this version cannot train is said
and left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arms as experiment
from high_resolution import EXACT, add_arms, chosen_arms, number

MODEL = ("model=vit_micro", "model.patch_size=16", "model.args.embed_dim=128", "model.args.depth=6")
MEASURES = {
    "balanced_accuracy": "quality/balanced_accuracy", "accuracy": "quality/accuracy",
    "latency_ms": "cost/latency_ms", "memory_mb": "cost/memory_mb", "macs": "cost/macs", "params": "cost/params",
    "train_seconds": "cost/train_seconds",
}  # fmt: skip


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dataset", default="image_folder")
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 160, 224])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/high_resolution"))
    add_arms(parser)
    options = parser.parse_args()
    arms = chosen_arms(options)
    options.overrides = [*MODEL, *options.overrides]
    plan = {f"{arm}@{size}": (arm, size) for size in sorted(options.sizes) for arm in arms}

    def run(name: str, seed: int) -> dict[str, float] | None:
        arm, size = plan[name]
        try:
            card = experiment.train(name, seed, [f"dataset.image_size={size}", *arms[arm]], options)
        except subprocess.CalledProcessError as error:  # it has said why on the standard error
            print(f"{name} {seed}: exit {error.returncode}", file=sys.stderr, flush=True)
            return None
        return {short: card["measures"][key] for short, key in MEASURES.items()}

    runs = experiment.run_all(list(plan), options, run)
    result = {
        "rows": [row(name, arm, size, runs, options) for name, (arm, size) in plan.items()],
        "arms": {arm: list(words) for arm, words in arms.items()}, "overrides": options.overrides,
        "epochs": options.epochs, "seeds": options.seeds,
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
    else:
        show(result["rows"])


def row(
    name: str,
    arm: str,
    size: int,
    runs: Mapping[tuple[str, int], Mapping[str, float] | None],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The means over seeds of an arm at a size, and how its balanced accuracy differs from that of `exact`."""
    seeds = range(1, options.seeds + 1)
    own = [runs[name, seed] for seed in seeds]
    found: dict[str, Any] = {"arm": arm, "size": size}
    for short in MEASURES:
        values = [run[short] for run in own if run is not None and run[short] is not None]
        found[short] = statistics.mean(values) if len(values) == len(own) else None
    pairs = [(runs[name, seed], runs[f"{EXACT}@{size}", seed]) for seed in seeds]
    gains = [
        a["balanced_accuracy"] - b["balanced_accuracy"] for a, b in pairs if a is not None and b is not None
    ]
    complete = len(gains) == len(own)
    found["gain"] = statistics.mean(gains) if complete else None
    found["gain_sd"] = experiment.sd(gains) if complete else None
    return found


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """A table."""
    print(f"{'pixels':>6}  {'arm':16}  balanced  - exact  {'ms':>8}  {'MB':>7}  {'GMACs':>8}  {'train s':>8}")
    for found in rows:
        start = f"{found['size']:6}  {found['arm']:16}  "
        if found["macs"] is None:
            print(f"{start}not trained")
            continue
        print(
            f"{start}{number(found['balanced_accuracy'], 8, 4)}  {number(found['gain'], 7, 4)}"
            f"  {number(found['latency_ms'], 8, 1)}  {number(found['memory_mb'], 7, 1)}"
            f"  {found['macs'] / 1e9:8.4f}  {number(found['train_seconds'], 8, 1)}"
        )


if __name__ == "__main__":
    main()
