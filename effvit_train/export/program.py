"""A model as a graph of operators: `torch.export`, which ONNX files are made from too."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from effvit_train.errors import UserError, first_line
from effvit_train.export.facts import Facts

_EXTRA = "effvit.json"
# What tells the machine that a graph was made on: files of its Python, and lines in them.
_ORIGINS = ("stack_trace", "source_fn_stack", "nn_module_stack", "from_node")


def exported(model: nn.Module, example: Tensor) -> ExportedProgram:
    """The graph of a model in evaluation mode, for any number of images.

    Args:
        model: takes images (B, C, H, W).
        example: two of them; one alone would be taken for a constant.

    Raises:
        UserError: what the model does depends on the values it sees, or on the number of images.
    """
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(model, (example,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # of the tracer, the shapes' solver, or a layer: each has its own
        raise UserError(
            f"the model cannot be made into a graph: {first_line(error)}",
            remedy="--format safetensors holds it",
        ) from None


def write_program(program: ExportedProgram, facts: Facts, path: Path) -> None:
    """Write a `.pt2` file."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for name in _ORIGINS:
                node.meta.pop(name, None)
    with quiet(), open(path, "wb") as file:
        torch.export.save(program, file, extra_files={_EXTRA: json.dumps(facts.to_text())})


def read_program(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """The model of a `.pt2` file, and its text by name.

    Raises:
        UserError: it is none, or of another version of PyTorch.
    """
    extra = {_EXTRA: ""}
    try:
        with quiet(), open(path, "rb") as file:
            program = torch.export.load(file, extra_files=extra)
        return program.module(), json.loads(extra[_EXTRA] or "{}")
    except OSError:
        raise
    except Exception as error:
        raise UserError(
            f"{path} cannot be read by PyTorch {torch.__version__}: {first_line(error)}",
            remedy="export it again with this version",
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what exporters and quantizers tell the developers of models."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
