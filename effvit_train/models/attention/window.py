"""Attention within windows of the grid."""

from __future__ import annotations

import math

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from effvit_train.models.attention.base import Site, Swapped
from effvit_train.models.attention.settings import count, switch

_LARGEST = 8

Pair = tuple[int, int]


class Window(Swapped):
    """Patches attend within windows that do not overlap, and to the prefix; the prefix attends to all tokens.

    Liu et al. 2021 (Swin), section 3.2, without its position bias; so that a class token goes on seeing the image,
    and goes on being seen, as with Longformer's global tokens (Beltagy et al. 2020). Where the window does not
    divide the grid, the last windows are smaller. With `shift` the windows of every second block stand half a
    window further, and what sticks out at the border are windows of their own.

    Args:
        exact: see `Swapped`.
        site: see `Swapped`.
        window: patches per side.
        shift: see above; without effect along a side that one window covers.
    """

    mask: Tensor | None

    def __init__(self, exact: Attention, site: Site, *, window: int, shift: bool = False) -> None:
        super().__init__(exact, site)
        self.window, self.shifted = window, shift and site.block % 2 == 1
        device = exact.qkv.weight.device
        self.register_buffer("mask", self._mask(self.grid, device), persistent=False)

    @classmethod
    def settled(cls, site: Site, *, window: int | None = None, shift: bool = False) -> dict[str, int | bool]:
        """The settings, with a window that divides the grid where one of 2 to 8 patches does."""
        if window is None:
            sides = [
                side
                for side in range(2, _LARGEST + 1)
                if all(n % side == 0 and n >= 2 * side for n in site.grid)
            ]
            window = max(sides, default=max(1, min(_LARGEST - 1, math.ceil(min(site.grid) / 2))))
        return {"window": count("window", window), "shift": switch("shift", shift)}

    @override
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grid, n = self.grid_of(query.shape[2]), self.prefix
        if math.prod(self._counts(grid)) == 1:
            return self.attend(query, key, value)
        own = [self._cut(part[:, :, n:], grid) for part in (query, key, value)]
        keys, values = own[1:]
        if n:
            keys, values = (
                torch.cat([self._spread(part[:, :, :n], grid), cut], dim=2)
                for part, cut in ((key, keys), (value, values))
            )
        mask = self.mask if grid == self.grid else self._mask(grid, query.device)
        if mask is not None:  # (windows, area, n + area): the same for every head
            mask = mask.expand(self.num_heads, *mask.shape).flatten(0, 1)[None]
        patches = self._join(self.attend(own[0], keys, values, mask), grid)
        if not n:
            return patches
        return torch.cat([self.attend(query[:, :, :n], key, value), patches], dim=2)

    @override
    def work(self, tokens: int) -> tuple[int, int, int]:
        grid, n = self.grid_of(tokens), self.prefix
        windows, area = math.prod(self._counts(grid)), math.prod(self._sides(grid))
        if windows == 1:
            return 0, 2 * tokens * tokens, 0
        return 0, 2 * (windows * area * (n + area) + n * tokens), 0

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.window}, shifted={self.shifted}"

    def _sides(self, grid: Pair) -> Pair:
        return min(self.window, grid[0]), min(self.window, grid[1])

    def _offsets(self, grid: Pair) -> Pair:
        rows, columns = (
            side // 2 if self.shifted and side < size else 0
            for side, size in zip(self._sides(grid), grid, strict=True)
        )
        return rows, columns

    def _counts(self, grid: Pair) -> Pair:
        rows, columns = (math.ceil(n / side) for n, side in zip(grid, self._sides(grid), strict=True))
        return rows, columns

    def _cut(self, patches: Tensor, grid: Pair) -> Tensor:
        """(B, H, P, d) to (B, H windows, area, d): padded at the end, then rolled, so that windows are whole."""
        sides, counts = self._sides(grid), self._counts(grid)
        more = [count * side - n for count, side, n in zip(counts, sides, grid, strict=True)]
        maps = patches.unflatten(2, grid)
        if any(more):
            maps = F.pad(maps, (0, 0, 0, more[1], 0, more[0]))
        offsets = self._offsets(grid)
        if any(offsets):
            maps = maps.roll((-offsets[0], -offsets[1]), dims=(2, 3))
        maps = maps.unflatten(3, (counts[1], sides[1])).unflatten(2, (counts[0], sides[0]))
        return maps.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(1, 3)

    def _join(self, windows: Tensor, grid: Pair) -> Tensor:
        """The way back."""
        sides, counts = self._sides(grid), self._counts(grid)
        maps = windows.unflatten(1, (self.num_heads, *counts)).unflatten(4, sides)
        maps = maps.permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
        offsets = self._offsets(grid)
        if any(offsets):
            maps = maps.roll(offsets, dims=(2, 3))
        return maps[:, :, : grid[0], : grid[1]].flatten(2, 3)

    def _spread(self, prefix: Tensor, grid: Pair) -> Tensor:
        """The prefix (B, H, n, d) for every window, (B, H windows, n, d)."""
        windows = math.prod(self._counts(grid))
        return prefix[:, :, None].expand(-1, -1, windows, -1, -1).flatten(1, 2)

    def _mask(self, grid: Pair, device: torch.device) -> Tensor | None:
        """Which keys (windows, area, n + area) each place of a window sees; None where it is all of them."""
        sides, counts, offsets = self._sides(grid), self._counts(grid), self._offsets(grid)
        whole = all(count * side == n for count, side, n in zip(counts, sides, grid, strict=True))
        if math.prod(counts) == 1 or (whole and not any(offsets)):
            return None
        labels = []
        for count_, side, offset, n in zip(counts, sides, offsets, grid, strict=True):
            place = torch.arange(count_ * side, device=device)
            label = (place - offset).div(side, rounding_mode="floor") + 2  # 1 is the window that sticks out
            labels.append(torch.where(place < n, label, 0).roll(-offset).view(count_, side))
        rows, columns = labels[0][:, None, :, None], labels[1][None, :, None, :]
        real = ((rows > 0) & (columns > 0)).flatten(2).flatten(0, 1)
        label = (rows * (counts[1] + 3) + columns).flatten(2).flatten(0, 1)
        seen = (label[:, :, None] == label[:, None]) & real[:, None]
        seen = seen | ~real[:, :, None]  # padding is thrown away, but a row that sees nothing has no softmax
        return torch.cat([seen.new_ones(*seen.shape[:2], self.prefix), seen], dim=2)
