"""Learning without forgetting: the model before the task teaches it what it said (Li & Hoiem 2017).

This file declares the strategy and needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from effvit_train.config import Config
from effvit_train.errors import UserError, at_least
from effvit_train.parts import Attachment, Context, Part

__all__ = ["PART", "LwfConfig", "attach"]

NAME = "lwf"
KEY = "continual.lwf"


@dataclass
class LwfConfig:
    """`continual.lwf.*`.

    Attributes:
        weight: of the term `T^2 KL(before || now)`. Its gradient is that of the paper's eq. 2 with
            lambda_o = T^2 weight.
        temperature: T, softens both distributions (eq. 3).
    """

    weight: float = 4.0
    temperature: float = 2.0

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        at_least(f"{KEY}.weight", self.weight, 0)
        if not 0 < self.temperature < math.inf:
            raise UserError(
                "must be positive", key=f"{KEY}.temperature", value=self.temperature, remedy="e.g. 2.0"
            )


PART = Part(name=NAME, key="continual", active=lambda config: NAME in config.continual, schema=LwfConfig)


def attach(config: Config, context: Context) -> Attachment:
    """Return the term, and what keeps the model at the end of each task."""
    from effvit_train.continual.lwf.term import Before, LwfKeeper, LwfTerm

    settings: LwfConfig = config.continual[NAME]
    before = Before()
    return Attachment(
        terms=[LwfTerm(before, temperature=settings.temperature, weight=settings.weight)],
        keepers=[LwfKeeper(before)],
    )
