"""The penalty of elastic weight consolidation, and what it keeps of earlier tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from effvit_train.continual.ewc import EMPIRICAL
from effvit_train.continual.ewc.fisher import EXACT, Samples, Weights, fisher_diagonal
from effvit_train.data import draws
from effvit_train.keys import stream_key
from effvit_train.models.heads import Grow
from effvit_train.models.surgery import Fold, Operation, Scale, apply
from effvit_train.parts import Keeper, Step, Term

if TYPE_CHECKING:
    from effvit_train.continual.ewc import EwcConfig


class Consolidated:
    """Where the last task left the weights, and how much earlier tasks tell of each: one quadratic for all of them.

    Schwarz et al. 2018, eq. 8 and 9: information is added up, and the weights are those of the last task. Both are
    held in models of the same build, in fp32 and outside the trained module, so that changes of the architecture
    are made on them too.

    Args:
        mean, information: copies of the model.

    Attributes:
        tasks: how many have been added.
    """

    def __init__(self, mean: nn.Module, information: nn.Module) -> None:
        self.mean, self.information = mean, information
        self.tasks = 0
        self._clear()

    @torch.no_grad()
    def add(self, weights: Weights, information: Weights, gamma: float) -> None:
        """Add a task: `F <- gamma F + F_task`, and the weights that it ended with."""
        for name, found in information.items():
            old = self.information.get_parameter(name)
            old.copy_(gamma * old + found)
            self.mean.get_parameter(name).copy_(weights[name])
        self.tasks += 1

    def penalty(self, model: nn.Module) -> Tensor:
        """`1/2 sum_i F_i (theta_i - theta*_i)^2`, a scalar (Kirkpatrick et al. 2017, eq. 3, without lambda)."""
        mean, information = (dict(kept.named_parameters()) for kept in (self.mean, self.information))
        parts = [
            (information[name].detach() * (weight.float() - mean[name].detach()).square()).sum()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        ]
        return torch.stack(parts).sum() / 2

    def cut(self, operations: Sequence[Operation]) -> None:
        """Follow a change of the model."""
        apply(self.mean, operations)
        apply(self.information, list(_of_information(operations)))
        if not self.tasks:
            self._clear()

    def to(self, device: torch.device) -> None:
        """Move what is kept to where the model is."""
        self.mean.to(device)
        self.information.to(device)

    def tensors(self) -> dict[str, Weights]:
        """What is kept of the weights that are trained."""
        return {
            part: {
                name: weight.detach()
                for name, weight in getattr(self, part).named_parameters()
                if weight.requires_grad
            }
            for part in ("mean", "information")
        }

    def load(self, found: dict[str, Weights], tasks: int) -> None:
        """Take over what `tensors` told, in a model of the same build."""
        for part, weights in found.items():
            for name, weight in weights.items():
                getattr(self, part).get_parameter(name).data.copy_(weight)
        self.tasks = tasks

    def _clear(self) -> None:
        for weight in self.information.parameters():
            weight.data.zero_()


def _of_information(operations: Sequence[Operation]) -> Iterator[Operation]:
    """What a change of the weights does to their information."""
    for operation in operations:
        if isinstance(operation, Scale):  # F (theta - theta*)^2 stays what it is
            yield Scale(operation.parameter, operation.rows, operation.factor**-2)
        elif isinstance(operation, Grow):  # of new rows nothing is known
            yield Grow(
                {n: (torch.zeros_like(w), torch.zeros_like(b)) for n, (w, b) in operation.rows.items()}
            )
        elif not isinstance(operation, Fold):  # weights that stand in for others are needed as before
            yield operation


class EwcTerm(Term):
    """The penalty, the same for each sample of a step.

    Args:
        model: that is trained.
        kept: of earlier tasks.
        strength: lambda.
    """

    name = "ewc"

    def __init__(self, model: nn.Module, kept: Consolidated, strength: float) -> None:
        self.weight = strength
        self._model, self._kept = model, kept

    @override
    def __call__(self, step: Step) -> Tensor:
        if not self._kept.tasks:
            return step.logits.new_zeros(len(step.logits))
        return self._kept.penalty(self._model).expand(len(step.logits))

    @override
    def after_cut(
        self, model: nn.Module, operations: Sequence[Operation], optimizer: Optimizer | None
    ) -> None:
        self._kept.cut(operations)


class EwcKeeper(Keeper):
    """Measures how much an ended task tells of each weight.

    Args:
        kept: where it is added.
        settings: `continual.ewc`.
        seed: of draws.
        say: prints one line.
    """

    def __init__(
        self, kept: Consolidated, settings: EwcConfig, seed: int, say: Callable[[str], None]
    ) -> None:
        self._kept, self._settings, self._seed, self._say = kept, settings, seed, say

    @override
    def after_task(self, module: Any, data: Any, task: int) -> None:
        model, empirical = module.model, self._settings.fisher == EMPIRICAL
        ids = data.stream.tasks[task].train
        if self._settings.images is not None:  # evenly: folders come class by class
            ids = ids[np.linspace(0, len(ids) - 1, min(self._settings.images, len(ids))).round().astype(int)]
        uniform = torch.from_numpy(draws.uniform(stream_key("ewc", self._seed, task), ids)).float()

        def batches() -> Iterator[Samples]:
            start = 0
            for batch in data.loader_of(ids):
                part = uniform[start : start + len(batch.labels)]
                start += len(part)
                images = module.normalise(batch.images.to(module.device))
                yield images, batch.labels.to(module.device), part.to(module.device)

        found = fisher_diagonal(model, batches(), empirical=empirical)
        self._kept.to(module.device)
        self._kept.add(dict(model.named_parameters()), found, self._settings.gamma)
        classes = len(module.record.classes)
        how = (
            "of the labels" if empirical else
            f"summed over {classes} classes" if classes <= EXACT else "of one drawn class each"
        )  # fmt: skip
        self._say(f"ewc: Fisher information of task {task + 1} from {len(ids):,} images, {how}")

    @override
    def kept(self) -> dict[str, Any]:
        return {"tasks": self._kept.tasks, **self._kept.tensors()} if self._kept.tasks else {"tasks": 0}

    @override
    def restore(self, module: Any, kept: dict[str, Any]) -> None:
        tensors = {part: weights for part, weights in kept.items() if part != "tasks"}
        self._kept.load(tensors, int(kept["tasks"]))
        self._kept.to(module.device)

    @override
    def memory(self) -> int:
        return sum(4 * weight.numel() for part in self._kept.tensors().values() for weight in part.values())
