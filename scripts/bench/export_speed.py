"""What another runtime, 8 bits and a cut bring together: times of one model in PyTorch and ONNX Runtime, paired.

    python scripts/bench/export_speed.py [--json] [--model vit_small_patch16_224 | --run RUN_DIR] [--pruned]
        [--compile] [--image-size 224] [--batches 1,16] [--rounds 10] [--runs 5] [--threads 1]

All runners are in one process; in each round each of them has its turn, in an order that rotates from round to round.
The figures are medians over the rounds of the ratio of a turn's median to that of dense fp32 PyTorch in the same round
(below 1: faster), with the least and the largest. `--pruned` adds the model cut to half its MACs (heads and MLP units
by magnitude, which reads no data): speed depends on shapes, not on what was learnt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import effvit_train  # noqa: F401  isort: skip
import numpy as np
import torch
from torch import nn

from effvit_train.compress.prune import PruneConfig, TargetConfig
from effvit_train.compress.prune.pruner import Pruner
from effvit_train.export.facts import DYNAMIC, FP32, Facts
from effvit_train.export.onnx_file import quantize, write_onnx
from effvit_train.export.program import exported
from effvit_train.export.runtimes import open_runtime, torch_runner
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.runs import RunDir, processor
from effvit_train.stopwatch import Times, median, race, ratio

REFERENCE = "dense, PyTorch fp32"
HALF = 0.5
Run = Callable[[Any], Any]


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--run", type=Path, help="the model of a finished run instead")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--pruned", action="store_true", help="the same cut to half its MACs, too")
    parser.add_argument("--compile", action="store_true", help="torch.compile, too (needs a C++ compiler)")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--runs", type=int, default=5, help="timed runs of a turn")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        runners, shape, shares = _runners(options, Path(directory))
        for batch in (int(part) for part in options.batches.split(",")):
            images = np.random.default_rng(0).standard_normal((batch, *shape)).astype(np.float32)
            for row in _cell(runners, images, options.rounds, options.runs):
                rows.append({"batch": batch, **row})
                if not options.json:
                    print(_line(rows[-1]), flush=True)
    found = {
        "model": str(options.run or options.model), "input_shape": list(shape), "threads": options.threads,
        "processor": processor(), "shares": shares, "rows": rows,
    }  # fmt: skip
    print(
        json.dumps(found)
        if options.json
        else f"{found['model']} {list(shape)}, {options.threads} threads; {shares}"
    )


def _runners(options: argparse.Namespace, directory: Path) -> tuple[dict[str, Run], tuple[int, ...], Any]:
    model, record = _dense(options)
    runners = _of(model, record, "dense", directory, options.threads)
    if options.compile:
        runners["dense, torch.compile"] = torch_runner(torch.compile(model))
    shares = {}
    if options.pruned:
        model, record = _dense(options)
        shares = _cut(model, record)
        runners |= _of(model, record, "half", directory, options.threads)
    return runners, record.input_shape, shares


def _dense(options: argparse.Namespace) -> tuple[nn.Module, ArchitectureRecord]:
    if options.run is not None:
        return load_model(options.run), ArchitectureRecord.read(RunDir(options.run).record)
    torch.manual_seed(0)
    size = options.image_size
    model, record = create(
        ModelConfig(name=options.model), input_shape=(3, size, size), classes=[str(k) for k in range(1000)],
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    return model.eval(), record


def _cut(model: nn.Module, record: ArchitectureRecord) -> dict[str, float]:
    """Cut to half the MACs; returns what share of them and of the parameters is left."""
    config = PruneConfig(target=TargetConfig(macs=HALF), importance="magnitude", schedule="one_shot")
    pruner = Pruner(config, record)
    decision = pruner.decide(model, None, 1, 1, seed=0)
    assert decision is not None
    apply(model, decision.operations)
    model.eval()
    after = pruner.costs_after(decision.structure, decision.plan)
    return {cost: round(after[cost] / pruner.start[cost], 4) for cost in ("macs", "params")}


def _of(
    model: nn.Module, record: ArchitectureRecord, name: str, directory: Path, threads: int
) -> dict[str, Run]:
    whole, small = directory / f"{name}.onnx", directory / f"{name}.int8.onnx"
    write_onnx(exported(model, torch.randn(2, *record.input_shape)), Facts(record, "", FP32), whole)
    quantize(whole, small, Facts(record, "", DYNAMIC))
    return {
        f"{name}, PyTorch fp32": torch_runner(model),
        f"{name}, ONNX Runtime fp32": open_runtime(whole, threads=threads).run,
        f"{name}, ONNX Runtime int8": open_runtime(small, threads=threads).run,
    }


def _cell(runners: dict[str, Run], images: Any, rounds: int, runs: int) -> list[dict[str, Any]]:
    bound = {name: _bound(run, images) for name, run in runners.items()}
    times = race(bound, runs=rounds * runs, rounds=rounds, budget=float("inf"))
    return [{"runner": name, **_figures(times, name)} for name in runners]


def _figures(times: Times, name: str) -> dict[str, float]:
    pairs = [median(mine) / median(other) for mine, other in zip(times[name], times[REFERENCE], strict=True)]
    return {
        "ms": 1e3 * statistics.median(seconds for turn in times[name] for seconds in turn),
        "ratio": ratio(times, name, REFERENCE), "min": min(pairs), "max": max(pairs),
    }  # fmt: skip


def _bound(run: Run, images: Any) -> Callable[[], object]:
    return lambda: run(images)


def _line(row: dict[str, Any]) -> str:
    spread = f"({row['min']:.2f} to {row['max']:.2f})"
    return f"batch {row['batch']:3}  {row['runner']:25}  {row['ms']:8.2f} ms  {row['ratio']:.3f} {spread}"


if __name__ == "__main__":
    main()
