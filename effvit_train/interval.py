"""How often to save: a time, or a number of epochs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from effvit_train.errors import UserError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPOCHS = re.compile(r"(\d+) ?epochs?")
_TIME = re.compile(r"(\d+\.?\d*|\.\d+)([smhd])")


@dataclass(frozen=True)
class Interval:
    """Between two checkpoints; both None: as often as saving is cheap enough.

    Attributes:
        seconds: of wall-clock time.
        epochs: passes over the training images.
    """

    seconds: float | None = None
    epochs: int | None = None

    @classmethod
    def read(cls, value: str | None, *, key: str) -> Interval:
        """Read `90s`, `5m`, `2h`, `1d`, `1epoch` or `10epochs`; raises `UserError` for anything else."""
        if value is None:
            return cls()
        if (found := _EPOCHS.fullmatch(value)) and int(found[1]):
            return cls(epochs=int(found[1]))
        if (found := _TIME.fullmatch(value)) and float(found[1]):
            return cls(seconds=float(found[1]) * _UNITS[found[2]])
        raise UserError(
            "must be a time such as 90s, 5m, 2h, 1d, or epochs such as 1epoch, 10epochs",
            key=key, value=value, remedy=f"e.g. {key}=5m",
        )  # fmt: skip
