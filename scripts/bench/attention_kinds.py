"""Time and MACs of every kind of attention against the exact one, paired, on this processor.

    python scripts/bench/attention_kinds.py [--sizes 224,512] [--batch 1] [--rounds 7] [--model NAME] [--kinds a,b]
                                            [--threads 1] [--json]

At each image size the models are timed in turn, each round in another order; the figure is the median over the
rounds of time / exact time of the same round, with the least and the most. Weights are random: they cost the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from typing import Any

import effvit_train  # noqa: F401  isort: skip
import torch
from turns import ratios, take_turns

from effvit_train.audit.operations import count_operations
from effvit_train.models.attention.kinds import EXACT, KINDS
from effvit_train.models.config import AttentionArgs, ModelConfig
from effvit_train.models.factory import create

SHIFTED, SIZED = "window, shifted", "pooled to 7 x 7"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--sizes", default="224", help="pixels per side, e.g. 224,384,512,768,1024")
    parser.add_argument("--kinds", default=None, help="comma-separated; all where nothing is said")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    kinds = options.kinds.split(",") if options.kinds else [*KINDS, SHIFTED, SIZED]
    rows = []
    for size in (int(word) for word in options.sizes.split(",")):
        for row in at(options.model, size, [EXACT, *kinds], options.batch, options.rounds):
            rows.append(row)
            if not options.json:
                low, high = row["least"], row["most"]
                print(
                    f"{size:5} px  batch {options.batch:3}  {row['kind']:16} {row['ms']:9.1f} ms  "
                    f"time {row['time']:.2f} ({low:.2f} to {high:.2f})  MACs {row['macs'] / 1e9:7.2f} G "
                    f"({row['macs_ratio']:.2f})",
                    flush=True,
                )
    if options.json:
        print(
            json.dumps(
                {"model": options.model, "threads": options.threads, "batch": options.batch, "rows": rows}
            )
        )


def at(name: str, size: int, kinds: list[str], batch: int, rounds: int) -> list[dict[str, Any]]:
    """The rows of one image size; the first kind is what the others are compared with."""
    models = {kind: build(name, size, kind) for kind in kinds}
    macs = {kind: count_operations(model, (3, size, size)).macs for kind, model in models.items()}
    images = torch.randn(batch, 3, size, size)
    with torch.inference_mode():
        times = take_turns({kind: functools.partial(model, images) for kind, model in models.items()}, rounds)
    rows = []
    for kind in kinds:
        found = ratios(times, kind, kinds[0], clock="wall")
        rows.append(
            {
                "size": size, "kind": kind, "ms": 1e3 * statistics.median(t.wall for t in times[kind]),
                "time": statistics.median(found), "least": min(found), "most": max(found),
                "macs": macs[kind], "macs_ratio": macs[kind] / macs[kinds[0]],
            }
        )  # fmt: skip
    return rows


def build(name: str, size: int, kind: str) -> torch.nn.Module:
    """A model whose every block has this attention."""
    args = AttentionArgs()
    if kind == SHIFTED:
        kind, args.shift = "window", True
    elif kind == SIZED:
        kind, args.size = "pooled", 7
    config = ModelConfig(name=name, patch_size=None, attention=kind, attention_args=args)
    model, _ = create(
        config,
        input_shape=(3, size, size),
        classes=[str(k) for k in range(1000)],
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    return model.eval()


if __name__ == "__main__":
    main()
