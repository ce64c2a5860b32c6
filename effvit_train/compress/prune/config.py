"""Schema of `compress.prune`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Optional

from effvit_train.errors import UserError, at_least, kinds_of, one_of
from effvit_train.moment import Moment

_KEY = "compress.prune"
KINDS = ("heads", "head_width", "mlp", "embed", "blocks")
CRITERIA = ("magnitude", "taylor", "hessian", "variance", "random")
READS_DATA = frozenset({"taylor", "hessian", "variance"})


@dataclass
class TargetConfig:
    """`compress.prune.target.*`: what the model may cost in the end; several are all met.

    Attributes:
        macs: fraction of the multiply-accumulates that the model starts with. 0.5 where nothing is named.
        params: fraction of its parameters.
        latency_ms: milliseconds for one image on this device.
    """

    macs: Optional[float] = None
    params: Optional[float] = None
    latency_ms: Optional[float] = None


@dataclass
class PruneConfig:
    """`compress.prune.*`.

    Attributes:
        target: what the model may cost in the end.
        kinds: what may be cut: heads | head_width | mlp | embed | blocks.
        importance: magnitude | taylor | hessian | variance | random.
        norm: l1 | l2, of importance=magnitude.
        allot: isomorphic | global | uniform: how cuts are spread over blocks and kinds.
        round_to: MLP, embedding and head widths end at multiples of it.
        schedule: cubic | linear | one_shot.
        start, end: when the first and the last cut are made: a fraction of the training, `10epochs` or
            `500steps`. With one_shot all is cut at `start`.
        cuts: how many times it is cut.
        compensate: none | mean | least_squares: what the units that stay make up for. null is mean with
            importance=variance, else none.
        calibration: training images that importance and compensation look at, at each cut.
        dry_run: show what would be cut, and train nothing.
    """

    target: TargetConfig = field(default_factory=TargetConfig)
    kinds: Any = field(default_factory=lambda: ["heads", "mlp"])
    importance: str = "hessian"
    norm: str = "l2"
    allot: str = "isomorphic"
    round_to: int = 8
    schedule: str = "cubic"
    start: Any = 0.1
    end: Any = 0.5
    cuts: int = 8
    compensate: Optional[str] = None
    calibration: int = 512
    dry_run: bool = False

    @property
    def fill_in(self) -> str:
        """What the units that stay make up for."""
        return self.compensate or ("mean" if self.importance == "variance" else "none")

    @property
    def reads_data(self) -> bool:
        """Whether training images decide what is cut, or what stands in for it."""
        return self.importance in READS_DATA or self.fill_in != "none"

    @property
    def targets(self) -> dict[str, float]:
        """Budget -> its value, of those that are set."""
        named = {name: getattr(self.target, name) for name in ("macs", "params", "latency_ms")}
        return {name: value for name, value in named.items() if value is not None} or {"macs": 0.5}

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        for name in ("macs", "params"):
            value = getattr(self.target, name)
            if value is not None and not 0 < value <= 1:
                raise UserError(
                    f"must be the fraction of {name} that stays, above 0 and up to 1",
                    key=f"{_KEY}.target.{name}", value=value, remedy=f"e.g. {_KEY}.target.{name}=0.5",
                )  # fmt: skip
        latency = self.target.latency_ms
        if latency is not None and not (latency > 0 and math.isfinite(latency)):
            raise UserError(
                "must be positive", key=f"{_KEY}.target.latency_ms", value=latency, remedy="e.g. 5.0"
            )
        self.kinds = kinds_of(f"{_KEY}.kinds", self.kinds, KINDS, what="cut", one="mlp", example="heads,mlp")
        one_of(f"{_KEY}.importance", self.importance, CRITERIA)
        one_of(f"{_KEY}.norm", self.norm, ("l1", "l2"))
        one_of(f"{_KEY}.allot", self.allot, ("isomorphic", "global", "uniform"))
        one_of(f"{_KEY}.schedule", self.schedule, ("cubic", "linear", "one_shot"))
        if self.compensate is not None:
            one_of(f"{_KEY}.compensate", self.compensate, ("none", "mean", "least_squares"))
        at_least(f"{_KEY}.round_to", self.round_to, 1)
        at_least(f"{_KEY}.cuts", self.cuts, 1)
        at_least(f"{_KEY}.calibration", self.calibration, 1)
        start, end = (Moment.read(getattr(self, name), key=f"{_KEY}.{name}") for name in ("start", "end"))
        if self.schedule != "one_shot" and start.unit == end.unit and end.value < start.value:
            raise self.out_of_order()

    def out_of_order(self) -> UserError:
        """The error of a last cut that comes before the first."""
        return UserError(
            f"is before {_KEY}.start={self.start}", key=f"{_KEY}.end", value=self.end,
            remedy="the last cut comes after the first",
        )  # fmt: skip
