"""What is quantised, and with which ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from effvit_train.compress.quantize.config import QuantizeConfig
from effvit_train.errors import UserError
from effvit_train.models.few_bits import STATIC, FakeQuantLinear
from effvit_train.models.quantised import Replace, input_ranges, linear_layers, signal_to_noise
from effvit_train.parts import Decided


@dataclass(frozen=True)
class Decide:
    """Decides on the change; see `parts.PlannedChange`.

    Attributes:
        config: `compress.quantize`.
        fake: layers that train for int8, rather than what ships.
    """

    config: QuantizeConfig
    fake: bool

    def __call__(self, module: Any, data: Any, epoch: int) -> Decided:
        """The layers and their ranges.

        Raises:
            UserError: the model has no linear layer that could be quantised.
        """
        config, model = self.config, module.model if self.fake else module.shipped
        names = linear_layers(model, head=config.head)
        if not names:
            raise UserError(
                f"{type(model).__name__} has no linear layers that can be quantised", key="compress",
                value="quantize", remedy="leave it out",
            )  # fmt: skip
        scales: dict[str, Tensor | None] = dict.fromkeys(names)
        if config.mode == STATIC and config.dtype == "int8":
            scales |= self._ranges(model, names, module, data)
        replace = Replace(self.fake, config.dtype, config.mode, config.per_channel, scales)
        noise = {
            name: signal_to_noise(
                model.get_submodule(name), dtype=config.dtype, per_channel=config.per_channel
            )
            for name in names
        }
        finite = [value for value in noise.values() if math.isfinite(value)]
        facts = {
            "dtype": config.dtype, "mode": config.mode if config.dtype == "int8" else None,
            "per_channel": config.per_channel if config.dtype == "int8" else None, "layers": len(names),
            "share_of_parameters": _share(model, names),
            "calibration_images": config.calibration if config.mode == STATIC and config.dtype == "int8" else None,
            "signal_to_noise_db": {name: round(v, 2) if math.isfinite(v) else None for name, v in noise.items()},
        }  # fmt: skip
        what = "train as they will be in" if self.fake else "in"
        lowest = f", weights {min(finite):.1f} dB above the rounding at least" if finite else ""
        kind = f", {config.mode}" if config.dtype == "int8" else ""
        return Decided(
            [replace],
            replace.entry(),
            facts,
            f"{len(names)} linear layers {what} {config.dtype}{kind}{lowest}",
        )

    def _ranges(self, model: Any, names: list[str], module: Any, data: Any) -> dict[str, Tensor]:
        trained = {
            name: layer.input_scale.cpu()
            for name in names
            if isinstance(layer := model.get_submodule(name), FakeQuantLinear)
            and layer.input_scale is not None
        }
        if len(trained) == len(names):
            return trained  # the ranges that the training was with
        ids = data.indices("val")[: self.config.calibration]
        images = [module.normalise(batch.images.to(module.device)) for batch in data.loader_of(ids)]
        mode = model.training
        model.eval()
        try:
            with torch.no_grad():
                return input_ranges(model, names, images, percentile=self.config.percentile)
        finally:
            model.train(mode)


def _share(model: Any, names: list[str]) -> float:
    whole = sum(parameter.numel() for parameter in model.parameters())
    return round(sum(model.get_submodule(name).weight.numel() for name in names) / whole, 4)
