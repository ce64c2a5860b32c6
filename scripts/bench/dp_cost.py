"""Cost of a private step against the same step without privacy: time, paired, and peak memory.

    python scripts/bench/dp_cost.py [--json] [--models vit_ti,vit_s] [--batches 64,256] [--precisions fp32,bf16]
        [--engines bookkeeping,vmap,opacus_ghost,opacus_hooks] [--size 32] [--patch 4] [--rounds 5] [--physical N]

A step is: forward, per-image losses, gradients (clipped and noised where private), AdamW. Both kinds see the same
images, all of them in each step. In each round every case makes one step, the order turning by one; the figures are
medians over the rounds of the ratio to the plain step of the same round (a cell with a case that takes long has
fewer). Peak memory is the resident set (CUDA: allocated memory) of fresh processes, one each, that make three steps;
a case that does not fit, or that its engine cannot do, is null with the reason. `bookkeeping_over_plain` is the worst
cell's time, `bookkeeping_memory_over_plain` its memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from common import peak_mb  # isort: skip  # before torchvision, as `effvit_train` itself
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.kernels import choose_attention
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create
from effvit_train.privacy.config import ENGINES
from effvit_train.privacy.dp_sgd.callback import PHYSICAL_BATCH
from effvit_train.privacy.dp_sgd.plan import Plan
from effvit_train.privacy.dp_sgd.randomness import Stream
from effvit_train.privacy.dp_sgd.step import add_up, write_gradients
from effvit_train.privacy.engine import Clip, make_engine

NAMES = {"vit_ti": "vit_tiny_patch16_224", "vit_s": "vit_small_patch16_224", "vit_b": "vit_base_patch16_224"}
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16}
ENOUGH = 90.0  # seconds spent on a cell


class Images(NamedTuple):
    """A batch."""

    images: Tensor
    labels: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--models", default="vit_ti,vit_s")
    parser.add_argument("--batches", default="64,256")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--patch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--physical", type=int, default=PHYSICAL_BATCH)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        name, model, batch, precision = options.alone
        _alone(name, model, int(batch), precision, options)
        return
    cells = [
        _cell(model, int(batch), precision, options)
        for model in options.models.split(",")
        for batch in options.batches.split(",")
        for precision in options.precisions.split(",")
    ]
    result: dict[str, Any] = {"cells": cells, "physical": options.physical, "threads": options.threads}
    for engine in options.engines.split(","):
        for what, key in (("time", f"{engine}_over_plain"), ("memory", f"{engine}_memory_over_plain")):
            known = [cell[engine][what] for cell in cells if cell[engine][what] is not None]
            result[key] = max(known) if known else None
    if options.json:
        print(json.dumps(result))
        return
    for cell in cells:
        print(f"{cell['model']} {options.size}/{options.patch} batch {cell['batch']} {cell['precision']}: "
              f"plain {1e3 * cell['plain_s']:.0f} ms, {cell['plain_mb']:.0f} MB")  # fmt: skip
        for engine in options.engines.split(","):
            row = cell[engine]
            if row["time"] is None:
                print(f"  {engine:13} -  {row['reason']}")
                continue
            memory = "-" if row["memory"] is None else f"{row['memory']:.2f}"
            low, high = row["range"]
            print(f"  {engine:13} time {row['time']:.2f} ({low:.2f} to {high:.2f})  memory {memory}")


def _cell(model: str, batch: int, precision: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times and memories of one model, batch and precision."""
    names = options.engines.split(",")
    memories = {name: _memory(name, model, batch, precision, options) for name in ("plain", *names)}
    steps: dict[str, Callable[[], None]] = {}
    for name in ("plain", *names):
        if isinstance(memories[name], float):
            steps[name] = _step(name, model, batch, precision, options)
            steps[name]()  # warm-up
    rounds = _rounds(steps, options.rounds)
    plain = memories["plain"]
    assert isinstance(plain, float)
    cell: dict[str, Any] = {
        "model": model, "batch": batch, "precision": precision, "rounds": len(rounds), "plain_mb": plain,
        "plain_s": statistics.median(times["plain"] for times in rounds),
    }  # fmt: skip
    for name in names:
        memory = memories[name]
        if not isinstance(memory, float):
            cell[name] = {"time": None, "memory": None, "reason": memory}
            continue
        ratios = [times[name] / times["plain"] for times in rounds]
        cell[name] = {
            "time": statistics.median(ratios), "range": [min(ratios), max(ratios)], "memory": memory / plain,
            "mb": memory,
        }  # fmt: skip
    print(f"{model} batch {batch} {precision}: {cell}", file=sys.stderr, flush=True)
    return cell


def _rounds(steps: dict[str, Callable[[], None]], count: int) -> list[dict[str, float]]:
    names, rounds, begun = list(steps), [], time.monotonic()
    for number in range(count):
        order = names[number % len(names) :] + names[: number % len(names)]
        times = {}
        for name in order:
            start = time.perf_counter()
            steps[name]()
            times[name] = time.perf_counter() - start
        rounds.append(times)
        if len(rounds) >= 3 and time.monotonic() - begun > ENOUGH:
            break
    return rounds


def _step(
    name: str, model: str, batch: int, precision: str, options: argparse.Namespace
) -> Callable[[], None]:
    """A function that makes one step and waits for its end."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (3, options.size, options.size)
    settings = ModelConfig(name=NAMES[model], patch_size=options.patch)
    classes = tuple(str(k) for k in range(10))
    net, _ = create(settings, input_shape=shape, classes=classes, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = net.to(device).train()
    choose_attention(net, device_type=device)
    data = Images(torch.randn(batch, *shape, device=device), torch.randint(10, (batch,), device=device))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    kind = PRECISIONS[precision]

    def losses(rows: Images) -> Tensor:
        with torch.autocast(device, dtype=kind) if kind else contextlib.nullcontext():
            logits = net(rows.images)
        return F.cross_entropy(logits.float(), rows.labels, reduction="none")

    if name == "plain":

        def step() -> None:
            optimizer.zero_grad()
            losses(data).mean().backward()
            optimizer.step()
            _wait(device)

        return step
    plan = Plan(50_000, batch, 1000, 1.0, 1.0, "flat", 1, 1e-5, "rdp")
    stream = Stream(bytes(64), [])
    engine = make_engine(name, nn.ModuleDict({"model": net}), Clip(1.0))

    def private_step() -> None:
        optimizer.zero_grad()
        add_up(engine, losses, data, physical=options.physical)
        write_gradients(engine, plan, stream, "philox", 0)
        optimizer.step()
        _wait(device)

    return private_step


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _alone(name: str, model: str, batch: int, precision: str, options: argparse.Namespace) -> None:
    step = _step(name, model, batch, precision, options)
    for _ in range(3):
        step()
    peak = peak_mb()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    print(f"peak {peak}")


def _memory(name: str, model: str, batch: int, precision: str, options: argparse.Namespace) -> float | str:
    """Peak MB of a fresh process, or why there is none."""
    command = [sys.executable, __file__, "--alone", name, model, str(batch), precision]
    for key in ("size", "patch", "physical", "threads"):
        command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("peak "):
            return float(line.split()[1])
    if done.returncode < 0:
        return "does not fit into memory"
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return "does not fit into memory" if "out of memory" in done.stderr.lower() else lines[-1][:160]


if __name__ == "__main__":
    main()
