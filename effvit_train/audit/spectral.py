"""The axis `spectral/*`: norms of the weights, and a bound on the error of what they generalise to.

The bound is that of Bartlett, Foster & Telgarsky 2017 (arXiv 1706.08498, theorem 1.1) for a chain of matrices
A_1 ... A_L and nonlinearities that expand nothing, without constants and logarithms of widths:

    R = prod ||A_i||_2 x (sum (||A_i^T||_{2,1} / ||A_i||_2)^{2/3})^{3/2},    bound = R ||X||_F / (margin n)

What is covered: every linear layer and convolution, and the scales of normalisations and LayerScale as diagonal
matrices, in one chain. What is not: softmax attention and the standardising half of a normalisation, which
have no global Lipschitz constant; residual connections, past which a branch with small weights makes R small
though the network is not; biases and position embeddings; and weights that all tokens share are counted once. So
for transformers it is no guarantee, and its size means nothing: it ranks models of one architecture on one data
set.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from timm.layers import LayerScale, LayerScale2d
from torch import Tensor, nn

from effvit_train.audit.matrices import (
    NOT_FINITE,
    Matrix,
    all_finite,
    spectrum,
    stable_rank,
    weight_matrices,
)
from effvit_train.card import Measured

LOG_BOUND = "spectral/log_norm_bound"
STABLE_RANK = "spectral/mean_stable_rank"
KEPT_VALUES = 16  # singular values of each layer that are kept for a drawing


@dataclass(frozen=True)
class Norms:
    """Norms of one layer's matrix W (out, in).

    Attributes:
        name: of the layer.
        shape: (out, in).
        spectral: the largest singular value of W.
        frobenius: root of the sum of squares.
        stable_rank: (frobenius / spectral)^2.
        two_one: ||W^T||_{2,1}, the sum over outputs of the 2-norm of their weights.
        stretch: how much a convolution may exceed W, which acts on one patch: root of the patches that a pixel
            is in. 1 is exact: linear layers, and patch embeddings whose patches lie side by side.
        diagonal: a normalisation's scale.
        singular_values: at evenly spaced ranks from the first to the last, at most `KEPT_VALUES`.
    """

    name: str
    shape: tuple[int, int]
    spectral: float
    frobenius: float
    stable_rank: float
    two_one: float
    stretch: float
    diagonal: bool
    singular_values: list[float]


def measure_spectral(
    model: nn.Module,
    margins: Tensor,
    *,
    train_images: int,
    margins_of: str = "test images",
    quantile: float = 0.5,
    input_norm: float = 1.0,
) -> tuple[Measured, dict[str, Any]]:
    """The logarithm of the bound, and the mean stable rank.

    Args:
        model: its weights are only read.
        margins: (m,) logit of the right class less the largest other one, see `margins_from`. The theorem means
            those of training images; of a private run these must not be used, and test images stand in.
        train_images: n, so many the model was trained on.
        margins_of: whose margins they are, for the provenance.
        quantile: of the margins that is put into the bound; 0.5 is the median.
        input_norm: root mean square over images of ||x||_2, which is ||X||_F / sqrt n; 1 leaves it out, as
            suits a comparison on one data set.

    Returns:
        The measures, and in the facts margin, coverage and the norms of each layer.

    Raises `ValueError` for a quantile outside 0..1, or numbers that are not positive.
    """
    if not 0 <= quantile <= 1 or train_images < 1 or input_norm <= 0:
        raise ValueError("quantile in 0..1, train_images and input_norm positive")
    measured = Measured()
    if not all_finite(model):
        measured.missing |= dict.fromkeys((LOG_BOUND, STABLE_RANK), NOT_FINITE)
        return measured, {}
    layers = norms(model)
    margins = margins.detach().to("cpu", torch.float64).flatten()
    margin = float(np.quantile(margins.numpy(), quantile)) if len(margins) else math.nan
    facts: dict[str, Any] = {
        "margins": {
            "of": margins_of, "count": len(margins), "quantile": quantile, "value": _finite(margin),
            "positive": float((margins > 0).double().mean()) if len(margins) else None,
        },
        "train_images": train_images, "input_norm": input_norm, "reference_matrices": 0,
        "covered_parameters": _coverage(model), "for_ranking_only": True,
        "layers": [asdict(layer) for layer in layers],
    }  # fmt: skip
    complexity = log_complexity(layers)
    facts["log10_complexity"] = _finite(complexity)
    matrices = [layer for layer in layers if not layer.diagonal]
    if matrices:
        measured.values[STABLE_RANK] = math.fsum(layer.stable_rank for layer in matrices) / len(matrices)
    else:
        measured.missing[STABLE_RANK] = "the model has neither linear layers nor convolutions"
    if not math.isfinite(complexity):
        measured.missing[LOG_BOUND] = "the model has no layers, or one whose weights are all zero"
    elif not len(margins):
        measured.missing[LOG_BOUND] = "there are no margins"
    elif not margin > 0:
        measured.missing[LOG_BOUND] = f"the margin at quantile {quantile:g} is {margin:.3g}, not positive"
    else:
        measured.values[LOG_BOUND] = (
            complexity + math.log10(input_norm) - math.log10(margin) - 0.5 * math.log10(train_images)
        )
    return measured, facts


def margins_from(logits: Tensor, labels: Tensor) -> Tensor:
    """(m,) margins of logits (m, K) with labels (m,): positive where the right class has the largest logit."""
    logits = logits.detach().double()
    right = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(dim=1)
    return right - others


def log_complexity(layers: list[Norms]) -> float:
    """log10 of R, the product and the sum of the bound; -inf with a layer of zeros, NaN without layers."""
    if not layers:
        return math.nan
    if not all(layer.spectral > 0 for layer in layers):
        return -math.inf
    product = math.fsum(math.log10(layer.spectral * layer.stretch) for layer in layers)
    total = math.fsum((layer.two_one / layer.spectral) ** (2 / 3) for layer in layers)
    return product + 1.5 * math.log10(total)


def norms(model: nn.Module) -> list[Norms]:
    """The norms of every layer that the bound covers: matrices in the model's order, then diagonals."""
    diagonals = [_diagonal(name, scale) for name, scale in _scales(model)]
    return [_of_matrix(matrix) for matrix in weight_matrices(model)] + diagonals


def _of_matrix(matrix: Matrix) -> Norms:
    values = spectrum(matrix)
    rows = matrix.values.norm(dim=-1)
    return Norms(
        name=matrix.name, shape=matrix.shape, spectral=float(values[0]),
        frobenius=float(matrix.values.norm()), stable_rank=stable_rank(values), two_one=float(rows.sum()),
        stretch=math.sqrt(matrix.overlap), diagonal=False, singular_values=thinned(values),
    )  # fmt: skip


def _diagonal(name: str, scale: Tensor) -> Norms:
    values = scale.abs().sort(descending=True).values
    return Norms(
        name=name, shape=(len(values), len(values)), spectral=float(values[0]), frobenius=float(values.norm()),
        stable_rank=stable_rank(values), two_one=float(values.sum()), stretch=1.0, diagonal=True,
        singular_values=thinned(values),
    )  # fmt: skip


def _scales(model: nn.Module) -> list[tuple[str, Tensor]]:
    """What normalisations multiply by once they have standardised; a batch norm's running variance included."""
    found = []
    scale: Tensor
    for name, module in model.named_modules():
        if isinstance(module, (LayerScale, LayerScale2d)):
            scale = module.gamma
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            scale = (module.running_var + module.eps).rsqrt()
            scale = scale if module.weight is None else scale * module.weight
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)) and module.weight is not None:
            scale = module.weight
        else:
            continue
        found.append((name, scale.detach().flatten().to("cpu", torch.float64)))
    return found


def _coverage(model: nn.Module) -> float:
    """Share of the parameters that the bound sees."""
    total = sum(p.numel() for p in model.parameters())
    seen = sum(m.values.numel() for m in weight_matrices(model)) + sum(len(s) for _, s in _scales(model))
    return seen / total if total else 0.0


def thinned(values: Tensor, count: int = KEPT_VALUES) -> list[float]:
    """Of descending singular values `count` at evenly spaced ranks, the first and the last among them."""
    if len(values) <= count:
        return values.tolist()
    return values[torch.linspace(0, len(values) - 1, count, dtype=torch.float64).round().long()].tolist()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
