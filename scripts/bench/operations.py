"""Accuracy against operations and time: each technique alone and in pairs, from one trained model, over seeds.

    python scripts/bench/operations.py --dataset fashion_mnist --root DIR --start RUN_DIR [--seeds 3] [--fraction 0.2]
        [--arms dense,merge,merge+distill,...] [--epochs 3] [--jobs 2] [--out runs/operations] [--time]
        [--svg docs/operations.svg] [--json] [overrides]

Every arm starts from the weights of RUN_DIR (its model is told by its record) and trains for the same few epochs
on the same images with the same recipe; `dense` does so without any technique. `+distill` has RUN_DIR as the
teacher (soft labels). Each figure is the accuracy on the test images.

`--time` measures, when all runs are there, one run of each arm in this process: all models in turn, in an order
that rotates, on one thread, at batch 1 and 64; medians of ratios to the dense model in the same round.

Runs that are there are not repeated and those that were stopped go on.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import arms as experiment

from common import build_run  # noqa: F401  isort: skip  # before torchvision, as `effvit_train` itself
import torch
from turns import ratios, take_turns

from effvit_train.models.factory import load_model
from effvit_train.models.record import ArchitectureRecord

# fmt: off
TECHNIQUES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "dense": (None, ()),
    "prune": ("prune", ("compress.prune.target.macs=0.6", "compress.prune.start=0.05", "compress.prune.end=0.4")),
    "merge": ("merge_tokens", ("compress.merge_tokens.target.macs=0.6",)),
    "drop": ("drop_tokens", ("compress.drop_tokens.keep=0.7",)),
    "lowrank": ("lowrank", ("compress.lowrank.target.macs=0.6", "compress.lowrank.start=0")),
    "lowrank-plain": ("lowrank", ("compress.lowrank.target.macs=0.6", "compress.lowrank.start=0",
                                  "compress.lowrank.weighting=none")),
    "int8": ("quantize", ()),
    "qat": ("quantize", ("compress.quantize.qat=true", "compress.quantize.start=0")),
    "resolution": ("resolution", ("compress.resolution.sizes=[20,24,28]",)),
    "window": (None, ("model.attention=window",)),
    "pooled": (None, ("model.attention=pooled",)),
    "linear": (None, ("model.attention=linear",)),
    "performer": (None, ("model.attention=performer",)),
    "nystrom": (None, ("model.attention=nystrom",)),
    "linformer": (None, ("model.attention=linformer",)),
    "fourier": (None, ("model.attention=fourier",)),
    "fnet": (None, ("model.attention=fnet",)),
    "wavelet": (None, ("model.attention=wavelet",)),
    "specformer": (None, ("model.attention=[fourier,fourier,fourier,exact,exact,exact]",)),
}
# fmt: on
PAIRS = ("prune--merge", "prune--int8", "merge--int8", "lowrank--merge", "prune--lowrank")
ARMS = tuple(f"{name}{more}" for name in (*TECHNIQUES, *PAIRS) for more in ("", "+distill"))
BATCHES = (1, 64)
ROUNDS = 40
LEAST = 0.02  # seconds of one timing


def main() -> None:
    assert __doc__ is not None
    parser = experiment.parser(__doc__.splitlines()[0], arms=ARMS, fraction=0.2, out="runs/operations")
    parser.add_argument("--start", type=Path, required=True, metavar="RUN_DIR")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--svg", type=Path)
    parser.set_defaults(epochs=3)
    options = parser.parse_args()
    arms = options.arms.split(",")
    for arm in arms:
        if not set(_names(arm)) <= set(TECHNIQUES):
            parser.error(f"no such arm: {arm}")
    base = _like(options.start)
    rows = experiment.run_all(
        arms,
        options,
        lambda arm, seed: experiment.train(arm, seed, [*base, *overrides(arm, options)], options),
    )
    table = {arm: _row(arm, rows, options.seeds) for arm in arms}
    if options.time:
        for arm, times in _times({arm: experiment.run_dir(arm, 1, options) for arm in arms}).items():
            table[arm] |= times
    result = {"arms": table, "seeds": options.seeds, "epochs": options.epochs, "fraction": options.fraction,
              "dataset": options.dataset, "start": str(options.start), "overrides": options.overrides}  # fmt: skip
    if options.svg:
        options.svg.write_text(picture(table), encoding="utf-8")
    if options.json:
        print(json.dumps(result))
        return
    print("arm                     accuracy  s.d.    - dense   MACs    params   size    time@1  time@64")
    for arm, row in table.items():
        print(
            f"{arm:22}  {row['accuracy']:.4f}    {row['sd'] or 0:.4f}  {row['gain']:+.4f}  {row['macs']:.3f}   "
            f"{row['params']:.3f}    {row['size']:.3f}   {_number(row.get('time@1'))}   {_number(row.get('time@64'))}"
        )


def _names(arm: str) -> list[str]:
    return arm.removesuffix("+distill").split("--")


def overrides(arm: str, options: argparse.Namespace) -> list[str]:
    """Of an arm, beside those of all."""
    options_on = [TECHNIQUES[name][0] for name in _names(arm) if TECHNIQUES[name][0]]
    found = [item for name in _names(arm) for item in TECHNIQUES[name][1]]
    if "prune" in _names(arm) and "lowrank" in _names(
        arm
    ):  # first cut, then factored, to 0.6 of what is left
        found = [item for item in found if item != "compress.lowrank.start=0"] + [
            "compress.lowrank.start=0.45"
        ]
    if arm.endswith("+distill"):
        options_on.append("distill")
        found.append(f"compress.distill.teacher={options.start.resolve()}")
    return [f"compress=[{','.join(options_on)}]" if options_on else "compress=none", *found,
            f"model.weights={options.start.resolve()}"]  # fmt: skip


def _like(start: Path) -> list[str]:
    """Overrides that build the model of the start."""
    record = ArchitectureRecord.read(start / "model.json")
    args = {k: v for k, v in record.kwargs.items() if k in ("embed_dim", "depth", "num_heads", "mlp_ratio")}
    return [f"model.name={record.name}", f"model.patch_size={record.kwargs.get('patch_size', 'null')}",
            *(f"++model.args.{name}={value}" for name, value in args.items())]  # fmt: skip


def _row(arm: str, rows: Mapping[tuple[str, int], Mapping[str, Any]], seeds: int) -> dict[str, Any]:
    def all_of(name: str, key: str) -> list[float]:
        return [rows[name, seed]["measures"][key] for seed in range(1, seeds + 1)]

    accuracy = all_of(arm, "quality/accuracy")
    dense = all_of("dense", "quality/accuracy") if ("dense", 1) in rows else accuracy

    def share(key: str) -> float:
        whole = all_of("dense", key) if ("dense", 1) in rows else all_of(arm, key)
        return statistics.mean(all_of(arm, key)) / statistics.mean(whole)

    return {
        "accuracy": statistics.mean(accuracy), "sd": experiment.sd(accuracy), "each": accuracy,
        "gain": statistics.mean(accuracy) - statistics.mean(dense),
        "macs": share("cost/macs"), "params": share("cost/params"), "size": share("cost/size_mb"),
    }  # fmt: skip


def _times(runs: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    torch.set_num_threads(1)
    models = {arm: load_model(run) for arm, run in runs.items()}
    shape = ArchitectureRecord.read(next(iter(runs.values())) / "model.json").input_shape
    found: dict[str, dict[str, float]] = {arm: {} for arm in runs}
    for batch in BATCHES:
        images = torch.rand(batch, *shape)
        with torch.inference_mode():
            times = take_turns(
                {arm: functools.partial(model, images) for arm, model in models.items()}, ROUNDS, least=LEAST
            )
        for arm in runs:
            found[arm][f"time@{batch}"] = statistics.median(ratios(times, arm, "dense"))
    return found


# --- the picture -------------------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 560, 60, 270, 20, 45
RANGE = 9.0  # points below the best that the picture shows


def picture(table: Mapping[str, Mapping[str, Any]]) -> str:
    """Accuracy against MACs: numbered arms, and the line of those that no other one beats on both."""
    points = {arm: (row["macs"], 100 * row["accuracy"]) for arm, row in table.items()}
    order = sorted(points, key=lambda arm: -points[arm][1])
    top = math.ceil(points[order[0]][1] + 0.2)
    bottom = top - math.ceil(RANGE)
    right = max(x for x, _ in points.values()) * 1.05

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + x / right * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - bottom) / (top - bottom) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for y in range(bottom, top + 1):
        _, v = at(0, y)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{v:.1f}" y2="{v:.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 6}" y="{v + 4:.1f}" text-anchor="end">{y} %</text>'
        )
    for tenth in range(0, int(right * 10) + 1, 2):
        u, _ = at(tenth / 10, bottom)
        parts.append(
            f'<text x="{u:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tenth / 10:.1f}</text>'
        )
    parts.append(
        f'<text x="{(WIDTH - RIGHT + LEFT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "multiply-accumulates, share of dense</text>"
    )
    best = front(points)
    path = " ".join(f"{u:.1f},{v:.1f}" for u, v in (at(*points[arm]) for arm in best))
    parts.append(f'<polyline points="{path}" fill="none" stroke="#1661a8" stroke-width="1.5"/>')
    placed: list[tuple[float, float]] = []
    for number, arm in enumerate(order, 1):
        x, y = points[arm]
        name = f"{arm.replace('--', ' + ').replace('+distill', ', distilled')} {y:.1f}"
        weight = ' font-weight="bold"' if arm in best else ""
        shown = y >= bottom
        mark = str(number) if shown else "↓"
        parts.append(f'<text x="{WIDTH - RIGHT + 25}" y="{TOP + 16 * number}"{weight}>{mark} {name}</text>')
        if not shown:
            continue
        u, v = at(x, y)
        fill = "#1661a8" if arm.endswith("+distill") else "white"
        parts.append(f'<circle cx="{u:.1f}" cy="{v:.1f}" r="4" fill="{fill}" stroke="#1661a8"/>')
        place = (u + 7, v + 4)
        while any(abs(place[0] - a) < 16 and abs(place[1] - b) < 11 for a, b in placed):
            place = (place[0] + 16, place[1])
        placed.append(place)
        parts.append(f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" font-size="10"{weight}>{number}</text>')
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Arms that no other one beats on both, the cheapest first."""
    found: list[str] = []
    for arm in sorted(points, key=lambda arm: (points[arm][0], -points[arm][1])):
        if not found or points[arm][1] > points[found[-1]][1]:
            found.append(arm)
    return found


def _number(value: float | None) -> str:
    return "      " if value is None else f"{value:6.3f}"


if __name__ == "__main__":
    main()
