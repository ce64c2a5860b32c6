"""Engine `vmap`: the gradient of a batch of one, mapped over the samples by `torch.func`.

Knows nothing of layers, so it takes all of them; holds the gradients of a chunk of samples at once.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.utils._pytree import tree_leaves, tree_map
from typing_extensions import override

from effvit_train.errors import UserError, first_line
from effvit_train.privacy.engine import KEY
from effvit_train.privacy.engine.base import Losses, Summing, check_losses, uncompiled, wide
from effvit_train.privacy.engine.clip import Clip

CHUNK = 16  # samples, whose gradients are held at once


class Mapped(Summing):
    """See `base.Engine`; `accumulate` needs `batch`.

    `losses` is called once for a chunk, and sees one sample (views, ...): it must not look at numbers
    (`.item()`, `if tensor`), and what it computes from a sample's number has to be in `batch` instead.
    """

    def __init__(self, modules: nn.Module, clip: Clip, *, views: int = 1) -> None:
        super().__init__(modules, clip, views=views)

    def accumulate(self, losses: Losses, samples: int, batch: Any = None) -> Tensor:
        """See `base.Engine`."""
        if batch is None:
            raise ValueError("engine vmap calls the losses with a batch of one: give accumulate a batch")
        rows = samples * self.views
        if any(leaf.shape[0] != rows for leaf in tree_leaves(batch)):
            raise ValueError(f"not every tensor of the batch has {rows} rows")
        batch = tree_map(lambda leaf: leaf.unflatten(0, (samples, self.views)), batch)
        called = _Called(self.modules, losses, self.views)
        parameters = {f"modules_.{name}": p.detach() for name, p in self.parameters.items()}

        def of_one(parameters: dict[str, Tensor], one: Any) -> Tensor:
            return functional_call(called, parameters, (one,))

        gradient = vmap(grad_and_value(of_one), in_dims=(None, 0), randomness="different")
        norms, squares = [], []
        for start in range(0, samples, CHUNK):
            chunk = tree_map(lambda leaf, start=start: leaf[start : start + CHUNK], batch)
            try:
                with uncompiled(), warnings.catch_warnings():
                    # that an operation is done sample by sample
                    warnings.filterwarnings("ignore", message="There is a performance drop")
                    found, _ = gradient(parameters, chunk)
            except RuntimeError as error:
                if "vmap" not in str(error) and "functorch" not in str(error):
                    raise
                raise UserError(
                    f"torch.func cannot map this model or loss over samples ({first_line(error)})",
                    key=KEY, value="vmap", remedy="try privacy.engine=bookkeeping",
                ) from error  # fmt: skip
            norms.append(self.add_per_sample({n.removeprefix("modules_."): g for n, g in found.items()}))
            squares.append(self.squares)
            del found
        self.squares = {name: torch.cat([part[name] for part in squares]) for name in self.sums}
        return torch.cat(norms)

    @override
    def close(self) -> None:
        """Nothing was changed."""


class _Called(nn.Module):
    """The losses of one sample as a module, whose parameters `functional_call` can put others in place of."""

    def __init__(self, modules: nn.Module, losses: Losses, views: int) -> None:
        super().__init__()
        self.modules_, self._losses, self._views = modules, losses, views

    def forward(self, one: Any) -> Tensor:
        values = self._losses(one)
        check_losses(values, self._views)
        return values.mean(dtype=wide(values.dtype))
