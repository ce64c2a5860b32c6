"""Time a run's model and an exported file in turn, in a process of its own: `python -m effvit_train.export.timing`.

Reads one JSON request on the standard input, prints one JSON answer. On the processor, whatever the run trained on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

import effvit_train  # noqa: F401  (makes torchvision importable for timm)
from effvit_train.export.runtimes import open_runtime, torch_runner
from effvit_train.models.factory import load_model
from effvit_train.runs import processor
from effvit_train.stopwatch import fitting_batch, median, percentile, race, ratio

PYTORCH, EXPORTED = "pytorch", "exported"
LATENCY_SECONDS = 5.0  # budget of each runner's timed runs; never fewer than three rounds of one
THROUGHPUT_SECONDS = 8.0


def main() -> None:
    """Answer the request on the standard input."""
    print(json.dumps(measure(json.load(sys.stdin))), flush=True)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time `run_dir`'s model, and `file` of `format` if there is one; `num_threads`, `batch`, `runs`, `batch_runs`."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    torch.set_num_threads(request["num_threads"])
    model = load_model(request["run_dir"]).float()
    runners = {PYTORCH: torch_runner(model)}
    if request["file"]:
        opened = open_runtime(Path(request["file"]), threads=request["num_threads"], format=request["format"])
        runners[EXPORTED] = opened.run
    # Images of noise: zeros would make some kernels (and denormals) unusually fast or slow.
    one = np.random.default_rng(0).standard_normal((1, *request["input_shape"])).astype(np.float32)
    single = race(
        {name: _bound(run, one) for name, run in runners.items()}, runs=request["runs"],
        budget=LATENCY_SECONDS * len(runners),
    )  # fmt: skip
    latency = {name: [seconds for turn in turns for seconds in turn] for name, turns in single.items()}
    slowest = max(median(times) for times in latency.values())
    size = fitting_batch(request["batch"], slowest, THROUGHPUT_SECONDS)
    many = np.repeat(one, size, axis=0)
    several = race(
        {name: _bound(run, many) for name, run in runners.items()}, runs=request["batch_runs"],
        budget=THROUGHPUT_SECONDS * len(runners),
    )  # fmt: skip
    return {
        "runtimes": {
            name: {
                "latency_ms": 1e3 * median(latency[name]),
                "latency_p95_ms": 1e3 * percentile(latency[name], 0.95),
                "latency_ratio": ratio(single, name, PYTORCH),
                "throughput": size / median([seconds for turn in several[name] for seconds in turn]),
                "throughput_ratio": 1 / ratio(several, name, PYTORCH),
                "latency_runs": len(latency[name]),
            }
            for name in runners
        },
        "throughput_batch": size,
        "device": processor(),
        "threads": request["num_threads"],
        "load_average": load,  # other processes on these cores lengthen the times
    }


def _bound(run: Any, images: Any) -> Any:
    return lambda: run(images)


if __name__ == "__main__":
    main()
