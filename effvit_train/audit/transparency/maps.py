"""Explanations of single predictions: how much each part of an image counts for a class.

Letters: B images, N tokens (the prefix tokens first), (h, w) the grid of the patches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.audit.transparency.attention import (
    Attention,
    num_prefix_tokens,
    plain_attention,
    queries,
    read_attention,
    token_grid,
    unsupported,
)
from effvit_train.data import draws
from effvit_train.keys import stream_key

METHODS = ("chefer", "rollout", "integrated_gradients")
GRADIENT_STEPS = 16
_BATCH = 32  # images at once, at most
_KEPT = 2**19  # pixels, or entries of a matrix of attention, of the images at once: their graphs are kept


def reason_against(method: str, model: nn.Module, images: Tensor) -> str | None:
    """Why a method does not apply to a model, tried on `images` (B, C, H, W); None where it does.

    Raises `ValueError` for a method that is not of `METHODS`.
    """
    if method not in METHODS:
        raise ValueError(f"{method!r} is not one of {', '.join(METHODS)}")
    return None if method == "integrated_gradients" else unsupported(model, images)


def explain(method: str, model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Relevance for the logit of a class, by one of `METHODS`.

    Args:
        method: that `reason_against` has nothing against.
        model: in evaluation mode; its parameters' gradients are not touched.
        images: (B, C, H, W) normalised.
        classes: (B,).

    Returns:
        (B, h, w), or (B, H, W) from integrated gradients, in float32.
    """
    one: Callable[[nn.Module, Tensor, Tensor], Tensor] = {
        "chefer": _chefer, "rollout": _rollout, "integrated_gradients": integrated_gradients,
    }[method]  # fmt: skip
    tokens = math.prod(token_grid(model) or (0,))
    batch = max(1, min(_BATCH, _KEPT // max(images.shape[2] * images.shape[3], tokens**2)))
    parts = zip(images.split(batch), classes.split(batch), strict=True)
    return torch.cat([one(model, some, theirs).float() for some, theirs in parts])


def rollout(matrices: Sequence[Tensor], start: Tensor) -> Tensor:
    """Attention rollout (Abnar & Zuidema 2020, eq. 1 and section 3): A_L ... A_1 with A = (mean of the heads + I) / 2.

    Rows of A sum to one. Only the rows of the product that the classifier reads are computed.

    Args:
        matrices: of each block, from the first to the last, (B, heads, N, N).
        start: (B, N) how much the classifier reads from each token.

    Returns:
        (B, N) for each token of the first block.
    """
    reached = start
    for matrix in reversed(matrices):
        reached = (reached + _times(reached, matrix.mean(dim=1))) / 2
    return reached


def relevance(matrices: Sequence[Tensor], gradients: Sequence[Tensor], start: Tensor) -> Tensor:
    """Gradient-weighted relevance (Chefer, Gur & Wolf 2021, eq. 5 and 6): R <- R + mean over heads of (grad A * A)^+ R.

    R starts as the identity, which is left out of what is returned: it says the same of every patch, and
    where all patches are pooled small numbers would be lost beside it. Only the rows of R that the classifier
    reads are computed, from the last block to the first; the whole of R is N times the work.

    Args:
        matrices: A of each block, from the first to the last, (B, heads, N, N).
        gradients: of the class's logit with respect to them.
        start: (B, N) how much the classifier reads from each token.

    Returns:
        (B, N) of start (R - I), for each token of the first block.
    """
    gained = torch.zeros_like(start)
    for matrix, gradient in zip(reversed(matrices), reversed(gradients), strict=True):
        gained = gained + _times(start + gained, (gradient * matrix).clamp(min=0).mean(dim=1))
    return gained


def integrated_gradients(
    model: nn.Module, images: Tensor, classes: Tensor, *, steps: int = GRADIENT_STEPS
) -> Tensor:
    """Integrated gradients (Sundararajan et al. 2017, eq. 1) of the logits of `classes`, summed over channels.

    The baseline is zero after normalisation: the data set's mean colour. The integral over the straight line
    to the image is taken by Gauss-Legendre quadrature, which needs fewer steps than a sum of equal ones.

    Args:
        model: in evaluation mode; maps normalised images to logits (B, K).
        images: (B, C, H, W) normalised.
        classes: (B,).
        steps: points on the line.

    Returns:
        (B, H, W), signed; the sum over an image is its logit minus the baseline's.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    total = torch.zeros_like(images)
    with plain_attention(model), torch.enable_grad():  # the fused kernel's backward is slow (`kernels`)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            at = (images.detach() * float(point)).requires_grad_()
            chosen = model(at).gather(1, classes[:, None]).sum()
            total += torch.autograd.grad(chosen, at)[0] * float(weight)
    return (total * images).sum(dim=1)


def random_map(seed: int, ids: npt.NDArray[np.int64], grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Relevance (B, h, w) that knows nothing of model and image: a function of seed and sample id (contract C6)."""
    key = stream_key("transparency.random", seed)
    numbers = [draws.uniform(key, ids, draw=place) for place in range(grid[0] * grid[1])]
    return np.stack(numbers, axis=1).reshape(len(ids), *grid)


def coarser(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring maps (B, h, w) to a grid with fewer rows and columns, or as many, by averaging."""
    return maps if maps.shape[1:] == grid else F.adaptive_avg_pool2d(maps[:, None], grid)[:, 0]


def _chefer(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    attention = read_attention(model, images, classes)
    return _patches(model, relevance(attention.matrices, attention.gradients, _start(model, attention)))


def _rollout(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    attention = read_attention(model, images)
    return _patches(model, rollout(attention.matrices, _start(model, attention)))


def _start(model: nn.Module, attention: Attention) -> Tensor:
    """(B, N) the classifier's share in each token: equal ones of all that it reads."""
    first = attention.matrices[0]
    start = first.new_zeros(len(first), first.shape[-1])
    start[:, queries(model)] = 1
    return start / start.sum(dim=1, keepdim=True)


def _patches(model: nn.Module, tokens: Tensor) -> Tensor:
    """(B, N) of tokens to (B, h, w) of patches."""
    grid = token_grid(model)
    assert grid is not None
    return tokens[:, num_prefix_tokens(model) :].unflatten(1, grid)


def _times(rows: Tensor, matrix: Tensor) -> Tensor:
    """(B, N) x (B, N, N) -> (B, N)."""
    return torch.einsum("bn,bnm->bm", rows, matrix)
