"""Put layers with fewer bits (`few_bits`) into a model, or into one that is built again from its record."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.models.config import LINEARS
from effvit_train.models.few_bits import (
    BF16,
    INT8,
    LEVELS,
    MODES,
    STATIC,
    Bf16Linear,
    FakeQuantLinear,
    Int8Linear,
    rounded,
    weight_scales,
)
from effvit_train.models.linears import kinds_of_layers
from effvit_train.models.mode import evaluating
from effvit_train.models.surgery import Change

QUANTISED, FAKE = "quantize", "fake_quantize"  # kinds of entries in an architecture record


@dataclass(frozen=True)
class Replace(Change):
    """Put layers with fewer bits in the place of linear ones, each of its own weights.

    Attributes:
        fake: layers that train for int8, rather than int8 itself.
        dtype: int8 or bf16.
        mode: of int8.
        per_channel: of int8 weights.
        layers: layer -> scale of its inputs (1,), or None where it has none.
    """

    fake: bool
    dtype: str
    mode: str
    per_channel: bool
    layers: Mapping[str, Tensor | None]

    @torch.no_grad()
    def carry_out(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        """Replace them; parameters of layers that train stay the same objects."""
        for name, given in self.layers.items():
            layer = model.get_submodule(name)
            where: Any = layer.weight.device
            scale = None if given is None else given.to(where, copy=True)
            new: nn.Module
            if self.dtype == BF16:
                bias = layer.bias
                new = Bf16Linear(layer.weight.detach(), bias.detach() if isinstance(bias, Tensor) else None)  # type: ignore[operator]
            elif self.fake:
                new = FakeQuantLinear(layer, mode=self.mode, per_channel=self.per_channel, input_scale=scale)
            else:
                new = Int8Linear.of(layer, mode=self.mode, per_channel=self.per_channel, input_scale=scale)
            model.set_submodule(name, new.train(layer.training))

    def entry(self) -> dict[str, Any]:
        """Of the architecture record."""
        return {
            "kind": FAKE if self.fake else QUANTISED, "dtype": self.dtype, "mode": self.mode,
            "per_channel": self.per_channel, "layers": list(self.layers),
        }  # fmt: skip


def recorded(model: nn.Module, entry: Mapping[str, Any]) -> list[Replace]:
    """The operations that put the recorded layers in place; raises `ValueError` for another model's record."""
    try:
        names = [str(name) for name in entry["layers"]]
        found = [model.get_submodule(name) for name in names]
        dtype, mode, per_channel = entry["dtype"], entry["mode"], bool(entry["per_channel"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a quantised layer of the architecture record is not there: {error}") from None
    if dtype not in (INT8, BF16) or mode not in MODES or not all(map(can_be, found)):
        raise ValueError("the architecture record quantises what cannot be quantised")
    static = mode == STATIC and dtype == INT8
    scales = {name: torch.ones(1) if static else None for name in names}
    return [Replace(entry["kind"] == FAKE, dtype, mode, per_channel, scales)]


def can_be(layer: nn.Module) -> bool:
    """Whether it is a linear layer that we can give fewer bits."""
    return type(layer) in (nn.Linear, FakeQuantLinear)


@dataclass(frozen=True)
class Linears:
    """Linear layers of the wanted kinds.

    Attributes:
        called: names of those that can be replaced.
        read: names of those that a module takes the weights of instead of calling them: they stay as they are.
    """

    called: list[str]
    read: list[str]


def linear_layers(model: nn.Module, example: Tensor, kinds: Collection[str] = LINEARS[:5]) -> Linears:
    """The linear layers of a model, in its order.

    Args:
        model: is run once, in evaluation mode; may be on the meta device.
        example: images (B, C, H, W).
        kinds: of `models.config.LINEARS`.
    """
    kind_of = kinds_of_layers(model, [name for name, module in model.named_modules() if can_be(module)])
    wanted = [name for name, kind in kind_of.items() if kind in kinds]
    called: set[str] = set()

    def note(name: str) -> Any:
        return lambda module, args: called.add(name)

    hooks = [model.get_submodule(name).register_forward_pre_hook(note(name)) for name in wanted]
    try:
        with evaluating(model):
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return Linears([n for n in wanted if n in called], [n for n in wanted if n not in called])


def is_quantised(model: nn.Module) -> bool:
    """Whether some of its weights are whole numbers, or bf16, which are not trained further."""
    return any(isinstance(module, (Int8Linear, Bf16Linear)) for module in model.modules())


def refuse_training(model: nn.Module) -> None:
    """Raise `UserError` for a model whose weights have too few bits to be trained."""
    if is_quantised(model):
        raise UserError(
            "holds quantised weights, which cannot be trained further", key="model.weights",
            remedy="start from the run before it was quantised, with compress=quantize compress.quantize.qat=true",
        )  # fmt: skip


def refuse_cutting(model: nn.Module, key: str, value: object) -> None:
    """Raise `UserError` for a model whose weights have too few bits to be cut or factored."""
    if is_quantised(model):
        raise UserError(
            "holds quantised weights, which can be neither cut nor factored: that comes before",
            key=key, value=value, remedy="start from the run before it was quantised, and quantise last",
        )  # fmt: skip


@torch.no_grad()
def input_ranges(
    model: nn.Module, names: Sequence[str], batches: Iterable[Tensor], *, percentile: float
) -> dict[str, Tensor]:
    """Scales (1,) of the inputs of layers over calibration images.

    Args:
        model: in evaluation mode.
        names: of the layers.
        batches: of images (B, C, H, W) as the model sees them.
        percentile: of |x| of a batch that becomes 127, 100 for the largest; the largest over all batches.
    """
    found = {name: torch.zeros(1) for name in names}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = args[0].detach().abs().flatten().float()
            if percentile < 100:
                rank = max(1, round(len(values) * percentile / 100))
                values = values.kthvalue(rank).values
            found[name] = torch.maximum(found[name], values.max().cpu().view(1))

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        for images in batches:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: (value / LEVELS).clamp_min(torch.finfo(torch.float32).tiny) for name, value in found.items()
    }


def signal_to_noise(layer: nn.Module, *, dtype: str, per_channel: bool) -> float:
    """10 log10 of ||W||^2 / ||W - W'||^2, in dB, of a layer's weights and what becomes of them."""
    weight: Tensor = layer.weight.detach().double()  # type: ignore[operator]
    if dtype == BF16:
        after = weight.to(torch.bfloat16).double()
    else:
        scale = weight_scales(weight, per_channel=per_channel)
        after = rounded(weight, scale) * scale
    noise = (weight - after).square().sum()
    return float("inf") if noise == 0 else float(10 * torch.log10(weight.square().sum() / noise))
