"""What low rank gains in time, and what it loses in accuracy before any training.

    python scripts/bench/low_rank.py [--json] [--rounds 10] [--targets 0.75,0.5] [--batches 1,16]
        [--run RUN_DIR [--images 1000] [--calibration 512] [--data-root DIR]]

Time: `vit_s` at 224/16, dense against factored to these shares of its MACs, on one thread, in inference mode. In each
round each model is timed once, in an order that rotates; the figures are medians over the rounds of the ratio
factored / dense of the times (below 1: faster). Weights are random: what counts are the shapes.

Accuracy, with --run: the model of a finished run is factored in one shot, by the energy that each layer keeps and to
budgets, by its matrices (`none`) and by what they do to training images (`activation`). Test images, evenly
over the split.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import effvit_train  # noqa: F401  isort: skip
import torch
from torch import nn
from turns import ratios, take_turns

from effvit_train.compress.lowrank import LowRankConfig, TargetConfig
from effvit_train.compress.lowrank.plan import decide
from effvit_train.finished import Finished, open_finished
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create
from effvit_train.models.surgery import apply

MODEL, SIZE = "vit_small_patch16_224", 224
MIN_SECONDS = 0.2  # of one timing
ENERGIES = (0.99, 0.95, 0.9, 0.8)
BUDGETS = (0.75, 0.5, 0.35, 0.25)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10, help="of timing; 0 leaves it out")
    parser.add_argument("--targets", default="0.75,0.5", help="shares of the MACs")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--run", type=Path, help="a finished dense run, for the accuracy")
    parser.add_argument("--images", type=int, default=1000, help="test images")
    parser.add_argument("--calibration", type=int, default=512, help="training images")
    parser.add_argument("--data-root", help="where the run's data are now, if they have moved")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"model": MODEL, "rounds": options.rounds, "time": [], "accuracy": []}
    if options.rounds:
        models = _models([float(target) for target in options.targets.split(",")])
        for batch in (int(part) for part in options.batches.split(",")):
            result["time"] += _timed(models, batch, options.rounds)
    if options.run is not None:
        overrides = [f"dataset.root={options.data_root}"] if options.data_root else []
        run = open_finished(options.run, lambda line: None, overrides=overrides)
        result["accuracy"] = _accuracies(run, options.images, options.calibration)
    print(json.dumps(result) if options.json else "\n".join(_lines(result)))


def _models(targets: list[float]) -> dict[str, tuple[nn.Module, float]]:
    """Name -> the model and the share of the MACs that it has."""
    torch.manual_seed(0)
    dense, record = create(
        ModelConfig(name=MODEL), input_shape=(3, SIZE, SIZE), classes=[str(k) for k in range(1000)],
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip
    models = {"dense": (dense.eval(), 1.0)}
    for target in targets:
        config = LowRankConfig(target=TargetConfig(macs=target), weighting="none")
        found = decide(config, dense, SimpleNamespace(model=dense, record=record), None, 0, print)
        assert found is not None
        model = copy.deepcopy(dense)
        apply(model, found.operations)
        share = found.facts["after"]["macs"] / found.facts["before"]["macs"]
        models[f"macs {target:g}"] = model.eval(), share
    return models


def _timed(models: dict[str, tuple[nn.Module, float]], batch: int, rounds: int) -> list[dict[str, Any]]:
    images = torch.randn(batch, 3, SIZE, SIZE)
    with torch.inference_mode():
        runs = {name: functools.partial(model, images) for name, (model, _) in models.items()}
        times = take_turns(runs, rounds, least=MIN_SECONDS)
    rows = []
    for name in list(models)[1:]:
        found = ratios(times, name, "dense")
        rows.append(
            {
                "variant": name, "batch": batch, "macs": models[name][1], "time": statistics.median(found),
                "min": min(found), "max": max(found), "ms": 1e3 * statistics.median(t.cpu for t in times[name]),
                "dense_ms": 1e3 * statistics.median(t.cpu for t in times["dense"]),
            }
        )  # fmt: skip
    return rows


def _accuracies(run: Finished, images: int, calibration: int) -> list[dict[str, Any]]:
    rows = [
        {
            "weighting": None,
            "asked": "dense",
            "macs": 1.0,
            "params": 1.0,
            "accuracy": _accuracy(run, run.model, images),
        }
    ]
    wanted: list[tuple[str, dict[str, Any]]] = [
        (f"energy {energy:g}", {"energy": energy}) for energy in ENERGIES
    ]
    wanted += [(f"macs {share:g}", {"target": TargetConfig(macs=share)}) for share in BUDGETS]
    wanted += [
        (f"macs {share:g} searched", {"target": TargetConfig(macs=share), "search": True})
        for share in BUDGETS[1:]
    ]
    for weighting in ("none", "activation"):
        for asked, settings in wanted:
            config = LowRankConfig(weighting=weighting, calibration=calibration, **settings)
            found = decide(config, run.model, run.module(), run.data, 0, lambda line: None)
            row: dict[str, Any] = {
                "weighting": weighting,
                "asked": asked,
                "macs": 1.0,
                "params": 1.0,
                "accuracy": None,
            }
            if found is not None:
                model = copy.deepcopy(run.model)
                apply(model, found.operations)
                before, after = found.facts["before"], found.facts["after"]
                row |= {name: after[name] / before[name] for name in after}
                row["accuracy"] = _accuracy(run, model.eval(), images)
            rows.append(row)
    return rows


def _accuracy(run: Finished, model: nn.Module, count: int) -> float:
    chosen = run.data.evenly("test", count)
    module, right = run.module(), 0
    with torch.inference_mode():
        for batch in run.data.loader_of(chosen):
            right += int((model(module.normalise(batch.images)).argmax(-1) == batch.labels).sum())
    return right / len(chosen)


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"batch {row['batch']:3}  {row['variant']:10}  MACs {row['macs']:.3f}  time {row['time']:.3f} "
        f"({row['min']:.3f} to {row['max']:.3f}; {row['dense_ms']:.1f} to {row['ms']:.1f} ms)"
        for row in result["time"]
    ]
    for row in result["accuracy"]:
        accuracy = "nothing to factor" if row["accuracy"] is None else f"accuracy {row['accuracy']:.4f}"
        lines.append(
            f"{row['weighting'] or '':10}  {row['asked']:18}  MACs {row['macs']:.3f}  "
            f"parameters {row['params']:.3f}  {accuracy}"
        )
    return lines


if __name__ == "__main__":
    main()
