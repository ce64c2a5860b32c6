"""Schema of `compress.merge_tokens`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from effvit_train.errors import UserError, one_of
from effvit_train.moment import Moment

_KEY = "compress.merge_tokens"
SCHEDULES = ("constant", "decreasing")
DEFAULT_MACS = 0.7


@dataclass
class MergeTargetConfig:
    """`compress.merge_tokens.target.*`: what the model may cost.

    Attributes:
        macs: fraction of the multiply-accumulates of the model as it is when its tokens are first merged.
    """

    macs: Optional[float] = None


@dataclass
class MergeTokensConfig:
    """`compress.merge_tokens.*`.

    Attributes:
        r: how many tokens merge into others in each block; a list gives every block its own. null: as many as
            the target asks for.
        target: what the model may cost; 0.7 of the MACs where neither r nor a target is named.
        schedule: constant | decreasing: the same r in every block, or from twice r in the first to none in the last.
        start: when it begins: a fraction of the training, `10epochs`, `500steps`; 1 is after training.
        proportional: a merged token counts in attention as the patches that it stands for.
    """

    r: Any = None
    target: MergeTargetConfig = field(default_factory=MergeTargetConfig)
    schedule: str = "constant"
    start: Any = 0
    proportional: bool = True

    @property
    def macs(self) -> float | None:
        """The fraction of MACs that r is found for; None where r is given."""
        return None if self.r is not None else self.target.macs or DEFAULT_MACS

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        one_of(f"{_KEY}.schedule", self.schedule, SCHEDULES)
        Moment.read(self.start, key=f"{_KEY}.start", end=True)
        macs = self.target.macs
        if macs is not None and not 0 < macs <= 1:
            raise UserError(
                "must be the fraction of MACs that stays, above 0 and up to 1",
                key=f"{_KEY}.target.macs", value=macs, remedy=f"e.g. {_KEY}.target.macs={DEFAULT_MACS}",
            )  # fmt: skip
        if self.r is None:
            return
        each = self.r if isinstance(self.r, list) else [self.r]
        if not each or any(type(value) is not int or value < 0 for value in each):
            raise UserError(
                "must be a whole number of tokens, 0 or more, or a list of them, one for each block",
                key=f"{_KEY}.r", value=self.r, remedy=f"e.g. {_KEY}.r=8",
            )  # fmt: skip
        if macs is not None:
            raise UserError(
                f"and {_KEY}.target.macs={macs} both tell how many tokens merge",
                key=f"{_KEY}.r", value=self.r, remedy="give one of the two",
            )  # fmt: skip
        if isinstance(self.r, list) and self.schedule != "constant":
            raise UserError(
                f"is a list, which is a schedule of its own beside schedule={self.schedule}",
                key=f"{_KEY}.r", value=self.r, remedy=f"give one number, or leave {_KEY}.schedule out",
            )  # fmt: skip
