"""What an audit adds to a training: whole `train.py` processes with audit=quick and audit=none, in turn.

    python scripts/bench/audit_cost.py [--pairs 3] [--json] [overrides]

The share is what audit=quick takes longer (medians of whole processes), over the seconds that the training itself took.
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

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options, overrides = parser.parse_known_args()
    seconds: dict[str, list[float]] = {"none": [], "quick": []}
    trained = []
    with tempfile.TemporaryDirectory() as where:
        for pair in range(options.pairs):
            for level, found in seconds.items():
                run = Path(where) / f"{level}-{pair}"
                command = [str(ROOT / "train.py"), "logger=none", "trainer.progress_bar=false", *overrides]
                begun = time.monotonic()
                subprocess.run(
                    [sys.executable, *command, f"audit={level}", f"run_dir={run}"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                found.append(time.monotonic() - begun)
                card = json.loads((run / "card.json").read_text())
                trained.append(card["measures"]["cost/train_seconds"])
    extra = [quick - none for quick, none in zip(seconds["quick"], seconds["none"], strict=True)]
    result = {
        "quick_s": seconds["quick"], "none_s": seconds["none"], "extra_s": extra, "train_s": trained,
        "share_of_training": statistics.median(extra) / statistics.median(trained),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    each = ", ".join(f"{seconds:.1f}" for seconds in extra)
    print(
        f"audit=quick adds {statistics.median(extra):.1f} s ({each}) to {statistics.median(trained):.1f} s of training"
    )
    print(f"share: {100 * result['share_of_training']:.1f} %")


if __name__ == "__main__":
    main()
