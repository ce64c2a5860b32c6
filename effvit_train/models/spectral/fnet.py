"""Mixing by a Fourier transform alone, without parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from effvit_train.models.spectral import dft
from effvit_train.models.spectral.grid import check_grid, check_tokens, widened


class FNetMixer(nn.Module):
    """Lee-Thorp et al. 2022, "FNet: mixing tokens with Fourier transforms" (arXiv 2105.03824, eq. 3).

    Y = Re(F_tokens(F_channels(X))) over the sequence as it is, prefix tokens first and then the patches row by row:
    there is no grid in it. The transform is orthonormal, for the blocks here normalise before they mix and not after:
    without it the sums would be sqrt(N D) times as large as what they are added to. Costs O(N D log(N D)), and runs
    in fp32, under autocast too.

    Args:
        dim: D; any.
        grid: (H, W) of the patches.
        prefix: tokens before them.
    """

    any_grid = False

    def __init__(self, dim: int, grid: Sequence[int], prefix: int = 0) -> None:
        super().__init__()
        self.grid, self.num_prefix_tokens = check_grid(grid, prefix), prefix

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mix the tokens (B, N, D); raises as `GridMixer.forward`."""
        check_tokens(self, x, self.grid, self.num_prefix_tokens, attn_mask, is_causal)
        tokens = widened(x)
        if torch.onnx.is_in_onnx_export():
            return dft.real_fft2(tokens).to(x.dtype)
        half = torch.fft.rfft2(tokens, dim=(1, 2), norm="ortho").real
        # of real tokens the other frequencies are conjugates: channel D - d of token -n is channel d of token n
        others = half[:, :, 1 : (x.shape[2] + 1) // 2].flip(1, 2).roll(1, 1)
        return torch.cat([half, others], dim=2).to(x.dtype)

    def extra_repr(self) -> str:
        """The grid, for whoever prints the model."""
        return f"grid={self.grid}"
