"""Attention to keys and values that are pooled over the grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from effvit_train.errors import UserError
from effvit_train.models.attention.base import Site, Swapped, from_maps, to_maps
from effvit_train.models.attention.forms import ARGS
from effvit_train.models.attention.settings import count
from effvit_train.models.resample import average

_STRIDE = 2


class Pooled(Swapped):
    """Every token attends to the prefix and to averages of the patches' keys and values.

    Pooling after the projection as in Fan et al. 2021 (MViT), section 3.1, by averages as in Wang et al. 2022
    (PVTv2), section 3.2. With `stride` s there are 1 / s^2 of the keys, at the border averages of what is there;
    with `size` P there are P x P, whatever the image: then the cost grows with N alone.

    Args:
        exact: see `Swapped`.
        site: see `Swapped`.
        stride: patches per side that become one.
        size: averages per side.
    """

    def __init__(
        self, exact: Attention, site: Site, *, stride: int | None = None, size: int | None = None
    ) -> None:
        super().__init__(exact, site)
        self.stride, self.size = stride, size

    @classmethod
    def settled(cls, site: Site, *, stride: int | None = None, size: int | None = None) -> dict[str, Any]:
        """The one setting of the two that is given, or a stride of 2."""
        if stride is not None and size is not None:
            raise UserError(
                f"cannot be combined with {ARGS}.stride", key=f"{ARGS}.size", value=size, remedy="give one of the two"
            )  # fmt: skip
        if size is not None:
            return {"size": count("size", size, min(site.grid), what=", the patches of a side")}
        return {"stride": count("stride", _STRIDE if stride is None else stride)}

    @override
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        grid, n = self.grid_of(query.shape[2]), self.prefix
        key, value = (
            torch.cat([part[:, :, :n], self._pool(part[:, :, n:], grid)], dim=2) for part in (key, value)
        )
        return self.attend(query, key, value)

    def _pool(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        maps = to_maps(patches, grid)
        if self.size is not None:
            maps = average(maps, (self.size, self.size))
        else:
            assert self.stride is not None
            kernel = (min(self.stride, grid[0]), min(self.stride, grid[1]))
            maps = F.avg_pool2d(maps, kernel, ceil_mode=True, count_include_pad=False)
        return from_maps(maps, self.num_heads)

    @override
    def work(self, tokens: int) -> tuple[int, int, int]:
        if self.size is not None:
            pooled = self.size**2
        else:
            assert self.stride is not None
            pooled = math.prod(math.ceil(n / min(self.stride, n)) for n in self.grid_of(tokens))
        return 0, 2 * tokens * (self.prefix + pooled), 0

    @override
    def extra_repr(self) -> str:
        own = f"size={self.size}" if self.stride is None else f"stride={self.stride}"
        return f"{super().extra_repr()}, {own}"
