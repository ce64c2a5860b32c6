"""The term of learning without forgetting, and the model that it learns from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from effvit_train.frozen import Teacher, View
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.tuning import merged_state
from effvit_train.parts import Keeper, Step, Term
from effvit_train.soft_labels import answered, soft_loss


class Before:
    """The model as it was before the task, which is rebuilt from its record: a resumed run asks the same one.

    Attributes:
        teacher: asks it; None in the first task.
        record: of its architecture.
    """

    def __init__(self) -> None:
        self.teacher: Teacher | None = None
        self.record: ArchitectureRecord | None = None

    def take(self, record: ArchitectureRecord, state: dict[str, Tensor]) -> None:
        """Let it be the model of this record and state."""
        with torch.random.fork_rng(devices=[]):
            model = build(record)
        model.load_state_dict(state)
        self.record = record
        # it sees the student's very images
        self.teacher = Teacher(model, View(record.mean, record.std, record.mean, record.std))

    def state(self) -> dict[str, Tensor]:
        """Its state."""
        return {} if self.teacher is None else dict(self.teacher.model.state_dict())


class LwfTerm(Term):
    """What the model said before the task, over the classes that it knew then (Li & Hoiem 2017, eq. 2 and 3).

    On the images of the new task, augmented and mixed as the student sees them. Zero in the first task.

    Args:
        before: that model.
        temperature: T.
        weight: of the term.
    """

    name = "lwf"

    def __init__(self, before: Before, *, temperature: float, weight: float) -> None:
        self._before, self.temperature, self.weight = before, temperature, weight

    @override
    def __call__(self, step: Step) -> Tensor:
        if self._before.teacher is None:
            return step.logits.new_zeros(len(step.logits))
        said, _ = self._before.teacher(step.images)
        return soft_loss(answered(step)[:, : said.shape[1]], said, self.temperature)


class LwfKeeper(Keeper):
    """Keeps the model that would ship at the end of each task.

    Args:
        before: what is brought up to date.
    """

    def __init__(self, before: Before) -> None:
        self._before = before

    @override
    def after_task(self, module: Any, data: Any, task: int) -> None:
        self._before.take(module.record, merged_state(module.shipped))

    @override
    def kept(self) -> dict[str, Any]:
        if self._before.record is None:
            return {}
        return {"record": self._before.record.to_json(), "state": self._before.state()}

    @override
    def restore(self, module: Any, kept: dict[str, Any]) -> None:
        if kept:
            self._before.take(ArchitectureRecord.from_json(kept["record"]), kept["state"])

    @override
    def memory(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._before.state().values())
