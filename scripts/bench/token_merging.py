"""What merging and dropping tokens buys: time beside MACs, paired, one thread.

    OMP_NUM_THREADS=1 python scripts/bench/token_merging.py [--rounds 15] [--batches 1 16] [--train]

All variants of a ViT-S/16 at 224 px (random weights: the time does not depend on them) run in turn, each round in
another order; a ratio is the median over rounds of variant / dense within the round. `--train` times a step of
training (forward and backward, attention as training chooses it) instead.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics

import effvit_train  # noqa: F401  isort: skip
import torch
from torch import nn
from turns import ratios, take_turns

from effvit_train.audit.operations import count_operations
from effvit_train.compress.drop_tokens.config import DropTokensConfig
from effvit_train.compress.drop_tokens.plan import plan as plan_drop
from effvit_train.compress.merge_tokens.config import MergeTokensConfig
from effvit_train.compress.merge_tokens.plan import plan as plan_merge
from effvit_train.kernels import choose_attention
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply

NAME, SIZE = "vit_small_patch16_224", 224
R = (8, 13, 16)
KEEP = 0.7
MIN_SECONDS = 0.2  # of one timing: short ones are repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--train", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models, macs = _models(train=options.train)
    rows = []
    for batch in options.batches:
        rows += _measure(models, macs, batch, options.rounds, train=options.train)
    print(
        json.dumps(
            {"model": NAME, "threads": 1, "rounds": options.rounds, "train": options.train, "rows": rows}
        )
    )


def _models(*, train: bool) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """The dense model and its variants, and what share of its MACs each has."""
    record = ArchitectureRecord(
        NAME, {"num_classes": 1000}, (3, SIZE, SIZE), tuple(map(str, range(1000))), (0.5,) * 3, (0.5,) * 3
    )
    changes = {f"merge r={r}": plan_merge(MergeTokensConfig(r=r), record) for r in R}
    changes[f"drop keep={KEEP}"] = plan_drop(DropTokensConfig(keep=KEEP), record)
    models, macs = {"dense": _dense(record, train)}, {}
    whole = count_operations(models["dense"], record.input_shape).macs
    for name, decided in changes.items():
        assert decided is not None
        models[name] = _dense(record, train)
        apply(models[name], decided.operations)
        macs[name] = count_operations(models[name], record.input_shape).macs / whole
    return models, macs


def _dense(record: ArchitectureRecord, train: bool) -> nn.Module:
    torch.manual_seed(0)
    model = build(record)
    if train:
        choose_attention(model, device_type="cpu")
    return model.train(train)


def _measure(
    models: dict[str, nn.Module], macs: dict[str, float], batch: int, rounds: int, *, train: bool
) -> list[dict[str, object]]:
    images = torch.randn(batch, 3, SIZE, SIZE)
    runs = {name: functools.partial(_step, model, images, train) for name, model in models.items()}
    times = take_turns(runs, rounds, least=MIN_SECONDS)
    rows = []
    for name in macs:
        found = {clock: ratios(times, name, "dense", clock=clock) for clock in ("cpu", "wall")}
        row = {
            "variant": name, "batch": batch, "macs": round(macs[name], 4),
            **{f"{clock}_ratio": round(statistics.median(each), 4) for clock, each in found.items()},
            "cpu_spread": [round(min(found["cpu"]), 4), round(max(found["cpu"]), 4)],
            "cpu_ms": round(1e3 * statistics.median(t.cpu for t in times[name]), 2),
            "dense_cpu_ms": round(1e3 * statistics.median(t.cpu for t in times["dense"]), 2),
        }  # fmt: skip
        print(
            f"batch {batch:3}  {name:14} MACs {row['macs']:.3f}  time {row['cpu_ratio']:.3f} (cpu), "
            f"{row['wall_ratio']:.3f} (wall) of dense; {row['dense_cpu_ms']} to {row['cpu_ms']} ms",
            flush=True,
        )
        rows.append(row)
    return rows


def _step(model: nn.Module, images: torch.Tensor, train: bool) -> None:
    if train:
        model(images).square().sum().backward()
    else:
        with torch.inference_mode():
            model(images)


if __name__ == "__main__":
    main()
