"""When a run is saved, and where in the training it stands: `last.ckpt`, the one before, and the best.

All randomness is keyed by (seed, epoch, step, sample), so that the weights, the optimizer, the
callbacks' state and the position (epochs and batches done) repeat the rest of the run: no
generator's state is stored.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from typing_extensions import override

from effvit_train import checkpoint_file
from effvit_train.checkpoint_file import Found
from effvit_train.files import atomic_path
from effvit_train.interval import Interval
from effvit_train.runs import RunDir
from effvit_train.signals import TOLD, Stop

_BYTES_PER_SECOND = 5e8  # a guess at the cost of the first save; the later ones are measured
# Saving may take this share of the time since the last save, when no interval is given.
_SHARE = 0.01
_RETRY = 60.0  # seconds after a save that failed: a full disk does not empty itself between two steps


class CheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, in our file format (see `checkpoint_file`).

    A file that cannot be written is an event, not an error: the other processes wait for this one.

    Args:
        run_dir: the run.
        found: the checkpoint that is to be loaded, read already.

    Attributes:
        error: why the last save failed, or None.
        last_is_good: whether `last` is the file that was loaded, or was written since.
    """

    def __init__(self, run_dir: RunDir, found: Found | None = None) -> None:
        self._run_dir, self._found = run_dir, found
        self.error: OSError | None = None
        self.last_is_good = found is None or found.path == run_dir.last

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint, or note in `error` why it could not be written."""
        self.error = None
        # a damaged file must not take the place of the good one that is being gone on from
        keep = self._run_dir.previous if self.last_is_good else None
        try:
            checkpoint_file.write(checkpoint, Path(path), keep)
            self.last_is_good = True
        except OSError as error:
            self.error = error

    @override
    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The checkpoint on the CPU, checked."""
        found, self._found = self._found, None
        return found.content if found is not None else checkpoint_file.read(Path(path))


class Checkpoints(pl.Callback):
    """Saves between batches and after an epoch's row of curves is written; stops the run when asked to.

    `last` is saved as soon as so many seconds have passed, or after so many epochs; where neither is
    asked for, as soon as the previous save would have cost at most 1 % of the time since then. It is
    saved too at the end, before the run is stopped, and whenever validation accuracy rises above its
    earlier values: then `best` is the same file. Between the last batch of an epoch and the end of its
    validation only a stop saves.

    Args:
        run_dir: the run.
        io: writes the files.
        stop: says when a signal arrived.
        say: prints one line.
        batch_size: images per step and process.
        every: between two saves of `last`.
        found: the checkpoint to go on from.
        saved: called after each save with the number of finished epochs.
    """

    def __init__(
        self,
        run_dir: RunDir,
        io: CheckpointIO,
        stop: Stop,
        *,
        say: Callable[[str], None],
        batch_size: int,
        every: Interval,
        found: Found | None = None,
        saved: Callable[[int], None] = lambda epochs: None,
    ) -> None:
        self.run_dir, self.every, self.batch_size = run_dir, every, batch_size
        self.best_accuracy, self._is_best = -1.0, False
        self._io, self._stop, self._say, self._saved = io, stop, say, saved
        self._position = dict(found.content["position"]) if found is not None else None
        self._good_step: int | None = self._position["step"] if self._position else None
        self._due_at = self._blocked_until = 0.0
        self._common_batches = 0

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Translate the position to this number of processes and this batch size of theirs."""
        position = checkpoint["position"]
        now = self.batch_size * trainer.world_size
        if position["batches"] and position["images_per_step"] != now:
            position["batches"] = position["batches"] * position["images_per_step"] // now
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
            progress |= dict.fromkeys(progress, position["batches"])
        self._position = position

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the first epoch where the checkpoint left it; from here on a signal leaves a note."""
        if self._position and self._position["batches"]:
            sampler = trainer.train_dataloader.sampler  # type: ignore[union-attr]
            sampler.set_start(self._position["epochs"], self._position["batches"])
        if self._is_best and self._io.last_is_good and trainer.is_global_zero:
            self._copy_to_best()  # a kill may have come before it
        self._due_at = self._next(time.monotonic(), _state_bytes(pl_module) / _BYTES_PER_SECOND)
        self._stop.listen()  # Lightning has just put handlers of its own there
        self._stop.defer(True)

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals back from Lightning here too."""
        self._stop.listen()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what is due; after the epoch's last batch only when the run is to stop."""
        last = batch_idx + 1 == trainer.num_training_batches
        due = not last and trainer.is_global_zero and time.monotonic() >= self._due_at
        if _any(trainer, due or self._stop.requested is not None):
            stop = _any(trainer, self._stop.requested is not None)
            if stop or not last:
                self._save(trainer, batches=batch_idx + 1)
            if stop:
                self._end(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on how many batches every process has: beyond them none can wait for the others."""
        batches = torch.tensor(float(sum(trainer.num_val_batches)), device=pl_module.device)
        self._common_batches = int(trainer.strategy.reduce(batches, reduce_op="min"))

    @override
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Give up the validation when the run is to stop; it is run again from its start."""
        if batch_idx < self._common_batches and _any(trainer, self._stop.requested is not None):
            self._save(trainer, batches=int(trainer.num_training_batches))
            self._end(trainer)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is due; every rank takes part, as Lightning's strategies need."""
        accuracy = trainer.callback_metrics.get("val/accuracy")
        before = self.best_accuracy
        improved = accuracy is not None and float(accuracy) > before
        # a model that is still to be cut is not the one that ships
        improved = improved and not getattr(pl_module, "unsettled", None)
        if improved:
            assert accuracy is not None
            self.best_accuracy = float(accuracy)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        wanted = improved or (self.every.epochs and (trainer.current_epoch + 1) % self.every.epochs == 0)
        due = trainer.is_global_zero and time.monotonic() >= (self._blocked_until if wanted else self._due_at)
        save = _any(trainer, last or due or self._stop.requested is not None)
        if not (save and self._save(trainer, batches=0, improved=improved)):
            self.best_accuracy = before  # `best` is still that one
        if _any(trainer, self._stop.requested is not None):
            self._end(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on there is nothing to save: a signal ends the work at once."""
        self._stop.defer(False)

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """The same after an error."""
        self._stop.defer(False)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The best validation accuracy so far, and whether this is its checkpoint."""
        return {"best_accuracy": self.best_accuracy, "is_best": self._is_best}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` holds."""
        self.best_accuracy = float(state_dict["best_accuracy"])
        self._is_best = bool(state_dict["is_best"])

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the position into the checkpoint, and make Lightning's own agree with it."""
        assert self._position is not None
        checkpoint["position"] = dict(self._position)
        if self._position["batches"]:
            ended = self._position["batches"] == trainer.num_training_batches
            _between_batches(checkpoint["loops"]["fit_loop"], ended)

    def _save(self, trainer: pl.Trainer, *, batches: int, improved: bool = False) -> bool:
        """Save; returns whether all was written, as far as this process knows."""
        start = time.monotonic()
        self._is_best = improved
        epochs = trainer.current_epoch + (0 if batches else 1)
        self._position = {
            "epochs": epochs,
            "batches": batches,
            "step": trainer.global_step,
            "images_per_step": self.batch_size * trainer.world_size,
        }
        trainer.save_checkpoint(self.run_dir.last)
        if not trainer.is_global_zero:
            return True
        error = self._io.error
        if error is None:
            self._good_step = trainer.global_step
            if improved:
                error = self._copy_to_best()
            self._saved(epochs)
        end = time.monotonic()
        self._due_at = self._next(start, end - start)
        if error is not None:
            self._due_at = self._blocked_until = end + _RETRY
            kept = "there is none yet" if self._good_step is None else f"step {self._good_step:,}'s is kept"
            then = "" if self._stop.requested is not None else "; training goes on"
            self._say(
                f"checkpoint of step {trainer.global_step:,} not written ({error.strerror}): {kept}{then}"
            )
        return error is None

    def _next(self, start: float, cost: float) -> float:
        """When the next save is due, after one that began at `start` and took `cost` seconds."""
        if self.every.epochs is not None:
            return math.inf
        return start + (self.every.seconds or cost + cost / _SHARE)

    def _copy_to_best(self) -> OSError | None:
        try:
            with atomic_path(self.run_dir.best) as temporary:
                temporary.unlink()
                try:
                    os.link(self.run_dir.last, temporary)
                except OSError:  # a file system without hard links
                    shutil.copyfile(self.run_dir.last, temporary)
        except OSError as error:
            return error
        return None

    def _end(self, trainer: pl.Trainer) -> None:
        trainer.strategy.barrier()
        self._stop.defer(False)
        self._stop.requested = self._stop.requested or TOLD
        self._stop.check()


def _any(trainer: pl.Trainer, flag: bool) -> bool:
    """Whether the flag is set on any process."""
    return flag if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(flag, all=False)


def _state_bytes(module: pl.LightningModule) -> int:
    """About the size of a checkpoint: the weights, and two moments for each that is trained."""
    return sum(tensor.numel() * (12 if tensor.requires_grad else 4) for tensor in module.parameters())


def _between_batches(loops: dict[str, Any], epoch_ended: bool) -> None:
    """Make Lightning's progress say that a batch is done: its hook comes before its own count.

    After the last batch it must also say that the validation is still to be run, as if it had been
    left in its middle.
    """
    for progress in (loops["epoch_loop.batch_progress"][scope] for scope in ("total", "current")):
        progress["completed"] = progress["processed"]
    if epoch_ended:
        validation = loops["epoch_loop.val_loop.batch_progress"]
        validation["current"] |= dict.fromkeys(validation["current"], 0)
        validation["total"] |= {"ready": 1, "started": 1, "processed": 0, "completed": 0}
