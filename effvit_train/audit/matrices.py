"""A model's weights as matrices, their singular values and what follows from these."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effvit_train.models.few_bits import Bf16Linear, Int8Linear

NOT_FINITE = "the model has weights that are not finite numbers"


@dataclass(frozen=True)
class Matrix:
    """The weights of a linear layer or a convolution.

    Attributes:
        name: of the layer.
        values: (out, in) of a linear layer; (groups, out / groups, in / groups x kernel) of a convolution, which
            is a matrix on each patch, and block-diagonal over its groups. Double precision, on the CPU.
        overlap: patches of a convolution that hold the same pixel, at most; 1 for a linear layer.
    """

    name: str
    values: Tensor
    overlap: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the whole matrix, zeros outside the blocks included."""
        groups = self.values.shape[0] if self.values.ndim == 3 else 1
        return self.values.shape[-2] * groups, self.values.shape[-1] * groups


def weight_matrices(model: nn.Module) -> list[Matrix]:
    """The matrices of all linear layers and convolutions, in the model's order."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found.append(Matrix(name, _double(module.weight)))
        elif isinstance(module, (Int8Linear, Bf16Linear)):
            found.append(Matrix(name, _double(module.effective_weight())))
        elif isinstance(module, nn.modules.conv._ConvNd) and not module.transposed:
            weight = _double(module.weight)
            blocks = weight.reshape(module.groups, weight.shape[0] // module.groups, -1)
            found.append(Matrix(name, blocks, _overlap(module)))
    return found


def all_finite(model: nn.Module) -> bool:
    """Whether every parameter is a finite number; without that there are no singular values."""
    return all(bool(p.isfinite().all()) for p in model.parameters())


def _overlap(module: nn.modules.conv._ConvNd) -> int:
    """How many of a convolution's patches a pixel can be in: along a side every stride / gcd'th tap meets it."""
    sides = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    return math.prod(
        math.ceil(kernel * math.gcd(stride, dilation) / stride) for kernel, stride, dilation in sides
    )


def _double(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float64)


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of (..., rows, columns), descending; of a stack of blocks each block's own.

    Roots of the eigenvalues of the smaller Gram matrix: several times faster than a decomposition, and exact
    to 1e-8 of the largest, which energies and ranks do not notice.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        matrix = matrix.mT
    return torch.linalg.eigvalsh(matrix @ matrix.mT).clamp(min=0).sqrt().flip(-1)


def spectrum(matrix: Matrix) -> Tensor:
    """All singular values of a layer's matrix, descending; a block-diagonal one has those of its blocks."""
    return singular_values(matrix.values).flatten().sort(descending=True).values


def stable_rank(values: Tensor) -> float:
    """||W||_F^2 / ||W||_2^2 from the singular values (Rudelson & Vershynin 2007); 0 of a zero matrix."""
    largest = float(values.max())
    return float(values.square().sum()) / largest**2 if largest else 0.0


def effective_rank(values: Tensor) -> float:
    """exp of the entropy of the singular values over their sum (Roy & Vetterli 2007); 0 of a zero matrix."""
    total = float(values.sum())
    if not total:
        return 0.0
    return math.exp(float(torch.special.entr(values / total).sum()))


def rank_at(values: Tensor, energy: float) -> int:
    """The smallest rank that holds this share of the energy, the sum of the squared singular values.

    The best approximation of that rank (Eckart & Young 1936) has a relative error, in the Frobenius norm, of
    at most sqrt(1 - energy).
    """
    squares = values.square()
    held = squares.cumsum(0)
    # A share of 1 must not be missed by rounding.
    return int((held < energy * held[-1] * (1 - 1e-12)).sum()) + 1 if float(held[-1]) else 0


def rank_error(values: Tensor, rank: int) -> float:
    """Relative error ||W - W_r||_F / ||W||_F of the best approximation of a rank (Eckart & Young 1936)."""
    squares = values.square()
    total = float(squares.sum())
    return math.sqrt(float(squares[rank:].sum()) / total) if total else 0.0
