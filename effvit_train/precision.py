"""`trainer.precision=auto`: a rule from processor and width, never a stopwatch (contract C6)."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

# Paired training steps of timm ViTs on an AVX512-BF16 processor: bf16 autocast is 1.6 to 2 times
# faster from a width of 192, even at 128, and half as fast at 64 (docs/benchmarks.md).
MIN_WIDTH = 192
_DTYPE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
_AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Precision:
    """A Lightning precision name and the reason for it, for the card and the terminal."""

    name: str
    reason: str


def choose_precision(requested: str, *, device_type: str, width: int) -> Precision:
    """Resolve `auto` to `bf16-mixed` or `32-true`.

    Args:
        requested: `trainer.precision`.
        device_type: cpu | cuda | mps.
        width: width of the model's token embedding.
    """
    if requested != "auto":
        return Precision(requested, "as configured")
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision("bf16-mixed", "the GPU computes bf16")
        return Precision("32-true", "the GPU has no bf16")
    if device_type != "cpu":
        return Precision("32-true", f"no rule for {device_type}")
    if not cpu_has_bf16():
        return Precision("32-true", "the processor has no bf16 instructions")
    if width < MIN_WIDTH:
        return Precision(
            "32-true", f"the processor has bf16, but width {width} is below {MIN_WIDTH}, where it is slower"
        )
    return Precision("bf16-mixed", f"the processor has bf16 and width {width} is at least {MIN_WIDTH}")


def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 natively (AVX512-BF16 or AMX on x86, BF16 on ARM)."""
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("bf16", False))


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """What Lightning runs a model under, by its name of the precision."""
    dtype = _AUTOCAST.get(precision)
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


def dtype_of(precision: str) -> torch.dtype:
    """The type of the weights at a precision of Lightning's: fp32 unless it says that they are narrower or wider."""
    return _DTYPE.get(precision, torch.float32)
