"""Sums over features by class, and the linear classifiers that follow from them.

Shapes: K classes, F features, B images. Everything is float64: sums over a whole stream, without rounding that
would show in the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_FAR = 10.0  # times the largest logit that a mean itself would get: no image does


class Statistics:
    """Running sums: what is kept of images that are not.

    Args:
        products: sum up the products of features too, for the covariance.

    Attributes:
        counts: (K,) images of each class.
        sums: (K, F) of their features.
        products: (F, F), the sum of z zᵀ over all images; None without covariance.
    """

    def __init__(self, *, products: bool) -> None:
        self.counts, self.sums = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.float64)
        self.products: Tensor | None = torch.zeros(0, 0, dtype=torch.float64) if products else None

    def add(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Count in images.

        Args:
            features: (B, F).
            labels: (B,) in 0..K-1.
            classes: K; may have grown.
        """
        z = features.double()
        width, more = z.shape[1], classes - len(self.counts)
        if not len(self.counts) and self.products is not None:
            self.products = z.new_zeros(width, width)
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more)])
        self.sums = torch.cat([self.sums.reshape(-1, width), z.new_zeros(more, width)])
        self.counts += torch.bincount(labels, minlength=classes)
        self.sums.index_add_(0, labels, z)
        if self.products is not None:
            self.products += z.T @ z

    def means(self) -> Tensor:
        """(K, F); zeros for a class of which no image has come."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    def covariance(self) -> Tensor:
        """(F, F), pooled within the classes, divided by the number of images."""
        assert self.products is not None
        means = self.means()
        within = self.products - (means * self.counts[:, None]).T @ means
        return within / self.counts.sum()

    def to_dict(self) -> dict[str, Any]:
        """For checkpoints."""
        return {"counts": self.counts, "sums": self.sums, "products": self.products}

    def take(self, kept: dict[str, Any]) -> None:
        """Take over what `to_dict` told."""
        self.counts, self.sums, self.products = kept["counts"], kept["sums"], kept["products"]

    def memory(self) -> int:
        """Bytes."""
        return sum(t.nbytes for t in (self.counts, self.sums, self.products) if t is not None)


def nearest_mean(statistics: Statistics) -> tuple[Tensor, Tensor]:
    """Weights (K, F) and biases (K,) that choose the nearest class mean (Mensink et al. 2013, section 3.2).

    `-||z - mu_k||² / 2 = mu_k · z - ||mu_k||² / 2 - ||z||² / 2`, of which the last is the same for all classes.
    """
    return _linear(statistics, statistics.means())


def linear_discriminant(statistics: Statistics, shrinkage: float) -> tuple[Tensor, Tensor]:
    """The same for the distance under the shared covariance S (Hayes & Kanan 2020, section 3).

    `w_k = S⁻¹ mu_k`, `b_k = -mu_k · S⁻¹ mu_k / 2`, with `S = (1 - s) C + s tr(C) / F I` (Ledoit & Wolf 2004): classes
    are equally likely, whatever their counts.

    Raises:
        ValueError: the images of each class have the same features.
    """
    within = statistics.covariance()
    spread = float(within.trace()) / len(within)
    if not spread > 0:
        raise ValueError("the images of each class have the same features: there is no covariance")
    shrunk = (1 - shrinkage) * within + shrinkage * spread * torch.eye(len(within), dtype=within.dtype)
    return _linear(statistics, torch.linalg.solve(shrunk, statistics.means().T).T)


def _linear(statistics: Statistics, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and biases from the means and what each of them is multiplied with, S⁻¹ mu_k (K, F).

    The mean of the class means is taken off, which changes all logits of an image alike. What is left is as small as
    the classes are different, and so stands float32 and narrower types: features often differ little from a common
    one. A class of which no image has come gets a bias so low that it is never chosen.
    """
    present, means = statistics.counts > 0, statistics.means()
    centre, direction = means[present].mean(dim=0), directions[present].mean(dim=0)
    weight = torch.where(present[:, None], directions - direction, 0.0)
    bias = (direction @ centre - (directions * means).sum(dim=1)) / 2
    far = _FAR * float(weight.norm(dim=1).max() * means.norm(dim=1).max())
    return weight, torch.where(present, bias, float(bias[present].min()) - far)
