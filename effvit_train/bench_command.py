"""`effvit bench`: time an exported file on a device; ONNX files need numpy and onnxruntime, and nothing else."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from effvit_train.errors import MachineError, UserError
from effvit_train.export.runtimes import CPU

SCHEMA = 1
TIMEOUT_SECONDS = 3600.0
_MOST = 65536  # images in a batch
_EPILOG = """
Writes a JSON file, which `effvit audit RUN_DIR --import FILE.json` puts on the run's card. On a device without PyTorch:

  pip install --no-deps effvit_train && pip install numpy onnxruntime
  effvit bench model.onnx --batch 1,16 --threads 4

--images FILE.npz holds `images` (N, C, H, W), uint8 as they are or float32 prepared already, and `labels` (N,) if
accuracy is to be measured too.
"""


def bench(argv: Sequence[str]) -> None:
    """`effvit bench FILE [options]`.

    Raises:
        UserError: bad arguments, no such file, or a runtime that is missing or cannot open it.
        MachineError: the measuring process died.
    """
    options = _parser().parse_args(list(argv))
    batches = _batches(options.batch)
    for flag, value in (("--threads", options.threads), ("--runs", options.runs)):
        if value is not None and value < 1:
            raise UserError("must be at least 1", key=flag, value=value, remedy=f"e.g. {flag} 1")
    if not options.file.is_file():
        raise UserError(
            "no such file", key="FILE", value=options.file, remedy="give a file that `effvit export` wrote"
        )
    out = options.out or options.file.with_name(f"{options.file.name}.bench.json")
    if out.is_dir() or out.suffix != ".json":
        raise UserError(
            "must be a file that ends in .json", key="--out", value=out, remedy="e.g. --out a.json"
        )
    from effvit_train.runs import ensure_writable

    ensure_writable(out.parent, key="--out")
    result = _measure(options, batches)
    from effvit_train.files import write_json

    write_json(out, result)
    print(_summary(result))
    print(f"written: {out}\nonto the card: effvit audit RUN_DIR --import {out}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effvit bench", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EPILOG,
        description="Time an exported file on this device: latency, throughput, memory, and energy where it is counted.",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", type=Path, help=".onnx (or .pt2, .safetensors with PyTorch)")
    parser.add_argument(
        "--batch",
        default="1,16",
        metavar="N,N",
        help="images at a time (default 1,16; 1 is always among them)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="default: the cores that this process may use"
    )
    parser.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help="timed runs of each batch size (default 100, or what 10 s allow)",
    )
    parser.add_argument("--images", metavar="FILE.npz", help="real images instead of noise")
    parser.add_argument(
        "--provider", default=CPU, metavar="NAME", help=f"ONNX Runtime's execution provider (default {CPU})"
    )
    parser.add_argument(
        "--name", metavar="TEXT", help="of the device (default: the board's or the processor's)"
    )
    parser.add_argument("--out", metavar="FILE.json", type=Path, help="default: FILE.bench.json")
    return parser


def _batches(text: str) -> list[int]:
    try:
        sizes = {int(part) for part in text.split(",")}
    except ValueError:
        sizes = {0}
    if min(sizes) < 1 or max(sizes) > _MOST:
        raise UserError(
            f"must be whole numbers from 1 to {_MOST}", key="--batch", value=text, remedy="e.g. --batch 1,16"
        )
    return sorted(sizes | {1})


def _measure(options: argparse.Namespace, batches: list[int]) -> dict[str, Any]:
    from effvit_train._version import __version__
    from effvit_train.audit.fresh import ask
    from effvit_train.export.device import describe
    from effvit_train.export.facts import sha256
    from effvit_train.hardware import cores

    threads = options.threads or cores()
    try:
        answer = ask(
            "effvit_train.export.bench_probe",
            {
                "file": str(options.file), "batches": batches, "images": options.images, "num_threads": threads,
                "provider": options.provider, "runs": options.runs, "device": None,
            },
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
    except RuntimeError as error:
        raise MachineError(f"the measuring process failed: {error}") from None
    if "refused" in answer:
        raise UserError(answer["refused"])
    one, largest = answer["batches"]["1"], answer["batches"][str(batches[-1])]
    measures = dict.fromkeys(("memory_mb", "process_mb", "energy_j", "accuracy")) | answer["measured"]
    device = describe()
    return {
        "schema": SCHEMA,
        "made_by": "effvit bench",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "file": {
            "name": options.file.name, "sha256": sha256(options.file),
            "size_mb": options.file.stat().st_size / 1e6, "format": answer["format"],
        },
        "metadata": answer["metadata"],
        "runtime": answer["runtime"],
        "provider": options.provider if answer["format"] == "onnx" else None,
        "device": {**device, "name": options.name or device["name"]},
        "threads": threads,
        "measures": {
            "latency_ms": one["latency_ms"], "latency_p95_ms": one["latency_p95_ms"],
            "throughput": largest["throughput"], **measures,
        },
        "missing": answer["missing"],
        "throughput_batch": batches[-1],
        "batches": answer["batches"],
        "images": answer["images"],
        "conditions": {
            "memory": answer["memory"], "energy": answer["energy"], "load_average": answer["load_average"],
        },
        "versions": {**answer["versions"], "effvit_train": __version__},
    }  # fmt: skip


def _summary(result: dict[str, Any]) -> str:
    measures, missing = result["measures"], result["missing"]
    threads = f"{result['threads']} thread{'' if result['threads'] == 1 else 's'}"
    lines = [f"{result['file']['name']} on {result['device']['name']}, {threads}, {result['runtime']}"]
    lines += [
        f"  batch {size:>4}: {found['latency_ms']:.3g} ms (95 %: {found['latency_p95_ms']:.3g} ms), "
        f"{found['throughput']:.3g} images/s, {found['runs']} runs"
        for size, found in result["batches"].items()
    ]
    for name, what in (
        ("memory_mb", "memory, MB of the model"), ("process_mb", "memory, MB of the process"),
        ("energy_j", "energy, J an image"), ("accuracy", "accuracy"),
    ):  # fmt: skip
        value = measures[name]
        lines.append(f"  {what}: " + (f"not measured ({missing[name]})" if value is None else f"{value:.4g}"))
    return "\n".join(lines)
