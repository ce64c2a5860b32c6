"""How long `effvit report` takes over many runs: its page, table and JSON, start-up included.

    python scripts/bench/frontier.py RUNS [--cards 2000] [--repeats 3]

Makes that many run directories from the cards of the finished runs below RUNS (in turn, with measures moved by up to
5 % and seeds of their own) in a temporary directory, and times the command as a process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from effvit_train.collect import collect

CODE = "import sys; from effvit_train.cli import main; main(sys.argv[1:])"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--cards", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="leave the page of the last repeat in this directory")
    options = parser.parse_args()
    entries = collect(options.runs).entries
    with tempfile.TemporaryDirectory() as name:
        top = Path(name) / "runs"
        size = sum(
            make(entries[n % len(entries)], top / f"{n % 20}" / f"{n}", n) for n in range(options.cards)
        )
        print(f"{options.cards} cards from {len(entries)}, {size / 1e6:.0f} MB")
        for _ in range(options.repeats):
            before = os.times()
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", CODE, "report", str(top)], check=True, stdout=subprocess.DEVNULL
            )
            wall, after = time.perf_counter() - start, os.times()
            processor = (
                after.children_user + after.children_system - before.children_user - before.children_system
            )
            print(f"{wall:.2f} s ({processor:.2f} s of processor time)")
        page = top / "frontier.html"
        print(f"frontier.html {page.stat().st_size / 1e6:.1f} MB")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(page, options.keep)


def make(entry, run_dir: Path, number: int) -> int:
    """A run directory like that of `entry`; returns the size of its card in bytes."""
    draw = random.Random(number)
    card = entry.card.to_json()
    measures = {
        key: found if found is None else found * draw.uniform(0.95, 1 if found <= 1 else 1.05)
        for key, found in card["measures"].items()
    }
    overrides = [item for item in card["run"]["overrides"] if not item.startswith(("seed=", "recipe.lr="))]
    overrides.append(f"recipe.lr={0.001 * (number // 5)}")  # arms of five
    run = {
        **card["run"],
        "id": f"{number:08x}",
        "seed": number,
        "run_dir": str(run_dir),
        "overrides": overrides,
    }
    text = json.dumps({**card, "run": run, "measures": measures}, indent=2, ensure_ascii=False)
    run_dir.mkdir(parents=True)
    (run_dir / "card.json").write_text(text, encoding="utf-8")
    (run_dir / "card.html").touch()
    shutil.copy(entry.run_dir / "state.json", run_dir)
    return len(text.encode())


if __name__ == "__main__":
    main()
