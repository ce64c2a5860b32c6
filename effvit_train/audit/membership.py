"""The axis `privacy/*`, measured from outside: what a finished model gives away about who was in its training.

The other half of the axis, what training spent at most, is the training's to tell.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from effvit_train.audit.attack.figures import auc, tpr_at_fpr
from effvit_train.audit.attack.membership import log_odds, log_probability
from effvit_train.audit.attack.one_run import audit_one_run
from effvit_train.card import Measured
from effvit_train.data.planting import Canaries

BOUND = "privacy/epsilon_lower_bound"
ATTACKED = ("privacy/mia_auc", "privacy/mia_tpr_at_1pct_fpr")
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


def measure_members(
    members: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor]
) -> tuple[dict[str, float], dict[str, Any]]:
    """How well a threshold on the model's confidence tells training images from test images.

    Yeom et al. 2018, with the confidence of Carlini et al. 2022, eq. 3. An attack without shadow models: a
    stronger one may find more.

    Args:
        members, others: logits (n, K) and labels (n,).

    Returns:
        The measures by key, and their 95 % intervals and numbers of images.
    """
    import numpy as np

    scores = [log_odds(logits.double().numpy(), labels.numpy()) for logits, labels in (members, others)]
    truth = np.repeat([True, False], [len(found) for found in scores])
    found = auc(np.concatenate(scores), truth), tpr_at_fpr(np.concatenate(scores), truth)
    values = {key: estimate.value for key, estimate in zip(ATTACKED, found, strict=True)}
    facts = {
        "attack": "threshold on the log-odds of the label", "members": len(scores[0]), "others": len(scores[1]),
        "intervals": {key: [e.low, e.high] for key, e in zip(ATTACKED, found, strict=True)},
    }  # fmt: skip
    return values, facts
