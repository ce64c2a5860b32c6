"""Schema of `compress.drop_tokens`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effvit_train.errors import UserError
from effvit_train.moment import Moment

_KEY = "compress.drop_tokens"


@dataclass
class DropTokensConfig:
    """`compress.drop_tokens.*`.

    Attributes:
        keep: share of the image tokens that stay in each of the blocks, rounded up; a list gives each its own.
        blocks: numbers of the blocks that drop, counted from 0; null takes those at 1/4, 1/2 and 3/4 of the depth.
        fuse: what is dropped becomes one token, weighted by attention; else it is lost.
        start: when it begins: a fraction of the training, `10epochs`, `500steps`; 1 is after training.
    """

    keep: Any = 0.7
    blocks: Any = None
    fuse: bool = True
    start: Any = 0

    @property
    def rates(self) -> list[float]:
        """One for all blocks, or one for each."""
        return [float(rate) for rate in (self.keep if isinstance(self.keep, list) else [self.keep])]

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        Moment.read(self.start, key=f"{_KEY}.start", end=True)
        rates = self.keep if isinstance(self.keep, list) else [self.keep]
        if not rates or any(type(rate) not in (int, float) or not 0 < rate <= 1 for rate in rates):
            raise UserError(
                "must be the share of tokens that stays, above 0 and up to 1, or a list of them",
                key=f"{_KEY}.keep", value=self.keep, remedy=f"e.g. {_KEY}.keep=0.7",
            )  # fmt: skip
        if isinstance(self.blocks, int) and not isinstance(self.blocks, bool):
            self.blocks = [self.blocks]
        if self.blocks is None:
            return
        if (
            not isinstance(self.blocks, list)
            or not self.blocks
            or any(type(block) is not int or block < 0 for block in self.blocks)
            or len(set(self.blocks)) < len(self.blocks)
        ):
            raise UserError(
                "must be null or a list of different blocks, counted from 0",
                key=f"{_KEY}.blocks", value=self.blocks, remedy=f"e.g. '{_KEY}.blocks=[3,6,9]'",
            )  # fmt: skip
