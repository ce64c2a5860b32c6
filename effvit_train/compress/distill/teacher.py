"""Where the teacher comes from: a run of ours, a timm model, or trained first."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from effvit_train.card import Card
from effvit_train.compress.distill import DistillConfig
from effvit_train.config import Config
from effvit_train.errors import UserError, did_you_mean
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import count_parameters, create, embed_width, load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.parts import Context
from effvit_train.precision import choose_precision
from effvit_train.runs import RunDir

# Chosen on digits among five convnets (docs/benchmarks.md): near the best teacher's accuracy at a
# fraction of its cost, which the student pays at every step. Larger images need more of a network.
_SMALL_IMAGE = 64
_SMALL_TEACHER = "test_efficientnet"
_LARGE_TEACHER = "resnet18"


@dataclass
class Teacher:
    """A frozen model and what the card says of it.

    Attributes:
        model: in evaluation mode; maps its own normalised images to logits (B, K).
        mean, std: its normalisation, per channel, of pixels in 0..1.
        provenance: the card's `provenance.teacher`.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        self._device: torch.device | None = None
        self._autocast = False

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K), float32, without gradients; in bf16 where that is faster for its width."""
        if self._device != images.device:
            self.model.to(images.device)
            self._device = images.device
            precision = choose_precision(
                "auto", device_type=images.device.type, width=embed_width(self.model)
            )
            self._autocast = precision.name == "bf16-mixed"
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=self._autocast):
            return self.model(images).float()


def find_teacher(config: DistillConfig, context: Context) -> Teacher:
    """Return the teacher that the configuration asks for.

    Raises:
        UserError: it cannot be found, does not know the student's classes, or takes other images.
    """
    if config.teacher is None:
        return _trained_here(config, context)
    if Path(config.teacher).expanduser().is_dir():
        return _from_run(Path(config.teacher).expanduser(), "run", context)
    if timm.is_model(config.teacher.partition("/")[2] or config.teacher):
        return _from_timm(config, context)
    hint = did_you_mean(config.teacher, timm.list_models())
    raise UserError(
        "is neither a run directory nor a timm model",
        key="compress.distill.teacher",
        value=config.teacher,
        remedy=hint or "leave it out to train a teacher first",
    )


def _trained_here(config: DistillConfig, context: Context) -> Teacher:
    trained = config.trained
    model = copy.deepcopy(trained.model)
    if model.name == "auto":
        small = max(context.info.input_shape[1:]) <= _SMALL_IMAGE
        model.name = _SMALL_TEACHER if small else _LARGE_TEACHER
    settings: Config = copy.deepcopy(context.config)
    settings.model, settings.recipe, settings.seed = model, trained.recipe, trained.seed
    settings.trainer.max_epochs = trained.epochs(context.info.counts["train"])
    try:
        run = context.train(settings, "teacher")
    except UserError as error:
        own = (error.key or "").startswith(("model.", "recipe."))
        raise (error.under("compress.distill.trained") if own else error) from None
    return _from_run(run, "trained here", context)


def _from_run(path: Path, source: str, context: Context) -> Teacher:
    run = RunDir(path)
    record = ArchitectureRecord.read(run.record)
    key = "compress.distill.teacher"
    if record.classes != context.info.classes:
        raise UserError(
            f"knows the classes {_list(record.classes)}, the data has {_list(context.info.classes)}",
            key=key, value=path, remedy="give a teacher trained on the same classes",
        )  # fmt: skip
    if record.input_shape != context.info.input_shape:
        raise UserError(
            f"takes images of shape {record.input_shape}, the data has {context.info.input_shape}",
            key=key, value=path, remedy="train both at one dataset.image_size and dataset.channels",
        )  # fmt: skip
    model = load_model(path)
    card = Card.read(run.card)
    data = card.provenance.get("dataset") or {}
    same = data.get("fingerprint") == context.info.fingerprint
    if not same:
        context.say(
            f"teacher: {path} was trained on other data or another split than this run: "
            "it may have seen images of this test split (named on the card)"
        )
    teacher = Teacher(model, record.mean, record.std)
    teacher.provenance = {
        "name": record.name,
        "source": source,
        "run_dir": str(path),
        "accuracy": context.test_accuracy(teacher.logits, record.mean, record.std),
        "params": count_parameters(model),
        "epochs": card.run.get("epochs"),
        "fast_dev_run": card.run.get("fast_dev_run"),
        "data": data.get("fingerprint"),
        "same_data": same,
    }
    return teacher


def _from_timm(config: DistillConfig, context: Context) -> Teacher:
    info = context.info
    assert config.teacher is not None
    published = timm.get_pretrained_cfg(config.teacher.partition("/")[2] or config.teacher)
    if config.weights is None and not config.pretrained:
        raise UserError(
            "has no weights: an untrained teacher teaches nothing",
            key="compress.distill.teacher", value=config.teacher,
            remedy="give compress.distill.weights=FILE or compress.distill.pretrained=true",
        )  # fmt: skip
    classes = getattr(published, "num_classes", None)
    if config.weights is None and classes != len(info.classes):
        raise UserError(
            f"its published weights know {classes} classes, the data has {len(info.classes)}",
            key="compress.distill.teacher", value=config.teacher,
            remedy="train it on this data first (python train.py model.name=...) and give the run directory",
        )  # fmt: skip
    mean, std = info.mean, info.std
    if config.weights is None and published is not None and len(published.mean) == len(mean):
        mean, std = tuple(published.mean), tuple(published.std)
    settings = ModelConfig(
        name=config.teacher, pretrained=config.weights is None, weights=config.weights, patch_size=None
    )
    lines: list[str] = []
    try:
        model, _ = create(
            settings, input_shape=info.input_shape, classes=info.classes, mean=mean, std=std, say=lines.append
        )
    except UserError as error:
        key = (error.key or "").replace("model.weights", "compress.distill.weights")
        raise UserError(error.problem, key=key, value=error.value, remedy=error.remedy) from None
    if any("new head" in line for line in lines):
        raise UserError(
            f"knows other classes than the data ({lines[0].partition(': ')[2]}): its head would be random",
            key="compress.distill.weights", value=config.weights,
            remedy="give weights that were trained on this data's classes",
        )  # fmt: skip
    teacher = Teacher(model, mean, std)
    teacher.provenance = {
        "name": config.teacher,
        "source": "file" if config.weights else "timm",
        "run_dir": None,
        "accuracy": context.test_accuracy(teacher.logits, mean, std),
        "params": count_parameters(model),
    }
    return teacher


def _list(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown
