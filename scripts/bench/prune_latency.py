"""A latency budget against the stopwatch: what `compress.prune.target.latency_ms` promises, and what is left.

    python scripts/bench/prune_latency.py [--json] [--models vit_ti,vit_s] [--sizes 224,32] [--fractions 0.75,0.5]
        [--rounds 60] [--threads N]

For each model the table of latencies is measured as a run does before training; heads and MLP units (chosen at random:
only shapes matter) are cut to a fraction of the uncut model's latency; then uncut and cut model are timed in turn, one
image at a time. `error` is the measured latency over the budget, less 1; the ratio of the two models, which other work
on the machine touches less, is given beside it: `ratio_error` is measured ratio over the promised one, less 1.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time

import effvit_train  # noqa: F401  isort: skip
import torch
from torch import nn

from effvit_train.compress.prune import PruneConfig, TargetConfig
from effvit_train.compress.prune.pruner import Pruner
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create
from effvit_train.models.surgery import apply

NAMES = {"vit_ti": "vit_tiny_patch16_224", "vit_s": "vit_small_patch16_224", "vit_b": "vit_base_patch16_224"}
PATCHES = {224: 16, 32: 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", default="vit_ti,vit_s")
    parser.add_argument("--sizes", default="224,32")
    parser.add_argument("--fractions", default="0.75,0.5")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        row
        for model in options.models.split(",")
        for size in options.sizes.split(",")
        for row in _rows(model, int(size), [float(f) for f in options.fractions.split(",")], options.rounds)
    ]
    result = {
        "worst_error": max(abs(row["error"]) for row in rows),
        "worst_ratio_error": max(abs(row["ratio_error"]) for row in rows), "rows": rows, "threads": options.threads,
    }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    for row in rows:
        print(
            f"{row['model']} {row['size']}: budget {row['budget_ms']:.2f} ms ({row['fraction']} of {row['table_ms']:.2f}), "
            f"predicted {row['predicted_ms']:.2f}, measured {row['measured_ms']:.2f} ({row['error']:+.1%}); uncut "
            f"{row['uncut_ms']:.2f}, ratio {row['ratio']:.3f} ({row['ratio_error']:+.1%})"
        )


def _rows(model: str, size: int, fractions: list[float], rounds: int) -> list[dict[str, float | str]]:
    torch.manual_seed(0)
    settings = ModelConfig(name=NAMES[model], patch_size=PATCHES[size])
    classes = tuple(str(k) for k in range(10))
    net, record = create(
        settings, input_shape=(3, size, size), classes=classes, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    table = None
    models: dict[float, nn.Module] = {1.0: net.eval()}
    promised: dict[float, float] = {}
    for fraction in fractions:
        config = PruneConfig(
            target=TargetConfig(latency_ms=1.0), importance="random", schedule="one_shot"
        )  # the budget is known when the table is
        pruner = Pruner(config, record, table)
        table = table or pruner.measure(net, lambda line: None)
        config.target.latency_ms = fraction * table.whole_ms
        pruner.check()
        decision = pruner.decide(net, None, 1, 1, seed=0)
        assert decision is not None
        cut = copy.deepcopy(net)
        apply(cut, decision.operations)
        models[fraction] = cut.eval()
        promised[fraction] = pruner.costs_after(decision.structure, decision.plan)["latency_ms"]
    assert table is not None
    times = _times(models, (3, size, size), rounds)
    medians = {key: 1e3 * statistics.median(values) for key, values in times.items()}
    rows: list[dict[str, float | str]] = []
    for fraction in fractions:
        ratio = statistics.median(b / a for a, b in zip(times[1.0], times[fraction], strict=True))
        budget = fraction * table.whole_ms
        rows.append(
            {
                "model": model, "size": size, "fraction": fraction, "table_ms": table.whole_ms, "budget_ms": budget,
                "predicted_ms": promised[fraction], "measured_ms": medians[fraction], "uncut_ms": medians[1.0],
                "error": medians[fraction] / budget - 1, "ratio": ratio, "ratio_error": ratio / fraction - 1,
            }
        )  # fmt: skip
    return rows


@torch.inference_mode()
def _times(
    models: dict[float, nn.Module], shape: tuple[int, int, int], rounds: int
) -> dict[float, list[float]]:
    """Seconds of one image, model by model, in an order that turns from round to round."""
    image = torch.randn(1, *shape)
    keys = list(models)
    times: dict[float, list[float]] = {key: [] for key in keys}
    for number in range(rounds + 3):
        for key in keys[number % len(keys) :] + keys[: number % len(keys)]:
            models[key](image)  # warm caches of this model, not of the one before
            start = time.perf_counter()
            models[key](image)
            if number >= 3:
                times[key].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
