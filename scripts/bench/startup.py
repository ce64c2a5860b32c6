"""Time from the command to the first training step, against the bare imports it cannot avoid, paired.

    python scripts/bench/startup.py [--json] [--pairs 7] [-- overrides ...]

Whole processes, in turn: (a) `python train.py` until its first optimizer step is about to run, (b)
`import torch, pytorch_lightning, timm, wandb`. The figure is the median ratio a / b.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# stops the process at the first training step, without touching the program
_FIRST_STEP = """
import sys, os, runpy
sys.path.insert(0, {root!r})
sys.argv = ["train.py", *{overrides!r}]
import effvit_train
import builtins
class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "effvit_train.module":
            sys.meta_path.remove(self)
            import importlib.util
            spec = importlib.util.find_spec(name)
            load = spec.loader.exec_module
            def exec_module(module):
                load(module)
                module.VisionModule.training_step = lambda *a: os._exit(0)
            spec.loader.exec_module = exec_module
            return spec
sys.meta_path.insert(0, Stop())
runpy.run_path({train!r}, run_name="__main__")
"""
_IMPORTS = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import effvit_train, torch, pytorch_lightning, timm, wandb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        command = _FIRST_STEP.format(
            root=str(ROOT), overrides=options.overrides, train=str(ROOT / "train.py")
        )
        pairs = []
        for pair in range(options.pairs + 1):
            times = {}
            for which in ("ours", "imports") if pair % 2 else ("imports", "ours"):
                times[which] = _seconds(command if which == "ours" else _IMPORTS, directory)
            if pair:  # the first pair warms the disk cache
                pairs.append((times["ours"], times["imports"]))
    ratios = [ours / imports for ours, imports in pairs]
    result = {
        "first_step_over_imports": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        "pairs": len(ratios), "first_step_s": statistics.median(a for a, _ in pairs),
        "imports_s": statistics.median(b for _, b in pairs),
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"command to first step / bare imports = {result['first_step_over_imports']:.2f} (median of {len(ratios)} pairs, "
        f"{min(ratios):.2f} to {max(ratios):.2f}); {result['first_step_s']:.1f} s / {result['imports_s']:.1f} s"
    )


def _seconds(code: str, directory: str) -> float:
    environment = {**os.environ, "WANDB_MODE": "offline"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
