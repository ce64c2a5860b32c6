"""Schema of `continual.derpp`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from effvit_train.continual.memory.config import MemoryConfig
from effvit_train.errors import UserError

KEY = "continual.derpp"


@dataclass
class DerppConfig(MemoryConfig):
    """`continual.derpp.*`: those of `MemoryConfig`, and two weights.

    Attributes:
        alpha: of the logits' term, for each image that is shown again.
        beta: of the label term, for each image that is shown again; new images count 1.
    """

    alpha: float = 0.1
    beta: float = 1.0

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        self.check(KEY)
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise UserError(
                    "must be at least 0", key=f"{KEY}.{name}", value=value, remedy=f"e.g. {KEY}.{name}=0.5"
                )
        if not self.alpha and not self.beta:
            raise UserError(
                f"and {KEY}.beta=0: nothing is learnt of what is shown again",
                key=f"{KEY}.alpha", value=self.alpha, remedy="continual=naive shows nothing again",
            )  # fmt: skip
