"""An exported file, opened to be run. Needs numpy, and the runtime of the file's own format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effvit_train.errors import UserError, first_line, one_of
from effvit_train.export.needs import need

Array = npt.NDArray[np.float32]
CPU = "CPUExecutionProvider"
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
NAMES = {"onnx": "ONNX Runtime", "torch_export": "torch.export", "safetensors": "PyTorch"}


@dataclass(frozen=True)
class Runtime:
    """An opened file.

    Attributes:
        format: of `SUFFIXES`.
        name: of what runs it.
        run: prepared images (B, C, H, W) in float32 to logits (B, K).
        shape: (C, H, W) of an image, None where the file does not tell.
        batch: the number of images that it takes, None for any.
        metadata: the file's text by name.
        version: of the runtime.
    """

    format: str
    name: str
    run: Callable[[Array], Array]
    shape: tuple[int, ...] | None
    batch: int | None
    metadata: dict[str, str]
    version: str


def format_of(path: Path, *, key: str) -> str:
    """The format of a file by its suffix; `UserError` for another."""
    found = {suffix: name for name, suffix in SUFFIXES.items()}.get(path.suffix)
    if found is None:
        raise UserError(
            f"must end in {', '.join(SUFFIXES.values())}", key=key, value=path,
            remedy="give a file that `effvit export` wrote",
        )  # fmt: skip
    return found


def open_runtime(
    path: Path, *, threads: int, provider: str = CPU, format: str | None = None, key: str = "FILE"
) -> Runtime:
    """Open a file with the runtime of its format.

    Args:
        path: of the file.
        threads: of the processor.
        provider: ONNX Runtime's name of what computes.
        format: of `SUFFIXES`; None goes by the file's suffix.
        key: what the file is called in messages.

    Raises:
        UserError: there is no such file or runtime, or the runtime cannot open it.
    """
    format = format or format_of(path, key=key)
    if not path.is_file():
        raise UserError("no such file", key=key, value=path, remedy="give a file that `effvit export` wrote")
    if format == "onnx":
        need(key, str(path), "onnxruntime", remedy="pip install onnxruntime")
        return _open_onnx(path, threads, provider)
    need(key, str(path), "torch", remedy="install PyTorch, or export it with --format onnx")
    if provider != CPU:
        raise UserError("is for ONNX files", key="--provider", value=provider, remedy="leave it out")
    return _open_torch(path, threads, format)


def _open_onnx(path: Path, threads: int, provider: str) -> Runtime:
    import onnxruntime

    one_of("--provider", provider, tuple(onnxruntime.get_available_providers()))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # what goes wrong is raised too
    try:
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # ONNX Runtime has a dozen of its own
        raise UserError(
            f"{path} cannot be opened by ONNX Runtime {onnxruntime.__version__}: {first_line(error)}",
            remedy="export it again, with an older --opset if the runtime is old",
        ) from None
    inputs = session.get_inputs()
    sizes = list(inputs[0].shape)
    if len(inputs) != 1 or len(sizes) != 4 or any(type(size) is not int for size in sizes[1:]):
        raise UserError(
            f"{path} does not take images (B, C, H, W) of one size", remedy="give a model of images"
        )
    name = inputs[0].name

    def run(images: Array) -> Array:
        logits: Array = session.run(None, {name: images})[0]
        return logits

    batch = sizes[0] if type(sizes[0]) is int else None
    text = dict(session.get_modelmeta().custom_metadata_map)
    return Runtime("onnx", NAMES["onnx"], run, tuple(sizes[1:]), batch, text, onnxruntime.__version__)


def _open_torch(path: Path, threads: int, format: str) -> Runtime:
    import torch

    from effvit_train.export.facts import Facts

    torch.set_num_threads(threads)
    if format == "torch_export":
        from effvit_train.export.program import read_program

        model, text = read_program(path)
    else:
        from effvit_train.export.weights_file import load

        model, text = load(path)
    facts = Facts.from_text(text)
    shape = None if facts is None else facts.record.input_shape
    return Runtime(format, NAMES[format], torch_runner(model), shape, None, text, torch.__version__)


def torch_runner(model: Any) -> Callable[[Array], Array]:
    """Runs a torch module on arrays, without gradients."""
    import torch

    def run(images: Array) -> Array:
        with torch.inference_mode():
            logits: Array = model(torch.from_numpy(images)).numpy()
        return logits

    return run
