"""ONNX files: written from a graph of torch, and with the weights of their linear layers in 8 bits."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

from effvit_train.errors import UserError, first_line
from effvit_train.export.facts import DYNAMIC, Facts
from effvit_train.export.program import quiet

INPUT, OUTPUT = "images", "logits"
OLDEST_OPSET = 18  # that torch writes
_MOST_BYTES = 2**31 - 1  # of one file: a limit of protobuf
_LINEAR = ["MatMul", "Gemm"]
_OPERATOR = re.compile(r"OpOverload\(op='([^']+)'")

Images = npt.NDArray[np.float32]


def newest_opset() -> int:
    """The newest operator set that the installed `onnx` knows."""
    import onnx

    return int(onnx.defs.onnx_opset_version())


def write_onnx(program: ExportedProgram, facts: Facts, path: Path, *, opset: int | None = None) -> None:
    """Write an ONNX file.

    Args:
        program: of the model.
        facts: to stand in the file's metadata.
        path: of the file.
        opset: version of the operator set; None leaves it to torch.

    Raises:
        UserError: ONNX lacks an operator, or the version cannot be had.
    """
    try:
        with quiet():
            made = torch.onnx.export(
                program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT],
                opset_version=opset,
            )  # fmt: skip
    except Exception as error:
        raise UserError(
            f"cannot be written: {_reason(error)}", key="--format", value="onnx",
            remedy="--format torch_export or safetensors",
        ) from None  # fmt: skip
    assert made is not None
    model = made.model_proto
    version = next(entry.version for entry in model.opset_import if not entry.domain)
    if opset is not None and version != opset:
        raise UserError(
            f"the model cannot be written so, but with {version}", key="--opset", value=opset,
            remedy=f"--opset {version}, or leave it out",
        )  # fmt: skip
    _forget_origins(model)
    _save(model, facts, path)


def quantize(source: Path, target: Path, facts: Facts, calibration: Iterable[Images] = ()) -> None:
    """Write an ONNX file again with weights in 8 bits, each output channel with its own scale.

    Dynamic: activations are scaled as they come, batch by batch; the patches' convolution stays as it is.
    Static: with scales that calibration images gave (their least and largest values), as pairs of QuantizeLinear and
    DequantizeLinear. Products of two activations (attention) stay in 32 bits.

    Args:
        source: in 32 bits.
        target: to be written.
        facts: of the new file; their precision says how.
        calibration: batches of prepared images (B, C, H, W), for static quantization.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    options = {"MatMulConstBOnly": True}
    with quiet():
        if facts.precision == DYNAMIC:
            quantize_dynamic(
                source, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=_LINEAR,
                extra_options=options,
            )  # fmt: skip
        else:
            quantize_static(
                source, target, _reader(calibration), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
                op_types_to_quantize=[*_LINEAR, "Conv"], extra_options=options,
            )  # fmt: skip
    _save(onnx.load(target), facts, target)


def _reader(batches: Iterable[Images]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Hands batches of images over."""

        def __init__(self) -> None:
            self._batches = iter(batches)

        def get_next(self) -> dict[str, Images] | None:
            """The next batch, None after the last."""
            images = next(self._batches, None)
            return None if images is None else {INPUT: images}

    return Reader()


def _save(model: Any, facts: Facts, path: Path) -> None:
    import onnx

    if model.ByteSize() > _MOST_BYTES:
        raise UserError(
            f"would take {model.ByteSize() / 1e9:.1f} GB, and an ONNX file holds at most 2", key="--format",
            value="onnx", remedy="--format torch_export or safetensors",
        )  # fmt: skip
    onnx.helper.set_model_props(model, facts.to_text())
    onnx.save_model(model, path)


def _forget_origins(model: Any) -> None:
    """Leave out what torch notes for developers: Python files of this machine, and lines in them.

    And the shapes of values within: some versions of torch leave those there that a later folding has turned over.
    """
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        del graph.value_info[:]
        for part in graph.node:
            del part.metadata_props[:]
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]


def _reason(error: Exception) -> str:
    """The operator that is missing, or the innermost complaint."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    found = _OPERATOR.search(str(cause))
    return f"ONNX lacks the operator {found[1]}" if found else first_line(cause)
