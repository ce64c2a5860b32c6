"""Attention whose cost is linear in the tokens: a product of features of queries and of keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from effvit_train.errors import one_of
from effvit_train.keys import stream_key
from effvit_train.models.attention.base import Site, Swapped, no_autocast, wide
from effvit_train.models.attention.forms import ARGS
from effvit_train.models.attention.settings import count

KERNELS = ("relu", "elu")
_TINY = 1e-12  # what a normaliser is at least: rows whose features see nothing give nothing


def linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """phi(Q) (phi(K)^T V) / (phi(Q) phi(K)^T 1) of features (B, H, N, m) and values (B, H, N, d).

    Katharopoulos et al. 2020, eq. 5: the sums over the tokens come first.
    """
    summed = key.transpose(-2, -1) @ value
    normaliser = query @ key.sum(dim=-2, keepdim=True).transpose(-2, -1)
    return query @ summed / normaliser.clamp_min(_TINY)


class Linear(Swapped):
    """Linear attention with a fixed feature map, in fp32 under autocast: its sums are over all tokens.

    `relu`: phi(x) = max(x, 0) (Cai et al. 2023, EfficientViT, section 3.1, without the convolutions beside it);
    `elu`: phi(x) = elu(x) + 1 (Katharopoulos et al. 2020, eq. 7). All tokens are treated alike.

    Args:
        exact: see `Swapped`.
        site: see `Swapped`.
        kernel: relu | elu.
    """

    drops = False

    def __init__(self, exact: Attention, site: Site, *, kernel: str = "relu") -> None:
        super().__init__(exact, site)
        self.kernel = kernel
        # a dimension of zeros has the feature 0 with relu, but 1 with elu
        self.narrows = kernel == "relu"

    @classmethod
    def settled(cls, site: Site, *, kernel: Any = "relu") -> dict[str, Any]:
        """The settings."""
        one_of(f"{ARGS}.kernel", kernel, KERNELS)
        return {"kernel": kernel}

    @override
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with no_autocast(query):
            query, key, value = wide(query, key, value)
            return linear_attention(self.features_of(query), self.features_of(key), value)

    def features_of(self, x: Tensor) -> Tensor:
        """phi(x), of the shape of x."""
        return F.relu(x) if self.kernel == "relu" else F.elu(x) + 1

    @override
    def work(self, tokens: int) -> tuple[int, int, int]:
        return 0, tokens, 2 * tokens

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel={self.kernel}"


class Performer(Swapped):
    """FAVOR+: positive orthogonal random features of the softmax kernel (Choromanski et al. 2021).

    phi(x) = exp(w x - |x|^2 / 2) / sqrt(m) with x scaled by d^(-1/4), lemma 1; the w of each d features are
    orthogonal, with the lengths of Gaussian vectors (section 2.4). What each query's features, and each head's
    keys' features, have in common cancels out and is taken away before the exponential. In fp32 under autocast.

    The features are drawn from the seed and the block's number, and are part of the weights that ship.

    Args:
        exact: see `Swapped`.
        site: see `Swapped`.
        features: m.
        seed: of the features.
    """

    drops = False
    narrows = False  # the features are of one width
    features: Tensor

    def __init__(self, exact: Attention, site: Site, *, features: int, seed: int = 0) -> None:
        super().__init__(exact, site)
        weight = exact.qkv.weight
        drawn = orthogonal(features, site.head_width, stream_key("performer", seed, site.block))
        self.register_buffer("features", drawn.to(weight.device, weight.dtype))

    @classmethod
    def settled(cls, site: Site, *, features: int | None = None, seed: int = 0) -> dict[str, Any]:
        """The settings; as many features as a head is wide where nothing is said."""
        seed = 0 if seed == 0 and not isinstance(seed, bool) else count("seed", seed)
        return {
            "features": count("features", site.head_width if features is None else features),
            "seed": seed,
        }

    @override
    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with no_autocast(query):
            query, key, value = wide(query, key, value)
            query, key = self._exponents(query), self._exponents(key)
            query = (query - query.detach().amax(dim=-1, keepdim=True)).exp()
            key = (key - key.detach().amax(dim=(-2, -1), keepdim=True)).exp()
            return linear_attention(query, key, value)

    def _exponents(self, x: Tensor) -> Tensor:
        x = x * math.sqrt(self.scale)
        return x @ self.features.to(x.dtype).T - x.square().sum(dim=-1, keepdim=True) / 2

    @override
    def work(self, tokens: int) -> tuple[int, int, int]:
        m = len(self.features)
        return tokens * m, 4 * tokens * m, 0

    @override
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, features={len(self.features)}"


def orthogonal(count_: int, width: int, seed: int) -> Tensor:
    """(count, width) rows: each `width` of them orthogonal, as long as Gaussian vectors are; float64, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")

    blocks = []
    for start in range(0, count_, width):
        directions, upper = torch.linalg.qr(normal(width, width))
        directions = directions * upper.diagonal().sign()  # one factorisation, whoever computes it
        lengths = normal(width, width).norm(dim=1, keepdim=True)
        blocks.append((directions.T * lengths)[: count_ - start])
    return torch.cat(blocks)
