"""The parts of an audit, one per axis: which keys of the card each fills, and how."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effvit_train.audit import approximation as approximation_
from effvit_train.audit import calibration, complexity, fairness, spectral, tokens, uncertainty
from effvit_train.audit.quality import measure_quality
from effvit_train.audit.robustness import measure as robustness
from effvit_train.audit.scaling import time_jobs
from effvit_train.audit.transparency import measure as transparency
from effvit_train.axes.foreign import foreign_images
from effvit_train.axes.memory import Found, Memory
from effvit_train.axes.subject import Ids, Subject
from effvit_train.card import Measured
from effvit_train.config import AuditConfig
from effvit_train.finished import open_model
from effvit_train.models.attention import swap
from effvit_train.models.factory import exact_counterpart
from effvit_train.predictions import predict


@dataclass(frozen=True)
class AuditPart:
    """One part of an audit.

    Attributes:
        name: its entry in the card's `provenance.audit`.
        keys: of the card that it fills.
        measure: takes a model and what an interrupted audit had found of this part.
        settings: those of the audit that shape it.
        quick: whether `audit=quick` measures it too.
        wanted: whether these settings ask for it at all.
    """

    name: str
    keys: tuple[str, ...]
    measure: Callable[[Subject, Memory], Found]
    settings: tuple[str, ...] = ()
    quick: bool = False
    wanted: Callable[[AuditConfig], bool] = lambda settings: True


def _calibration(subject: Subject, memory: Memory) -> Found:
    return calibration.measure_calibration(subject.logits, subject.labels, validation=subject.validation)


def _fairness(subject: Subject, memory: Memory) -> Found:
    """All columns are told; the first one's figures are those of the card."""
    settings = subject.config.audit
    columns = subject.data.groups("test", settings.groups)
    if not columns:
        reason = "the data set has no groups (columns of dataset.labels_csv beside path, label and split)"
        return Measured(missing=dict.fromkeys(fairness.KEYS, reason)), {}
    finite = subject.logits.isfinite().all(dim=1)
    predicted = torch.where(finite, subject.logits.argmax(dim=1), -1)
    found = {
        name: fairness.measure_fairness(
            predicted, subject.labels, groups, classes=subject.record.classes, min_cell=settings.min_cell,
            known=subject.data.info.groups.get(name, ()),
        )
        for name, groups in columns.items()
    }  # fmt: skip
    first, *rest = found
    others = {
        name: {"measures": found[name][0].values, "missing": found[name][0].missing, **found[name][1]}
        for name in rest
    }
    return found[first][0], {"column": first, **found[first][1], "others": others}


def _spectral(subject: Subject, memory: Memory) -> Found:
    return spectral.measure_spectral(
        subject.model,
        spectral.margins_from(subject.logits, subject.labels),
        train_images=subject.data.info.counts["train"],
    )


def _predictors(subject: Subject, memory: Memory) -> Found:
    """What other predictors make of the same images: dropout left on, and several runs together."""
    settings, facts = subject.config.audit, {}
    loader = subject.data.eval_dataloader("test")
    if settings.mc_dropout:
        facts["mc_dropout"] = _told_of(
            lambda: uncertainty.mc_dropout(
                subject.model, lambda: subject.outputs(loader)[0],
                passes=settings.mc_dropout, seed=subject.config.seed,
            ),
            subject.labels,
        )  # fmt: skip
    if settings.ensemble:
        members = [subject.logits.double().softmax(dim=1)]
        for run in settings.ensemble:
            model, normalise = open_model(run, like=subject.record)
            members.append(predict(model, normalise, loader)[0].double().softmax(dim=1))
        facts["ensemble"] = {"of": list(settings.ensemble)} | _told_of(
            lambda: uncertainty.ensemble(members), subject.labels
        )
    return Measured(), facts


def _told_of(predictor: Callable[[], uncertainty.Predictive], labels: Tensor) -> dict[str, Any]:
    try:
        found = predictor()
    except ValueError as error:
        return {"reason": str(error)}
    measured = measure_quality(found.log_probabilities, labels)
    measured.merge(calibration.measure_calibration(found.log_probabilities, labels)[0])
    return {**found.facts(), "measures": measured.values}


def _ood(subject: Subject, memory: Memory) -> Found:
    images, told = foreign_images(subject)
    if images is None:
        return Measured(missing={uncertainty.OOD: told}), {}
    logits = _in_batches(subject, images)
    measured, facts = uncertainty.ood_auroc(subject.logits, logits)
    others = {}
    for score in ("energy", "entropy"):
        found = uncertainty.ood_auroc(subject.logits, logits, score)[0].values
        others[score] = found.get(uncertainty.OOD)
    return measured, {"data": told, **facts, "other_scores": others}


@torch.no_grad()
def _in_batches(subject: Subject, images: Tensor, size: int = 256) -> Tensor:
    return torch.cat([subject.predict(part).cpu() for part in images.split(size)])


def _chosen(subject: Subject, count: int | None) -> tuple[Tensor, Tensor, Ids]:
    """Stratified test images, their labels and ids; all of them where `count` is None."""
    ids = subject.ids.numpy()
    if count is not None:
        ids = ids[robustness.stratified(subject.labels, count, subject.config.seed)]
    return *subject.images(ids), ids


def _recalled(memory: Memory) -> dict[str, npt.NDArray[np.bool_]]:
    return {
        name: np.array([[mark == "1" for mark in row] for row in rows])
        for name, rows in memory.pieces.items()
    }


def _marks(outcome: npt.NDArray[np.bool_]) -> list[str]:
    return ["".join("1" if one else "0" for one in row) for row in np.atleast_2d(outcome)]


def _corruptions(subject: Subject, memory: Memory) -> Found:
    images, labels, ids = _chosen(subject, subject.config.audit.corrupted_images)
    return robustness.measure_corruptions(
        subject.predict, images, labels, ids.tolist(), seed=subject.config.seed, known=_recalled(memory),
        tell=lambda name, outcome: memory.keep(name, _marks(outcome)),
    )  # fmt: skip


def _adversarial(subject: Subject, memory: Memory) -> Found:
    images, labels, ids = _chosen(subject, subject.config.audit.attacked_images)
    return robustness.measure_adversarial(
        subject.model, subject.normalise, images, labels, ids.tolist(), seed=subject.config.seed,
        epsilon=subject.config.audit.attack_epsilon, dataset=subject.config.dataset.name,
        known={name: rows[0] for name, rows in _recalled(memory).items()},
        tell=lambda name, outcome: memory.keep(name, _marks(outcome)),
    )  # fmt: skip


def _transparency(subject: Subject, memory: Memory) -> Found:
    images, _, ids = _chosen(subject, subject.config.audit.explained_images)
    return transparency.measure_transparency(
        subject.model, subject.normalise, images, ids, seed=subject.config.seed
    )


def _tokens(subject: Subject, memory: Memory) -> Found:
    images, _, ids = _chosen(subject, tokens.EXAMPLES)
    return Measured(), tokens.measure_tokens(subject.model, subject.normalise, images, ids)


def _complexity(subject: Subject, memory: Memory) -> Found:
    timer = functools.partial(
        time_jobs,
        num_threads=subject.config.audit.num_threads or torch.get_num_threads(),
        device=subject.device.type,
    )
    return complexity.measure_complexity(subject.record, timer=timer)


def _approximation(subject: Subject, memory: Memory) -> Found:
    images, _, _ = _chosen(subject, 64)
    exact = exact_counterpart(subject.model, subject.record)
    replaced = swap.NAME in subject.record.kwargs
    reason = approximation_.MIXERS_ONLY if replaced else approximation_.NOTHING_REPLACED
    return approximation_.measure_approximation(
        subject.model, subject.normalise(images), exact=exact, without=reason
    )


PARTS: Mapping[str, AuditPart] = {
    part.name: part
    for part in (
        AuditPart("calibration", calibration.KEYS, _calibration, quick=True),
        AuditPart("fairness", fairness.KEYS, _fairness, ("groups", "min_cell"), quick=True),
        AuditPart("spectral", (spectral.LOG_BOUND, spectral.STABLE_RANK), _spectral, quick=True),
        AuditPart(
            "predictors", (), _predictors, ("mc_dropout", "ensemble"), quick=True,
            wanted=lambda settings: bool(settings.mc_dropout or settings.ensemble),
        ),
        AuditPart("tokens", (), _tokens, quick=True),
        AuditPart("ood", (uncertainty.OOD,), _ood, ("ood", "ood_root")),
        AuditPart("corruptions", robustness.CORRUPTION_KEYS, _corruptions, ("corrupted_images",)),
        AuditPart("transparency", transparency.KEYS, _transparency, ("explained_images",)),
        AuditPart(
            "approximation", (approximation_.ATTENTION, approximation_.OUTPUT, approximation_.RANK), _approximation
        ),
        AuditPart(
            "complexity",
            (
                complexity.SHARE, complexity.INTENSITY, complexity.FLOPS, complexity.MIXING, complexity.LATENCY,
                complexity.BOUND,
            ),
            _complexity, ("num_threads",),
        ),
        AuditPart("adversarial", robustness.ADVERSARIAL_KEYS, _adversarial, ("attacked_images", "attack_epsilon")),
    )
}  # fmt: skip
