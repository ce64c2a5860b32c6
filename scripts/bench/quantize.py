"""Fewer bits in PyTorch: time and size of int8 and bf16 linear layers against fp32, paired.

    python scripts/bench/quantize.py [--json] [--model vit_small_patch16_224] [--image-size 224] [--batches 1,16]
        [--compile] [--rounds 7] [--runs 3] [--threads 1]
    python scripts/bench/quantize.py --run RUN_DIR [--data-root DIR] [--json]

All models are in one process; in each round each has its turn, in an order that rotates. Figures are medians over
the rounds of the ratio to fp32 in the same round (below 1: faster). Sizes are those of the state dicts.
With `--run`, instead: accuracy on the test images of a finished run, whose model is quantised in each way.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
from pathlib import Path
from typing import Any

import effvit_train  # noqa: F401  isort: skip
import timm
import torch
from torch import nn

from effvit_train.models.few_bits import BF16, DYNAMIC, INT8, MODES, STATIC
from effvit_train.models.quantised import Replace, input_ranges, linear_layers
from effvit_train.models.surgery import apply
from effvit_train.stopwatch import race, ratio

REFERENCE = "fp32"
_SETTINGS: dict[str, dict[str, Any] | None] = {
    REFERENCE: None,
    "int8, dynamic": {},
    "int8, dynamic, one scale a layer": {"per_channel": False},
    "int8, static": {"mode": "static"},
    "int8, static, 99.99 % kept": {"mode": "static", "percentile": 99.99},
    "int8, weight_only": {"mode": "weight_only"},
    "bf16": {"dtype": "bf16"},
}


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--compile", action="store_true", help="each through torch.compile, too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=3, help="timed runs of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", help="a finished run whose accuracy is measured instead")
    parser.add_argument("--data-root", help="where its data are now, if they have moved")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run:
        _accuracies(options)
        return
    models = _models(options.model, options.image_size)
    sizes = {name: _bytes(model) / _bytes(models[REFERENCE]) for name, model in models.items()}
    runners: dict[str, Any] = dict(models)
    if options.compile:
        runners |= {f"{name}, compiled": torch.compile(model) for name, model in models.items()}
    rows = []
    for batch in (int(part) for part in options.batches.split(",")):
        images = torch.randn(batch, 3, options.image_size, options.image_size)
        with torch.inference_mode():
            times = race(
                {name: functools.partial(model, images) for name, model in runners.items()},
                runs=options.rounds * options.runs, rounds=options.rounds, budget=float("inf"),
            )  # fmt: skip
        for name in runners:
            rows.append({"batch": batch, "model": name, "ratio": ratio(times, name, REFERENCE),
                         "size": sizes[name.removesuffix(", compiled")]})  # fmt: skip
    if options.json:
        print(json.dumps({"model": options.model, "image_size": options.image_size, "rows": rows}))
        return
    for row in rows:
        print(
            f"batch {row['batch']:3}  {row['model']:28} time {row['ratio']:.3f}  size {row['size']:.3f}  of fp32"
        )


def _accuracies(options: argparse.Namespace) -> None:
    from effvit_train.compress.quantize.config import QuantizeConfig
    from effvit_train.compress.quantize.decide import Decide
    from effvit_train.finished import open_finished
    from effvit_train.predictions import predict

    overrides = [f"dataset.root={options.data_root}"] if options.data_root else []
    rows = []
    for name, settings in _SETTINGS.items():
        run = open_finished(Path(options.run), lambda line: None, overrides=overrides)
        module = run.module()
        if settings is not None:
            decided = Decide(QuantizeConfig(**settings), fake=False)(module, run.data, 0)
            module.cut(decided.operations, decided.entry)
        logits, labels, _ = predict(module.model.eval(), module.normalise, run.data.eval_dataloader("test"))
        right = float((logits.argmax(1) == labels).double().mean())
        rows.append({"model": name, "accuracy": right, "images": len(labels), "bytes": _bytes(module.model)})
        if not options.json:
            size = rows[-1]["bytes"] / rows[0]["bytes"]
            print(
                f"{name:32} accuracy {right:.4f} of {len(labels)} images  size {size:.3f} of fp32", flush=True
            )
    if options.json:
        print(json.dumps({"rows": rows}))


def _models(name: str, size: int) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    dense = timm.create_model(name, img_size=size).eval()
    layers = linear_layers(dense, torch.zeros(1, 3, size, size)).called
    found = {REFERENCE: dense}
    for mode in MODES:
        scales: dict[str, Any] = dict.fromkeys(layers)
        if mode == STATIC:
            scales = input_ranges(dense, layers, [torch.randn(2, 3, size, size)], percentile=100)
        found[f"int8, {mode}"] = _with(dense, Replace(False, INT8, mode, True, scales))
    found["bf16"] = _with(dense, Replace(False, BF16, DYNAMIC, True, dict.fromkeys(layers)))
    return found


def _with(dense: nn.Module, change: Replace) -> nn.Module:
    model = copy.deepcopy(dense)
    apply(model, [change])
    return model.eval()


def _bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


if __name__ == "__main__":
    main()
