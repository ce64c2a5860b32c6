"""The global filter: a circular convolution as large as the grid, learnt in the frequency domain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from effvit_train.models.spectral import dft
from effvit_train.models.spectral.grid import GridMixer

NOISE = 0.02  # standard deviation of the weights at initialisation, as in the paper


class FourierMixer(GridMixer):
    """Rao et al. 2021, "Global filter networks for image classification" (arXiv 2107.00645, section 3).

    Y = F^-1(K * F(X)) over the grid, channel by channel, with learnt complex K (H, W // 2 + 1, D); for real X half
    of the frequencies say all. Equal to a circular convolution of X with the kernel F^-1(K). Costs O(N log N);
    transforms run in fp32, under autocast too.

    Args:
        dim, grid, prefix: see `GridMixer`.
    """

    def __init__(self, dim: int, grid: Sequence[int], prefix: int = 0) -> None:
        super().__init__(dim, grid, prefix)
        self.filter = GlobalFilter(dim, self.grid)

    def mix(self, grid: Tensor) -> Tensor:
        """See `GridMixer`."""
        if torch.onnx.is_in_onnx_export():
            return dft.irfft2(self.filter(dft.rfft2(grid)), self.grid[1])
        spectrum = torch.view_as_real(torch.fft.rfft2(grid, dim=(1, 2), norm="ortho"))
        filtered = torch.view_as_complex(self.filter(spectrum))
        return torch.fft.irfft2(filtered, s=self.grid, dim=(1, 2), norm="ortho")

    def resampled(self, weight: Tensor, grid: Sequence[int]) -> Tensor:
        """The weight (H, W // 2 + 1, D, 2) for this grid, of a filter (H0, W0 // 2 + 1, D, 2) on `grid` (H0, W0).

        Gains are interpolated linearly over frequencies in cycles per token, as GFNet does for larger images, here
        round the circle that frequencies form. So the kernel reaches as many tokens as before; what it has near half
        a grid away, where two directions met, is shared between them.
        """
        full = torch.fft.fft2(
            torch.fft.irfft2(torch.view_as_complex(weight.double().contiguous()), s=tuple(grid), dim=(0, 1)),
            dim=(0, 1),
        )
        rows, columns = (_circle(old, new).to(full) for old, new in zip(grid, self.grid, strict=True))
        found = torch.einsum("ah,hwd,bw->abd", rows, full, columns[: self.grid[1] // 2 + 1])
        return torch.view_as_real(found).to(weight.dtype)


class GlobalFilter(nn.Module):
    """Complex gains of a spectrum: (B, H, W // 2 + 1, D, 2) in real form, weights (H, W // 2 + 1, D, 2)."""

    def __init__(self, dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        height, width = grid
        self.weight = nn.Parameter(torch.empty(height, width // 2 + 1, dim, 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights."""
        nn.init.normal_(self.weight, std=NOISE)
        with torch.no_grad():
            self.weight[..., 0] += 1

    def forward(self, spectrum: Tensor) -> Tensor:
        """Multiply by the gains."""
        weight = self.weight.to(spectrum.dtype)
        if torch.onnx.is_in_onnx_export():
            (a, b), (c, d) = spectrum.unbind(-1), weight.unbind(-1)
            return torch.stack([a * c - b * d, a * d + b * c], dim=-1)
        product = torch.view_as_complex(spectrum) * torch.view_as_complex(weight)
        return torch.view_as_real(product)


def _circle(old: int, new: int) -> Tensor:
    """Linear interpolation of `old` points on a circle at `new` ones, (new, old)."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        before, rest = divmod(row * old, new)
        matrix[row, before] += 1 - rest / new
        matrix[row, (before + 1) % old] += rest / new
    return matrix
