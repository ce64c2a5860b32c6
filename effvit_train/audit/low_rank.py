"""How well a model's weights and its attention could be written with matrices of low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from effvit_train.audit.matrices import (
    effective_rank,
    rank_at,
    rank_error,
    singular_values,
    spectrum,
    weight_matrices,
)
from effvit_train.audit.where import Where
from effvit_train.models.mode import evaluating

ENERGIES = (0.9, 0.99)
_MAX_ENTRIES = 2**24  # of the matrices of one layer: 128 MB


def weight_ranks(model: nn.Module, energies: Sequence[float] = ENERGIES) -> list[dict[str, Any]]:
    """For each linear layer and convolution the ranks that hold shares of its energy.

    Two factors of rank r take r (m + n) numbers where the layer has m n: below `pays_below` they are fewer. A
    grouped convolution is factorised group by group, and its ranks are sums over the groups.

    Returns a row for each layer: `name`, `shape` (m, n), `effective_rank`, `pays_below`, and for each energy
    the `rank` and the relative `error` of the best approximation of that rank.
    """
    rows = []
    for matrix in weight_matrices(model):
        values = spectrum(matrix)
        out, into = matrix.shape
        ranks = {str(energy): rank_at(values, energy) for energy in energies}
        rows.append(
            {
                "name": matrix.name, "shape": [out, into], "full_rank": len(values),
                "effective_rank": effective_rank(values),
                "pays_below": matrix.values.numel() / sum(matrix.values.shape[-2:]),
                "rank": ranks, "error": {key: rank_error(values, rank) for key, rank in ranks.items()},
            }
        )  # fmt: skip
    return rows


def attention_ranks(
    model: nn.Module, images: Tensor, energies: Sequence[float] = ENERGIES, *, limit: int = 64
) -> list[dict[str, Any]]:
    """For each attention layer the ranks of its matrices softmax(q k^T / sqrt d), over images and heads.

    Args:
        model: its attention calls `scaled_dot_product_attention`, or would if timm's switch `fused_attn` were on.
        images: (n, C, H, W) as the model sees them; a few are enough.
        energies: shares of a matrix's energy.
        limit: matrices of each layer that are looked at, of the first images or windows with all their heads;
            fewer where there are many tokens.

    Returns a row for each layer: `name`, `tokens` (of queries and keys), how many `matrices`, and means over
    them of `effective_rank` and, for each energy, `rank`. No row for attention that computes its products in
    another way.
    """
    seen = _Attention(limit, energies)
    with evaluating(model), _fused(model), seen.where.following(model), seen:
        model(images)
    return seen.rows


class _Attention(TorchFunctionMode):
    """Computes the attention matrices that the fused kernel does not give out."""

    def __init__(self, limit: int, energies: Sequence[float]) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._limit, self._energies = limit, energies
        self.where = Where()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._keep(*args, **kwargs)
        return func(*args, **kwargs)

    def _keep(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if is_causal:
            return  # of a decoder: its matrices are triangular and of full rank
        heads = query.shape[-3] if query.ndim > 3 else 1
        tokens = query.shape[-2], key.shape[-2]
        first = max(1, min(self._limit, _MAX_ENTRIES // math.prod(tokens)) // heads)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], tokens[1])[:first]
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        scores = query[:first].double() @ key[:first].double().mT * scale
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        values = singular_values(scores.softmax(-1).flatten(0, -3).cpu())
        self.rows.append(
            {
                "name": self.where.name, "tokens": list(tokens), "matrices": len(values),
                "effective_rank": _mean([effective_rank(v) for v in values]),
                "rank": {str(energy): _mean([rank_at(v, energy) for v in values]) for energy in self._energies},
            }
        )  # fmt: skip


@contextmanager
def _fused(model: nn.Module) -> Iterator[None]:
    """Let timm's attention modules call the fused attention, which can be seen from outside."""
    plain = [module for module in model.modules() if getattr(module, "fused_attn", None) is False]
    for module in plain:
        module.fused_attn = True  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in plain:
            module.fused_attn = False  # type: ignore[assignment]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
