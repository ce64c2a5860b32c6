"""The axis `complexity/*`: where a model's arithmetic goes, how it grows with the image, what limits its speed.

Counted figures need no weights: the record is rebuilt on the meta device. Measured ones come from a fresh process
(`effvit_train.audit.scaling`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from effvit_train.audit.growth import (
    FACTORS,
    Exponent,
    Point,
    at_factor,
    exponents,
    fit_exponent,
    grow,
    meta_model,
    sizes_of,
)
from effvit_train.audit.machine import Machine
from effvit_train.audit.scaling import Job, Times
from effvit_train.audit.tally import KINDS, Layer, Tally, take_tally
from effvit_train.card import Measured
from effvit_train.errors import first_line
from effvit_train.models.record import ArchitectureRecord

SHARE = "complexity/attention_share"
INTENSITY = "complexity/intensity"
FLOPS = "complexity/flops_exponent"
MIXING = "complexity/mixing_exponent"
LATENCY = "complexity/latency_exponent"
BOUND = "complexity/memory_bound_share"
BATCHES = (4, 16, 64)

Timer = Callable[[list[Job]], Times]


def measure_complexity(
    record: ArchitectureRecord,
    *,
    factors: Sequence[int] = FACTORS,
    batches: Sequence[int] = BATCHES,
    timer: Timer | None = None,
) -> tuple[Measured, dict[str, Any]]:
    """Kinds of work, growth and the place on the machine's roofline.

    Args:
        record: the architecture, cuts included.
        factors: by which the image's sides are multiplied, ascending from 1.
        batches: sizes of batches that are timed beside single images; of larger images only the first.
        timer: times the model at these sizes, usually `scaling.time_jobs` with threads, precision and device;
            None measures nothing and only counts.

    Returns:
        The measures, and for the card's provenance the figures of kinds, layers and image sizes.
    """
    tally = take_tally(meta_model(record), record.input_shape)
    measured = Measured({INTENSITY: tally.intensity()})
    if tally.macs:
        products = sum(layer.macs for layer in tally.of_kind("attention_products"))
        measured.values[SHARE] = products / tally.macs
    else:
        measured.missing[SHARE] = "the model multiplies no matrices"
    points, refused = grow(record, factors)
    facts: dict[str, Any] = {"kinds": kinds(tally), "growth": _growth(list(points.values()), measured)}
    if refused:
        facts["growth"]["refused"] = refused
    if tally.uncounted:
        facts["uncounted_operators"] = dict(tally.uncounted)
    if timer is None:
        measured.missing |= dict.fromkeys((LATENCY, BOUND), "nothing was timed")
        return measured, facts
    plan = _jobs(record, points, batches)
    try:
        times = timer([job for _, job in plan])
    except RuntimeError as error:  # a finished training is not lost for it
        reason = f"the measuring process failed: {first_line(error)}"
        measured.missing |= dict.fromkeys((LATENCY, BOUND), reason)
        return measured, facts
    facts["times"] = _times(plan, points, times, measured)
    facts["hardware"] = times.hardware
    facts["roofline"] = roofline(tally, times.machine, batches=(1, batches[-1]))
    measured.values[BOUND] = facts["roofline"]["memory_bound_share"]["1"]
    _attained(facts)
    return measured, facts


def kinds(tally: Tally) -> dict[str, dict[str, float]]:
    """MACs, FLOPs and the FLOPs' share of each kind of work, and of Fourier transforms FLOPs alone."""
    total = tally.flops or 1
    table: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        layers = tally.of_kind(kind)
        flops = sum(layer.flops for layer in layers)
        table[kind] = {
            "macs": sum(layer.macs for layer in layers), "flops": flops, "share": flops / total,
            "fft_flops": sum(layer.fft for layer in layers),
        }  # fmt: skip
    return table


def roofline(tally: Tally, machine: Machine, *, batches: Sequence[int] = (1,)) -> dict[str, Any]:
    """Which layers the machine's arithmetic bounds, and which its memory (Williams et al. 2009).

    A layer's least time at a batch size is the longer of FLOPs over the peak and bytes over the bandwidth; it
    is bound by memory if that is the bytes. A layer's kernels do not overlap with the next layer's, so least
    times add up. All in 32 bits; caches, which make small layers faster than this, are left out.

    Returns the machine's peaks, for each batch size the model's least seconds and the share of them in layers
    that memory bounds, and the layers: FLOPs, intensity and bound at the first batch size.
    """
    least: dict[str, float] = {}
    share: dict[str, float] = {}
    for batch in batches:
        bounds = [_least(layer, machine, batch) for layer in tally.layers]
        total = sum(seconds for seconds, _ in bounds)
        least[str(batch)] = total
        share[str(batch)] = sum(seconds for seconds, memory in bounds if memory) / total if total else 0.0
    layers = [
        {
            "name": layer.name, "kind": layer.kind, "macs": layer.macs, "flops": layer.flops,
            "intensity": layer.intensity(batches[0]),
            "bound": "memory" if _least(layer, machine, batches[0])[1] else "compute",
        }
        for layer in tally.layers
    ]  # fmt: skip
    return {
        "machine": {**dataclasses.asdict(machine), "ridge": machine.ridge},
        "least_seconds": least, "memory_bound_share": share, "layers": layers,
    }  # fmt: skip


def _least(layer: Layer, machine: Machine, batch: int) -> tuple[float, bool]:
    """Least seconds of a layer at a batch size, and whether memory sets them."""
    moved = layer.weight_bytes + batch * layer.activation_bytes
    flops = batch * layer.flops
    return machine.seconds(flops, moved), flops < machine.ridge * moved


def _growth(points: Sequence[Point], measured: Measured) -> dict[str, Any]:
    """The exponents of what is counted."""
    rows = [dataclasses.asdict(p) for p in points]
    if len(points) < 2:
        measured.missing |= dict.fromkeys((FLOPS, MIXING), "the architecture takes no image of another size")
        return {"points": rows}
    found = exponents(points)
    for key, name in ((FLOPS, "flops"), (MIXING, "mixing_flops")):
        if name in found:
            measured.values[key] = found[name].value
        else:
            measured.missing[key] = (
                "no attention product and no Fourier or wavelet mixer is known in this model"
            )
    return {
        "against": sizes_of(points)[1], "points": rows,
        "exponents": {name: exponent.to_json() for name, exponent in found.items()},
    }  # fmt: skip


def _jobs(
    record: ArchitectureRecord, points: dict[int, Point], batches: Sequence[int]
) -> list[tuple[int, Job]]:
    """What is timed, smallest first: each image size one by one and in the first batch size, then batches."""
    plan = []
    for factor, counted in points.items():
        sizes = (1, *batches) if factor == 1 else (1, batches[0])
        plan += [(factor, Job(at_factor(record, factor), batch, counted.flops)) for batch in sizes]
    return sorted(plan, key=lambda entry: entry[1].flops * entry[1].batch)


def _times(
    plan: Sequence[tuple[int, Job]], points: dict[int, Point], times: Times, measured: Measured
) -> dict[str, Any]:
    """Times by image size and by batch size, with their exponents."""
    sizes = dict(zip(points, sizes_of(list(points.values()))[0], strict=True))
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for (factor, job), seconds, reason in zip(plan, times.seconds, times.reasons, strict=True):
        row = {"factor": factor, "size": sizes[factor], "batch": job.batch}
        if seconds is None:
            skipped.append({**row, "reason": reason})
        else:
            rows.append({**row, "seconds": seconds, "throughput": job.batch / seconds})
    facts: dict[str, Any] = {"rows": rows, "skipped": skipped, "conditions": times.conditions}
    latency = _fit([row for row in rows if row["batch"] == 1], "size")
    if latency is None:
        reasons = "; ".join(row["reason"] for row in skipped) or "the architecture takes no other"
        measured.missing[LATENCY] = f"fewer than two image sizes could be timed: {reasons}"
    else:
        measured.values[LATENCY] = latency.value
    in_batch = _fit([row for row in rows if row["factor"] == 1], "batch")
    for name, exponent in (("latency_in_size", latency), ("seconds_in_batch", in_batch)):
        if exponent is not None:
            facts[f"{name}_exponent"] = exponent.to_json()
    return facts


def _fit(rows: Sequence[dict[str, Any]], against: str) -> Exponent | None:
    if len({row[against] for row in rows}) < 2:
        return None
    return fit_exponent([row[against] for row in rows], [row["seconds"] for row in rows])


def _attained(facts: dict[str, Any]) -> None:
    """Add which share of the roofline's speed one image reaches, where it was timed in 32 bits."""
    roof, conditions = facts["roofline"], facts["times"]["conditions"]
    for row in facts["times"]["rows"]:
        if (row["factor"], row["batch"], conditions.get("precision")) == (1, 1, "32-true"):
            roof["attained"] = roof["least_seconds"]["1"] / row["seconds"]
