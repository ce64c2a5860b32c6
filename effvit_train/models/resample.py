"""Resampling of images, and of positions and patches as products with small matrices.

Matrices, not torch's interpolation, where a gradient is taken: that one's gradient is not deterministic on CUDA, and
timm's use of it takes one position embedding, not one for each image of a batch, which per-sample gradients need.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F


def interpolation(old: int, new: int) -> Tensor:
    """The matrix (new, old), fp64 on the CPU, of bicubic interpolation along one axis, antialiased.

    Keys 1981 with a = -1/2; the kernel is as much wider as the axis becomes shorter, and its weights are brought to
    sum 1. As `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`, which timm resamples with.
    """
    stretch = max(old / new, 1.0)
    centres = (torch.arange(new, dtype=torch.float64, device="cpu") + 0.5) * (old / new)
    places = torch.arange(old, dtype=torch.float64, device="cpu") + 0.5
    x = ((places - centres[:, None]) / stretch).abs()
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
    return weights / weights.sum(dim=1, keepdim=True)


def averaging(old: int, new: int) -> Tensor:
    """The matrix (new, old) of averages over pieces as equal as can be, as torch's adaptive pooling cuts them."""
    matrix = torch.zeros(new, old)
    for k in range(new):
        first, last = k * old // new, -(-(k + 1) * old // new)
        matrix[k, first:last] = 1 / (last - first)
    return matrix


def average(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, H, W) averaged down to `size`: `adaptive_avg_pool2d`, with a deterministic gradient on CUDA too."""
    if not (images.is_cuda and torch.is_grad_enabled()):
        return F.adaptive_avg_pool2d(images, size)
    return average_by_matrices(images, size)


def average_by_matrices(images: Tensor, size: tuple[int, int]) -> Tensor:
    """What `average` gives, as products with two small matrices."""
    rows, columns = (averaging(old, new).to(images) for old, new in zip(images.shape[2:], size, strict=True))
    return rows @ images @ columns.t()


def resample_grid(tokens: Tensor, grid: tuple[int, int], rows: Tensor, columns: Tensor) -> Tensor:
    """Tokens (B, h w, D) on a grid (h, w), in the order of rows, to one of (H, W): (B, H W, D).

    H h w D + H W w D multiply-accumulates for each of B.

    Args:
        tokens: position embeddings; B is 1, or one for each image.
        grid: (h, w).
        rows, columns: the matrices (H, h) and (W, w).
    """
    height, width = grid
    with _as_it_is(tokens):
        x = rows.to(tokens.dtype) @ tokens.reshape(tokens.shape[0], height, -1)
        x = x.reshape(tokens.shape[0], rows.shape[0], width, -1)
        return (columns.to(tokens.dtype) @ x).flatten(1, 2)


def resize(images: Tensor, size: int) -> Tensor:
    """Images (B, C, H, W) at size x size pixels: bilinear, antialiased; as they are where that is their size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def patch_inverse(base: int, patch: int) -> Tensor:
    """The matrix (base, patch), fp64 on the CPU, that brings patches of `patch` pixels to those of `base`.

    The pseudo-inverse of `interpolation(base, patch)`, for one axis; that of both axes is its Kronecker product with
    itself.
    """
    return torch.linalg.pinv(interpolation(base, patch))


def recut(images: Tensor, inverse: Tensor) -> Tensor:
    """Images (B, C, h p, w p), cut into patches of p pixels, as (B, C, h P, w P) for a model of patches of P pixels.

    Beyer et al. 2023 (arXiv 2212.08013, FlexiViT), eq. 4: an embedding w of patches x of P pixels is brought to p
    pixels by w' = (B^T)^+ w, where B resizes a patch from P to p. Then <y, w'> = <B^+ y, w>: it is the same to bring
    every patch y to B^+ y and to leave w as it is. So nothing is learnt twice, and the gradient of w stays that of a
    convolution. For p >= P, <B x, w'> = <x, w>: patches that were enlarged give the very same tokens.

    C p P (p + P) multiply-accumulates for each patch.

    Args:
        images: sides are multiples of p.
        inverse: (P, p) of `patch_inverse`.

    Raises `ValueError` for images that p does not divide.
    """
    base, patch = inverse.shape
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patches of {patch} pixels do not divide images of {height}x{width}")
    rows, columns = height // patch, width // patch
    with _as_it_is(images):
        inverse = inverse.to(images.dtype)
        x = images.reshape(batch, channels, rows, patch, columns, patch) @ inverse.T
        x = inverse @ x.reshape(batch, channels, rows, patch, columns * base)
    return x.reshape(batch, channels, rows * base, columns * base)


def _as_it_is(tensor: Tensor) -> AbstractContextManager[None]:
    """Multiply in the tensor's own precision: rounded positions and pixels are others."""
    kind = tensor.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()
