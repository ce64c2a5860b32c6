"""Measure one model in a process of its own: `python -m effvit_train.audit.probe`.

Reads one JSON request on the standard input, prints one JSON answer. A process that has trained
before holds gigabytes and warm caches; here the baseline is known.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import effvit_train  # noqa: F401  (makes torchvision importable for timm)
from effvit_train import nvml, rapl
from effvit_train.audit.operations import count_operations
from effvit_train.models.factory import build, load_weights
from effvit_train.models.record import ArchitectureRecord
from effvit_train.precision import autocast, dtype_of
from effvit_train.resident import forget_peak, peak_bytes, resident_bytes
from effvit_train.runs import processor
from effvit_train.stopwatch import fitting_batch, median, percentile, time_runs

WARMUP_RUNS = 5
LATENCY_SECONDS = 5.0  # budget of the timed runs; never fewer than stopwatch.MIN_RUNS
THROUGHPUT_SECONDS = 8.0


def main() -> None:
    """Answer the request on the standard input."""
    answer = measure(json.load(sys.stdin))
    print(json.dumps(answer), flush=True)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Take all measures of `request`: `record`, `weights`, `device`, `precision`, runs, threads."""
    if request["num_threads"]:
        torch.set_num_threads(request["num_threads"])
    record = ArchitectureRecord.from_json(request["record"])
    device = torch.device(request["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype_of(request["precision"])
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    memory = _Memory(device)
    model = _load(record, request["weights"]).to(device, dtype).eval()
    memory.loaded()
    image = torch.zeros(1, *record.input_shape, device=device, dtype=dtype)
    with torch.inference_mode(), autocast(request["precision"], device):
        run = runner(model, device)
        run(image)
        run(image)
        memory_mb, memory_how = memory.added_mb()
        # Images of noise: zeros would make some kernels (and denormals) unusually fast or slow.
        image = torch.randn(1, *record.input_shape, generator=torch.Generator().manual_seed(0)).to(
            device, dtype
        )
        times = time_runs(lambda: run(image), request["latency_runs"], LATENCY_SECONDS, warmup=WARMUP_RUNS)
        latency = median(times)
        batch_size = fitting_batch(request["throughput_batch"], latency, THROUGHPUT_SECONDS)
        batch = image.expand(batch_size, *record.input_shape).contiguous()
        batch_times = time_runs(lambda: run(batch), request["throughput_runs"], THROUGHPUT_SECONDS, warmup=1)
        if device.type == "cuda":
            joules, how = nvml.measure_energy(
                lambda: run(batch), str(torch.cuda.get_device_properties(device).uuid)
            )
        else:
            joules, how = rapl.measure_energy(lambda: run(batch), seconds=0.5)
    operations = count_operations(model, record.input_shape)
    parameters = sum(p.numel() for p in model.parameters())
    bits = sum(p.numel() * p.element_size() * 8 for p in model.parameters()) / max(parameters, 1)
    return {
        "params": parameters,
        "bits": bits,
        "macs": operations.macs,
        "flops": operations.flops,
        "uncounted": dict(operations.uncounted),
        "size_bytes": _size(model, request["weights"]),
        "latency_ms": latency * 1e3,
        "latency_p95_ms": percentile(times, 0.95) * 1e3,
        "throughput": batch_size / median(batch_times),
        "memory_mb": memory_mb,
        "energy_j": None if joules is None else joules / batch_size,
        "energy": how,
        "conditions": {
            "device": device.type,
            "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
            "threads": torch.get_num_threads(),
            "precision": request["precision"],
            "latency_runs": len(times),
            "throughput_batch": batch_size,
            "throughput_runs": len(batch_times),
            "memory": memory_how,
            "load_average": load,  # other processes on these cores lengthen the times
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _load(record: ArchitectureRecord, weights: str | None) -> nn.Module:
    torch.manual_seed(0)
    model = build(record)
    if weights:
        load_weights(model, Path(weights))
    return model


def runner(model: nn.Module, device: torch.device) -> Callable[[Tensor], None]:
    """Runs the model on a batch, to the end of what the device does."""
    if device.type == "cuda":

        def run(images: Tensor) -> None:
            model(images)
            torch.cuda.synchronize(device)
    else:

        def run(images: Tensor) -> None:
            model(images)

    return run


def _size(model: nn.Module, weights: str | None) -> int:
    if weights:
        return os.path.getsize(weights)
    state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}
    return len(safetensors.torch.save(state, metadata={"format": "pt"}))


class _Memory:
    """Peak memory above the moment of creation: libraries loaded, no model yet."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._touch_libraries()
        gc.collect()
        self.resets = self.device.type == "cpu" and forget_peak()
        self.baseline = self._now()

    def loaded(self) -> None:
        """Forget what loading took on top of the model itself (such as the mapped file)."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.resets:
            forget_peak()

    def added_mb(self) -> tuple[float, str]:
        """Peak since `loaded` minus the baseline (MB), and how it was measured."""
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.baseline) / 1e6, "CUDA, allocated"
        how = "peak resident set" if self.resets else "peak resident set, loading included"
        return max(peak_bytes() - self.baseline, 0) / 1e6, how

    def _touch_libraries(self) -> None:
        # The first matrix product, convolution and attention load kernels: no model's fault.
        if self.device.type == "cuda":
            torch.zeros(1, device=self.device)
        with torch.inference_mode():
            tiny = torch.zeros(1, 1, 8, 8, device=self.device)
            torch.nn.functional.scaled_dot_product_attention(tiny, tiny, tiny)
            nn.Conv2d(1, 8, 2, 2).to(self.device)(tiny)
            nn.Linear(8, 8).to(self.device)(nn.LayerNorm(8).to(self.device)(tiny)).softmax(-1)

    def _now(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        return resident_bytes()


if __name__ == "__main__":
    main()
