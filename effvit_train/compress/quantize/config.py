"""Schema of `compress.quantize`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from effvit_train.errors import UserError, at_least, kinds_of, one_of
from effvit_train.models.config import LINEARS

KEY = "compress.quantize"


@dataclass
class QuantizeConfig:
    """`compress.quantize.*`.

    Attributes:
        dtype: int8 | bf16, of the weights of linear layers.
        mode: dynamic, the inputs of each token are rounded by its own largest entry | static, by a range that was
            measured before | weight_only, only the weights are int8.
        per_channel: a scale for each output channel of the weights, not one for all.
        layers: which linear layers: qkv | proj | fc1 | fc2 | other | patch_embed | head.
        calibration: validation images that static ranges are measured on, at most (they are public, also under
            privacy).
        percentile: of the inputs that a static range holds; 100 = all.
        qat: train on as the int8 model will be, from `start` on (Jacob et al. 2018).
        start: when quantisation-aware training begins: a fraction of the training, `10epochs` or `500steps`.
            null = 0 where the model starts from trained weights, else 0.5.
    """

    dtype: str = "int8"
    mode: str = "dynamic"
    per_channel: bool = True
    layers: Any = field(default_factory=lambda: ["qkv", "proj", "fc1", "fc2", "other"])
    calibration: int = 512
    percentile: float = 100.0
    qat: bool = False
    start: Any = None

    @property
    def ranges(self) -> bool:
        """Whether ranges of inputs are measured."""
        return self.dtype == "int8" and self.mode == "static"

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        from effvit_train.moment import Moment

        one_of(f"{KEY}.dtype", self.dtype, ("int8", "bf16"))
        one_of(f"{KEY}.mode", self.mode, ("dynamic", "static", "weight_only"))
        self.layers = kinds_of(
            f"{KEY}.layers", self.layers, LINEARS, what="quantise", one="fc1", example="fc1,fc2"
        )
        at_least(f"{KEY}.calibration", self.calibration, 1)
        if not 50 <= self.percentile <= 100:
            raise UserError(
                "must be 50 to 100", key=f"{KEY}.percentile", value=self.percentile, remedy="e.g. 99.99"
            )
        if self.start is not None:
            Moment.read(self.start, key=f"{KEY}.start")
        if self.qat and self.dtype != "int8":
            raise UserError(
                "trains for int8, and bf16 is asked for", key=f"{KEY}.qat", value=True,
                remedy=f"{KEY}.dtype=int8, or leave it out",
            )  # fmt: skip
