"""What each kind of distillation is worth: plain against kinds and mixes, over seeds, equal recipe and epochs.

    python scripts/bench/distill_kinds.py --dataset fashion_mnist --root DIR [--seeds 3] [--arms plain,soft,...]
        [--fraction 0.1] [--epochs 30] [--jobs 2] [--out runs/distill_kinds] [--json] [overrides]

Each run is a `train.py` process on one thread, and its figure is the accuracy on its card. Teachers are
trained once. Runs that are there are not repeated and those that were stopped go on: the script can be
stopped and started again. `cifar10` takes the set's own files, or a folder of images (`image_folder`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KIND = "compress.distill.kinds"
# a cached teacher where a cache can serve: every epoch's views are its own, so nothing is reused
ARMS: dict[str, list[str]] = {
    "plain": ["compress=none"],
    "soft": ["compress=distill", f"{KIND}=[soft]"],
    "hard+token": ["compress=distill", f"{KIND}=[hard,token]"],
    "feature": ["compress=distill", f"{KIND}=[feature]"],
    "relation": ["compress=distill", f"{KIND}=[relation]"],
    "self": ["compress=distill", f"{KIND}=[self]"],
    "soft+token": ["compress=distill", f"{KIND}=[soft,token]"],
    "soft+feature": ["compress=distill", f"{KIND}=[soft,feature]"],
    "soft+token+feature": ["compress=distill", f"{KIND}=[soft,token,feature]"],
    "soft+self": ["compress=distill", f"{KIND}=[soft,self]"],
    "soft+relation": ["compress=distill", f"{KIND}=[soft,relation]"],
}
_LIVE = ("feature", "relation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--dataset", default="fashion_mnist", choices=["fashion_mnist", "cifar10", "image_folder"]
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", default="plain,soft,hard+token,feature,relation")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/distill_kinds"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    arms = options.arms.split(",")
    common = [
        f"dataset={options.dataset}", f"dataset.root={options.root.resolve()}",
        f"dataset.train_fraction={options.fraction}", f"trainer.max_epochs={options.epochs}",
        "trainer.check_val_every_n_epoch=10", "trainer.num_threads=1", "logger=none", "audit=none",
        "trainer.progress_bar=false", *options.overrides,
    ]  # fmt: skip
    wanted = [(arm, seed) for seed in range(1, options.seeds + 1) for arm in arms]
    with ThreadPoolExecutor(options.jobs) as pool:
        cards = dict(zip(wanted, pool.map(lambda job: _run(*job, common, options), wanted), strict=True))
    result = {}
    for arm in arms:
        values = [cards[arm, seed]["measures"]["quality/accuracy"] for seed in range(1, options.seeds + 1)]
        gains = [
            value - cards["plain", seed]["measures"]["quality/accuracy"]
            for seed, value in enumerate(values, 1)
            if ("plain", seed) in cards
        ]
        teacher = cards[arm, 1]["provenance"]["teacher"] or {}
        result[arm] = {
            "accuracy": values, "mean": statistics.mean(values), "sd": _sd(values),
            "gain": statistics.mean(gains) if gains else None, "gain_sd": _sd(gains),
            "teacher": teacher.get("name"), "teacher_accuracy": teacher.get("accuracy"),
        }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print("kinds                 mean    s.d.    gain    s.d. of gains  teacher")
    for arm, row in result.items():
        gain, gain_sd = (f"{v:+.4f}" if v is not None else "      " for v in (row["gain"], row["gain_sd"]))
        teacher = f"{row['teacher']} {row['teacher_accuracy']:.4f}" if row["teacher_accuracy"] else ""
        print(f"{arm:20}  {row['mean']:.4f}  {row['sd'] or 0:.4f}  {gain}  {gain_sd}        {teacher}")


def _run(arm: str, seed: int, common: Sequence[str], options: argparse.Namespace) -> dict:
    run = options.out / options.dataset / f"{arm}-{seed}"
    if not (run / "card.json").exists():
        command = [
            sys.executable,
            str(ROOT / "train.py"),
            *common,
            *ARMS[arm],
            f"seed={seed}",
            f"run_dir={run}",
        ]
        if arm != "plain" and not any(kind in arm for kind in _LIVE) and arm != "self":
            command.append(f"compress.distill.cache.epochs={options.epochs}")
        if (run / "state.json").exists():  # stopped on the way
            command = [sys.executable, str(ROOT / "train.py"), f"resume={run}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        print(f"{arm} {seed}: done", file=sys.stderr, flush=True)
    return json.loads((run / "card.json").read_text())


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


if __name__ == "__main__":
    main()
