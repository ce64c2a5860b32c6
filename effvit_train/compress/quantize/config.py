"""Schema of `compress.quantize`. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effvit_train.errors import UserError, at_least, one_of

KEY = "compress.quantize"


@dataclass
class QuantizeConfig:
    """`compress.quantize.*`.

    Attributes:
        dtype: int8 | bf16, of the weights of linear layers.
        mode: dynamic, the inputs of each token are rounded by its own largest entry | static, by a range that was
            measured before | weight_only, only the weights are int8.
        per_channel: a scale for each output channel of the weights, not one for all.
        head: quantise the classifier too.
        calibration: validation images that static ranges are measured on (they are public, also under privacy).
        percentile: of the inputs that a static range holds; 100 = all.
        qat: train on as the int8 model will be, from `start` on (Jacob et al. 2018).
        start: when quantisation-aware training begins: a fraction of the training, `10epochs` or `500steps`.
    """

    dtype: str = "int8"
    mode: str = "dynamic"
    per_channel: bool = True
    head: bool = False
    calibration: int = 512
    percentile: float = 100.0
    qat: bool = False
    start: Any = 0.5

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        from effvit_train.moment import Moment

        one_of(f"{KEY}.dtype", self.dtype, ("int8", "bf16"))
        one_of(f"{KEY}.mode", self.mode, ("dynamic", "static", "weight_only"))
        at_least(f"{KEY}.calibration", self.calibration, 1)
        if not 50 <= self.percentile <= 100:
            raise UserError(
                "must be 50 to 100", key=f"{KEY}.percentile", value=self.percentile, remedy="e.g. 99.99"
            )
        Moment.read(self.start, key=f"{KEY}.start")
        if self.qat and self.dtype != "int8":
            raise UserError(
                "trains for int8, and bf16 is asked for", key=f"{KEY}.qat", value=True,
                remedy=f"{KEY}.dtype=int8, or leave it out",
            )  # fmt: skip
