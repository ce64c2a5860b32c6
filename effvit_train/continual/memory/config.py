"""The settings of a memory, which every strategy that has one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from effvit_train.errors import UserError, at_least, one_of

SELECTIONS = ("balanced", "reservoir")
DEFAULT_SIZE = 200


@dataclass
class MemoryConfig:
    """Settings of a memory.

    Attributes:
        size: images that are kept at most; null = 200, or as many as `megabytes` holds.
        megabytes: that are kept at most (1 MB = 10^6 bytes): a byte for each pixel and channel of an image, and
            4 for each logit where logits are kept with it.
        selection: which images stay: balanced, as many of each class | reservoir, each seen so far alike.
        share: of a batch that is shown again, in (0, 1).
    """

    size: Optional[int] = None
    megabytes: Optional[float] = None
    selection: str = "balanced"
    share: float = 0.5

    def check(self, key: str) -> None:
        """Raise `UserError` for a value that cannot be; `key` is that of these settings."""
        one_of(f"{key}.selection", self.selection, SELECTIONS)
        at_least(f"{key}.size", self.size, 1)
        if self.megabytes is not None and not 0 < self.megabytes < float("inf"):
            raise UserError(
                "must be above 0",
                key=f"{key}.megabytes",
                value=self.megabytes,
                remedy=f"e.g. {key}.megabytes=1",
            )
        if self.size is not None and self.megabytes is not None:
            raise UserError(
                f"and {key}.size={self.size} both tell how much is kept",
                key=f"{key}.megabytes", value=self.megabytes, remedy="give one of the two",
            )  # fmt: skip
        if not 0 < self.share < 1:
            raise UserError(
                "must be in (0, 1): a batch holds new images and some that are shown again",
                key=f"{key}.share", value=self.share, remedy=f"e.g. {key}.share=0.5",
            )  # fmt: skip
