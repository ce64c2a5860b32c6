"""Which attention kernel trains faster: a rule, recorded with the run (contract C6)."""

from __future__ import annotations

from torch import nn

# torch's fused attention on CPU has a slow backward: materialised attention trains 1.1 to 1.5 times
# faster up to 197 tokens (scripts/bench/attention.py; docs/benchmarks.md). Its memory grows with the
# square of the tokens, so longer sequences keep the fused kernel.
MAX_TOKENS = 256


def choose_attention(model: nn.Module, *, device_type: str) -> str:
    """Set the attention kernel of timm's attention modules for training; return `fused` or `plain`.

    Both compute the same function. What ships is rebuilt from its record, with timm's own choice.
    """
    attention = [
        module for module in model.modules() if isinstance(getattr(module, "fused_attn", None), bool)
    ]
    if device_type != "cpu" or not attention or _tokens(model) > MAX_TOKENS:
        return "fused"
    for module in attention:
        module.fused_attn = False  # type: ignore[assignment]
    return "plain"


def _tokens(model: nn.Module) -> int:
    """Tokens that attend to one another: a window's where the model has windows, else the grid's."""
    windows = [
        int(area)
        for module in model.modules()
        if isinstance(area := getattr(module, "window_area", None), int)
    ]
    if windows:
        return max(windows)
    return int(getattr(getattr(model, "patch_embed", None), "num_patches", MAX_TOKENS + 1))
