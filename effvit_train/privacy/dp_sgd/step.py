"""One private step: sums of clipped gradients, micro-batch by micro-batch, then noise, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from effvit_train.privacy.dp_sgd.plan import Plan
from effvit_train.privacy.dp_sgd.randomness import Stream
from effvit_train.privacy.engine.base import Engine

B = TypeVar("B", bound=tuple)


def add_up(engine: Engine, losses: Callable[[B], Tensor], batch: B, *, physical: int) -> None:
    """Put the sum of the clipped gradients of a batch into the engine.

    Args:
        engine: clips.
        losses: of the rows of a micro-batch (b,), where the views of a sample stand side by side.
        batch: a named tuple of tensors whose first dimension are the rows; there may be none.
        physical: rows that are in memory with their activations at once; a sample's views stay together.
    """
    engine.zero()
    size = max(1, physical // engine.views) * engine.views
    for start in range(0, len(batch[0]), size):
        rows = type(batch)(*(column[start : start + size] for column in batch))
        engine.accumulate(losses, len(rows[0]) // engine.views, rows)


def write_gradients(
    engine: Engine, plan: Plan, stream: Stream, source: str, *step: int, processes: int = 1
) -> None:
    """Add the noise and leave the gradients where the optimizer looks.

    Abadi et al. 2016, algorithm 1: (sum_i clip(g_i) + N(0, sigma^2 C^2)) / B, where B is the expected number
    of samples, not that of those that were drawn.

    Args:
        engine: holds the sums of this process.
        plan: of the training.
        stream: noise comes from it, the same on every process, and is added to the sum over all of them.
        source: of the noise.
        step: that the noise is for.
        processes: how many take part.
    """
    if processes > 1:
        flat = torch.cat([total.view(-1) for total in engine.sums.values()])
        torch.distributed.all_reduce(flat)
        parts = flat.split([total.numel() for total in engine.sums.values()])
        for total, part in zip(engine.sums.values(), parts, strict=True):
            total.copy_(part.view_as(total))
    parameters: dict[str, Any] = dict(engine.modules.named_parameters())
    for name, total in engine.sums.items():
        noise = stream.normal(total, source, "noise", *step, name)
        # not a copy: the sum is not needed any more, and the next step begins with zeros
        parameters[name].grad = (
            total.add_(noise, alpha=plan.noise_std).div_(plan.batch).to(parameters[name].dtype)
        )
