"""Points of a training, as configurations name them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from effvit_train.errors import UserError

_MOMENT = re.compile(r"(\d+) ?(epoch|step)s?")


@dataclass(frozen=True)
class Moment:
    """A point of the training: a fraction of it, a number of epochs or of optimizer steps."""

    value: float
    unit: str  # fraction | epoch | step

    @classmethod
    def read(cls, value: Any, *, key: str, end: bool = False) -> Moment:
        """Read 0.1, `10epochs` or `500steps`; raises `UserError` for anything else.

        With `end`, 1 is a moment too: after the last step.
        """
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if 0 <= value < 1 or (end and value == 1):
                return cls(float(value), "fraction")
        elif isinstance(value, str) and (found := _MOMENT.fullmatch(value)):
            return cls(float(found[1]), found[2])
        upper = "up to 1, which is after its last step" if end else "below 1"
        raise UserError(
            f"must be a fraction of the training from 0 and {upper}, epochs such as 10epochs, or steps such as 500steps",
            key=key, value=value, remedy=f"e.g. {key}=0.1",
        )  # fmt: skip

    @property
    def at_end(self) -> bool:
        """Whether it is after the last step."""
        return self.unit == "fraction" and self.value == 1

    def in_epochs(self, epochs: int, steps_per_epoch: int) -> float:
        """Epochs from the start of a training of `epochs`."""
        if self.unit == "epoch":
            return self.value
        return self.value * epochs if self.unit == "fraction" else self.value / steps_per_epoch


def step_of(position: float, steps: int) -> int:
    """The step in which a position, in epochs of `steps`, lies: the shortest training goes through all of them."""
    return math.floor(position * steps + 1e-9)
