"""The scattering transform: a fixed front end of wavelets that needs no data.

Oyallon & Mallat, "Deep roto-translation scattering for object classification", CVPR 2015, with the Morlet
wavelets psi and the Gaussian phi of Bruna & Mallat, "Invariant scattering convolution networks", PAMI 2013,
at J scales and L orientations:

    S0 = x * phi,    S1 = |x * psi_a| * phi,    S2 = ||x * psi_a| * psi_b| * phi  with b coarser than a,

where * is a convolution, and all are sampled every 2^J pixels.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ORIENTATIONS = 8
_WIDTH = 0.8  # standard deviation of the finest wavelet's envelope along its wave, in pixels
_SLANT = 4 / ORIENTATIONS  # of that over the envelope's across it
_FREQUENCY = 3 * math.pi / 4  # of the finest wavelet, in radians per pixel
_TINY = 1e-24
_WRAPS = 2  # periods on either side that a filter is summed over to become periodic


def channels(scales: int) -> int:
    """Coefficients that come of one channel: J = 1 gives 9, 2 gives 81, 3 gives 217, 4 gives 417."""
    return 1 + scales * ORIENTATIONS + ORIENTATIONS**2 * scales * (scales - 1) // 2


class Scattering(nn.Module):
    """Scattering coefficients up to the second order.

    `forward` takes (B, C, H, W) and gives (B, C * `channels(scales)`, H / 2^J, W / 2^J), in fp32 or wider.
    A channel's coefficients are adjacent: S0, then by the first wavelet's scale its S1 and S2.

    Args:
        scales: J.
        height: of the images in pixels, a multiple of 2^J, and at least two of them.
        width: the same.
    """

    def __init__(self, scales: int, height: int, width: int) -> None:
        super().__init__()
        cell = 2**scales
        for size in (height, width):
            if scales < 1 or size % cell or size < 2 * cell:
                raise ValueError(f"{size} pixels are not two or more cells of {cell} pixels")
        self.scales, self.cells = scales, (height // cell, width // cell)
        # Convolutions go round: a cell is added on each side by reflection.
        self._margin = [cell] * 4
        rows, columns = height + 2 * cell, width + 2 * cell
        for scale in range(scales):
            wavelets = _wavelets(rows, columns, scale)
            self._keep(f"first_{scale}", _blocks(wavelets, scale))
            for finer in range(scale):
                coarse = _crop(_crop(wavelets, -1, finer), -2, finer)
                self._keep(f"second_{finer}_{scale}", _blocks(coarse, scale - finer))
            self._keep(f"down_{scale}", _low_pass(rows, scales, scale))
            self._keep(f"across_{scale}", _low_pass(columns, scales, scale))

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)

    def _bank(self, name: str) -> Tensor:
        values = self._buffers[name]
        assert values is not None
        return values

    def forward(self, images: Tensor) -> Tensor:
        """Coefficients of images (B, C, H, W)."""
        kind = images.device.type
        with nullcontext() if kind == "meta" else torch.autocast(kind, enabled=False):
            return self._transform(images.to(self._bank("first_0").dtype))

    def _transform(self, images: Tensor) -> Tensor:
        padded = F.pad(images, self._margin, mode="reflect")
        spectrum = torch.fft.fft2(padded)
        found = [self._smooth(padded[:, :, None], 0)]
        for first in range(self.scales):
            once = self._modulus(spectrum, self._bank(f"first_{first}"))
            found.append(self._smooth(once, first))
            coarser = range(first + 1, self.scales)
            again = torch.fft.fft2(once) if coarser else spectrum
            for second in coarser:
                twice = self._modulus(again, self._bank(f"second_{first}_{second}"))
                found.append(self._smooth(twice.flatten(2, 3), second))
        return torch.cat(found, dim=2).flatten(1, 2)

    @staticmethod
    def _modulus(spectrum: Tensor, wavelets: Tensor) -> Tensor:
        """|u * psi| of the spectrum of u (..., h, w) and wavelets (k, k, L, h / k, w / k): (..., L, h / k, w / k).

        Keeping every k-th sample folds a spectrum into one of its k x k blocks.
        """
        k = len(wavelets)
        parts = torch.view_as_real(spectrum).unflatten(-3, (k, -1)).unflatten(-2, (k, -1))
        waves: Tensor | None = None
        for i in range(k):
            for j in range(k):
                part = parts[..., i, :, j, :, :].unsqueeze(-4)
                waves = part * wavelets[i, j] if waves is None else torch.addcmul(waves, part, wavelets[i, j])
        assert waves is not None
        squares = torch.view_as_real(torch.fft.ifft2(torch.view_as_complex(waves))).square()
        # `abs` of complex numbers takes twice as long; the root of nothing would have no gradient
        return (squares[..., 0] + squares[..., 1] + _TINY).sqrt()

    def _smooth(self, maps: Tensor, scale: int) -> Tensor:
        """(maps * phi) at the cells that are not margin."""
        return self._bank(f"down_{scale}") @ (maps @ self._bank(f"across_{scale}").T)


def _wavelets(rows: int, columns: int, scale: int) -> Tensor:
    """Spectra of the Morlet wavelets of a scale, (L, rows, columns), real."""
    y, x = torch.meshgrid(_places(rows), _places(columns), indexing="ij")
    width, frequency = _WIDTH * 2**scale, _FREQUENCY / 2**scale
    spectra = []
    for k in range(ORIENTATIONS):
        angle = (ORIENTATIONS // 2 - 1 - k) * math.pi / ORIENTATIONS
        along = y * math.cos(angle) + x * math.sin(angle)
        across = x * math.cos(angle) - y * math.sin(angle)
        envelope = torch.exp(-(along**2 + (_SLANT * across) ** 2) / (2 * width**2))
        wave = _periodic(envelope * torch.exp(1j * frequency * along), rows, columns)
        envelope = _periodic(envelope, rows, columns)
        wave -= wave.sum() / envelope.sum() * envelope  # of mean zero
        spectra.append(torch.fft.fft2(wave).real * _SLANT / (2 * math.pi * width**2))
    return torch.stack(spectra)


def _places(size: int) -> Tensor:
    return torch.arange(-_WRAPS * size, (_WRAPS + 1) * size, dtype=torch.float64)


def _periodic(values: Tensor, rows: int, columns: int) -> Tensor:
    periods = 2 * _WRAPS + 1
    return values.view(periods, rows, periods, columns).sum(dim=(0, 2))


def _low_pass(size: int, scales: int, scale: int) -> Tensor:
    """Gaussian smoothing along an axis and sampling without the margin, (cells, size / 2^scale)."""
    width = _WIDTH * 2 ** (scales - 1)
    places = _places(size)
    gauss = torch.exp(-(places**2) / (2 * width**2)) / (math.sqrt(2 * math.pi) * width)
    spectrum = _crop(torch.fft.fft(gauss.view(-1, size).sum(dim=0)).real, -1, scale)
    kernel = torch.fft.ifft(spectrum).real
    step = 2 ** (scales - scale)
    cells = torch.arange(step, len(kernel) - step, step)
    return kernel[(cells[:, None] - torch.arange(len(kernel))) % len(kernel)]


def _crop(spectra: Tensor, axis: int, scale: int) -> Tensor:
    """A filter's spectrum at a 2^scale coarser sampling: its low frequencies."""
    half = spectra.shape[axis] >> (scale + 1)
    size = spectra.shape[axis]
    low = (size >> scale) - half
    return torch.cat([spectra.narrow(axis, 0, low), spectra.narrow(axis, size - half, half)], dim=axis)


def _blocks(spectra: Tensor, scale: int) -> Tensor:
    """(L, h, w) as (k, k, L, h / k, w / k, 2) with k = 2^scale, divided by the k^2 samples that one stands for."""
    k = 2**scale
    blocks = spectra.unflatten(-1, (k, -1)).unflatten(-3, (k, -1)).permute(1, 3, 0, 2, 4) / k**2
    return torch.stack([blocks, blocks], dim=-1)
