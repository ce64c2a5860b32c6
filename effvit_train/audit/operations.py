"""Count the arithmetic of one forward pass, operator by operator.

Convention. A multiply-accumulate (MAC) is one multiplication and one addition inside a matrix
product, a convolution or an attention product; the bias is not one. FLOPs are twice the MACs plus
the elementwise work: each addition, subtraction, multiplication, division, comparison, square root
and transcendental function of one element counts as one; the composite functions count what their
definition needs (`_PER_ELEMENT`). A complex number counts with its real arithmetic: a product of two is 4 MACs
or 6 FLOPs, a sum 2 FLOPs. Moving, reshaping and looking up data costs nothing.

Counted below autograd, where composite layers have come apart into ATen operators, so that any
architecture is covered, attention products included whichever kernel computes them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# FLOPs per element of the output.
_PER_ELEMENT: dict[str, int] = {
    **dict.fromkeys(
        (
            "add", "sub", "rsub", "mul", "div", "neg", "abs", "relu", "maximum", "minimum", "clamp_min",
            "clamp_max", "exp", "log", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "pow", "square",
            "reciprocal", "floor", "round", "sign", "where", "masked_fill", "gt", "lt", "ge", "le", "eq",
            "ne", "bernoulli", "expm1", "log1p", "remainder", "fmod", "floor_divide", "atan2", "cumsum",
            "acos", "logical_and", "logical_or", "logical_not",
        ),
        1,
    ),
    "hardtanh": 2, "clamp": 2, "leaky_relu": 2, "threshold": 1, "prelu": 2, "_prelu_kernel": 2,
    "addcmul": 3, "addcdiv": 3, "lerp": 3, "elu": 3,
    "sigmoid": 4,  # 1 / (1 + exp(-x))
    "silu": 5,  # x * sigmoid(x)
    "gelu": 5,  # x / 2 * (1 + erf(x / sqrt 2))
    "hardsigmoid": 4, "hardswish": 5,  # x * clamp(x + 3, 0, 6) / 6
    "mish": 6, "softplus": 3,
    "_softmax": 5, "_log_softmax": 5, "_safe_softmax": 5,  # maximum, minus, exp, sum, divide (log and minus)
    "native_layer_norm": 7,  # mean, minus, square, sum, times 1/sigma, scale, shift
    "native_group_norm": 7, "_fused_rms_norm": 4,
    # in evaluation a scale and a shift
    "native_batch_norm": 2, "_native_batch_norm_legit_no_training": 2, "cudnn_batch_norm": 2,
    "_native_batch_norm_legit": 2, "batch_norm": 2,
    "upsample_bilinear2d": 7, "_upsample_bilinear2d_aa": 7, "upsample_bicubic2d": 35, "grid_sampler_2d": 7,
}  # fmt: skip

# FLOPs per element of the input.
_PER_INPUT: dict[str, int] = {
    **dict.fromkeys(("sum", "mean", "amax", "amin", "max", "min", "prod", "argmax", "any", "all"), 1),
    "linalg_vector_norm": 2, "norm": 2, "var": 3, "std": 3, "var_mean": 3, "adaptive_avg_pool2d": 1,
    "_adaptive_avg_pool2d": 1, "adaptive_max_pool2d": 1, "logsumexp": 3,
}  # fmt: skip

_FREE = frozenset(
    (
        "_conj", "_local_scalar_dense", "_reshape_alias", "_reshape_copy", "_to_copy",
        "_unsafe_view", "alias", "arange", "as_strided", "cat", "channel_shuffle", "chunk", "clone",
        "complex", "constant_pad_nd", "contiguous", "copy", "detach", "diagonal", "embedding",
        "empty", "empty_like", "empty_strided", "expand", "eye", "fill", "flip", "full",
        "full_like", "gather", "im2col", "imag", "index", "index_put", "index_select",
        "is_same_size", "lift_fresh", "lift_fresh_copy", "linspace",
        "max_pool2d_with_indices_backward", "movedim", "native_channel_shuffle", "native_dropout",
        "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
        "permute", "pixel_shuffle", "pixel_unshuffle", "real", "reflection_pad2d", "repeat",
        "replication_pad2d", "reshape", "resize", "resolve_conj", "resolve_neg", "roll",
        "scalar_tensor", "scatter", "select", "set", "slice", "sort", "split", "split_with_sizes",
        "squeeze", "stack", "t", "topk", "transpose", "tril", "triu", "unbind", "unfold",
        "unsqueeze", "upsample_nearest2d", "view", "view_as_complex", "view_as_real", "zero",
        "zeros", "zeros_like",
    )
)  # fmt: skip


@dataclass
class Operations:
    """Arithmetic of one forward pass.

    Attributes:
        macs: multiply-accumulates.
        elementwise: FLOPs outside them.
        uncounted: operators that the tables do not know, with how often they were called.
    """

    macs: int = 0
    elementwise: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)

    @property
    def flops(self) -> int:
        """2 x MACs + elementwise work."""
        return 2 * self.macs + self.elementwise


def count_operations(model: nn.Module, input_shape: tuple[int, int, int]) -> Operations:
    """Count one image's forward pass of `model` in evaluation mode.

    Works on any device; on the meta device it allocates and computes nothing.
    """
    tensor = next(
        (t for t in [*model.parameters(), *model.buffers()] if t.is_floating_point()), torch.empty(0)
    )
    image = torch.zeros(1, *input_shape, device=tensor.device, dtype=tensor.dtype)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), OperationCounter() as counter:
            model(image)
    finally:
        model.train(training)
    return counter.operations


class OperationCounter(TorchDispatchMode):
    """Counts every operator that runs meanwhile, into `operations`; `count` is called for each."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = Operations()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _atomic and func._overloadpacket not in PRODUCTS:
            with self:  # under inference_mode some operators arrive whole: count what they consist of
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            _atomic.add(func)
        output = func(*args, **kwargs)
        self.count(func, args, kwargs, output)
        return output

    def count(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Add what one operator that does not come apart has computed."""
        counted = self.operations
        packet = func._overloadpacket
        name = packet.__name__.rstrip("_")
        out = output[0] if isinstance(output, (tuple, list)) and output else output
        if packet in PRODUCTS:
            macs, elementwise = PRODUCTS[packet](args, kwargs, out)
            counted.macs += macs * (4 if out.is_complex() else 1)
            counted.elementwise += elementwise * (2 if out.is_complex() else 1)
        elif not isinstance(out, Tensor) or name in _FREE:
            return
        elif name in _PER_ELEMENT:
            each = _complex(name, args) or _PER_ELEMENT[name]
            scaled = kwargs.get("alpha", 1) != 1  # a + alpha b
            counted.elementwise += (each + scaled) * out.numel()
        elif name in _PER_INPUT and _tensors(args):
            counted.elementwise += _PER_INPUT[name] * _tensors(args)[0].numel()
        elif name in ("avg_pool2d", "max_pool2d_with_indices", "max_pool2d", "avg_pool1d"):
            kernel = args[1] if isinstance(args[1], (tuple, list)) else [args[1]]
            counted.elementwise += out.numel() * math.prod(kernel) ** (1 if len(kernel) > 1 else 2)
        elif name in ("_fft_r2c", "_fft_c2r", "_fft_c2c"):
            counted.elementwise += _fft(name, args, out)
        elif name in ("index_add", "scatter_add"):  # (self, dim, index, source): each of the source is added
            counted.elementwise += args[3].numel()
        elif name in ("dropout", "native_dropout", "feature_dropout"):
            return
        else:
            counted.uncounted[name] += 1


_atomic: set[Any] = set()  # operators that do not come apart


def _complex(name: str, args: Any) -> int | None:
    """Real FLOPs per element of complex arithmetic; None where there is none."""
    kinds = [tensor.is_complex() for tensor in _tensors(args)]
    if not any(kinds):
        return None
    if name in ("mul", "div") and all(kinds) and len(kinds) > 1:
        return 6 if name == "mul" else 11  # times the conjugate, over the squared absolute value
    return {"abs": 4}.get(name, 2 * _PER_ELEMENT[name])


def _tensors(args: Any) -> list[Tensor]:
    return [a for a in args if isinstance(a, Tensor)]


# --- products: (MACs, elementwise FLOPs) -------------------------------------------------------


def _mm(args: Any, kwargs: Any, out: Tensor) -> tuple[int, int]:
    return out.numel() * args[0].shape[-1], 0


def _addmm(args: Any, kwargs: Any, out: Tensor) -> tuple[int, int]:
    return out.numel() * args[1].shape[-1], out.numel()


def _linear(args: Any, kwargs: Any, out: Tensor) -> tuple[int, int]:
    bias = args[2] if len(args) > 2 else kwargs.get("bias")
    return out.numel() * args[0].shape[-1], 0 if bias is None else out.numel()


def _dot(args: Any, kwargs: Any, out: Tensor) -> tuple[int, int]:
    return args[0].numel(), 0


def _convolution(args: Any, kwargs: Any, out: Tensor) -> tuple[int, int]:
    weight = args[1]  # (out channels, in channels / groups, *kernel), transposed: (in, out / groups, *kernel)
    bias = args[2] if len(args) > 2 else None
    transposed = bool(args[6]) if len(args) > 6 else False
    per_position = math.prod(weight.shape[1:])
    positions = args[0].numel() if transposed else out.numel()
    return positions * per_position, 0 if bias is None else out.numel()


def attention_work(args: Any, kwargs: Any, out: Tensor) -> tuple[int, int]:
    """Fused softmax(q k^T / sqrt d) v with q (B, H, N, D), k (B, H, M, D), v (B, H, M, E)."""
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    # queries and keys scaled by d^-1/4 each, as torch's unfused form does; softmax of each score
    elementwise = query.numel() + key.numel() + scores * _PER_ELEMENT["_softmax"]
    return scores * (query.shape[-1] + value.shape[-1]), elementwise


def _fft(name: str, args: Any, out: Tensor) -> int:
    """5 N log2 N for a complex transform of N points, half of it for a real one."""
    source = args[0]
    dims = args[1]
    real = out if name == "_fft_c2r" else source
    points = math.prod(real.shape[d] for d in dims)
    factor = 5.0 if name == "_fft_c2c" else 2.5
    return int(factor * real.numel() * math.log2(max(points, 2)))


_Rule = Callable[[Any, Any, Tensor], tuple[int, int]]
PRODUCTS: dict[Any, _Rule] = {}
for _names, _rule in (
    (("mm", "bmm", "mv", "_int_mm"), _mm),
    (("addmm", "baddbmm", "addmv", "addbmm"), _addmm),
    (("linear",), _linear),
    (("dot", "vdot"), _dot),
    (
        (
            "convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution",
            "convolution_overrideable",
        ),
        _convolution,
    ),
    (
        (
            "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        attention_work,
    ),
):  # fmt: skip
    for _name in _names:
        if hasattr(aten, _name):
            PRODUCTS[getattr(aten, _name)] = _rule
