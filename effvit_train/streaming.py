"""Training on a stream: what happens between its tasks, and the accuracy on each task after each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from typing_extensions import override

from effvit_train.audit.continual import measure_continual
from effvit_train.card import Measured
from effvit_train.changing import change_model
from effvit_train.data.stream import CLASS, Stream
from effvit_train.errors import UserError
from effvit_train.keys import stream_key
from effvit_train.models.heads import grow
from effvit_train.parts import Keeper
from effvit_train.predictions import predict

NAME = "stream"
CURVE = "continual/accuracy_task_"  # and the number of the task, from 1


class Streaming(pl.Callback):
    """Begins each task (new classes get rows of the classifier), lets keepers look at its end, and tests after it.

    What has been begun, kept and measured is in the checkpoint: a resumed run goes on within its task.

    Args:
        stream: the tasks.
        strategies: names of the configured strategies.
        keepers: what keeps something of tasks that have ended.
        rehearsed: bytes of what is shown again after a task, without what keepers keep.
        say: prints one line.
    """

    def __init__(
        self,
        stream: Stream,
        strategies: list[str],
        keepers: Sequence[Keeper],
        rehearsed: Callable[[int], int],
        say: Callable[[str], None],
    ) -> None:
        self.stream, self.strategies, self.keepers, self._say = stream, strategies, list(keepers), say
        self._rehearsed = rehearsed
        self._kept: list[dict[str, Any]] = []  # of a checkpoint, until the model is there
        self._spent = 0.0  # in this task before this process
        self.begun = 0
        self.accuracy: list[list[float | None]] = []  # [after task][on task], among the classes seen so far
        self.within: list[list[float | None]] = []  # the same, among the task's own classes
        self.start: list[float | None] = []  # before any task; empty where it cannot be told
        self.costs: list[dict[str, float]] = []  # of each task
        self._since = 0.0

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Until the last task has begun, the model is not the one that ships."""
        for keeper, kept in zip(self.keepers, self._kept, strict=bool(self._kept)):
            keeper.restore(pl_module, kept)
        self._kept = []
        self._settle(pl_module)
        self._since = time.monotonic()

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the task that is due."""
        module: Any = pl_module
        module.figures = {name: value for name, value in module.figures.items() if not name.startswith(CURVE)}
        task = self.stream.task_at(trainer.current_epoch)
        if task < self.begun:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not self.begun and not self.stream.first and self.stream.kind != CLASS:
            self.start = self._test(trainer, module)[0]
        for earlier in range(self.begun, task):  # known before the training
            self._end(trainer, module, earlier)
        names = data.info.classes[len(module.record.classes) : self.stream.seen(task)]
        if names:
            change_model(
                trainer, module, *grow(module.model, names, seed=stream_key("head", module.seed, task))
            )
        self.begun = task + 1
        self._since, self._spent = time.monotonic(), 0.0
        self._say(f"task {task + 1} of {len(self.stream.tasks)}: {self.stream.tasks[task].name}")
        self._settle(module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Test after the last epoch of a task."""
        module: Any = pl_module
        epochs = trainer.current_epoch + 1
        task = self.stream.task_at(trainer.current_epoch)
        if epochs % self.stream.epochs:
            return
        if len(self.accuracy) <= task:
            seconds = self._spent + time.monotonic() - self._since
            self._end(trainer, module, task, self.stream.epochs * int(trainer.num_training_batches), seconds)
        module.figures |= {
            f"{CURVE}{j + 1}": value
            for j, value in enumerate(self.accuracy[task][: task + 1])
            if value is not None
        }

    def _end(self, trainer: pl.Trainer, module: Any, task: int, steps: int = 0, seconds: float = 0.0) -> None:
        for keeper in self.keepers:
            keeper.after_task(module, trainer.datamodule, task)  # type: ignore[attr-defined]
        accuracy, within = self._test(trainer, module)
        self.accuracy.append(accuracy)
        self.within.append(within)
        kept = self._rehearsed(task) + sum(keeper.memory() for keeper in self.keepers)
        self.costs.append({"steps": steps, "seconds": round(seconds, 3), "memory_bytes": kept})
        told = ", ".join("–" if value is None else f"{value:.3f}" for value in accuracy[: task + 1])
        self._say(f"after task {task + 1}: accuracy {told}")

    @override
    def state_dict(self) -> dict[str, Any]:
        """What has been begun, kept and measured."""
        return {
            "begun": self.begun, "accuracy": self.accuracy, "within": self.within, "start": self.start,
            "epochs": self.stream.epochs, "costs": self.costs, "_spent": self._spent + time.monotonic() - self._since,
            "_kept": [keeper.kept() for keeper in self.keepers],
        }  # fmt: skip

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` holds."""
        for name, value in state_dict.items():
            if name != "epochs":
                setattr(self, name, value)

    def check(self, checkpoint: Mapping[str, Any], epochs: int) -> None:
        """Refuse to go on from a checkpoint with another length of the tasks: epochs would be of other tasks.

        Args:
            checkpoint: to go on from.
            epochs: of the whole training now.

        Raises:
            UserError: its tasks are not as long.
        """
        before = checkpoint["callbacks"][self.state_key]["epochs"]
        if before != self.stream.epochs:
            count = len(self.stream.tasks) - self.stream.first
            raise UserError(
                f"each task of this run is trained for {before} epochs", key="trainer.max_epochs",
                value=epochs, remedy=f"trainer.max_epochs={before * count}, or a new run",
            )  # fmt: skip

    def measured(self) -> Measured:
        """The measures of the card."""
        return measure_continual(
            self.accuracy,
            self.within,
            self.start,
            kind=self.stream.kind,
            costs=self.costs[self.stream.first :],
        )

    def facts(self) -> dict[str, Any]:
        """What the card's `continual` says."""
        return {
            "kind": self.stream.kind,
            "strategies": self.strategies,
            "tasks": [
                {"name": t.name, "classes": list(t.classes), "train": len(t.train), "test": len(t.test)}
                for t in self.stream.tasks
            ],
            "epochs_per_task": self.stream.epochs, "first": self.stream.first, "accuracy": self.accuracy,
            "within_task": self.within, "before": self.start, "costs": self.costs,
        }  # fmt: skip

    def _settle(self, module: Any) -> None:
        (module.unsettled.add if self.begun < len(self.stream.tasks) else module.unsettled.discard)(NAME)

    def _test(self, trainer: pl.Trainer, module: Any) -> tuple[list[float | None], list[float | None]]:
        """Accuracy on the test images of every task, among all classes seen so far and among the task's own.

        Test images of classes that have not come yet count as wrong. None where a task's images are not at hand.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        seen: list[float | None] = []
        within: list[float | None] = []
        ids, logits, labels = np.zeros(0, dtype=np.int64), torch.empty(0), torch.empty(0)
        for task in self.stream.tasks:
            if not len(task.test):
                seen.append(None)
                within.append(None)
                continue
            if not np.array_equal(task.test, ids):  # portions share their test images
                ids = task.test
                logits, labels, _ = predict(
                    module.shipped, module.normalise, data.loader_of(ids), device=module.device,
                    precision=str(trainer.precision),
                )  # fmt: skip
            own = [k for k in task.classes if k < logits.shape[1]]
            seen.append(float((logits.argmax(dim=1) == labels).double().mean()))
            if own:
                best = torch.tensor(own)[logits[:, own].argmax(dim=1)]
                within.append(float((best == labels).double().mean()))
            else:
                within.append(0.0)
        return seen, within
