"""The best approximation of a matrix by one of low rank, as it is or where its inputs are."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from effvit_train.models.low_rank import Factor

# Of the mean square of the inputs: directions that no calibration image has shown are not forgotten altogether.
_FLOOR = 1e-6
_TINY = 1e-30


@dataclass(frozen=True)
class Decomposition:
    """A matrix W (out, in) in a basis of falling importance; double precision, on the CPU.

    Attributes:
        energies: (n,) with n = min(out, in), falling: what each direction adds to the squared norm.
        basis: (out, n) with orthonormal columns where out <= in; else (n, in).
        lift: (in, n) where out > in, with basis lift = 1; else None.
        mean: (in,) of the inputs, of which the bias makes up for what is lost; None where nothing does.
    """

    energies: Tensor
    basis: Tensor
    lift: Tensor | None
    mean: Tensor | None = None

    def kept(self, rank: int) -> float:
        """The share of the squared norm that the best approximation of this rank keeps."""
        total = float(self.energies.sum())
        return float(self.energies[:rank].sum()) / total if total else 1.0

    def factor(self, layer: str, rank: int) -> Factor:
        """The operation that gives the layer this rank."""
        if self.lift is None:
            return Factor(layer, self.basis[:, :rank].clone(), None, self.mean)
        return Factor(layer, self.basis[:rank].clone(), self.lift[:, :rank].clone(), self.mean)


@dataclass(frozen=True)
class Inputs:
    """Of the inputs of a layer: mean (in,) and second moment E[x x^T] (in, in), in float64 on the CPU."""

    mean: Tensor
    moment: Tensor

    @property
    def covariance(self) -> Tensor:
        """(in, in)."""
        return self.moment - torch.outer(self.mean, self.mean)


def decompose_on(matrix: Tensor, inputs: Inputs, *, biased: bool) -> Decomposition:
    """Decompose W where its inputs are; with a bias, which is free to move, only what varies has to be kept."""
    if not biased:
        return decompose(matrix, inputs.moment)
    return dataclasses.replace(decompose(matrix, inputs.covariance), mean=inputs.mean)


def decompose(matrix: Tensor, moment: Tensor | None = None) -> Decomposition:
    """Decompose W (out, in), double precision.

    The approximation W' of rank r that minimises ||W - W'||_F (Eckart & Young 1936), or with the second moment
    S = E[x x^T] (in, in) of the inputs E||W x - W' x||^2 = ||(W - W') S^{1/2}||_F^2 (Chen et al. 2021, DRONE;
    Wang et al. 2025, SVD-LLM). With W S^{1/2} = U D V^T it is

        W' = U_r U_r^T W = W S^{1/2} V_r V_r^T S^{-1/2}:

    a projection of the outputs, or one of the inputs. The narrower side is projected: at full rank nothing is then
    lost of another matrix in the same basis either, such as the average of the weights.
    """
    out, into = matrix.shape
    if moment is not None:
        moment = moment + (_FLOOR * moment.diagonal().mean() + _TINY) * torch.eye(into, dtype=moment.dtype)
    if out <= into:
        weighted = matrix if moment is None else matrix @ moment
        energies, outputs = _principal(weighted @ matrix.mT)
        return Decomposition(energies, outputs, None)
    if moment is None:
        energies, inputs = _principal(matrix.mT @ matrix)
        return Decomposition(energies, inputs.mT.contiguous(), inputs)
    values, vectors = torch.linalg.eigh(moment)
    scales = values.clamp(min=_FLOOR * moment.diagonal().mean()).sqrt()
    root = vectors * scales @ vectors.mT
    energies, inputs = _principal(root @ matrix.mT @ matrix @ root)
    return Decomposition(energies, inputs.mT @ (vectors / scales) @ vectors.mT, root @ inputs)


def _principal(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, falling, and eigenvectors as columns."""
    values, vectors = torch.linalg.eigh((gram + gram.mT) / 2)
    return values.flip(-1).clamp(min=0), vectors.flip(-1)
