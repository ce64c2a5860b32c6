"""Filters of one grid of tokens for another: weights of a model that took images of another size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from effvit_train.models.spectral.grid import GridMixer


def resample(model: nn.Module, state: Mapping[str, Tensor], grid: Sequence[int]) -> dict[str, Tensor]:
    """The state of the same model on another grid, with the filters of its mixers fitted to `model`'s grid.

    Args:
        model: whose mixers say what is wanted; it is only read, and may be on the meta device.
        state: of a model that differs in the grid alone.
        grid: (H, W) of that model.

    Returns:
        The state; all but the filters is as it was, position embeddings among it.

    Raises `ValueError` for a filter that is not of `grid`.
    """
    fitted = dict(state)
    for name, module in model.named_modules():
        key = f"{name}.filter.weight" if name else "filter.weight"
        if isinstance(module, GridMixer) and key in fitted and module.grid != tuple(grid):
            fitted[key] = module.resampled(fitted[key], grid)
    return fitted
