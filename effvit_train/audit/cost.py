"""The axis `cost/*`: what a model needs, measured in a fresh process (`effvit_train.audit.probe`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effvit_train.audit.fresh import ask
from effvit_train.card import MEASURES, Measured
from effvit_train.config import AuditConfig
from effvit_train.models.record import ArchitectureRecord

TIMEOUT_SECONDS = 600.0

# ViT-B/16 at 224 with 1,000 classes in 32 bits: the reference of the efficient error rate.
VIT_B16 = {"params": 86_567_656, "bits": 32.0, "macs": 17_563_828_224, "size_bytes": 346_284_744}

_MEASURED = ("params", "macs", "flops", "latency_ms", "latency_p95_ms", "throughput", "memory_mb")


def measure_cost(
    record: ArchitectureRecord,
    config: AuditConfig,
    *,
    weights: Path | None = None,
    num_threads: int | None = None,
    precision: str = "32-true",
    device: str | None = None,
) -> tuple[Measured, dict[str, Any]]:
    """Measure what the model of `record` costs at inference; returns the measures and the conditions.

    Args:
        record: the architecture.
        config: how many runs; its `num_threads` wins over the argument.
        weights: the `model.safetensors` that ships; random weights without one.
        num_threads: CPU threads of training; None keeps torch's choice.
        precision: Lightning's name; mixed ones run under autocast.
        device: `cpu` or `cuda`; None takes CUDA where there is any.

    A probe that fails (memory, a missing kernel) leaves every measure null with its reason: a
    finished training is not lost for it.
    """
    request = {
        "record": record.to_json(),
        "weights": str(weights) if weights else None,
        "device": device,
        "num_threads": config.num_threads or num_threads,
        "precision": precision,
        "latency_runs": config.latency_runs,
        "throughput_batch": config.throughput_batch,
        "throughput_runs": config.throughput_runs,
    }
    measured = Measured(missing={"cost/train_seconds": "nothing was trained"})
    try:
        answer = ask("effvit_train.audit.probe", request, timeout=TIMEOUT_SECONDS)
    except RuntimeError as error:
        reason = f"the measuring process failed: {error}"
        measured.missing |= {key: reason for key in MEASURES if key.startswith("cost/")} | measured.missing
        return measured, {"failed": str(error)}
    for name in _MEASURED:
        measured.values[f"cost/{name}"] = answer[name]
    measured.values["cost/size_mb"] = answer["size_bytes"] / 1e6
    measured.values["cost/eer"] = efficient_error_rate(answer)
    if answer["energy_j"] is None:
        measured.missing["cost/energy_j"] = answer["energy"]
    else:
        measured.values["cost/energy_j"] = answer["energy_j"]
        answer["conditions"]["energy"] = answer["energy"]
    conditions = answer["conditions"]
    if answer["uncounted"]:
        conditions["uncounted_operators"] = answer["uncounted"]
    return measured, conditions


def efficient_error_rate(features: Mapping[str, float]) -> float:
    """Mean ratio of a model's `params`, `bits`, `macs` and `size_bytes` to those of ViT-B/16.

    Papa et al. 2023 (arXiv 2309.02031): the features that weigh on the hardware at inference
    (parameters, bits, FLOPs, model size), each normalised by a reference model, averaged.
    """
    return sum(features[name] / reference for name, reference in VIT_B16.items()) / len(VIT_B16)
