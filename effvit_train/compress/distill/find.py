"""Where teachers come from: runs of ours, timm models, or trained first."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from torch import nn

from effvit_train import seen
from effvit_train.card import Card
from effvit_train.compress.distill.config import DistillConfig
from effvit_train.config import Config
from effvit_train.errors import UserError, did_you_mean
from effvit_train.frozen import Teacher, View
from effvit_train.models.config import AttentionArgs, ModelConfig
from effvit_train.models.factory import count_parameters, create, hash_state, inspect_model, load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.parts import Context
from effvit_train.runs import RunDir, fingerprint_of

# Chosen on digits among five convnets (docs/benchmarks.md): near the best teacher's accuracy at a
# fraction of its cost, which the student pays at every step. Larger images need more of a network.
_SMALL_IMAGE = 64
_SMALL_TEACHER = "test_efficientnet"
_LARGE_TEACHER = "resnet18"
# `relation` compares attention, which only a ViT has.
_SMALL_VIT: dict[str, Any] = {"embed_dim": 128, "depth": 6, "num_heads": 4}
_KEY = "compress.distill.teacher"


@dataclass
class Found:
    """A teacher that was found, and loaded where that was needed to know it.

    Attributes:
        provenance: the card's `provenance.teacher`.
        digest: SHA-256 of all that shapes what it says: weights, architecture, view.
        load: brings it into memory.
    """

    provenance: dict[str, Any]
    digest: str
    load: Callable[[], Teacher] = field(repr=False)


def find_teachers(config: DistillConfig, context: Context) -> list[Found]:
    """Return the teachers that the configuration asks for, at least one.

    Raises:
        UserError: one cannot be found, or does not know the student's classes.
    """
    if not config.teachers:
        return [_trained_here(config, context)]
    return [_named(name, config, context) for name in config.teachers]


def _named(name: str, config: DistillConfig, context: Context) -> Found:
    if Path(name).is_dir():
        return _from_run(Path(name), "run", context)
    if timm.is_model(name.partition("/")[2] or name):
        return _from_timm(name, config, context)
    hint = did_you_mean(name, timm.list_models())
    raise UserError(
        "is neither a run directory nor a timm model", key=_KEY, value=name,
        remedy=hint or "leave it out to train a teacher first",
    )  # fmt: skip


def default_teacher(config: DistillConfig, size: int) -> ModelConfig:
    """What `trained.model.name=auto` means: a convnet, or a ViT where relations are to be learnt."""
    model = copy.deepcopy(config.trained.model)
    if model.name != "auto":
        return model
    small = size <= _SMALL_IMAGE
    if "relation" not in config.kinds:
        model.name = _SMALL_TEACHER if small else _LARGE_TEACHER
        return model
    model.name, model.patch_size, model.pos_std = "vit_tiny_patch16_224", "auto", 1.0
    if small:
        model.args = _SMALL_VIT | model.args
    return model


def _trained_here(config: DistillConfig, context: Context) -> Found:
    if context.stream_of_tasks is not None:
        raise UserError(
            "trains a teacher first, on the data of all tasks before they have come", key=_KEY, value=None,
            remedy=f"give one, e.g. {_KEY}=RUN_DIR; or learn from the model as it was: continual=lwf",
        )  # fmt: skip
    trained = config.trained
    settings: Config = copy.deepcopy(context.config)
    settings.model = default_teacher(config, max(context.info.input_shape[1:]))
    if "attention" in config.kinds and trained.model.name == "auto":  # the student's body, attention exact
        settings.model = dataclasses.replace(
            context.config.model,
            attention=None,
            attention_args=AttentionArgs(),
            weights=None,
            pretrained=False,
        )
    settings.recipe, settings.seed = trained.recipe, trained.seed
    settings.trainer.max_epochs = trained.epochs(context.info.counts["train"])
    try:
        run = context.train(settings, "teacher")
    except UserError as error:
        own = (error.key or "").startswith(("model.", "recipe."))
        raise (error.under("compress.distill.trained") if own else error) from None
    return _from_run(run, "trained here", context)


def _from_run(path: Path, source: str, context: Context) -> Found:
    run = RunDir(path)
    record = ArchitectureRecord.read(run.record)
    if sorted(record.classes) != sorted(context.info.classes):
        raise UserError(
            f"knows the classes {_list(record.classes)}, the data has {_list(context.info.classes)}",
            key=_KEY, value=path, remedy="give a teacher trained on the same classes",
        )  # fmt: skip
    model = inspect_model(path)  # what cannot be loaded is told before anything is trained
    card = Card.read(run.card)
    named = (card.provenance.get("dataset") or {}).get("fingerprint")
    same = (fingerprint_of(path) or named) == context.info.fingerprint
    if not same:
        context.say(
            f"teacher: {path} was trained on other data or another split than this run: "
            "it may have seen images of this test split (named on the card)"
        )
    view = _view(context, record.mean, record.std, record.input_shape[1:])
    digest = _digest(file=run.weights, shape=record.to_json(), size=record.input_shape[1:])
    outputs = None
    if record.classes != context.info.classes:  # of a stream: numbered in the order of arrival
        outputs = [record.classes.index(name) for name in context.info.classes]
        digest = hashlib.sha256(f"{digest} {outputs}".encode()).hexdigest()
    own = {key: value for key, value in card.measures.items() if key.startswith(("quality/", "cost/"))}
    provenance: dict[str, Any] = {
        "name": record.name,
        "source": source,
        "run_dir": str(path),
        "accuracy": card.measures.get("quality/accuracy")
        if same
        else _accuracy(Teacher(load_model(path), view, outputs), context),
        "params": count_parameters(model),
        "epochs": card.run.get("epochs"),
        "fast_dev_run": card.run.get("fast_dev_run"),
        "data": named,
        "same_data": same,
        "measures": own,
        "missing": {key: reason for key, reason in card.missing.items() if key in own},
        "seen": seen.of_run(path) or seen.foreign(None, "training"),
        "declared": None,
    }
    return Found(provenance, digest, lambda: Teacher(load_model(path), view, outputs))


def _from_timm(name: str, config: DistillConfig, context: Context) -> Found:
    info = context.info
    dataset = context.config.dataset
    if dataset.stream == "class" and dataset.stream_order is not None:
        raise UserError(
            "does not name its outputs, and this stream numbers the classes in the order of arrival",
            key=_KEY, value=name, remedy="dataset.stream_order=null, or the run directory of a teacher",
        )  # fmt: skip
    published = timm.get_pretrained_cfg(name.partition("/")[2] or name)
    if config.weights is None and not config.pretrained:
        raise UserError(
            "has no weights: an untrained teacher teaches nothing", key=_KEY, value=name,
            remedy="give compress.distill.weights=FILE or compress.distill.pretrained=true",
        )  # fmt: skip
    classes = getattr(published, "num_classes", None)
    if config.weights is None and classes != len(info.classes):
        raise UserError(
            f"its published weights know {classes} classes, the data has {len(info.classes)}: {_list(info.classes)}",
            key=_KEY, value=name,
            remedy="train it on this data first (python train.py model.name=...) and give the run directory",
        )  # fmt: skip
    mean, std, channels = info.mean, info.std, info.input_shape[0]
    if config.weights is None and published is not None:
        mean, std, channels = tuple(published.mean), tuple(published.std), len(published.mean)
    size = (config.image_size or info.input_shape[1], config.image_size or info.input_shape[2])
    model, record = _create(name, config, context, (channels, *size), mean, std)
    view = _view(context, mean, std, size)
    declared = config.teacher_data
    if declared is None and config.weights is None:
        declared = str(getattr(published, "tag", "") or "") or None
        declared = f"timm's {name.partition('.')[0]}.{declared}" if declared else None
    if declared is None:
        context.say(
            f"teacher: what {config.weights} was trained on is not declared (compress.distill.teacher_data=NAME); "
            "the card says so"
        )
    digest = _digest(model=model, shape=record.to_json(), size=size)
    provenance: dict[str, Any] = {
        "name": name,
        "source": "file" if config.weights else "timm",
        "run_dir": None,
        "accuracy": _accuracy(Teacher(model, view), context),
        "params": count_parameters(model),
        "data": None,
        "same_data": None,
        "measures": None,
        "missing": {},
        "seen": seen.foreign(declared, "training"),
        "declared": declared,
    }
    return Found(
        provenance,
        digest,
        lambda: Teacher(_create(name, config, context, (channels, *size), mean, std)[0], view),
    )


def _create(
    name: str,
    config: DistillConfig,
    context: Context,
    shape: tuple[int, int, int],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[nn.Module, ArchitectureRecord]:
    """The timm teacher with its weights; an error names the teacher's keys, not the model's."""
    settings = ModelConfig(
        name=name, pretrained=config.weights is None, weights=config.weights, patch_size=None
    )
    lines: list[str] = []
    try:
        model, record = create(
            settings, input_shape=shape, classes=context.info.classes, mean=mean, std=std, say=lines.append
        )
    except UserError as error:
        key = (error.key or "").replace("model.weights", "compress.distill.weights")
        raise UserError(error.problem, key=key, value=error.value, remedy=error.remedy) from None
    if any("new head" in line for line in lines):
        raise UserError(
            f"knows other classes than the data ({lines[0].partition(': ')[2]}): its head would be random",
            key="compress.distill.weights", value=config.weights,
            remedy=f"give weights that were trained on this data's classes: {_list(context.info.classes)}",
        )  # fmt: skip
    return model, record


def _view(context: Context, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, ...]) -> View:
    return View(context.info.mean, context.info.std, mean, std, (size[0], size[1]))


def _accuracy(teacher: Teacher, context: Context) -> float:
    """On the student's test images, seen as the student sees them."""
    return context.test_accuracy(lambda images: teacher(images)[0], context.info.mean, context.info.std)


def _digest(
    *, shape: dict[str, Any], size: tuple[int, ...], file: Path | None = None, model: nn.Module | None = None
) -> str:
    digest = hashlib.sha256(json.dumps([shape, list(size)], sort_keys=True).encode())
    if file is not None:
        with open(file, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    if model is not None:
        hash_state(digest, model)
    return digest.hexdigest()


def _list(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown


def ensemble_provenance(members: list[dict[str, Any]], accuracy: float) -> dict[str, Any]:
    """`provenance.teacher` of several teachers."""
    return {
        "name": " + ".join(str(member["name"]) for member in members),
        "source": "ensemble",
        "run_dir": None,
        "accuracy": accuracy,
        "params": sum(int(member["params"]) for member in members),
        "members": members,
    }
