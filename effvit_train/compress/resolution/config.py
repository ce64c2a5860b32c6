"""Schema of `compress.resolution`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from effvit_train.errors import UserError, one_of

KEY = "compress.resolution"
SCHEDULES = ("random", "progressive")


@dataclass
class ResolutionConfig:
    """`compress.resolution.*`.

    Attributes:
        sizes: pixels per side that images are shown at; null chooses them from the size of the images.
        patches: pixels per side of the patches that they are cut into; null = the model's own.
        schedule: random: each step shows one of them by chance; progressive: few tokens first, many last.
        tolerance: points of accuracy that a smaller size may lose and still suffices.
    """

    sizes: Any = None
    patches: Any = None
    schedule: str = "random"
    tolerance: float = 0.5

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        self.sizes = _pixels("sizes", self.sizes, "[16,20,24,28]")
        self.patches = _pixels("patches", self.patches, "[4,7]")
        one_of(f"{KEY}.schedule", self.schedule, SCHEDULES)
        if not (math.isfinite(self.tolerance) and 0 <= self.tolerance < 100):
            raise UserError(
                "must be points of accuracy, from 0 and below 100", key=f"{KEY}.tolerance", value=self.tolerance,
                remedy=f"e.g. {KEY}.tolerance=0.5",
            )  # fmt: skip


def _pixels(name: str, value: Any, example: str) -> list[int] | None:
    if value is None:
        return None
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
        raise UserError(
            "must be a list of whole numbers of pixels", key=f"{KEY}.{name}", value=value,
            remedy=f"e.g. '{KEY}.{name}={example}'",
        )  # fmt: skip
    if len(set(numbers)) < len(numbers):
        raise UserError("names a number twice", key=f"{KEY}.{name}", value=value, remedy="once is enough")
    return sorted(numbers)
