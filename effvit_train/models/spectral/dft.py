"""Fourier transforms as products with real matrices, for runtimes whose own are slow or coarse.

ONNX has an operator, DFT, but ONNX Runtime computes it directly, in fp32 sums, for sizes that are no power of
two. These take H + W products for each point of a grid, and are used while a model is exported to ONNX. The
spectra are in real form, (..., 2), and all transforms are orthonormal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rfft2(grid: Tensor) -> Tensor:
    """`torch.fft.rfft2` over (H, W) of (B, H, W, D): (B, H, W // 2 + 1, D, 2)."""
    height, width = grid.shape[1:3]
    cos, sin = waves(width, grid)
    half = width // 2 + 1
    real, imaginary = cos[:half] @ grid, -(sin[:half] @ grid)
    cos, sin = waves(height, grid)
    real, imaginary = (part.transpose(1, 2) for part in (real, imaginary))
    real, imaginary = cos @ real + sin @ imaginary, cos @ imaginary - sin @ real
    return torch.stack([real, imaginary], dim=-1).transpose(1, 2)


def irfft2(spectrum: Tensor, width: int) -> Tensor:
    """`torch.fft.irfft2` of (B, H, width // 2 + 1, D, 2): (B, H, width, D)."""
    cos, sin = waves(spectrum.shape[1], spectrum)
    real, imaginary = (part.transpose(1, 2) for part in spectrum.unbind(-1))
    real, imaginary = cos @ real - sin @ imaginary, cos @ imaginary + sin @ real
    real, imaginary = (part.transpose(1, 2) for part in (real, imaginary))
    cos, sin = waves(width, spectrum)
    half = width // 2 + 1
    # all frequencies but the first and, of an even width, the last stand for their conjugates too
    twice = torch.full((half,), 2.0, dtype=cos.dtype, device=cos.device)
    twice[0] = 1.0
    if width % 2 == 0:
        twice[-1] = 1.0
    return (cos[:, :half] * twice) @ real - (sin[:, :half] * twice) @ imaginary


def real_fft2(tokens: Tensor) -> Tensor:
    """The real part of `torch.fft.fft2` over (N, D) of (B, N, D)."""
    cos, sin = waves(tokens.shape[1], tokens)
    across_cos, across_sin = waves(tokens.shape[2], tokens)
    return cos @ tokens @ across_cos - sin @ tokens @ across_sin


def waves(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi j k / size, over the root of size: the orthonormal DFT is cos - i sin."""
    steps = torch.arange(size, device=like.device)
    # whole turns are taken off as whole numbers: large angles would lose digits
    angles = (steps[:, None] * steps % size).double() * (2 * math.pi / size)
    scale = 1 / math.sqrt(size)
    return (angles.cos() * scale).to(like.dtype), (angles.sin() * scale).to(like.dtype)
