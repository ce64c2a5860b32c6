"""Changes of the architecture while a model is trained, and after its last step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.strategies import DDPStrategy
from typing_extensions import override

from effvit_train.errors import UserError
from effvit_train.models.surgery import Operation
from effvit_train.moment import Moment, step_of
from effvit_train.parts import Decided, PlannedChange


def change_model(
    trainer: pl.Trainer, module: Any, operations: Sequence[Operation], entry: dict[str, Any]
) -> None:
    """Change the model that a trainer trains, its optimizer and what else follows it; no gradient may be alive."""
    optimizer = module.optimizers(use_pl_optimizer=False)
    strategy = trainer.strategy
    wrapped = isinstance(strategy, DDPStrategy) and strategy.model is not strategy.lightning_module
    if wrapped:  # its buckets are of the old shapes
        strategy.model = strategy.lightning_module
        gc.collect()
    module.cut(operations, entry, optimizer)
    if wrapped:
        assert isinstance(strategy, DDPStrategy)
        strategy.configure_ddp()


class Changes(pl.Callback):
    """Makes planned changes, each at the beginning of the step that its moment lies in, when no gradient is alive.

    Those at the very start are made before other techniques look at the model. What has been done is kept in
    the checkpoint: a resumed run makes the changes that are left, when they were due.

    Args:
        planned: the changes.
        alone: technique -> from when to when no other may change the architecture.
        provenance: the card's entries, which are given what was decided.
        say: prints one line.
    """

    def __init__(
        self,
        planned: Sequence[PlannedChange],
        alone: dict[str, tuple[Moment, Moment]],
        provenance: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.during = [change for change in planned if not change.moment.at_end]
        self.after = [change for change in planned if change.moment.at_end]
        self._alone, self._provenance, self._say = alone, provenance, say
        self.positions: dict[str, float] = {}  # in epochs
        self.facts: dict[str, Any] = {}  # of those that are done

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the changes of the very start."""
        self._provenance |= self.facts
        for change in self.during:
            if change.moment.value == 0 and change.name not in self.facts:
                self._make(trainer, pl_module, change, epoch=0)
        self._settle(pl_module)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide when the others are made, at the first start.

        Raises:
            UserError: there is no such step, another technique is at work then, or one comes after another that it
                cannot follow.
        """
        epochs, steps = trainer.max_epochs or 1, int(trainer.num_training_batches)
        if not self.positions:
            self.positions = {c.name: c.moment.in_epochs(epochs, steps) for c in self.during}
        self._check_order()
        for change in self.during:
            if change.name in self.facts:
                continue
            at = self.positions[change.name]
            if step_of(at, steps) >= epochs * steps:
                raise UserError(
                    f"leaves no step after it: the training has {epochs} epochs of {steps} steps",
                    key=change.key, value=f"{at:g} epochs", remedy="an earlier moment, or 1: after the training",
                )  # fmt: skip
            for name, (start, end) in self._alone.items():
                first, last = (moment.in_epochs(epochs, steps) for moment in (start, end))
                if first <= at <= last and at > 0:
                    raise UserError(
                        f"changes the model between epochs {first:g} and {last:g}, where {name} lets nothing else change it",
                        key=change.key, value=f"{at:g} epochs",
                        remedy=f"{change.key}=0, or another moment",
                    )  # fmt: skip

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the change that is due."""
        steps = int(trainer.num_training_batches)
        step = trainer.current_epoch * steps + batch_idx
        for change in self.during:
            if change.name not in self.facts and step_of(self.positions[change.name], steps) <= step:
                self._make(trainer, pl_module, change, epoch=trainer.current_epoch)
                self._settle(pl_module)

    def _check_order(self) -> None:
        ordered = sorted(self.during, key=lambda change: self.positions[change.name]) + self.after
        for number, change in enumerate(ordered):
            for earlier in ordered[:number]:
                reasons = [change.refuses[word] for word in sorted(earlier.leaves) if word in change.refuses]
                if reasons:
                    raise UserError(
                        f"comes after {earlier.key}, and {reasons[0]}", key=change.key,
                        value="the end" if change.moment.at_end else f"{self.positions[change.name]:g} epochs",
                        remedy=f"an earlier {change.key}, or a later {earlier.key}",
                    )  # fmt: skip

    def finish(self, trainer: pl.Trainer, module: Any, data: Any) -> None:
        """Make the changes that come after the last step."""
        for change in self.after:
            decided = _agree(trainer, change.decide(module, data, trainer.current_epoch))
            if decided is not None:
                module.cut(decided.operations, decided.entry)
            self._note(change, decided)

    @override
    def state_dict(self) -> dict[str, Any]:
        """When changes are made, and what those that have been made did."""
        return {"positions": self.positions, "facts": self.facts}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` holds."""
        self.positions, self.facts = dict(state_dict["positions"]), dict(state_dict["facts"])

    def _make(self, trainer: pl.Trainer, module: Any, change: PlannedChange, *, epoch: int) -> None:
        decided = _agree(trainer, change.decide(module, trainer.datamodule, epoch))  # type: ignore[attr-defined]
        if decided is not None:
            change_model(trainer, module, decided.operations, decided.entry)
        self._note(change, decided)

    def _note(self, change: PlannedChange, decided: Decided | None) -> None:
        self.facts[change.name] = {} if decided is None else decided.facts
        self._provenance[change.name] = self.facts[change.name]
        self._say(
            f"{change.name}: {'nothing to change' if decided is None else decided.words or 'the model is changed'}"
        )

    def _settle(self, module: Any) -> None:
        for change in self.during:
            (module.unsettled.discard if change.name in self.facts else module.unsettled.add)(change.name)


def _agree(trainer: pl.Trainer, decided: Decided | None) -> Decided | None:
    """One process decides: rounding may differ between devices."""
    return trainer.strategy.broadcast(decided)
