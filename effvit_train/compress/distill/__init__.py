"""Distillation: learn from teachers beside the labels, in several kinds that may be mixed.

Adds per-sample loss terms (see `terms`). This file declares the technique and needs no torch.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from effvit_train.compress.distill.config import DistillConfig, TrainedTeacherConfig
from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.keys import AugmentStream
from effvit_train.models.config import ModelConfig
from effvit_train.parts import (
    LOSES_PATCHES,
    MIXES_SAMPLES,
    READS_TRAINING_DATA,
    UNDECLARED_DATA,
    Attachment,
    Context,
    Part,
)

if TYPE_CHECKING:
    from effvit_train.compress.distill.find import Found
    from effvit_train.soft_labels import Targets

__all__ = ["FEATURES", "PART", "DistillConfig", "TrainedTeacherConfig", "attach"]


def _on(config: Config) -> DistillConfig | None:
    return config.compress.get("distill")


def _stream(config: Config) -> AugmentStream | None:
    distill = _on(config)
    if distill is None or distill.cache.epochs is None:
        return None
    return AugmentStream(distill.cache.seed, distill.cache.epochs)


def _adapt(config: Config) -> ModelConfig:
    distill = _on(config)
    if distill is None or "token" not in distill.kinds:
        return config.model
    from effvit_train.compress.distill.student import with_token

    return with_token(config)


def _undeclared(config: Config) -> bool:
    distill = _on(config)
    return distill is not None and distill.weights is not None and distill.teacher_data is None


def _trains_teacher(config: Config) -> bool:
    distill = _on(config)
    return distill is not None and distill.needs_teacher and not distill.teachers


def _resolve(config: Config) -> None:
    """`teacher=self` is the run that the student's weights are taken from, before anything is cut."""
    distill = config.compress["distill"]
    if "self" not in distill.teachers:
        return
    start = config.model.weights
    if start is None or not os.path.isdir(start):
        raise UserError(
            "is the model that this run starts from, which must be a finished run",
            key="compress.distill.teacher", value="self", remedy="add model.weights=RUN_DIR",
        )  # fmt: skip
    distill.teacher = [start if name == "self" else name for name in distill.teachers]


PART = Part(
    name="distill",
    key="compress",
    active=lambda config: "distill" in config.compress,
    schema=DistillConfig,
    adapt=_adapt,
    stream=_stream,
    resolve=_resolve,
)

FEATURES = (
    Part(
        name="feature or relation",
        key="compress.distill.kinds",
        active=lambda config: (distill := _on(config)) is not None and distill.needs_features,
        refuses={LOSES_PATCHES: "compares all patches of an image"},
    ),
    Part(
        name="cache",
        key="compress.distill.cache.epochs",
        active=lambda config: _stream(config) is not None,
        does=frozenset({READS_TRAINING_DATA}),
        refuses={MIXES_SAMPLES: "finds what the teacher said of one image, not of a mixture"},
    ),
    Part(
        name="a teacher that is trained first",
        key="compress.distill.teacher",
        active=_trains_teacher,
        does=frozenset({READS_TRAINING_DATA}),
        instead="compress.distill.teacher=RUN_DIR of a private run, or a teacher of public data",
    ),
    Part(
        name="a foreign teacher",
        key="compress.distill.weights",
        active=_undeclared,
        does=frozenset({UNDECLARED_DATA}),
        instead="compress.distill.teacher_data=NAME, if it is public",
    ),
)


def attach(config: Config, context: Context) -> Attachment:
    """Find or train the teachers and return the terms of the configured kinds."""
    from effvit_train.compress.distill.targets import CachedTargets, SameTeacher
    from effvit_train.compress.distill.terms import make_terms

    distill: DistillConfig = config.compress["distill"]
    if "token" in distill.kinds:
        context.model.set_distilled_training(True)  # type: ignore[operator]
    provenance: dict[str, Any] = {"name": context.record.name, "source": "self", "kinds": distill.kinds}
    targets: Targets | None = None
    callbacks: list[Any] = []
    result: dict[str, Any] = {"teacher": provenance}
    if distill.needs_teacher:
        from effvit_train.compress.distill.find import find_teachers
        from effvit_train.seen import inherited, merge

        found = find_teachers(distill, context)
        targets, provenance = _targets(distill, context, found)
        digest = hashlib.sha256("".join(teacher.digest for teacher in found).encode()).hexdigest()
        store = targets.store if isinstance(targets, CachedTargets) else None
        callbacks.append(SameTeacher(digest, store, context.say))
        lists = [inherited(teacher.provenance["seen"], "teacher") for teacher in found]
        result = {"teacher": provenance | {"kinds": distill.kinds, "digest": digest}, "seen": merge(*lists)}
    return Attachment(
        terms=make_terms(distill, context.model, targets, context.info, config.seed),
        label_weight=1.0 - distill.share,
        callbacks=callbacks,
        provenance=result,
        ahead=targets if isinstance(targets, CachedTargets) else None,
    )


def _targets(distill: DistillConfig, context: Context, found: list[Found]) -> tuple[Targets, dict[str, Any]]:
    """What the terms learn from, and the card's `provenance.teacher`."""
    from effvit_train.compress.distill.cache import open_store
    from effvit_train.compress.distill.find import ensemble_provenance
    from effvit_train.compress.distill.losses import ensemble
    from effvit_train.compress.distill.targets import CachedTargets, LiveTargets

    provenance = found[0].provenance
    teachers = None
    if distill.cache.epochs is None or len(found) > 1:
        teachers = [teacher.load() for teacher in found]
    if len(found) > 1:
        assert teachers is not None
        members = teachers
        accuracy = context.test_accuracy(
            lambda images: ensemble([teacher(images)[0] for teacher in members]),
            context.info.mean,
            context.info.std,
        )
        provenance = ensemble_provenance([teacher.provenance for teacher in found], accuracy)
    if distill.cache.epochs is None:
        assert teachers is not None
        return LiveTargets(teachers), provenance
    store, cached = open_store(distill, context, [teacher.digest for teacher in found])
    return CachedTargets(store, lambda: [teacher.load() for teacher in found]), provenance | {"cache": cached}
