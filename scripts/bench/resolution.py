"""One model trained at several sizes against models trained at each size alone: equal recipe, equal epochs.

    python scripts/bench/resolution.py [--sizes 4 6 8] [--patch 2] [--seeds 3] [--out runs/resolution] [--json] [OVERRIDES]

Overrides go to every run, e.g. `dataset=fashion_mnist dataset.train_fraction=0.1 trainer.max_epochs=10` with
`--sizes 16 20 24 28 --patch 4`. The largest size is the data's own. Runs that are there already are not repeated, so the
script can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCHEDULES = ("random", "progressive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--patch", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/resolution"))
    options, overrides = parser.parse_known_args()
    sizes = sorted(options.sizes)
    common = [f"model.patch_size={options.patch}", "logger=none", "audit=none", *overrides]
    found: dict[str, dict[int, list[float]]] = {
        name: {size: [] for size in sizes} for name in ("alone", *SCHEDULES)
    }
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for seed in range(1, options.seeds + 1):
        for schedule in SCHEDULES:
            card = run(
                options.out / f"{schedule}-{seed}", f"seed={seed}", "compress=resolution",
                f"compress.resolution.sizes={sizes}".replace(" ", ""), f"compress.resolution.schedule={schedule}",
                f"dataset.image_size={sizes[-1]}", *common,
            )  # fmt: skip
            for row in card["provenance"]["resolution"]["rows"]:
                found[schedule][row["size"]].append(row["accuracy"])
            seconds[schedule].append(card["measures"]["cost/train_seconds"])
        alone = 0.0
        for size in sizes:
            card = run(
                options.out / f"{size}px-{seed}", f"seed={seed}", f"dataset.image_size={size}", *common
            )
            found["alone"][size].append(card["measures"]["quality/accuracy"])
            alone += card["measures"]["cost/train_seconds"]
        seconds["alone"].append(alone)
    if options.json:
        print(json.dumps({"accuracy": found, "train_seconds": seconds}))
        return
    print("size" + "".join(f"{name:>14}" for name in found))
    for size in sizes:
        print(f"{size:4}" + "".join(f"{statistics.mean(found[name][size]):14.4f}" for name in found))
    print("   s" + "".join(f"{statistics.mean(seconds[name]):14.1f}" for name in found))


def run(directory: Path, *arguments: str) -> dict:
    """The card of a run, which is made or gone on with where there is none."""
    if not (directory / "card.json").exists():
        command = [sys.executable, str(ROOT / "train.py"), f"run_dir={directory}", *arguments]
        if (directory / "state.json").exists():  # stopped on the way
            command = [sys.executable, str(ROOT / "train.py"), f"resume={directory}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((directory / "card.json").read_text())


if __name__ == "__main__":
    main()
