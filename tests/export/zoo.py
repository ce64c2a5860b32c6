"""Small models of each kind, saved as a run saves them, and what compares an export with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from effvit_train.export.facts import Facts, sha256
from effvit_train.export.program import exported
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, load_model, save_model
from effvit_train.models.record import ArchitectureRecord

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# One of each of conf/model/*.yaml's kinds; DeiT with its distillation token; an attention that pools.
KINDS = {
    "vit": (ModelConfig(args=SMALL), (1, 8, 8)),
    "vit_avg": (ModelConfig(pool="avg", args=SMALL), (3, 16, 16)),
    "deit": (ModelConfig(name="deit_tiny_distilled_patch16_224", args=SMALL), (3, 32, 32)),
    "deit3": (ModelConfig(name="deit3_small_patch16_224", args=SMALL), (3, 32, 32)),
    "swin": (
        ModelConfig(
            name="swin_tiny_patch4_window7_224", args={"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
        ),
        (3, 32, 32),
    ),
    "scatter": (
        ModelConfig(stem="scattering", pool="flat", args={**SMALL, "class_token": False}),
        (1, 16, 16),
    ),
}


def saved(directory: Path, kind: str = "vit", classes: int = 3) -> tuple[torch.nn.Module, ArchitectureRecord]:
    """A model of a kind with random weights, in the two files of a run; opened from them."""
    config, shape = KINDS[kind]
    torch.manual_seed(0)
    model, record = create(
        config, input_shape=shape, classes=[f"class {k}" for k in range(classes)],
        mean=[0.25 + k / 8 for k in range(shape[0])], std=[0.5 + k / 8 for k in range(shape[0])],
    )  # fmt: skip
    for (
        parameter
    ) in model.parameters():  # layer scales and heads that start near 0 would hide what comes before
        parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(model, record, directory)
    return load_model(directory), record


def facts_of(directory: Path, precision: str = "fp32") -> Facts:
    record = ArchitectureRecord.read(directory / "model.json")
    return Facts(record, sha256(directory / "model.safetensors"), precision)


def program_of(model: torch.nn.Module, record: ArchitectureRecord):
    return exported(model, torch.randn(2, *record.input_shape))


def images_of(record: ArchitectureRecord, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *record.input_shape)).astype(np.float32)


def batches(model: torch.nn.Module, record: ArchitectureRecord, count: int = 96):
    """Images with the labels that the model itself gives them: its accuracy is 1."""
    images = images_of(record, count)
    with torch.inference_mode():
        labels = model(torch.from_numpy(images)).argmax(1).numpy()
    return [(images, labels)]
