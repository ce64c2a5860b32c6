"""The axis `privacy/*`, measured from outside: what a finished model gives away about who was in its training.

The other half of the axis, what training spent at most, is the training's to tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from effvit_train.audit.attack.figures import auc, tpr_at_fpr
from effvit_train.audit.attack.membership import lira_online, log_odds, log_probability, rmia_online
from effvit_train.audit.attack.one_run import audit_one_run
from effvit_train.card import Measured
from effvit_train.data.planting import Canaries

BOUND = "privacy/epsilon_lower_bound"
ATTACKED = ("privacy/mia_auc", "privacy/mia_tpr_at_1pct_fpr", "privacy/mia_tpr_at_0.1pct_fpr")
CONFIDENCE = 0.95
FILE = "membership.json"  # in the run directory of a private run, for its owner alone


def measure_canaries(
    logits: Tensor, labels: Tensor, canaries: Canaries, delta: float
) -> tuple[Measured, dict[str, Any]]:
    """The lower bound on epsilon that the canaries of one run give (Steinke et al. 2023).

    A canary counts as trained on if the model believes its wrong label.

    Args:
        logits: (m, K) of the canaries, in the order of their ids.
        labels: (m,) the wrong ones.
        canaries: with their coins.
        delta: at which the bound is to hold.

    Returns:
        The measure, and for the card's provenance how it was obtained.
    """
    scores = log_probability(logits.double().numpy(), labels.numpy())
    bound = audit_one_run(scores, canaries.included, delta, confidence=CONFIDENCE)
    facts = {
        "canaries": len(canaries.ids), "delta": delta, "confidence": CONFIDENCE, "guesses": bound.guesses,
        "correct": bound.correct, "choices": list(bound.choices),
    }  # fmt: skip
    return Measured({BOUND: bound.epsilon}), facts


@dataclass(frozen=True)
class Shadows:
    """What shadow models say, as probabilities of the labels.

    Attributes:
        logits: (S, n, K) of the attacked images.
        known: (S, n) which of them was trained on which.
        population: logits (S + 1, Z, K), the attacked model's first, and labels (Z,) of images that no model knows.
    """

    logits: Tensor
    known: npt.NDArray[np.bool_]
    population: tuple[Tensor, Tensor]


def measure_members(
    logits: Tensor, labels: Tensor, members: npt.NDArray[np.bool_], shadows: Shadows | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """How well training images are told from test images.

    Without shadow models by a threshold on the model's confidence (Yeom et al. 2018; the log-odds of Carlini
    et al. 2022, eq. 3); with them by RMIA (Zarifzadeh et al. 2024), and LiRA beside it (Carlini et al. 2022).

    Args:
        logits: (n, K) of the attacked model.
        labels: (n,).
        members: (n,) which of the images it was trained on.
        shadows: what shadow models say of the same images.

    Returns:
        The measures by key, and the attack, 95 % intervals and numbers of images.
    """
    target, truth = logits.double().numpy(), labels.numpy()
    facts: dict[str, Any] = {"members": int(members.sum()), "others": int((~members).sum())}
    if shadows is None:
        scores, name = log_odds(target, truth), "threshold on the log-odds of the label"
    else:
        of_shadows = shadows.logits.double().numpy()
        population, known = (
            log_probability(shadows.population[0].double().numpy(), shadows.population[1].numpy()),
            shadows.known,
        )
        scores = rmia_online(
            log_probability(target, truth),
            log_probability(of_shadows, truth),
            known,
            population[0],
            population[1:],
        )
        name = "RMIA, online"
        facts["shadow_models"] = len(known)
        if len(known) > 2:  # a spread needs two models with and without each image
            lira = lira_online(log_odds(target, truth), log_odds(of_shadows, truth), known)
            facts["lira"] = {
                "auc": auc(lira, members).value,
                "tpr_at_1pct_fpr": tpr_at_fpr(lira, members).value,
            }
    found = auc(scores, members), tpr_at_fpr(scores, members), tpr_at_fpr(scores, members, 0.001)
    values = {key: estimate.value for key, estimate in zip(ATTACKED, found, strict=True)}
    intervals = {key: [e.low, e.high] for key, e in zip(ATTACKED, found, strict=True)}
    return values, {"attack": name, **facts, "intervals": intervals}
