"""Gains in a wavelet basis: what is mixed is local at fine scales and reaches the whole grid at coarse ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.models.spectral.grid import GridMixer

_THREE = math.sqrt(3)
# Low-pass filters of orthonormal wavelets (Daubechies 1988, table 1).
WAVELETS: dict[str, tuple[float, ...]] = {
    "haar": (1 / math.sqrt(2),) * 2,
    "db2": tuple(part / (4 * math.sqrt(2)) for part in (1 + _THREE, 3 + _THREE, 3 - _THREE, 1 - _THREE)),
}
NOISE = 0.02  # standard deviation of the gains at initialisation, as of the global filter's


class WaveletMixer(GridMixer):
    """A learnt gain for every wavelet coefficient and channel: Y = W^-1(K * W(X)).

    The global filter (`FourierMixer`) with a separable 2-D wavelet transform of J levels in place of the Fourier
    transform. Patro & Agneeswaran 2023, "Scattering vision transformer" (arXiv 2311.01310), have such gains on the
    low-pass band of one level; here all sub-bands have them. The transform is orthonormal and goes round the edges,
    a side is padded with zeros to a multiple of 2^J: with gains of 1 tokens come back as they were. Costs O(N).

    Args:
        dim, grid, prefix: see `GridMixer`.
        wavelet: haar | db2, whose supports overlap.
        levels: J; None takes as many as lead to one coarsest cell, so that every token is mixed with every other.
            With fewer, tokens of different coarsest cells never meet in a Haar mixer.

    Raises:
        ValueError: an unknown wavelet, fewer than 1 level, or more than lead to one cell.
    """

    def __init__(
        self, dim: int, grid: Sequence[int], prefix: int = 0, *, wavelet: str = "haar", levels: int | None = None
    ) -> None:  # fmt: skip
        super().__init__(dim, grid, prefix)
        if wavelet not in WAVELETS:
            raise ValueError(f"no such wavelet: {wavelet}; there are {', '.join(WAVELETS)}")
        most = max(_halvings(side) for side in self.grid)
        if levels is not None and not 1 <= levels <= most:
            raise ValueError(
                f"{levels} levels of wavelets where {self.grid[0]} x {self.grid[1]} has 1 to {most}"
            )
        self.wavelet = wavelet
        self.levels = most if levels is None else levels
        self.padded = padded(self.grid, self.levels)
        self.filter = CoefficientGain(dim, self.padded)

    def mix(self, grid: Tensor) -> Tensor:
        """See `GridMixer`."""
        taps = WAVELETS[self.wavelet]
        height, width = self.grid
        more = (self.padded[0] - height, self.padded[1] - width)
        if any(more):
            grid = F.pad(grid, (0, 0, 0, more[1], 0, more[0]))
        coefficients = self.filter(analyse(grid, self.levels, taps))
        return synthesise(coefficients, self.levels, taps)[:, :height, :width]

    def resampled(self, weight: Tensor, grid: Sequence[int]) -> Tensor:
        """The gains (H', W', D) of this mixer, of those of the same number of levels or another on `grid`.

        Gains of a scale in tokens go to the same scale, resized to its places; what was the coarsest cell stands
        for all that is coarser now. Raises `ValueError` for gains that are not of `grid`.
        """
        height, width = grid
        most = max(_halvings(side) for side in (height, width))
        fitting = [j for j in range(most, 0, -1) if padded((height, width), j) == tuple(weight.shape[:2])]
        if not fitting:
            raise ValueError(f"gains {tuple(weight.shape)} are not those of a grid of {height} x {width}")
        # several numbers of levels may pad alike: this mixer's own where it is among them
        levels = self.levels if self.levels in fitting else fitting[0]
        return _resized_pyramid(weight.double(), levels, self.padded, self.levels).to(weight.dtype)

    def extra_repr(self) -> str:
        """Grid and wavelet, for whoever prints the model."""
        return f"grid={self.grid}, wavelet={self.wavelet}, levels={self.levels}"


class CoefficientGain(nn.Module):
    """Gains of coefficients (B, H', W', D), weights (H', W', D), in the layout of `analyse`."""

    def __init__(self, dim: int, padded: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*padded, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.normal_(self.weight, mean=1.0, std=NOISE)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Multiply by the gains."""
        return coefficients * self.weight


def _halvings(side: int) -> int:
    """How often a side can be halved, rounded up, until it is 1."""
    return (side - 1).bit_length()


def padded(grid: Sequence[int], levels: int) -> tuple[int, int]:
    """The sides that J levels take: a side that is 1 before is left alone by the rest."""
    units = [2 ** min(levels, _halvings(side)) for side in grid]
    height, width = (-(-side // unit) * unit for side, unit in zip(grid, units, strict=True))
    return height, width


def analyse(grid: Tensor, levels: int, taps: Sequence[float]) -> Tensor:
    """Wavelet coefficients of (B, H, W, D), in the same shape (Mallat 1989).

    Of each level the low-pass half of a side comes first; the low-pass quarter holds the next levels.
    """
    if levels == 0:
        return grid
    for dim in (1, 2):
        grid = _split(grid, dim, taps)
    height, width = _low(grid)
    low = analyse(grid[:, :height, :width], levels - 1, taps)
    return _with_low(grid, low)


def synthesise(coefficients: Tensor, levels: int, taps: Sequence[float]) -> Tensor:
    """The inverse of `analyse`, and its transpose."""
    if levels == 0:
        return coefficients
    height, width = _low(coefficients)
    coefficients = _with_low(coefficients, synthesise(coefficients[:, :height, :width], levels - 1, taps))
    for dim in (2, 1):
        coefficients = _join(coefficients, dim, taps)
    return coefficients


def _low(grid: Tensor) -> tuple[int, int]:
    return max(grid.shape[1] // 2, 1), max(grid.shape[2] // 2, 1)


def _with_low(grid: Tensor, low: Tensor) -> Tensor:
    height, width = low.shape[1:3]
    top = torch.cat([low, grid[:, :height, width:]], dim=2)
    return torch.cat([top, grid[:, height:]], dim=1)


def _high_pass(taps: Sequence[float]) -> list[float]:
    return [(-1) ** k * tap for k, tap in enumerate(reversed(taps))]


def _split(x: Tensor, dim: int, taps: Sequence[float]) -> Tensor:
    """low[k] = sum_m h[m] x[2 k + m] and the same with the high-pass filter, one after the other."""
    if x.shape[dim] == 1:
        return x
    phases = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    shifted = [_shift(phases[m % 2], -(m // 2), dim) for m in range(len(taps))]
    return torch.cat([_weighted(shifted, filter_) for filter_ in (taps, _high_pass(taps))], dim=dim)


def _join(x: Tensor, dim: int, taps: Sequence[float]) -> Tensor:
    """The transpose of `_split`, which is its inverse."""
    if x.shape[dim] == 1:
        return x
    parts = x.chunk(2, dim)
    filters = (taps, _high_pass(taps))
    phases = []
    for phase in (0, 1):
        terms = [_shift(part, k, dim) for part in parts for k in range(len(taps) // 2)]
        phases.append(_weighted(terms, [tap for filter_ in filters for tap in filter_[phase::2]]))
    return torch.stack(phases, dim=dim + 1).flatten(dim, dim + 1)


def _shift(x: Tensor, steps: int, dim: int) -> Tensor:
    return x.roll(steps, dim) if steps else x


def _weighted(terms: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = terms[0] * weights[0]
    for term, weight in zip(terms[1:], weights[1:], strict=True):
        total = torch.add(total, term, alpha=weight)
    return total


def _resized_pyramid(old: Tensor, old_levels: int, size: tuple[int, int], levels: int) -> Tensor:
    """Gains (h, w, D) of `old_levels` in the layout of `levels`, of another size."""
    if levels == 0:
        for _ in range(old_levels):
            height, width = _low(old[None])
            old = old[:height, :width]
        return _resized(old, size)
    new_height, new_width = max(size[0] // 2, 1), max(size[1] // 2, 1)
    height, width = _low(old[None]) if old_levels else tuple(old.shape[:2])

    def quarter(part: Tensor, rows: int, columns: int) -> Tensor:
        return _resized(part if part.numel() else old[:height, :width], (rows, columns))

    low = _resized_pyramid(old[:height, :width], max(old_levels - 1, 0), (new_height, new_width), levels - 1)
    more = size[0] - new_height, size[1] - new_width
    top = torch.cat([low, quarter(old[:height, width:], new_height, more[1])], dim=1)
    bottom = [quarter(old[height:, :width], more[0], new_width), quarter(old[height:, width:], *more)]
    return torch.cat([top, torch.cat(bottom, dim=1)])


def _resized(gains: Tensor, size: tuple[int, int]) -> Tensor:
    if 0 in size:
        return gains.new_empty(*size, gains.shape[2])
    images = gains.permute(2, 0, 1)[None]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
