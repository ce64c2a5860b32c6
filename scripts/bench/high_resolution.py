"""What attention and its replacements cost from 224 to 1,024 pixels: time, MACs and memory, and how they grow.

    OMP_NUM_THREADS=1 python scripts/bench/high_resolution.py [--sizes 224 384 512 768 1024] [--rounds 5]
        [--arms exact windowed ...] [--arm 'NAME=OVERRIDE OVERRIDE ...'] [--out FILE] [overrides]

An arm is the model with its overrides, as `train.py` takes them: `model.attention=...`, or a technique whose changes
are made on the untrained model, `compress=merge_tokens`. Small and quick:
`--sizes 64 96 128 model=vit_micro model.patch_size=8 --rounds 3`.

Of each arm at each size, with random weights and one image:

- time: on one thread; all arms of a size take turns, each round in another order. `ms` is the median of the wall
  clock; the ratio is the median over rounds of the processor's time / that of `exact` in the same round, on which
  other work on the machine weighs less.
- MACs, FLOPs and the memory of activations: counted (`effvit_train.audit.growth`).
- memory: the peak that the loaded model and one image add to a fresh process, as `cost/memory_mb` of a card.

Exponents are slopes of the logarithms against the number of tokens: 1 is linear, 2 quadratic. That of the measured
memory is of what it takes beyond the weights. What an arm cannot do, or this version does not know, is said in its row.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import build_run  # isort: skip  # before torchvision, as `effvit_train` itself
import torch
from hydra.errors import HydraException
from torch import nn
from turns import ratios, take_turns

from effvit_train.audit.fresh import ask
from effvit_train.audit.growth import fit_exponent, meta_model, point
from effvit_train.errors import UserError, first_line
from effvit_train.files import write_json
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.runs import processor

EXACT = "exact"
ARMS: dict[str, tuple[str, ...]] = {
    EXACT: (),
    "windowed": ("model.attention=window",),
    "pooled": ("model.attention=pooled",),
    "linear": ("model.attention=linear",),
    "fourier": ("model.attention=fourier",),
    "fnet": ("model.attention=fnet",),
    "wavelet": ("model.attention=wavelet",),
    "fourier-first": ("model.attention={0-3: fourier}",),  # the first four blocks (SpectFormer)
    "merged": ("compress=merge_tokens",),
}
SIZES = (224, 384, 512, 768, 1024)
COSTS = ("cpu_seconds", "macs", "flops", "counted_bytes", "measured_bytes")
MEMORY_SECONDS = 1800.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="leave out what takes a fresh process each")
    parser.add_argument("--out", type=Path, help="a JSON file")
    add_arms(parser)
    options = parser.parse_args()
    arms = chosen_arms(options)
    torch.set_num_threads(1)
    rows = [row for size in sorted(options.sizes) for row in measure(arms, size, options)]
    result = {
        "rows": rows, "exponents": {arm: exponents(rows, arm) for arm in arms},
        "arms": {arm: list(words) for arm, words in arms.items()}, "overrides": options.overrides,
        "conditions": {"threads": 1, "rounds": options.rounds, "processor": processor(),
                       "torch": torch.__version__, "load_average": load()},
    }  # fmt: skip
    show(result)
    if options.out is not None:
        write_json(options.out, result)


def add_arms(parser: argparse.ArgumentParser) -> None:
    """The options that say what is compared."""
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), help=f"of {', '.join(ARMS)} and those of --arm"
    )
    parser.add_argument(
        "--arm",
        action="append",
        default=[],
        metavar="NAME=OVERRIDES",
        help="a further arm; overrides lie apart",
    )
    parser.add_argument("overrides", nargs="*", help="of every arm, such as model=vit_ti")


def chosen_arms(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Name -> overrides, `exact` first; ends the program for a name that no arm has."""
    more = {}
    for text in options.arm:
        name, equals, words = text.partition("=")
        if not name or not equals:
            sys.exit(f"--arm {text!r} is not NAME=OVERRIDES")
        more[name] = tuple(words.split(" ")) if words else ()
    known = {**ARMS, **more}
    for name in options.arms:
        if name not in known:
            sys.exit(f"no such arm: {name}; there are {', '.join(known)}")
    return {name: known[name] for name in dict.fromkeys([EXACT, *options.arms, *more])}


# --- one size ----------------------------------------------------------------------------------


def measure(
    arms: Mapping[str, Sequence[str]], size: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each arm at an image size; what could not be had is in its `reason`."""
    rows: dict[str, dict[str, Any]] = {}
    models: dict[str, nn.Module] = {}
    for arm, words in arms.items():
        row = rows[arm] = {"arm": arm, "size": size}
        print(f"{size} px: {arm}", file=sys.stderr, flush=True)
        try:
            record = record_of([*options.overrides, *words], size)
            row |= counted(record)
            torch.manual_seed(0)
            models[arm] = build(record).eval()
        except (HydraException, UserError, ValueError, RuntimeError) as error:
            row["reason"] = first_line(error)
            continue
        if not options.no_memory:
            row |= memory(record, row["weight_bytes"])
    for arm, found in timed(models, size, options.rounds).items():
        rows[arm] |= found
    return list(rows.values())


def record_of(overrides: Sequence[str], size: int) -> ArchitectureRecord:
    """The architecture that these overrides give for images of `size`, with all changes made that they plan."""
    data = [
        "dataset=synthetic",
        f"dataset.image_size={size}",
        "dataset.num_samples=40",
        "recipe.batch_size=1",
    ]
    with tempfile.TemporaryDirectory() as directory:
        _, built = build_run(["model=vit_s", *data, "logger=none", "audit=none", *overrides], directory)
        record = built.record
        for change in [*built.changes.during, *built.changes.after]:
            decided = change.decide(built.module, built.data, 0)
            if decided is not None:
                built.module.cut(decided.operations, decided.entry)
                record = dataclasses.replace(record, cuts=[*record.cuts, decided.entry])
    return record


def counted(record: ArchitectureRecord) -> dict[str, Any]:
    """What the arithmetic of one image is, without computing it."""
    model = meta_model(record)
    found = point(model, record.input_shape)
    return {
        "tokens": found.tokens, "macs": found.macs, "flops": found.flops, "mixing_flops": found.mixing_flops,
        "counted_bytes": found.peak_bytes, "weight_bytes": found.weight_bytes,
        "params": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def memory(record: ArchitectureRecord, weight_bytes: int) -> dict[str, Any]:
    """`memory_mb` in a process of its own, and what of it are not weights."""
    request = {
        "record": record.to_json(), "weights": None, "device": "cpu", "num_threads": 1, "precision": "32-true",
        "latency_runs": 1, "throughput_batch": 1, "throughput_runs": 1,
    }  # fmt: skip
    try:
        answer = ask("effvit_train.audit.probe", request, timeout=MEMORY_SECONDS)
    except RuntimeError as error:
        return {"memory_mb": None, "memory_reason": first_line(error)}
    beyond = answer["memory_mb"] * 1e6 - weight_bytes
    return {"memory_mb": answer["memory_mb"], "measured_bytes": beyond if beyond > 0 else None}


def timed(models: Mapping[str, nn.Module], size: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds of each model for one image: all take turns, each round begins with another one."""
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        times = take_turns({arm: functools.partial(model, image) for arm, model in models.items()}, rounds)
    found: dict[str, dict[str, Any]] = {}
    for arm in models:
        found[arm] = {
            "seconds": statistics.median(t.wall for t in times[arm]),
            "cpu_seconds": statistics.median(t.cpu for t in times[arm]),
        }
        if EXACT in models:
            each = ratios(times, arm, EXACT)
            found[arm] |= {"ratio": statistics.median(each), "ratio_range": [min(each), max(each)]}
    return found


# --- all sizes ---------------------------------------------------------------------------------


def exponents(rows: Sequence[Mapping[str, Any]], arm: str) -> dict[str, Any]:
    """The exponent of each cost of an arm in the tokens; None where fewer than two sizes have it."""
    own = [row for row in rows if row["arm"] == arm]
    found: dict[str, Any] = {}
    for cost in COSTS:
        points = [(row["tokens"], row[cost]) for row in own if row.get("tokens") and row.get(cost)]
        sizes, costs = [float(a) for a, _ in points], [float(b) for _, b in points]
        found[cost] = fit_exponent(sizes, costs).to_json() if len(set(sizes)) > 1 else None
    return found


def show(result: Mapping[str, Any]) -> None:
    """Two tables: costs by size, and exponents."""
    print(
        f"{'pixels':>6}  {'arm':16}  {'tokens':>6}  {'ms':>9}  {'x exact':>7}  {'GMACs':>8}  {'GFLOPs':>8}  {'MB':>7}"
    )
    for row in result["rows"]:
        start = f"{row['size']:6}  {row['arm']:16}  "
        if "reason" in row:
            print(f"{start}{row['reason']}")
            continue
        print(
            f"{start}{row['tokens'] or 0:6}  {row['seconds'] * 1e3:9.1f}  {number(row.get('ratio'), 7, 3)}"
            f"  {row['macs'] / 1e9:8.3f}  {row['flops'] / 1e9:8.3f}  {number(row.get('memory_mb'), 7, 1)}"
        )
    widths = (7, 7, 7, 11, 8)
    titles = ("time", "MACs", "FLOPs", "activations", "measured")
    heads = "  ".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    print(f"\n{'exponent in tokens':18}  {heads}")
    for arm, found in result["exponents"].items():
        values = [None if found[cost] is None else found[cost]["value"] for cost in COSTS]
        print(f"{arm:18}  " + "  ".join(number(v, w, 2) for v, w in zip(values, widths, strict=True)))


def number(value: float | None, width: int, digits: int) -> str:
    """A number, or a dash."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def load() -> float | None:
    """Other processes on these cores lengthen the times."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


if __name__ == "__main__":
    main()
