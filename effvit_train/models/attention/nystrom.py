"""Attention through landmarks: the Nyström method."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from effvit_train.errors import UserError
from effvit_train.models.attention.base import (
    Site,
    Swapped,
    from_maps,
    no_autocast,
    rectangles,
    to_maps,
    wide,
)
from effvit_train.models.attention.forms import ARGS
from effvit_train.models.attention.settings import count
from effvit_train.models.resample import average

_SIDE = 3  # patches per side of a segment, where nothing is said
_MOST = 8  # landmarks per side then: the paper's 64, for the pseudo-inverse grows with their cube


class Nystrom(Swapped):
    """softmax(Q K~^T) pinv(softmax(Q~ K~^T)) softmax(Q~ K^T) V, without the convolution beside it.

    Xiong et al. 2021 (Nyströmformer): the landmarks Q~, K~ are means of segments, here of rectangles of the
    grid, and each token of the prefix is one more. The pseudo-inverse is found by iteration (Razavi et
    al. 2014), each matrix with a start of its own: images do not see one another. In fp32 under autocast.

    Args:
        exact: see `Swapped`.
        site: see `Swapped`.
        landmarks: rows and columns of rectangles.
        iterations: of the pseudo-inverse.
    """

    drops = False

    def __init__(
        self, exact: Attention, site: Site, *, landmarks: tuple[int, int], iterations: int = 6
    ) -> None:
        super().__init__(exact, site)
        self.landmarks, self.iterations = (landmarks[0], landmarks[1]), iterations

    @classmethod
    def settled(cls, site: Site, *, landmarks: Any = None, iterations: int = 6) -> dict[str, Any]:
        """The settings; landmarks are given by their number, or by rows and columns; else of 3 x 3 patches, at most 64."""
        if landmarks is None:
            landmarks = [min(math.ceil(n / _SIDE), _MOST) for n in site.grid]
        elif not isinstance(landmarks, list):
            number = count("landmarks", landmarks, site.patches, what=", the number of patches")
            pair = rectangles(number, site.grid)
            if pair is None:
                raise UserError(
                    f"are not the rectangles of rows and columns on a grid of {site.grid[0]} x {site.grid[1]} patches",
                    key=f"{ARGS}.landmarks", value=landmarks, remedy=f"e.g. '{ARGS}.landmarks=[2,3]'",
                )  # fmt: skip
            landmarks = list(pair)
        fits = len(landmarks) == 2 and all(
            isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= most
            for n, most in zip(landmarks, site.grid, strict=False)
        )
        if not fits:
            raise UserError(
                f"must be rows and columns, at most {site.grid[0]} and {site.grid[1]}", key=f"{ARGS}.landmarks",
                value=landmarks, remedy=f"e.g. '{ARGS}.landmarks=[2,2]'",
            )  # fmt: skip
        return {"landmarks": list(landmarks), "iterations": count("iterations", iterations)}

    @override
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with no_autocast(query):
            query, key, value = wide(query, key, value)
            queries, keys = self._landmarks(query), self._landmarks(key)
            kernel = (queries * self.scale @ keys.transpose(-2, -1)).softmax(dim=-1)
            seen = pseudo_inverse(kernel, self.iterations) @ self.attend(queries, key, value)
            return self.attend(query, keys, seen)

    @override
    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, scale=self.scale)

    def _landmarks(self, tokens: Tensor) -> Tensor:
        grid, n = self.grid_of(tokens.shape[2]), self.prefix
        means = average(to_maps(tokens[:, :, n:], grid), self.landmarks)
        return torch.cat([tokens[:, :, :n], from_maps(means, self.num_heads)], dim=2)

    @override
    def work(self, tokens: int) -> tuple[int, int, int]:
        m = self.prefix + math.prod(self.landmarks)
        return 4 * self.iterations * m**3, 2 * m * m + 4 * m * tokens, 0

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, landmarks={self.landmarks}, iterations={self.iterations}"


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """The Moore-Penrose inverse of matrices (..., m, m) that are not negative.

    Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from Z = A^T / (|A|_1 |A|_inf): Razavi et al. 2014.
    """
    largest = matrix.sum(dim=-2).amax(dim=-1) * matrix.sum(dim=-1).amax(dim=-1)
    found = matrix.transpose(-2, -1) / largest[..., None, None]
    one = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ found
        found = found @ (13 * one - product @ (15 * one - product @ (7 * one - product))) / 4
    return found
