"""Which cuts pay: speed of `vit_s`, dense against cut to half its MACs in various ways, paired, on a processor.

    python scripts/bench/prune_speed.py [--json] [--rounds 10] [--settings 224/16,32/4] [--batches 1,64]
        [--precisions fp32,bf16] [--threads N]

All models are in one process, in inference mode; in each round each of them is timed once, in an order that
rotates from round to round. The figures are medians over the rounds of the ratio dense / cut of the times (above
1: the cut model is faster). Importance is random, so a cut of one kind spreads evenly over the blocks: what a
cut is worth in time depends on shapes only. A kind that cannot be cut down to half the MACs alone is cut to the
least of 0.6, 0.75 and 0.9 that it reaches. bf16 is autocast, where the processor has it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from typing import Any

import effvit_train  # noqa: F401  isort: skip
import torch
from torch import nn

from effvit_train.compress.prune import PruneConfig, TargetConfig
from effvit_train.compress.prune.pruner import Pruner
from effvit_train.errors import UserError
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import count_parameters, create
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.precision import cpu_has_bf16

MODEL = "vit_small_patch16_224"
VARIANTS = {
    "heads+mlp": ["heads", "mlp"],
    "mlp": ["mlp"],
    "heads": ["heads"],
    "head_width": ["head_width"],
    "embed": ["embed"],
    "blocks": ["blocks"],
    "all": ["heads", "head_width", "mlp", "embed", "blocks"],
}
TARGETS = (0.5, 0.6, 0.75, 0.9)
HALF_THE_BLOCKS = 0.51  # embedding of patches and classifier stay: at 0.5 one block more would go
MIN_SECONDS = 0.2  # of one timing


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--settings", default="224/16,32/4", help="image/patch, the first is the key cell's")
    parser.add_argument("--batches", default="1,64")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for setting in options.settings.split(","):
        models, costs = _models(*(int(part) for part in setting.split("/")))
        for batch in (int(part) for part in options.batches.split(",")):
            for precision in options.precisions.split(","):
                for row in _cell(models, setting, batch, precision, options.rounds):
                    rows.append(row | costs[row["cut"]])
                    if not options.json:
                        print(_line(rows[-1]), flush=True)
    if not options.json:
        return
    first = options.settings.split(",")[0]
    key = [
        row["speedup"]
        for row in rows
        if (row["cut"], row["setting"], row["batch"], row["precision"]) == ("heads+mlp", first, 64, "fp32")
    ]
    print(
        json.dumps(
            {
                "speedup_half_macs_batch64_fp32": key[0] if key else None,
                "model": MODEL, "threads": options.threads, "rounds": options.rounds, "rows": rows,
            }
        )
    )  # fmt: skip


def _models(size: int, patch: int) -> tuple[dict[str, nn.Module], dict[str, dict[str, Any]]]:
    """The dense model and its cuts, in evaluation mode, and what fractions of its costs the cuts have."""
    models: dict[str, nn.Module] = {"dense": _dense(size, patch)[0].eval()}
    costs = {}
    for name, kinds in VARIANTS.items():
        model, record = _dense(size, patch)
        pruner, decision = _decide(model, record, kinds)
        apply(model, decision.operations)
        after = pruner.costs_after(decision.structure, decision.plan)
        assert count_parameters(model) == after["params"]
        costs[name] = {cost: after[cost] / pruner.start[cost] for cost in ("macs", "params")}
        costs[name]["target"] = pruner.config.targets["macs"]
        models[name] = model.eval()
    return models, costs


def _dense(size: int, patch: int) -> tuple[nn.Module, ArchitectureRecord]:
    torch.manual_seed(0)
    return create(
        ModelConfig(name=MODEL, patch_size=patch), input_shape=(3, size, size), classes=[str(k) for k in range(10)],
        mean=(0.5,) * 3, std=(0.5,) * 3,
    )  # fmt: skip


def _decide(model: nn.Module, record: ArchitectureRecord, kinds: list[str]) -> tuple[Pruner, Any]:
    failure: UserError | None = None
    targets = (HALF_THE_BLOCKS, *TARGETS) if kinds == ["blocks"] else TARGETS
    for target in targets:
        config = PruneConfig(
            target=TargetConfig(macs=target), kinds=kinds, importance="random", schedule="one_shot"
        )
        pruner = Pruner(config, record)
        try:
            return pruner, pruner.decide(model, None, 1, 1, seed=0)
        except UserError as error:
            failure = error
    assert failure is not None
    raise failure


def _cell(
    models: dict[str, nn.Module], setting: str, batch: int, precision: str, rounds: int
) -> list[dict[str, Any]]:
    where = {"setting": setting, "batch": batch, "precision": precision}
    cuts = [name for name in models if name != "dense"]
    if precision == "bf16" and not cpu_has_bf16():
        reason = "the processor has no bf16 instructions"
        return [{"cut": name, **where, "speedup": None, "reason": reason} for name in cuts]
    size = int(setting.partition("/")[0])
    images = torch.randn(batch, 3, size, size)
    names, repeats = list(models), {}
    for name, model in models.items():
        _seconds(model, images, precision, 1)
        repeats[name] = math.ceil(MIN_SECONDS / _seconds(model, images, precision, 1))
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(_seconds(models[name], images, precision, repeats[name]))
    rows = []
    for name in cuts:
        ratios = [dense / cut for dense, cut in zip(times["dense"], times[name], strict=True)]
        rows.append(
            {
                "cut": name, **where, "speedup": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
                "ms": 1e3 * statistics.median(times[name]), "dense_ms": 1e3 * statistics.median(times["dense"]),
            }
        )  # fmt: skip
    return rows


def _seconds(model: nn.Module, images: torch.Tensor, precision: str, repeats: int) -> float:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        start = time.perf_counter()
        for _ in range(repeats):
            model(images)
        return (time.perf_counter() - start) / repeats


def _line(row: dict[str, Any]) -> str:
    where = f"{row['setting']:7} batch {row['batch']:3}  {row['precision']}  {row['cut']:10}"
    costs = f"MACs {row['macs']:.3f}  parameters {row['params']:.3f}"
    if row["speedup"] is None:
        return f"{where}  {costs}  not measured: {row['reason']}"
    return (
        f"{where}  {costs}  {row['speedup']:.2f} x ({row['min']:.2f} to {row['max']:.2f}; "
        f"{row['dense_ms']:.1f} to {row['ms']:.1f} ms)"
    )


if __name__ == "__main__":
    main()
