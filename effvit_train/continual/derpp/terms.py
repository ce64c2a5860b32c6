"""What DER++ keeps and minimises (Buzzega et al. 2020, eq. 6).

With n new samples and m that are shown again in a batch, h the logits now, z those kept, k the classes known when
they were kept, and CE the label term, the loss is

    1 / (n + m) * [sum_new CE(x, y) + sum_again (beta * CE(x, y) + alpha / k * |z - h_k(x)|^2)]

which at `share=0.5` is half of eq. 6. Three things are not as in the paper. It writes the squared norm; we divide
it by k, as its published code and weights do. It draws samples anew for each of its two terms; ours share them. It
keeps the logits of the step in which a sample was drawn, because its streams have no boundaries; ours have, and we
keep those of the model at the end of the sample's task. Classes that came later do not enter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from effvit_train.continual.memory.rehearsal import LOGIT_BYTES, Memory
from effvit_train.parts import Keeper, Step, Term
from effvit_train.predictions import predict
from effvit_train.soft_labels import answered


class KeptLogits(Keeper):
    """The logits of a memory's images, of the trained model at the end of the task in which each came.

    In evaluation mode, of images that are not augmented.

    Args:
        memory: of the images.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        # task -> ids (n,), ascending, and logits (n, k); k are the classes that were known
        self._of: dict[int, tuple[Tensor, Tensor]] = {}

    @override
    def after_task(self, module: Any, data: Any, task: int) -> None:
        held = self._memory.held[task]
        for earlier, (ids, logits) in self._of.items():
            stays = torch.isin(ids, torch.from_numpy(held))
            self._of[earlier] = ids[stays], logits[stays]
        new = np.intersect1d(held, data.stream.tasks[task].train)
        if len(new):
            logits, _, ids = predict(
                module.model, module.normalise, data.loader_of(new), device=module.device,
                precision=str(module.trainer.precision),
            )  # fmt: skip
            self._of[task] = ids, logits

    @override
    def kept(self) -> dict[str, Any]:
        return {str(task): {"ids": ids, "logits": logits} for task, (ids, logits) in self._of.items()}

    @override
    def restore(self, module: Any, kept: dict[str, Any]) -> None:
        self._of = {int(task): (found["ids"], found["logits"]) for task, found in kept.items()}

    @override
    def memory(self) -> int:
        """Bytes of the logits; the images are told by the memory itself."""
        return sum(logits.numel() * LOGIT_BYTES for _, logits in self._of.values())

    def of(self, index: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows (n,) of a batch whose logits are kept, with these (n, k), task by task.

        Args:
            index: sample ids of the batch (B,), on the CPU.
        """
        for ids, logits in self._of.values():
            if not len(ids):
                continue
            place = torch.searchsorted(ids, index).clamp(max=len(ids) - 1)
            rows = torch.nonzero(ids[place] == index).squeeze(1)
            if len(rows):
                yield rows, logits[place[rows]]


class LogitsTerm(Term):
    """Mean squared distance of the logits from those that were kept (eq. 6, second term); 0 for new samples.

    A model with two heads answers with their mean, as it did when its logits were kept.

    Args:
        kept: the logits.
        alpha: weight of the term.
    """

    name = "derpp"

    def __init__(self, kept: KeptLogits, alpha: float) -> None:
        self._kept, self.weight = kept, alpha

    @override
    def __call__(self, step: Step) -> Tensor:
        now = answered(step)
        loss = now.new_zeros(len(now))
        for rows, logits in self._kept.of(step.index):
            rows, logits = rows.to(now.device), logits.to(now)
            error = now[rows, : logits.shape[1]] - logits
            loss = loss.index_add(0, rows, error.square().mean(dim=1))
        return loss


def label_factor(kept: KeptLogits, beta: float) -> Callable[[Step], Tensor]:
    """What the label term of each sample (B,) is multiplied by: `beta` where logits are kept, else 1."""

    def factor(step: Step) -> Tensor:
        factors = step.logits.new_ones(len(step.logits))
        for rows, _ in kept.of(step.index):
            factors[rows.to(factors.device)] = beta
        return factors

    return factor
