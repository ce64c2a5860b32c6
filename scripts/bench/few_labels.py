"""Plain against distilled on the digits with a fifth of the labels, over seeds; equal recipe, equal epochs.

    python scripts/bench/few_labels.py [--seeds 5] [--out runs/few_labels] [--json]

Runs `train.py experiment=digits_few_labels compress=none|distill seed=...` and reads the cards; runs that
are there already are not repeated, so the script can be stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    found: dict[str, list[float]] = {"none": [], "distill": []}
    teacher = None
    for seed in range(1, options.seeds + 1):
        for compress, accuracies in found.items():
            run = options.out / f"{compress}-{seed}"
            if not (run / "card.json").exists():
                command = [
                    sys.executable, str(ROOT / "train.py"), "experiment=digits_few_labels", f"compress={compress}",
                    f"seed={seed}", f"run_dir={run}", "logger=none", "audit=none", *options.overrides,
                ]  # fmt: skip
                if (run / "state.json").exists():  # stopped on the way
                    command = [sys.executable, str(ROOT / "train.py"), f"resume={run}"]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            card = json.loads((run / "card.json").read_text())
            accuracies.append(card["measures"]["quality/accuracy"])
            teacher = card["provenance"]["teacher"] or teacher
    plain, distilled = found["none"], found["distill"]
    gains = [b - a for a, b in zip(plain, distilled, strict=True)]
    result = {
        "plain": plain, "distilled": distilled, "teacher": teacher and teacher["accuracy"],
        "plain_mean": statistics.mean(plain), "distilled_mean": statistics.mean(distilled),
        "gain_mean": statistics.mean(gains), "gain_sd": statistics.stdev(gains) if len(gains) > 1 else None,
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print("seed   plain   distilled")
    for seed, (a, b) in enumerate(zip(plain, distilled, strict=True), 1):
        print(f"{seed:4}   {a:.4f}  {b:.4f}")
    print(
        f"mean   {result['plain_mean']:.4f}  {result['distilled_mean']:.4f}   teacher {result['teacher']:.4f}"
    )


if __name__ == "__main__":
    main()
