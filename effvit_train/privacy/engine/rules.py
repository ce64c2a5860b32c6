"""Which layers book-keeping knows, and how their parameters' gradients follow from inputs and gradients.

A rule per type of module, by exact type: a subclass may compute something else. What no rule knows is
refused by name, and `privacy.engine=vmap` takes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.layers import (
    AttentionPoolLatent,
    GroupNorm,
    GroupNorm1,
    LayerNorm,
    LayerNorm2d,
    LayerNorm2dFp32,
    LayerNormFp32,
    LayerScale,
    LayerScale2d,
    RmsNorm,
)
from timm.layers.linear import Linear
from timm.models.deit import VisionTransformerDistilled
from timm.models.mlp_mixer import Affine
from timm.models.swin_transformer import WindowAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn, view_as_complex, view_as_real
from torch.nn import functional as F

from effvit_train.models.few_bits import FakeQuantLinear
from effvit_train.models.flexible import FlexibleDistilledViT, FlexibleViT
from effvit_train.models.spectral import CoefficientGain, GlobalFilter, PrefixRead
from effvit_train.privacy.engine.base import wide
from effvit_train.privacy.engine.tape import ConvCall, LinearCall, Tape

Names = dict[str, str]  # a module's own name of a parameter -> its name in the sums


@dataclass(frozen=True)
class Rule:
    """How a type of module is handled.

    Attributes:
        parameters: that the rule knows.
        record: puts what a call leaves on the tape: (tape, module, names of what is trained, its input
            or None, the gradient of its output).
        inputs: parameters whose gradients need the module's input.
        casts: whether autocast gives it its input in a lower precision.
        refuses: why this module cannot be handled after all, or nothing.
    """

    parameters: tuple[str, ...]
    record: Callable[[Tape, Any, Names, Tensor | None, Tensor], None]
    inputs: tuple[str, ...] = ()
    casts: bool = False
    refuses: Callable[[Any], str] = lambda module: ""


@dataclass(frozen=True)
class StandIn:
    """How parameters that a module owns beside its layers are handled: a copy for every row stands in.

    Attributes:
        parameters: that the rule knows. All have a first dimension of 1 that stands for the batch, and
            the module computes the same from (B, ...).
        refuses: why this module cannot be handled after all, or nothing.
    """

    parameters: tuple[str, ...]
    refuses: Callable[[Any], str] = lambda module: ""


@dataclass(frozen=True)
class Table:
    """How a relative position bias is handled: every window gets its own copy of the bias."""

    parameters: tuple[str, ...] = ("relative_position_bias_table",)


def _linear(tape: Tape, module: nn.Linear, names: Names, inputs: Tensor | None, gradients: Tensor) -> None:
    if "weight" in names:
        assert inputs is not None
        tape.add_call(names["weight"], LinearCall(inputs, gradients, tape.samples))
    if "bias" in names:
        rows = gradients.reshape(tape.samples, -1, gradients.shape[-1])
        tape.add_gradients(names["bias"], rows.sum(dim=1, dtype=wide(rows.dtype)))


def _fake_quant(
    tape: Tape, module: FakeQuantLinear, names: Names, inputs: Tensor | None, gradients: Tensor
) -> None:
    """The weight's gradient goes straight through its rounding: it meets the inputs as they were rounded."""
    _linear(tape, module, names, None if inputs is None else module.operand(inputs), gradients)


def _conv(tape: Tape, module: nn.Conv2d, names: Names, images: Tensor | None, gradients: Tensor) -> None:
    if "weight" in names:
        assert images is not None
        assert not isinstance(module.padding, str)  # refused
        call = ConvCall(
            images, gradients, tape.samples, kernel=module.kernel_size, stride=module.stride,
            padding=module.padding, dilation=module.dilation,
        )  # fmt: skip
        if module.groups == 1:
            tape.add_call(names["weight"], call)
        else:
            tape.add_gradients(names["weight"], call.instantiate_grouped(module.groups))
    if "bias" in names:
        rows = gradients.unflatten(0, (tape.samples, -1))
        tape.add_gradients(names["bias"], rows.sum(dim=(1, 3, 4), dtype=wide(rows.dtype)))


def _refuses_conv(module: nn.Conv2d) -> str:
    if isinstance(module.padding, str) or module.padding_mode != "zeros":
        return "pads in a way of its own"
    return ""


def _scaling(
    normalise: Callable[[Any, Tensor], Tensor],
    *,
    weight: str = "weight",
    bias: str = "bias",
    first: bool = False,
) -> Rule:
    """The rule of modules that give normalise(x) * weight + bias, or a part of it.

    Args:
        normalise: (module, x in fp32 or wider) -> a new tensor, or x itself.
        weight, bias: their names.
        first: the channels are dimension 1, not the last ones.
    """

    def sums(tape: Tape, entries: Tensor, parameter: Tensor) -> Tensor:
        """Sum (B * m, ..., *shape) over all but samples and the parameter's entries, (B, entries)."""
        if first:
            rows = entries.unflatten(0, (tape.samples, -1))
            return rows.reshape(*rows.shape[:3], -1).sum(dim=(1, 3))
        return entries.reshape(tape.samples, -1, parameter.numel()).sum(dim=1)

    def record(tape: Tape, module: Any, names: Names, inputs: Tensor | None, gradients: Tensor) -> None:
        gradients = gradients.to(wide(gradients.dtype))
        if bias in names:
            tape.add_gradients(names[bias], sums(tape, gradients, getattr(module, bias)))
        if weight in names:
            assert inputs is not None
            inputs = inputs.to(gradients.dtype)
            normal = normalise(module, inputs)
            product = normal * gradients if normal is inputs else normal.mul_(gradients)
            tape.add_gradients(names[weight], sums(tape, product, getattr(module, weight)))

    return Rule((weight, bias), record, inputs=(weight,), refuses=_refuses_inplace)


def _refuses_inplace(module: Any) -> str:
    return "overwrites its input" if getattr(module, "inplace", False) else ""


def _layer_norm(module: nn.LayerNorm, inputs: Tensor) -> Tensor:
    return F.layer_norm(inputs, module.weight.shape, eps=module.eps)


def _layer_norm_2d(module: nn.LayerNorm, inputs: Tensor) -> Tensor:
    rows = inputs.permute(0, 2, 3, 1)
    return F.layer_norm(rows, module.weight.shape, eps=module.eps).permute(0, 3, 1, 2)


def _group_norm(module: nn.GroupNorm, inputs: Tensor) -> Tensor:
    return F.group_norm(inputs, module.num_groups, eps=module.eps)


def _rms_norm(module: RmsNorm, inputs: Tensor) -> Tensor:
    return F.rms_norm(inputs, list(module.weight.shape), eps=module.eps)


def _same(module: nn.Module, inputs: Tensor) -> Tensor:
    return inputs


def _filter(tape: Tape, module: GlobalFilter, names: Names, inputs: Tensor | None, gradients: Tensor) -> None:
    """Of Y = K X, elementwise and complex: the gradient of K is that of Y times X's conjugate."""
    assert inputs is not None
    spectra, gradients = inputs.to(wide(gradients.dtype)), gradients.to(wide(gradients.dtype))
    each = view_as_real(view_as_complex(spectra).conj() * view_as_complex(gradients))
    tape.add_gradients(names["weight"], each.unflatten(0, (tape.samples, -1)).sum(dim=1))


def _refuses_interpolation(module: Any) -> str:
    return "fits its position embedding to the size of the images" if module.dynamic_img_size else ""


LAYERS: dict[type[nn.Module], Rule] = {
    **dict.fromkeys(
        (nn.Linear, Linear), Rule(("weight", "bias"), _linear, inputs=("weight",), casts=True)
    ),
    FakeQuantLinear: Rule(("weight", "bias"), _fake_quant, inputs=("weight",), casts=True),
    nn.Conv2d: Rule(("weight", "bias"), _conv, inputs=("weight",), casts=True, refuses=_refuses_conv),
    **dict.fromkeys((nn.LayerNorm, LayerNorm, LayerNormFp32), _scaling(_layer_norm)),
    **dict.fromkeys((LayerNorm2d, LayerNorm2dFp32), _scaling(_layer_norm_2d, first=True)),
    **dict.fromkeys((nn.GroupNorm, GroupNorm, GroupNorm1), _scaling(_group_norm, first=True)),
    RmsNorm: _scaling(_rms_norm),
    LayerScale: _scaling(_same, weight="gamma"),
    LayerScale2d: _scaling(_same, weight="gamma", first=True),
    Affine: _scaling(_same, weight="alpha", bias="beta"),
    **dict.fromkeys((CoefficientGain, PrefixRead), _scaling(_same)),
    GlobalFilter: Rule(("weight",), _filter, inputs=("weight",)),
}  # fmt: skip
_TOKENS = ("cls_token", "reg_token", "dist_token", "pos_embed")
OWNERS: dict[type[nn.Module], StandIn | Table] = {
    **dict.fromkeys(
        (VisionTransformer, VisionTransformerDistilled), StandIn(_TOKENS, _refuses_interpolation)
    ),
    # these resample a position embedding for each image as they do one for all
    **dict.fromkeys((FlexibleViT, FlexibleDistilledViT), StandIn(_TOKENS)),
    AttentionPoolLatent: StandIn(("latent",)),
    WindowAttention: Table(),
}


def window_bias(module: Any, table: Tensor) -> Tensor:
    """timm's relative position bias (1, H, N, N) of a table (L, H)."""
    index, area = module.relative_position_index.view(-1), module.window_area
    return table[index].view(area, area, -1).permute(2, 0, 1).contiguous().unsqueeze(0)


def table_gradients(module: Any, gradients: Tensor, samples: int) -> Tensor:
    """Per-sample gradients (B, L, H) of a table, from those of the bias (B * windows, H, N, N)."""
    each = gradients.unflatten(0, (samples, -1)).sum(dim=1, dtype=wide(gradients.dtype)).flatten(2)
    length = module.relative_position_bias_table.shape[0]
    result = each.new_zeros(samples, each.shape[1], length)
    result.index_add_(2, module.relative_position_index.view(-1), each)
    return result.transpose(1, 2)
