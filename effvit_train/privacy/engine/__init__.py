"""Per-sample gradients for DP-SGD: every sample's gradient is clipped, then the gradients are summed.

| kind | how | for |
|---|---|---|
| `bookkeeping` | one backward pass, norms from the layers' inputs and output gradients | the product |
| `vmap` | `torch.func`: the gradient of a batch of one, mapped over the samples | layers that no rule knows |
| `opacus_hooks`, `opacus_ghost` | Opacus's grad-sample modules | reference and benchmark |

Each is an `Engine`; `make_engine` makes one by its kind, `check` compares one with a batch-of-one loop.
This file needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from effvit_train.errors import one_of
from effvit_train.privacy.config import ENGINES as KINDS
from effvit_train.privacy.engine.clip import Clip

if TYPE_CHECKING:
    from torch import nn

    from effvit_train.privacy.engine.base import Engine

__all__ = ["KINDS", "Clip", "make_engine"]

KEY = "privacy.engine"


def make_engine(kind: str, modules: nn.Module, clip: Clip, *, views: int = 1) -> Engine:
    """The engine of a kind for everything trainable in `modules`.

    Args:
        kind: one of `KINDS`.
        modules: holds all that is trained; its names of the parameters are those of the sums.
        clip: how a sample's gradient is bounded.
        views: augmented views of a sample, adjacent in the batch; its gradient is their mean (De et al.
            2022, augmentation multiplicity).

    Raises:
        UserError: an unknown kind; a module that mixes samples, or that this kind cannot take.
    """
    one_of(KEY, kind, KINDS)
    if kind == "bookkeeping":
        from effvit_train.privacy.engine.bookkeeping import BookKeeping

        return BookKeeping(modules, clip, views=views)
    if kind == "vmap":
        from effvit_train.privacy.engine.mapped import Mapped

        return Mapped(modules, clip, views=views)
    from effvit_train.privacy.engine.opacus import OpacusGhost, OpacusHooks

    return (OpacusGhost if kind == "opacus_ghost" else OpacusHooks)(modules, clip, views=views)
