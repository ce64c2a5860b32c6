"""Elastic weight consolidation: weights that earlier tasks need are held back (Kirkpatrick et al. 2017).

This file declares the strategy and needs no torch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Optional

from effvit_train.config import Config
from effvit_train.errors import UserError, at_least, one_of
from effvit_train.parts import EARLIER_IMAGES, NEW_WEIGHTS, Attachment, Context, Part

__all__ = ["PART", "EwcConfig", "attach"]

NAME = "ewc"
KEY = "continual.ewc"
TRUE, EMPIRICAL = "true", "empirical"


@dataclass
class EwcConfig:
    """`continual.ewc.*`.

    Attributes:
        strength: lambda of the penalty (eq. 3), where F is the mean over images.
        fisher: true, the Fisher information of the model's own predictions | empirical, squared gradients of the
            labels' loss. A model that fits its labels has next to none of the latter, whatever it needs (Kunstner et
            al. 2019).
        gamma: what stays of earlier information when a task is added (Schwarz et al. 2018, eq. 9); 1 sums it
            (Huszar 2018).
        images: of an ended task that F is the mean over; null = all.
    """

    strength: float = 10_000.0
    fisher: Any = TRUE
    gamma: float = 1.0
    images: Optional[int] = 1024

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        self.fisher = str(self.fisher).lower()  # YAML reads the word as a truth value
        one_of(f"{KEY}.fisher", self.fisher, (TRUE, EMPIRICAL))
        at_least(f"{KEY}.strength", self.strength, 0)
        at_least(f"{KEY}.images", self.images, 1)
        if not 0 < self.gamma <= 1:
            raise UserError(
                "must be above 0 and at most 1", key=f"{KEY}.gamma", value=self.gamma, remedy=f"e.g. {KEY}.gamma=1"
            )  # fmt: skip


PART = Part(
    name=NAME,
    key="continual",
    active=lambda config: NAME in config.continual,
    schema=EwcConfig,
    does=frozenset({EARLIER_IMAGES}),
    refuses={NEW_WEIGHTS: "holds each weight where an earlier task left it"},
)


def attach(config: Config, context: Context) -> Attachment:
    """Return the penalty, and what brings it up to date at the end of each task."""
    from effvit_train.continual.ewc.penalty import Consolidated, EwcKeeper, EwcTerm

    settings: EwcConfig = config.continual[NAME]
    kept = Consolidated(copy.deepcopy(context.model), copy.deepcopy(context.model))
    return Attachment(
        terms=[EwcTerm(context.model, kept, settings.strength)],
        keepers=[EwcKeeper(kept, settings, config.seed, context.say)],
    )
