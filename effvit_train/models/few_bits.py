"""Linear layers with fewer bits: int8 for products of whole numbers, bf16, and layers that train for int8.

Symmetric linear quantisation (Jacob et al. 2018; Krishnamoorthi 2018): w ~ s_w q_w with whole numbers q_w of -127
to 127 and one scale for each output channel; x ~ s_x q_x with one scale for each token (dynamic) or one for all
(static). Then W x = s_w s_x (q_w q_x), a product of whole numbers. A token's scale depends on that token alone: no
image has a say in another one's result.

Modules of ours rather than tensor subclasses of a library: what ships is a plain state dict of int8 and float
tensors, which safetensors holds and a record rebuilds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

DYNAMIC, STATIC, WEIGHT_ONLY = "dynamic", "static", "weight_only"
MODES = (DYNAMIC, STATIC, WEIGHT_ONLY)
INT8, BF16 = "int8", "bf16"
LEVELS = 127.0
_ROWS = 256  # tokens that are rounded and multiplied at a time: what lies between fits into a core's cache


def weight_scales(weight: Tensor, *, per_channel: bool) -> Tensor:
    """Scales (out, 1), or (1, 1), with which the largest weight of each row, or of all, becomes 127."""
    largest = weight.abs().amax(dim=1, keepdim=True) if per_channel else weight.abs().amax().view(1, 1)
    return (largest / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)


def token_scales(x: Tensor) -> Tensor:
    """Scales (..., 1) with which the largest entry of each token becomes 127."""
    return (x.abs().amax(dim=-1, keepdim=True) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """Whole numbers of -127 to 127, in x's own type."""
    return (x / scale).round().clamp(-LEVELS, LEVELS)


class _Quantised(nn.Module):
    """What int8 layers have in common: how inputs are brought to whole numbers.

    Attributes:
        mode: dynamic, static or weight_only.
        input_scale: of a static layer, (1,).
    """

    mode: str
    input_scale: Tensor | None
    bias: Any
    in_features: int
    out_features: int

    def scale_of(self, x: Tensor) -> Tensor:
        """Scale of the inputs: (..., 1) of each token, or (1,)."""
        if self.mode == DYNAMIC:
            return token_scales(x)
        assert self.input_scale is not None
        return self.input_scale

    def operand(self, x: Tensor) -> Tensor:
        """The inputs as they are multiplied, s_x q_x, with the gradient of x itself (straight through).

        Beyond a static layer's range the gradient is zero (Jacob et al. 2018).
        """
        if self.mode == WEIGHT_ONLY:
            return x
        wide = x.float()
        scale = self.scale_of(wide.detach())
        bounded = wide.clamp(-LEVELS * scale, LEVELS * scale)
        result = (rounded(bounded, scale) * scale).detach() + (bounded - bounded.detach())
        return result.to(x.dtype)

    def in_whole_numbers(self, x: Tensor) -> bool:
        """Whether these inputs are multiplied as whole numbers, which know no gradient."""
        return self.mode != WEIGHT_ONLY and not (torch.is_grad_enabled() and x.requires_grad)

    def multiplied(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        """(..., in) to (..., out) by products of whole numbers, with weights (out, in) and their scales."""
        rows = x.reshape(-1, self.in_features)
        # exported graphs come first: the number of their rows is a symbol
        traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
        if traced or x.device.type != "cpu" or len(rows) <= _ROWS:
            result = self._multiply(rows, weight, scale)
        else:  # at once, most of the time would go into fresh memory
            result = x.new_empty(len(rows), self.out_features)
            for start in range(0, len(rows), _ROWS):
                result[start : start + _ROWS] = self._multiply(rows[start : start + _ROWS], weight, scale)
        return result.view(*x.shape[:-1], self.out_features)

    def _multiply(self, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        wide = x.float()
        steps = self.scale_of(wide)
        product = _whole_product(rounded(wide, steps), weight)
        # not addcmul, which rounds the last entries of a tensor otherwise: a row is the same whatever the others are
        result = product * scale.view(-1) * steps
        return (result if self.bias is None else result + self.bias).to(x.dtype)


class Int8Linear(_Quantised):
    """A linear layer of int8 weights.

    Args:
        weight: (out, in), int8.
        scale: (out, 1) or (1, 1).
        bias: (out,) or None.
        mode: dynamic, static or weight_only (then only the file is smaller).
        input_scale: of a static layer, (1,).
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        *,
        mode: str,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.register_buffer("input_scale", input_scale)
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scale: Tensor
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias)

    @classmethod
    def of(cls, layer: nn.Module, *, mode: str, per_channel: bool, input_scale: Tensor | None) -> Int8Linear:
        """The int8 layer of a linear one."""
        weight: Tensor = layer.weight.detach().float()  # type: ignore[operator]
        scale = weight_scales(weight, per_channel=per_channel)
        bias = layer.bias
        return cls(
            rounded(weight, scale).to(torch.int8), scale, bias.detach().clone() if isinstance(bias, Tensor) else None,
            mode=mode, input_scale=input_scale,
        )  # fmt: skip

    def effective_weight(self) -> Tensor:
        """s_w q_w (out, in), fp32."""
        return self.weight.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out).

        Where a gradient of the inputs is asked for (attacks, explanations) the same values are computed with
        floating-point numbers and the gradient goes straight through the rounding: an attack on the rounding's own
        gradient, zero, would find nothing (Athalye et al. 2018).
        """
        if self.in_whole_numbers(x):
            return self.multiplied(x, self.weight, self.scale)
        return F.linear(self.operand(x), self.effective_weight().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.mode}"


def _whole_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of whole numbers (n, k) in floating point and (m, k) in int8: int32 (n, m) where that is known.

    Exported graphs and other devices multiply them in floating point, with the same result while the sums stay
    below 2^24.
    """
    if torch.compiler.is_exporting() or left.device.type not in ("cpu", "cuda", "meta"):
        return F.linear(left, right.to(left.dtype))
    left = left.to(torch.int8)
    if left.device.type != "cuda":
        return torch._int_mm(left, right.t())
    rows, inner, columns = len(left), left.shape[1], len(right)
    more = max(0, 32 - rows), -inner % 8, -columns % 8  # what the kernel there wants
    left, right = F.pad(left, (0, more[1], 0, more[0])), F.pad(right, (0, more[1], 0, more[2]))
    return torch._int_mm(left, right.t())[:rows, :columns]


class FakeQuantLinear(_Quantised, nn.Linear):
    """A linear layer that trains as it will be in int8: weights and inputs are rounded on the way, gradients not.

    Weight and bias are the layer's own parameters.

    Args:
        layer: the layer.
        mode, input_scale: see `Int8Linear`.
        per_channel: a scale for each output channel.
    """

    def __init__(
        self, layer: nn.Module, *, mode: str, per_channel: bool, input_scale: Tensor | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.mode, self.per_channel = mode, per_channel
        self.register_buffer("input_scale", input_scale)
        self.weight = layer.weight  # type: ignore[assignment]
        self.bias = layer.bias
        self.out_features, self.in_features = self.weight.shape

    def effective_weight(self) -> Tensor:
        """s_w q_w (out, in), with the gradient of the weight itself."""
        rounded_weight, scale = self._whole_weight()
        effective = (rounded_weight * scale).to(self.weight.dtype)
        return effective + (self.weight - self.weight.detach()) if torch.is_grad_enabled() else effective

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out); where no gradient is asked for, to the last bit what will ship."""
        if not torch.is_grad_enabled() and self.in_whole_numbers(x):
            weight, scale = self._whole_weight()
            return self.multiplied(x, weight.to(torch.int8), scale)
        return F.linear(self.operand(x), self.effective_weight(), self.bias)

    def _whole_weight(self) -> tuple[Tensor, Tensor]:
        weight = self.weight.detach().float()
        scale = weight_scales(weight, per_channel=self.per_channel)
        return rounded(weight, scale), scale

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.mode}"


class Bf16Linear(nn.Module):
    """A linear layer that keeps and multiplies its weights in bf16, whatever type the model is brought to.

    Args:
        weight: (out, in).
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight.to(torch.bfloat16))
        self.bias = None if bias is None else nn.Parameter(bias.to(torch.bfloat16))

    def effective_weight(self) -> Tensor:
        """The weight (out, in) in fp32."""
        return self.weight.float()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out), in x's own type.

        An exported graph multiplies the same numbers in x's type, as runtimes have no product of bf16.
        """
        low = x.to(torch.bfloat16)
        if torch.compiler.is_exporting():
            bias = None if self.bias is None else self.bias.to(x.dtype)
            return F.linear(low.to(x.dtype), self.weight.to(x.dtype), bias).to(torch.bfloat16).to(x.dtype)
        return F.linear(low, self.weight, self.bias).to(x.dtype)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Bf16Linear:
        """Move the weights as whole numbers, which a change of type (`float()`) leaves alone."""

        def moved(tensor: Tensor) -> Tensor:
            bits = tensor.dtype == torch.bfloat16
            return fn(tensor.view(torch.int16)).view(torch.bfloat16) if bits else fn(tensor)

        return super()._apply(moved, recurse)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bf16"
