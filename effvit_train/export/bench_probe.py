"""Measure an exported file in a process of its own: `python -m effvit_train.export.bench_probe`.

Reads one JSON request on the standard input, prints one JSON answer. A process that has done nothing before: its
memory is the file's and the runtime's. Needs numpy and the runtime of the file's format, and nothing else.
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

import numpy as np
import numpy.typing as npt

from effvit_train.errors import UserError
from effvit_train.export.facts import Facts
from effvit_train.export.needs import need
from effvit_train.export.runtimes import Runtime, format_of, open_runtime
from effvit_train.rapl import measure_energy
from effvit_train.resident import forget_peak, peak_bytes, resident_bytes
from effvit_train.stopwatch import median, percentile, time_runs

WARMUP_RUNS = 5
SECONDS = 10.0  # budget of the timed runs of one batch size, where the number of runs was not typed
DEFAULT_RUNS = 100

Array = npt.NDArray[np.float32]


def main() -> None:
    """Answer the request on the standard input; a mistake of the user's is `{"refused": line}`."""
    try:
        answer = measure(json.load(sys.stdin))
    except UserError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer), flush=True)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Measure `file` at the batch sizes `batches`; `images`, `num_threads`, `provider`, `runs` may be given."""
    path = Path(request["file"])
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    memory = _Memory(format_of(path, key="FILE"), path)
    runtime = open_runtime(path, threads=request["num_threads"], provider=request["provider"])
    if runtime.shape is None:
        raise UserError(
            f"{path} does not tell the shape of its images", remedy="export it with effvit export"
        )
    memory.loaded()
    _check_batches(runtime, request["batches"])
    zeros = np.zeros((runtime.batch or 1, *runtime.shape), dtype=np.float32)
    runtime.run(zeros)
    runtime.run(zeros)
    measured, missing = memory.read()
    images, labels = _images(request["images"], runtime)
    timed = {str(size): _timed(runtime, images, size, request["runs"]) for size in request["batches"]}
    largest = max(request["batches"])
    batch = _batch(images, largest)
    joules, how = measure_energy(lambda: runtime.run(batch), seconds=0.5)
    if joules is None:
        missing["energy_j"] = how
    else:
        measured["energy_j"] = joules / largest
    if labels is None:
        missing["accuracy"] = "no images with labels were given (--images FILE.npz)"
    else:
        measured["accuracy"] = _accuracy(runtime, images, labels, largest)
    return {
        "format": runtime.format, "runtime": runtime.name, "metadata": runtime.metadata, "batches": timed,
        "measured": measured, "missing": missing, "memory": memory.how, "energy": how,
        "images": None if labels is None else len(labels), "load_average": load,
        "versions": {"python": platform.python_version(), "numpy": np.__version__, runtime.name: runtime.version},
    }  # fmt: skip


def _check_batches(runtime: Runtime, sizes: list[int]) -> None:
    others = [size for size in sizes if runtime.batch not in (None, size)]
    if others:
        raise UserError(
            f"the file takes {runtime.batch} images at a time", key="--batch", value=others[0],
            remedy=f"--batch {runtime.batch}, or export it again",
        )  # fmt: skip


def _images(file: str | None, runtime: Runtime) -> tuple[Array, npt.NDArray[np.int64] | None]:
    """Prepared images (N, C, H, W) and labels (N,): those of a file, or noise.

    Noise, because zeros would make some kernels (and denormals) unusually fast or slow.
    """
    assert runtime.shape is not None
    if file is None:
        return np.random.default_rng(0).standard_normal((1, *runtime.shape)).astype(np.float32), None
    try:
        with np.load(file, allow_pickle=False) as content:
            images = content["images"]
            labels = content["labels"] if "labels" in content.files else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "holds no array `images`", key="--images", value=file,
            remedy="numpy.savez(FILE, images=..., labels=...), images of uint8 (N, C, H, W)",
        ) from None  # fmt: skip
    if images.ndim != 4 or images.shape[1:] != runtime.shape or not len(images):
        raise UserError(
            f"holds images of the shape {images.shape[1:]}, the model takes {runtime.shape}", key="--images",
            value=file, remedy="give images (N, C, H, W)",
        )  # fmt: skip
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise UserError(
            "holds labels that are not one whole number for each image", key="--images", value=file,
            remedy="labels of int64 (N,)",
        )  # fmt: skip
    if images.dtype == np.uint8:
        images = _normalised(images, runtime, file)
    elif images.dtype != np.float32:
        raise UserError(
            f"holds images of {images.dtype}", key="--images", value=file,
            remedy="uint8 as they are, or float32 prepared already",
        )  # fmt: skip
    return images, None if labels is None else labels.astype(np.int64)


def _normalised(images: npt.NDArray[np.uint8], runtime: Runtime, file: str) -> Array:
    facts = Facts.from_text(runtime.metadata)
    if facts is None:
        raise UserError(
            "holds images as they are, and the model's file does not tell how to prepare them", key="--images",
            value=file, remedy="float32, prepared already",
        )  # fmt: skip
    mean, std = (
        np.array(v, np.float32).reshape(-1, 1, 1) * 255 for v in (facts.record.mean, facts.record.std)
    )
    prepared: Array = ((images.astype(np.float32) - mean) / std).astype(np.float32)
    return prepared


def _batch(images: Array, size: int) -> Array:
    return np.ascontiguousarray(np.resize(images, (size, *images.shape[1:])))


def _timed(runtime: Runtime, images: Array, size: int, runs: int | None) -> dict[str, Any]:
    batch = _batch(images, size)
    run: Callable[[], object] = lambda: runtime.run(batch)  # noqa: E731
    budget = SECONDS if runs is None else float("inf")
    times = time_runs(run, runs or DEFAULT_RUNS, budget, warmup=WARMUP_RUNS)
    return {
        "latency_ms": 1e3 * median(times), "latency_p95_ms": 1e3 * percentile(times, 0.95),
        "throughput": size / median(times), "runs": len(times),
    }  # fmt: skip


def _accuracy(runtime: Runtime, images: Array, labels: npt.NDArray[np.int64], size: int) -> float:
    right = 0
    for start in range(0, len(labels), size):
        part, truth = images[start : start + size], labels[start : start + size]
        shown = part if runtime.batch is None else _batch(part, size)
        right += int((runtime.run(shown)[: len(part)].argmax(1) == truth).sum())
    return right / len(labels)


class _Memory:
    """Peak memory of the process, and how much of it came with the model: libraries are loaded before.

    Args:
        format: of the file.
        path: of the file, for messages.
    """

    def __init__(self, format: str, path: Path) -> None:
        self.how = ""
        if format == "onnx":
            need("FILE", str(path), "onnxruntime", remedy="pip install onnxruntime")
            import onnxruntime  # noqa: F401
        else:
            need("FILE", str(path), "torch", remedy="install PyTorch, or export it with --format onnx")
            import torch  # noqa: F401
        gc.collect()
        self._resets = forget_peak()
        self._before = self._bytes(resident_bytes)
        self._whole: int | None = None

    def loaded(self) -> None:
        """Forget what loading took on top of the model itself, but for the peak of the whole process."""
        self._whole = self._bytes(peak_bytes)
        if self._resets:
            forget_peak()

    def read(self) -> tuple[dict[str, float], dict[str, str]]:
        """`memory_mb` above the moment of creation, `process_mb` of the whole; and reasons of what is missing."""
        peak = self._bytes(peak_bytes)
        if peak is None or self._before is None or self._whole is None:
            reason = "this system does not tell a process's peak memory"
            return {}, {"memory_mb": reason, "process_mb": reason}
        self.how = "peak resident set" if self._resets else "peak resident set, loading included"
        return {
            "memory_mb": max(peak - self._before, 0) / 1e6,
            "process_mb": max(peak, self._whole) / 1e6,
        }, {}

    @staticmethod
    def _bytes(read: Callable[[], int]) -> int | None:
        try:
            return read()
        except ImportError:  # Windows has no getrusage
            return None


if __name__ == "__main__":
    main()
