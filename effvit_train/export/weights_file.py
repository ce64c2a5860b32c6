"""A safetensors file that holds a model whole: its weights, and its architecture record in the header."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import safetensors
import torch
from torch import nn

from effvit_train.errors import UserError
from effvit_train.export.facts import Facts
from effvit_train.models.factory import build, load_weights


def write_weights(weights: Path, facts: Facts, path: Path) -> None:
    """Write a run's `model.safetensors` again, with the facts in its header; the tensors' bytes stay as they are."""
    with open(weights, "rb") as source, open(path, "wb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(8), "little")))
        header["__metadata__"] = dict(sorted({**header.get("__metadata__", {}), **facts.to_text()}.items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
        target.write(len(text).to_bytes(8, "little") + text)
        shutil.copyfileobj(source, target)


def load(path: Path) -> tuple[nn.Module, dict[str, str]]:
    """The model of a file that `effvit export --format safetensors` wrote, in evaluation mode; and its text by name.

    Raises:
        UserError: it is none, is damaged, or belongs to another version of timm.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged ({error})", remedy="export it again") from None
    facts = Facts.from_text(text)
    if facts is None:
        raise UserError(
            f"{path} does not tell its architecture", remedy="give a file that `effvit export` wrote"
        )
    with torch.random.fork_rng(devices=[]):
        model = build(facts.record)
    load_weights(model, path)
    return model.eval(), text
