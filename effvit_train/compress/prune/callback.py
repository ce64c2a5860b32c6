"""Cuts the model while it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from typing_extensions import override

from effvit_train.changing import change_model
from effvit_train.compress.prune.config import PruneConfig
from effvit_train.compress.prune.latency import Table
from effvit_train.compress.prune.plan import record_of
from effvit_train.compress.prune.pruner import Decision, Pruner, batches
from effvit_train.compress.prune.schedule import positions
from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json
from effvit_train.keys import stream_key
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import read_structure
from effvit_train.moment import Moment, step_of

LATENCY_FILE = "latency.json"  # in the run directory
NAME = "prune"
_KEY = "compress.prune"


class Pruning(pl.Callback):
    """Cuts at the beginning of a step, when no gradient is alive.

    When and from what the model was cut is kept in the checkpoint: a resumed run makes the cuts that are
    left, when they were due, also when it is made longer.

    Args:
        config: `compress.prune`.
        pruner: for the record of the model that the run starts with.
        provenance: the card's `pruning`, which is kept up to date.
        say: prints one line.
    """

    def __init__(
        self, config: PruneConfig, pruner: Pruner, provenance: dict[str, Any], say: Callable[[str], None]
    ) -> None:
        self.config, self.pruner, self.provenance, self._say = config, pruner, provenance, say
        self.record: ArchitectureRecord = pruner.record  # budgets refer to it
        self.positions: list[float] | None = None  # in epochs
        self.done = 0
        self.cuts: list[dict[str, Any]] = []

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure latencies, where they are limited and have not been measured."""
        if self.positions is None:  # at the first start other techniques may have changed the model already
            self.record = pl_module.record  # type: ignore[assignment]
        module: Any = pl_module
        module.unsettled.add(NAME)
        if len(self.record.cuts) != len(self.pruner.record.cuts):
            self.pruner = Pruner(self.config, self.record)
        if not self.pruner.ready:
            self.pruner.use(self._table(trainer, pl_module))
            self.pruner.check()
        self._tell()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Decide when to cut, at the first start."""
        if self.positions is None:
            epochs, steps = trainer.max_epochs or 1, int(trainer.num_training_batches)
            start, end = (
                Moment.read(value, key=f"{_KEY}.{name}").in_epochs(epochs, steps)
                for name, value in (("start", self.config.start), ("end", self.config.end))
            )
            one_shot = self.config.schedule == "one_shot"
            if end < start and not one_shot:
                raise self.config.out_of_order()
            self.positions = positions(start, end, self.config.cuts, one_shot=one_shot)
            name, last = ("start", start) if one_shot else ("end", end)
            if step_of(last, steps) >= epochs * steps:
                raise UserError(
                    f"leaves no step after the last cut: the training has {epochs} epochs of {steps} steps",
                    key=f"{_KEY}.{name}", value=getattr(self.config, name), remedy="an earlier cut",
                )  # fmt: skip
        self._settle(pl_module)

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Make the cut that is due."""
        assert self.positions is not None
        steps = int(trainer.num_training_batches)
        now = trainer.current_epoch + batch_idx / steps
        step = trainer.current_epoch * steps + batch_idx
        due = sum(step_of(position, steps) <= step for position in self.positions)
        if due > self.done:
            self._cut(trainer, pl_module, due, now)
            self.done = due
            self._settle(pl_module)

    def _settle(self, module: Any) -> None:
        assert self.positions is not None
        (module.unsettled.discard if self.done == len(self.positions) else module.unsettled.add)(NAME)

    @override
    def state_dict(self) -> dict[str, Any]:
        """When cuts are made, how many have been, and from what."""
        return {
            "positions": self.positions,
            "done": self.done,
            "cuts": self.cuts,
            "start_cuts": self.record.cuts,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` holds."""
        self.positions, self.done = state_dict["positions"], int(state_dict["done"])
        self.cuts = list(state_dict["cuts"])
        self.record = dataclasses.replace(self.record, cuts=list(state_dict["start_cuts"]))

    def _cut(self, trainer: pl.Trainer, module: Any, number: int, now: float) -> None:
        assert self.positions is not None
        if self.done == 0 and len(module.record.cuts) != len(self.record.cuts):
            self._start_from(trainer, module)
        total = len(self.positions)
        keep = {tap for term in module.terms for tap in term.taps}
        structure = read_structure(module.model)
        decision: Decision | None = self.pruner.decide(
            module.model,
            batches(self.config, module, trainer.datamodule, trainer.current_epoch),  # type: ignore[attr-defined]
            number,
            total,
            seed=stream_key("prune", module.seed, number),
            keep_blocks=[b for b in structure.blocks if any(f"{tap}.".startswith(f"{b}.") for tap in keep)],
        )
        # one process decides: rounding may differ between devices
        decision = trainer.strategy.broadcast(decision)
        if decision is None:
            self._say(f"cut {number} of {total}: none is needed, the model is small enough already")
            return
        entry = record_of(decision.plan, step=int(trainer.global_step))
        change_model(trainer, module, decision.operations, entry)
        self._note(trainer, decision, number, total, now)

    def _start_from(self, trainer: pl.Trainer, module: Any) -> None:
        """Another technique has changed the model since the training began: what budgets refer to is that model."""
        self.record = module.record
        self.pruner = Pruner(self.config, self.record)
        if not self.pruner.ready:
            if trainer.is_global_zero:
                (Path(trainer.default_root_dir) / LATENCY_FILE).unlink(missing_ok=True)
            self.pruner.use(self._table(trainer, module))
        self.pruner.check()

    def _note(self, trainer: pl.Trainer, decision: Decision, number: int, total: int, now: float) -> None:
        plan = decision.plan
        after = self.pruner.costs_after(decision.structure, plan)
        self.cuts.append(
            {
                "step": int(trainer.global_step),
                "epoch": round(now, 6),
                **after,
                "blocks": list(plan.blocks),
                "widths": dict(plan.widths),
            }
        )
        self._tell()
        start = self.pruner.start
        words = [f"{name} {after[name] / start[name]:.3f}" for name in self.config.targets]
        missed = " (no smaller cut is possible)" if plan.missed else ""
        self._say(f"cut {number} of {total}: {', '.join(words)} of the start{missed}")

    def _tell(self) -> None:
        self.provenance |= {**self.pruner.facts(), "cuts": self.cuts}

    def _table(self, trainer: pl.Trainer, module: Any) -> Table:
        path = Path(trainer.default_root_dir) / LATENCY_FILE
        table: Table | None = None
        if trainer.is_global_zero:
            if path.is_file():
                try:
                    table = Table.from_json(read_json(path))
                except (ValueError, KeyError, TypeError):
                    table = None
            if table is None:
                if self.done:
                    raise UserError(
                        f"{path} is missing or damaged: the latencies were measured on the uncut model",
                        key=f"{_KEY}.target.latency_ms", remedy="give back the file",
                    )  # fmt: skip
                table = self.pruner.measure(module.model, self._say)
                write_json(path, table.to_json())
        found = trainer.strategy.broadcast(table)
        assert found is not None
        return found
