"""What is quantised, and with which ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from effvit_train.compress.quantize.config import KEY, QuantizeConfig
from effvit_train.errors import UserError, first_line
from effvit_train.models.factory import build
from effvit_train.models.few_bits import FakeQuantLinear
from effvit_train.models.mode import evaluating
from effvit_train.models.quantised import Linears, Replace, input_ranges, linear_layers, signal_to_noise
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.parts import Decided


@dataclass(frozen=True)
class Decide:
    """Decides on the change; see `parts.PlannedChange`.

    Attributes:
        config: `compress.quantize`.
        fake: layers that train for int8, rather than what ships.
        untrained: the weights are random still.
    """

    config: QuantizeConfig
    fake: bool
    untrained: bool = False

    def __call__(self, module: Any, data: Any, epoch: int) -> Decided:
        """The layers and their ranges.

        Raises:
            UserError: the model has no such layers, or its ranges would be those of random weights.
        """
        if self.untrained and self.config.ranges:
            raise UserError(
                "would measure the ranges of random weights, and train within them", key=f"{KEY}.start",
                value=self.config.start, remedy=f"e.g. {KEY}.start=0.5, {KEY}.mode=dynamic, or model.weights=RUN_DIR",
            )  # fmt: skip
        config, model = self.config, module.model if self.fake else module.shipped
        layers = find_layers(config, module.record)
        names = layers.called
        scales: dict[str, Tensor | None] = dict.fromkeys(names)
        ids = None
        if config.ranges:
            ids = _spread(data.indices("val"), config.calibration)
            scales |= self._ranges(model, names, module, data, ids)
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
            "left_as_they_are": layers.read, "calibration_images": None if ids is None else len(ids),
            "signal_to_noise_db": {name: round(v, 2) if math.isfinite(v) else None for name, v in noise.items()},
        }  # fmt: skip
        what = "train as they will be in" if self.fake else "in"
        lowest = f", weights {min(finite):.1f} dB above the rounding at least" if finite else ""
        kind = f", {config.mode}" if config.dtype == "int8" else ""
        left = (
            f"; {len(layers.read)}, whose weights are read elsewhere, stay as they are" if layers.read else ""
        )
        words = f"{len(names)} linear layers {what} {config.dtype}{kind}{lowest}{left}"
        return Decided([replace], replace.entry(), facts, words)

    def _ranges(
        self, model: Any, names: list[str], module: Any, data: Any, ids: npt.NDArray[np.int64]
    ) -> dict[str, Tensor]:
        trained = {
            name: layer.input_scale.cpu()
            for name in names
            if isinstance(layer := model.get_submodule(name), FakeQuantLinear)
            and layer.input_scale is not None
        }
        if len(trained) == len(names):
            return trained  # the ranges that the training was with
        images = (module.normalise(batch.images.to(module.device)) for batch in data.loader_of(ids))
        with evaluating(model):
            return input_ranges(model, names, images, percentile=self.config.percentile)


def check(config: QuantizeConfig, record: ArchitectureRecord) -> None:
    """Raise `UserError` for a model that has no such layers, or cannot do with less of them; on the meta device."""
    layers = find_layers(config, record)
    model = _blank(record)
    scale = torch.ones(1, device="meta") if config.ranges else None
    try:
        apply(
            model,
            [
                Replace(
                    False, config.dtype, config.mode, config.per_channel, dict.fromkeys(layers.called, scale)
                )
            ],
        )
        model(_example(record))
    except Exception as error:  # whatever a model does with weights of another kind
        raise UserError(
            f"{record.name} uses weights of linear layers that it also calls ({first_line(error)})",
            key=f"{KEY}.layers", value=",".join(config.layers), remedy="choose other layers, or another model",
        ) from None  # fmt: skip


def find_layers(config: QuantizeConfig, record: ArchitectureRecord) -> Linears:
    """The layers of the configured kinds; raises `UserError` where there are none that can be replaced."""
    found = linear_layers(_blank(record), _example(record), config.layers)
    if not found.called:
        raise UserError(
            f"are not in {record.name}" + (", or only read by other modules" if found.read else ""),
            key=f"{KEY}.layers", value=",".join(config.layers),
            remedy="choose other layers, or a model with linear layers",
        )  # fmt: skip
    return found


def _blank(record: ArchitectureRecord) -> nn.Module:
    with torch.device("meta"):
        return build(record).eval()


def _example(record: ArchitectureRecord) -> Tensor:
    return torch.zeros(1, *record.input_shape, device="meta")


def _spread(ids: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """So many of the ids, evenly spaced: folders come class by class."""
    if len(ids) <= count:
        return ids
    return ids[np.arange(count) * len(ids) // count]


def _share(model: Any, names: list[str]) -> float:
    whole = sum(parameter.numel() for parameter in model.parameters())
    return round(sum(model.get_submodule(name).weight.numel() for name in names) / whole, 4)
