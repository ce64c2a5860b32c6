"""`effvit export`: the model of a finished run as one file, compared with it and timed beside it."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effvit_train.errors import UserError, one_of
from effvit_train.export.facts import DYNAMIC, FP32, STATIC
from effvit_train.export.needs import need
from effvit_train.export.runtimes import NAMES, SUFFIXES

if TYPE_CHECKING:
    from effvit_train.export.facts import Facts
    from effvit_train.export.onnx_file import Images
    from effvit_train.export.parity import Parity
    from effvit_train.export.rows import Row
    from effvit_train.finished import Finished

INT8 = {"none": FP32, "dynamic": DYNAMIC, "static": STATIC}
TIMEOUT_SECONDS = 600.0
FOLDER = "export"
_CALIBRATION = 256  # images
_EPILOG = """
The file is refused unless it gives what the trained model gives on test images (8 bits: reported). Examples:

  effvit export runs/x/y                                      # runs/x/y/export/model.onnx
  effvit export runs/x/y --int8 dynamic --out small.onnx
  effvit export runs/x/y --format torch_export                # .pt2, for PyTorch without effvit_train
  effvit bench small.onnx                                     # on the device: needs numpy and onnxruntime only
"""


@dataclass(frozen=True)
class Request:
    """What was typed, checked.

    Attributes:
        run: directory of the run.
        out: the file, None for the default.
        format: of `SUFFIXES`.
        precision: of `facts.PRECISIONS`.
        opset: of ONNX, None for torch's choice.
        images: test images to compare on, at most.
        threads: None for those of the training.
        data_root: where the data are now, None where they were.
    """

    run: Path
    out: Path | None
    format: str
    precision: str
    opset: int | None
    images: int
    threads: int | None
    data_root: str | None

    def target(self, run_dir: Path) -> Path:
        """The file to write; `UserError` for a place that cannot be meant."""
        suffix = SUFFIXES[self.format]
        if self.out is None:
            kind = "" if self.precision == FP32 else f".{self.precision.replace(' ', '-')}"
            return run_dir / FOLDER / f"model{kind}{suffix}"
        out = self.out.expanduser()
        if out.is_dir():
            raise UserError(
                "is a directory", key="--out", value=out, remedy=f"e.g. --out {out / ('model' + suffix)}"
            )
        if out.suffix != suffix:
            raise UserError(
                f"must end in {suffix} with --format {self.format}", key="--out", value=out,
                remedy=f"e.g. --out {out.with_suffix(suffix)}",
            )  # fmt: skip
        if out.exists() and out.resolve().parent == run_dir:
            raise UserError(
                "is a file of the run itself",
                key="--out",
                value=out,
                remedy="give another name, or leave it out",
            )
        return out


def export(argv: Sequence[str]) -> None:
    """`effvit export RUN_DIR [options]`.

    Raises:
        UserError: bad arguments, not a finished run, a model that the format cannot hold, or a package is missing.
        MachineError: the file is not what was trained.
    """
    request = _request(_parser().parse_args(list(argv)))
    from rich.console import Console

    from effvit_train.finished import open_finished
    from effvit_train.lock import RunLock

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    settings = [] if request.data_root is None else [f"dataset.root={request.data_root}"]
    run = open_finished(request.run, say, overrides=settings)
    target = request.target(run.run_dir.path)
    with RunLock(run.run_dir.path, say), _folder(target.parent):
        _export(run, request, target, say)
    from effvit_train.card import Card
    from effvit_train.report.deployed import terminal_table

    console.print(terminal_table(Card.read(run.run_dir.card)))
    say(f"file: {_relative(target)} ({target.stat().st_size / 1e6:.1f} MB)")
    say(f"card: {_relative(run.run_dir.html)}")


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[None]:
    """A directory to write into; where it was made for a file that does not come, it goes again."""
    from effvit_train.runs import ensure_writable

    there = path.is_dir()
    ensure_writable(path, key="--out")
    try:
        yield
    except BaseException:
        if not there:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effvit export", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_EPILOG,
        description="The model of a finished run as one file, compared with it on test images and timed beside it.",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN_DIR", type=Path)
    parser.add_argument("--format", default="onnx", help=f"{', '.join(SUFFIXES)} (default onnx)")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help=f"default: RUN_DIR/{FOLDER}/model with the format's suffix"
    )
    parser.add_argument(
        "--int8", default="none", help=f"{', '.join(INT8)} (default none): weights of linear layers in 8 bits"
    )
    parser.add_argument(
        "--opset", type=int, metavar="N", help="version of ONNX's operators (default: torch's)"
    )
    parser.add_argument(
        "--images",
        type=int,
        default=2000,
        metavar="N",
        help="test images to compare on, at most (default 2000)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="for timing (default: those of the training)"
    )
    parser.add_argument("--data-root", metavar="DIR", help="where the run's data are now, if they have moved")
    return parser


def _request(options: argparse.Namespace) -> Request:
    one_of("--format", options.format, tuple(SUFFIXES))
    one_of("--int8", options.int8, tuple(INT8))
    for flag, value in (("--images", options.images), ("--threads", options.threads)):
        if value is not None and value < 1:
            raise UserError("must be at least 1", key=flag, value=value, remedy=f"e.g. {flag} 1")
    if options.format == "onnx":
        need("--format", "onnx", "onnx", "onnxscript", "onnxruntime")
        _check_opset(options.opset)
    else:
        for flag, given in (("--int8", options.int8 != "none"), ("--opset", options.opset is not None)):
            if given:
                value = getattr(options, flag.lstrip("-"))
                raise UserError("is for ONNX", key=flag, value=value, remedy="leave it out, or --format onnx")
    return Request(
        run=options.run, out=options.out, format=options.format, precision=INT8[options.int8], opset=options.opset,
        images=options.images, threads=options.threads, data_root=options.data_root,
    )  # fmt: skip


def _check_opset(opset: int | None) -> None:
    if opset is None:
        return
    from effvit_train.export.onnx_file import OLDEST_OPSET, newest_opset

    newest = newest_opset()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(
            f"must be from {OLDEST_OPSET} to {newest}", key="--opset", value=opset, remedy="or leave it out"
        )


def _export(run: Finished, request: Request, target: Path, say: Any) -> None:
    from effvit_train.card import Card
    from effvit_train.export.facts import Facts, sha256
    from effvit_train.export.rows import KEY, merged
    from effvit_train.files import atomic_path
    from effvit_train.report.publish import publish
    from effvit_train.seen import of_run, to_text

    facts = Facts(
        run.record, sha256(run.run_dir.weights), request.precision, to_text(of_run(run.run_dir.path) or [])
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / f"model{SUFFIXES[request.format]}"
        say(f"exporting to {request.format}, {request.precision} ...")
        _write(run, request, facts, made)
        parity = _compare(run, request, made, say)
        timed = _time(run, request, made, say)
        with atomic_path(target) as temporary:
            shutil.copyfile(made, temporary)
    rows = _rows(request, parity, timed, target, run.run_dir.weights)
    card = Card.read(run.run_dir.card)
    provenance = {**card.provenance, KEY: merged(card.provenance.get(KEY), rows)}
    card = replace(card, provenance=provenance)
    card.write(run.run_dir.card)
    publish(run.run_dir, card, run.config, say)


def _write(run: Finished, request: Request, facts: Facts, path: Path) -> None:
    """The file of the request, at `path`."""
    if request.format == "safetensors":
        from effvit_train.export.weights_file import write_weights

        write_weights(run.run_dir.weights, facts, path)
        return
    import torch

    from effvit_train.export.program import exported, write_program

    program = exported(run.model.float(), torch.randn(2, *run.record.input_shape))
    if request.format == "torch_export":
        write_program(program, facts, path)
        return
    from effvit_train.export.onnx_file import quantize, write_onnx

    if request.precision == FP32:
        write_onnx(program, facts, path, opset=request.opset)
        return
    calibration = _calibration(run) if request.precision == STATIC else iter(())
    whole = path.with_name(f"fp32{path.suffix}")
    write_onnx(program, facts, whole, opset=request.opset)
    quantize(whole, path, facts, calibration)


def _calibration(run: Finished) -> Iterator[Images]:
    """Training images as they are; of a private run validation images, which are public (contract C7)."""
    private = run.config.privacy.on
    split = "val" if private else "train"
    if not len(run.data.indices(split)):
        raise UserError(
            "was trained with differential privacy and has no validation images to calibrate on; its training images "
            "may not be looked at again",
            key="RUN_DIR", value=run.run_dir.path, remedy="--int8 dynamic",
        )  # fmt: skip
    return (images for images, _ in _prepared(run, split, _CALIBRATION))


def _prepared(run: Finished, split: str, most: int) -> Iterator[Any]:
    """Prepared images (B, C, H, W) and labels (B,) of a split: all, or `most` that lie evenly in it."""
    from effvit_train.predictions import normaliser

    normalise = normaliser(run.record)
    for batch in run.data.loader_of(run.data.evenly(split, most)):
        yield normalise(batch.images).numpy(), batch.labels.numpy()


def _compare(run: Finished, request: Request, path: Path, say: Any) -> Parity:
    from effvit_train.export.parity import check, compare
    from effvit_train.export.runtimes import open_runtime, torch_runner
    from effvit_train.models.quantised import is_quantised

    count = min(request.images, len(run.data.indices("test")))
    say(f"comparing with the trained model on {count:,} test images ...")
    runtime = open_runtime(path, threads=_threads(run, request), format=request.format)
    parity = compare(
        _prepared(run, "test", request.images), torch_runner(run.model.float().eval()), runtime.run
    )
    parity = dataclasses.replace(parity, rounds=is_quantised(run.model))
    check(parity, request.precision)
    return parity


def _threads(run: Finished, request: Request) -> int:
    import torch

    return (
        request.threads
        or run.config.audit.num_threads
        or run.config.trainer.num_threads
        or torch.get_num_threads()
    )


def _time(run: Finished, request: Request, path: Path, say: Any) -> dict[str, Any]:
    from effvit_train.audit.fresh import ask
    from effvit_train.errors import MachineError

    say("timing it beside PyTorch in a fresh process ...")
    settings = run.config.audit
    question = {
        "run_dir": str(run.run_dir.path),
        # a file of weights is run by PyTorch itself: there is nothing to time beside
        "file": None if request.format == "safetensors" else str(path),
        "format": request.format,
        "input_shape": list(run.record.input_shape),
        "num_threads": _threads(run, request),
        "device": "cpu",
        "batch": settings.throughput_batch,
        "runs": settings.latency_runs,
        "batch_runs": settings.throughput_runs,
    }
    try:
        return ask("effvit_train.export.timing", question, timeout=TIMEOUT_SECONDS)
    except RuntimeError as error:
        raise MachineError(f"the measuring process failed: {error}") from None


def _rows(request: Request, parity: Parity, timed: dict[str, Any], target: Path, weights: Path) -> list[Row]:
    """The trained model's row, and that of the file where another runtime runs it."""
    from effvit_train.export.facts import sha256
    from effvit_train.export.rows import BY_EXPORT, row
    from effvit_train.export.timing import EXPORTED, PYTORCH
    from effvit_train.runs import machine, versions

    conditions = {
        "throughput_batch": timed["throughput_batch"], "images": parity.images, "device": timed["device"],
        "threads": timed["threads"], "load_average": timed["load_average"], "machine": machine(),
        "versions": versions() | _runtime_versions(), "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "made_by": BY_EXPORT,
    }  # fmt: skip
    reference = "it is what the others are compared with"
    missing = dict.fromkeys(("memory_mb", "process_mb", "energy_j"), "effvit bench measures it")
    whole = request.format == "safetensors"
    shipped = target if whole else weights
    rows = [
        row(
            {"runtime": NAMES["safetensors"], "format": "safetensors", "precision": FP32, **_file(shipped), **conditions},
            timed["runtimes"][PYTORCH] | {"accuracy": parity.reference_accuracy},
            missing | {"max_difference": reference, "equal_predictions": reference},
        )
    ]  # fmt: skip
    if not whole:
        compared = {
            "accuracy": parity.accuracy, "max_difference": parity.max_difference,
            "equal_predictions": parity.equal_predictions,
        }  # fmt: skip
        more = {"batch_sizes": list(parity.batch_sizes), "tolerance": parity.tolerance}
        rows.append(
            row(
                {
                    "runtime": NAMES[request.format], "format": request.format, "precision": request.precision,
                    **_file(target), "sha256": sha256(target), **conditions, **more,
                },
                timed["runtimes"][EXPORTED] | compared,
                missing,
            )
        )  # fmt: skip
    return rows


def _file(path: Path) -> dict[str, Any]:
    return {"file": path.name, "size_mb": path.stat().st_size / 1e6}


def _runtime_versions() -> dict[str, str]:
    import importlib.metadata

    found = {}
    for name in ("onnx", "onnxscript", "onnxruntime"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _relative(path: Path) -> str:
    return os.path.relpath(path)
