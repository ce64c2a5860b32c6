"""Schema of `compress.lowrank`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from effvit_train.errors import UserError, at_least, kinds_of, one_of
from effvit_train.models.config import LINEARS
from effvit_train.moment import Moment

KEY = "compress.lowrank"
ACTIVATION = "activation"
ENERGY = 0.9  # where nothing says how far to go


@dataclass
class TargetConfig:
    """`compress.lowrank.target.*`: what the model may cost; both are met.

    Attributes:
        macs: fraction of the multiply-accumulates of the model as it is when it is factored.
        params: fraction of its parameters.
    """

    macs: Optional[float] = None
    params: Optional[float] = None


@dataclass
class LowRankConfig:
    """`compress.lowrank.*`. Of `energy`, `rank` and `target` one is given; none is energy=0.9.

    Attributes:
        energy: share of the squared singular values that each layer keeps.
        rank: of every layer.
        target: what the model may cost: ranks are spread over the layers so that least is lost.
        search: measure on validation images what a rank of each layer costs in quality; spreads a target by it.
        search_images: validation images that are looked at.
        layers: which linear layers: qkv | proj | fc1 | fc2 | other | patch_embed | head.
        weighting: none: the matrices W are approximated | activation: their outputs W x on training images.
        calibration: these training images.
        round_to: ranks are multiples of it; null = 8, or less in a narrow layer. Not of `rank`.
        start: when the model is factored: a fraction of the training, `10epochs` or `500steps`; 1 is after it.
            null = 0 where the model starts from trained weights, else 0.6.
    """

    energy: Optional[float] = None
    rank: Optional[int] = None
    target: TargetConfig = field(default_factory=TargetConfig)
    search: bool = False
    search_images: int = 256
    layers: Any = field(default_factory=lambda: ["qkv", "proj", "fc1", "fc2"])
    weighting: str = ACTIVATION
    calibration: int = 512
    round_to: Optional[int] = None
    start: Any = None

    @property
    def targets(self) -> dict[str, float]:
        """Budget -> the fraction that is left, of those that are set."""
        named = {name: getattr(self.target, name) for name in ("macs", "params")}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def kept(self) -> float | None:
        """Share of the energy that each layer keeps, where that decides."""
        if self.energy is None and self.rank is None and not self.targets:
            return ENERGY
        return self.energy

    @property
    def asked(self) -> tuple[str, Any]:
        """The setting that decides on ranks, and its value."""
        if self.targets:
            name, value = next(iter(self.targets.items()))
            return f"{KEY}.target.{name}", value
        return (f"{KEY}.rank", self.rank) if self.rank is not None else (f"{KEY}.energy", self.kept)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UserError(
                "must be the share of the energy that each layer keeps, above 0 and up to 1",
                key=f"{KEY}.energy", value=self.energy, remedy=f"e.g. {KEY}.energy={ENERGY}",
            )  # fmt: skip
        at_least(f"{KEY}.rank", self.rank, 1)
        for name, value in self.targets.items():
            if not 0 < value <= 1:
                raise UserError(
                    f"must be the fraction of {name} that stays, above 0 and up to 1",
                    key=f"{KEY}.target.{name}", value=value, remedy=f"e.g. {KEY}.target.{name}=0.5",
                )  # fmt: skip
        given = [name for name in ("energy", "rank") if getattr(self, name) is not None]
        given += ["target"] if self.targets else []
        if len(given) > 1:
            raise UserError(
                f"decides on ranks, and so does {KEY}.{given[1]}", key=f"{KEY}.{given[0]}",
                value=getattr(self, given[0]), remedy="give one of them",
            )  # fmt: skip
        if self.search and not self.targets:
            raise UserError(
                "finds out where a budget is best saved, and there is none", key=f"{KEY}.search", value=True,
                remedy=f"e.g. {KEY}.target.macs=0.5",
            )  # fmt: skip
        self.layers = kinds_of(
            f"{KEY}.layers", self.layers, LINEARS, what="factor", one="fc1", example="fc1,fc2"
        )
        one_of(f"{KEY}.weighting", self.weighting, ("none", ACTIVATION))
        at_least(f"{KEY}.search_images", self.search_images, 1)
        at_least(f"{KEY}.calibration", self.calibration, 1)
        at_least(f"{KEY}.round_to", self.round_to, 1)
        if self.start is not None:
            Moment.read(self.start, key=f"{KEY}.start", end=True)
