"""Which published parameters an image of a given size gets, and how lengths in pixels grow with it.

Hendrycks & Dietterich published parameters for three sizes: CIFAR-10-C (32 px), Tiny-ImageNet-C (64 px) and
ImageNet-C (224 px). At these sizes ours are theirs. At any other:

- the table is that of the nearest published size in ratio (32 up to 45 px, 64 up to 119 px, else 224);
- lengths in pixels (a blur's radius, a snowflake) are multiplied by size / published size, so that the corrupted
  picture looks the same from the same distance, except
- below 32 px, where they stay as they are at 32 px: they are about one pixel there, and less is no blur at all;
- shares, probabilities, intensities and JPEG qualities are never scaled.

The size of an image that is not square is its shorter side. Between two tables the strength jumps, as it does
between the published data sets: corruption accuracies compare models on one size, not sizes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

PUBLISHED = (32, 64, 224)
SEVERITIES = (1, 2, 3, 4, 5)
SMALLEST = 8

Row = TypeVar("Row")
Table = Mapping[int, tuple[Row, Row, Row, Row, Row]]


@dataclass(frozen=True)
class Scale:
    """How an image compares with the published ones.

    Attributes:
        published: size whose parameters it gets, px.
        ratio: its size over the published one.
    """

    published: int
    ratio: float

    @classmethod
    def of(cls, height: int, width: int) -> Scale:
        """The scale of an image of `height` x `width` px; raises `ValueError` below 8 px."""
        size = min(height, width)
        if size < SMALLEST:
            raise ValueError(f"{height} x {width} px is below {SMALLEST} px a side")
        published = min(PUBLISHED, key=lambda other: abs(math.log(size / other)))
        return cls(published, size / published)

    @property
    def lengths(self) -> float:
        """What lengths in pixels are multiplied by."""
        return max(1.0, self.ratio) if self.published == PUBLISHED[0] else self.ratio

    def pick(self, table: Table[Row], severity: int) -> Row:
        """The row of a severity 1..5."""
        return table[self.published][severity - 1]
