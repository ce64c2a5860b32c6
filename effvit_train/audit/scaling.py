"""Time models of several sizes against one another, in a process of its own.

`python -m effvit_train.audit.scaling` reads one JSON request on the standard input and prints one JSON answer.
All models take turns, round after round, so that other work on the machine falls on all of them alike; of each the
fastest round counts, for other work only ever adds time. (The card's latency is a median: what one will see.)
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import effvit_train  # noqa: F401  (makes torchvision importable for timm)
from effvit_train.audit.fresh import ask
from effvit_train.audit.machine import EVENTS, Machine, count_events, measure_machine
from effvit_train.audit.probe import runner
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.precision import autocast, dtype_of
from effvit_train.rapl import measure_energy
from effvit_train.runs import processor

CACHE_LINE = 64  # bytes
MIN_ROUNDS = 3
_NO_HARDWARE = {"energy_j": None, "energy": "the processor's counters do not count another device's work"}
_MARGIN_SECONDS = 300.0  # for imports, warm-ups and the last round, on a busy machine


@dataclass(frozen=True)
class Job:
    """A model to be timed.

    Attributes:
        record: its architecture; the weights are random.
        batch: images at once.
        flops: of one image: tells what a larger job will take before it is tried.
    """

    record: ArchitectureRecord
    batch: int
    flops: int


@dataclass(frozen=True)
class Times:
    """What the process answers.

    Attributes:
        seconds: of each job in its fastest round; None where it was left out.
        reasons: why it was, else empty.
        machine: the peaks, with the same threads.
        hardware: what the processor counts during the first job (`measure_hardware`).
        conditions: device, threads, precision, rounds.
    """

    seconds: list[float | None]
    reasons: list[str]
    machine: Machine
    hardware: dict[str, Any] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)


def time_jobs(
    jobs: Sequence[Job],
    *,
    num_threads: int | None = None,
    precision: str = "32-true",
    device: str | None = None,
    seconds: float = 20.0,
    longest: float = 5.0,
) -> Times:
    """Time the jobs in a fresh process.

    Args:
        jobs: the smallest first: one that would take longer than `longest`, to judge by those before, is left
            out.
        num_threads: of the CPU; None keeps torch's choice.
        precision: Lightning's name; mixed ones run under autocast.
        device: `cpu` or `cuda`; None takes CUDA where there is any.
        seconds: of timed rounds, of which there are at least `MIN_ROUNDS`.
        longest: seconds of one run.

    Raises `RuntimeError` with the last line of its complaint when the process fails.
    """
    request = {
        "jobs": [
            {"record": j.record.to_json(), "batch": j.batch, "flops": j.flops} for j in jobs
        ],
        "num_threads": num_threads, "precision": precision, "device": device, "seconds": seconds,
        "longest": longest,
    }  # fmt: skip
    answer = ask(
        "effvit_train.audit.scaling", request,
        timeout=seconds + MIN_ROUNDS * longest * len(jobs) + _MARGIN_SECONDS,
    )  # fmt: skip
    return Times(**{**answer, "machine": Machine(**answer["machine"])})


def main() -> None:
    """Answer the request on the standard input."""
    print(json.dumps(dataclasses.asdict(_answer(json.load(sys.stdin)))), flush=True)


def _answer(request: dict[str, Any]) -> Times:
    if request["num_threads"]:
        torch.set_num_threads(request["num_threads"])
    device = torch.device(request["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = request["precision"]
    dtype = dtype_of(precision)
    machine = measure_machine(device, seconds=min(1.0, request["seconds"]))
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    models: dict[str, nn.Module] = {}
    runs: list[Callable[[], object] | None] = []
    reasons: list[str] = []
    rates: list[float] = []  # seconds per FLOP of the jobs so far
    with torch.inference_mode(), autocast(precision, device):
        for job in request["jobs"]:
            # the best of them: small jobs have fixed costs, and others at work may have held one up
            expected = min(rates, default=0.0) * job["flops"] * job["batch"]
            if expected > request["longest"]:
                runs.append(None)
                reasons.append(f"it would take about {expected:.0f} s")
                continue
            key = json.dumps(job["record"], sort_keys=True)
            record = ArchitectureRecord.from_json(job["record"])
            if key not in models:
                torch.manual_seed(0)
                models[key] = build(record).to(device, dtype).eval()
            run = _work(models[key], record.input_shape, job["batch"], device, dtype)
            run()  # the first one loads kernels
            rates.append(_seconds(run) / (job["flops"] * job["batch"]))
            runs.append(run)
            reasons.append("")
        timed = _rounds([run for run in runs if run is not None], request["seconds"])
        hardware = measure_hardware(runs[0]) if runs and runs[0] and device.type == "cpu" else _NO_HARDWARE
    fastest = iter(timed)
    return Times(
        seconds=[None if run is None else min(next(fastest)) for run in runs], reasons=reasons,
        machine=machine, hardware=hardware,
        conditions={
            "device": device.type, "threads": torch.get_num_threads(), "precision": precision,
            "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "rounds": len(timed[0]) if timed else 0, "load_average": load,
        },
    )  # fmt: skip


def _work(
    model: nn.Module, shape: tuple[int, int, int], batch: int, device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    # Images of noise: zeros would make some kernels (and denormals) unusually fast or slow.
    images = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    run = runner(model, device)
    return lambda: run(images)


def _rounds(runs: Sequence[Callable[[], object]], budget: float) -> list[list[float]]:
    """Seconds of each run in each round; every round begins with another one."""
    times: list[list[float]] = [[] for _ in runs]
    begin = time.perf_counter()
    count = 0
    while runs and (count < MIN_ROUNDS or time.perf_counter() - begin < budget):
        for turn in range(len(runs)):
            at = (turn + count) % len(runs)
            times[at].append(_seconds(runs[at]))
        count += 1
    return times


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - start) * 1e-9


def measure_hardware(run: Callable[[], object], *, seconds: float = 1.0) -> dict[str, Any]:
    """What the processor counts while `run` runs once: energy and events, each null with its reason.

    Returns `energy_j` and, in `energy`, how it was measured or why not; in `events` instructions, cycles, cache
    references and misses, and the bytes that the misses fetch, a cache line each; `events_missing`.
    """
    counts, silent = count_events(run)
    joules, how = measure_energy(run, seconds=seconds)
    misses = counts[EVENTS[-1]]
    events = {**counts, "bytes_missed": None if misses is None else misses * CACHE_LINE}
    return {"energy_j": joules, "energy": how, "events": events, "events_missing": silent}


if __name__ == "__main__":
    main()
