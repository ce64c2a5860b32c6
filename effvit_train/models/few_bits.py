"""Linear layers with fewer bits: int8 for products of whole numbers, bf16, and layers that train for int8.

Symmetric linear quantisation (Jacob et al. 2018; Krishnamoorthi 2018): w ~ s_w q_w with whole numbers q_w of -127
to 127 and one scale for each output channel; x ~ s_x q_x with one scale for each token (dynamic) or one for all
(static). Then W x = s_w s_x (q_w q_x), a product of whole numbers. A token's scale depends on that token alone: no
image has a say in another one's result.

Modules of ours rather than tensor subclasses of a library: what ships is a plain state dict of int8 and float
tensors, which safetensors holds and a record rebuilds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DYNAMIC, STATIC, WEIGHT_ONLY = "dynamic", "static", "weight_only"
MODES = (DYNAMIC, STATIC, WEIGHT_ONLY)
INT8, BF16 = "int8", "bf16"
LEVELS = 127.0


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
        result = bounded + (rounded(bounded, scale) * scale - bounded).detach()
        return result.to(x.dtype)


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

        Where a gradient of the inputs is asked for (attacks, explanations), and where the graph is exported, the
        same values are computed with floating-point numbers and the gradient goes straight through the rounding:
        an attack on the rounding's own gradient, zero, would find nothing (Athalye et al. 2018).
        """
        plain = (torch.is_grad_enabled() and x.requires_grad) or torch.compiler.is_exporting()
        if self.mode == WEIGHT_ONLY or plain:
            return F.linear(self.operand(x), self.effective_weight().to(x.dtype), self.bias)
        wide = x.float()
        scale = self.scale_of(wide)
        whole = rounded(wide, scale).to(torch.int8)
        product = _int_product(whole.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        result = product * (self.scale.view(-1) if self.mode == DYNAMIC else self.scale.view(-1) * scale)
        if self.mode == DYNAMIC:
            result = result * scale if self.bias is None else torch.addcmul(self.bias.float(), result, scale)
        elif self.bias is not None:
            result = result + self.bias
        return result.to(x.dtype)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.mode}"


def _int_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of int8 (n, k) and (m, k), exact, as int32 (n, m)."""
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
        self.bias = layer.bias  # type: ignore[assignment]
        self.out_features, self.in_features = self.weight.shape

    def effective_weight(self) -> Tensor:
        """s_w q_w (out, in), with the gradient of the weight itself."""
        weight = self.weight
        scale = weight_scales(weight.detach().float(), per_channel=self.per_channel)
        return weight + (rounded(weight.detach(), scale) * scale - weight.detach()).to(weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return F.linear(self.operand(x), self.effective_weight(), self.bias)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, {self.mode}"


class Bf16Linear(nn.Module):
    """A linear layer that keeps and multiplies its weights in bf16.

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
        """(..., in) to (..., out), in x's own type."""
        return F.linear(x.to(torch.bfloat16), self.weight, self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        """For `print(model)`."""
        return f"{self.in_features}, {self.out_features}, bf16"
