"""How a sample's gradient is bounded: the factor on it, from its norms. Needs no torch to be named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from effvit_train.errors import UserError, one_of
from effvit_train.privacy.config import CLIPPINGS

if TYPE_CHECKING:
    from torch import Tensor

STABILITY = 0.01  # gamma of AUTO-S (Bu et al. 2023, "Automatic clipping", section 4)


@dataclass(frozen=True)
class Clip:
    """Bounds the norm of each sample's gradient by `max_norm`, C.

    Attributes:
        max_norm: C; infinite leaves the gradients as they are (not with `automatic`).
        mode: `flat`, the factor is min(1, C / ||g||) (Abadi et al. 2016, algorithm 1); `automatic`, it is
            C / (||g|| + 0.01) (Bu et al. 2023, AUTO-S): below C in norm, and never 1; `per_layer`, each of
            the L modules that own parameters is clipped to C / sqrt(L) for itself (McMahan et al. 2018).
    """

    max_norm: float
    mode: str = "flat"

    def __post_init__(self) -> None:
        one_of("privacy.clipping", self.mode, CLIPPINGS)
        if not self.max_norm > 0 or (self.mode == "automatic" and math.isinf(self.max_norm)):
            raise UserError(
                "must be positive", key="privacy.max_grad_norm", value=self.max_norm,
                remedy="e.g. privacy.max_grad_norm=1",
            )  # fmt: skip

    def factors(self, squares: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The norms (B,) of the samples' gradients, and for each parameter the factors (B,) on them.

        A gradient that is not finite gets the factor 0: C bounds it too.

        Args:
            squares: parameter -> squared norm of its gradient, sample by sample (B,).
        """
        norms = _root(squares.values())
        if self.mode != "per_layer":
            factor = self._factor(norms, self.max_norm)
            return norms, dict.fromkeys(squares, factor)
        layers: dict[str, list[str]] = {}
        for name in squares:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
        bound = self.max_norm / math.sqrt(len(layers))
        factors: dict[str, Tensor] = {}
        for names in layers.values():
            factors |= dict.fromkeys(names, self._factor(_root(squares[n] for n in names), bound))
        finite = norms.isfinite()
        return norms, {name: factor.where(finite, factor.new_zeros(())) for name, factor in factors.items()}

    def _factor(self, norms: Tensor, bound: float) -> Tensor:
        if self.mode == "automatic":
            factor = bound / (norms + STABILITY)
        elif math.isinf(bound):
            factor = norms.new_ones(norms.shape)
        else:
            factor = (bound / norms).clamp(max=1.0)
        return factor.where(norms.isfinite(), factor.new_zeros(()))


def _root(squares: object) -> Tensor:
    import torch

    return torch.stack(list(squares)).sum(dim=0).sqrt()  # type: ignore[call-overload]
