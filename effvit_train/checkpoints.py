"""Checkpoints at the ends of epochs: `last.ckpt` to resume from, `best.ckpt` to look back at.

All randomness is keyed by (seed, epoch, step), so that an epoch-end checkpoint and the seed repeat
the rest of the run; no generator state is stored.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from typing_extensions import override

from effvit_train.errors import UserError
from effvit_train.files import atomic_path
from effvit_train.runs import RunDir

# Saving may take this share of the time since the last save, when no interval is given.
_SHARE = 0.01


class Checkpoints(pl.Callback):
    """Saves after the epoch's row of curves is written.

    Without `every`, `last` is saved at an epoch's end as soon as the previous save would have cost
    at most 1 % of the time since then, so that small models save every epoch and large ones do not
    wait for the disk. Whenever validation accuracy rises above its earlier values `last` is saved
    too, and `best` is the same file.

    Args:
        run_dir: the run.
        every: seconds between two saves of `last`, or None.
    """

    def __init__(self, run_dir: RunDir, every: float | None = None) -> None:
        self.run_dir, self.every = run_dir, every
        self.best_accuracy = -1.0
        self._cost = 0.0
        self._saved_at = time.monotonic()

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is due; every rank takes part, as Lightning's strategies need."""
        accuracy = trainer.callback_metrics.get("val/accuracy")
        improved = accuracy is not None and float(accuracy) > self.best_accuracy
        if improved:
            assert accuracy is not None
            self.best_accuracy = float(accuracy)
        last = trainer.current_epoch + 1 == trainer.max_epochs
        due = bool(trainer.strategy.broadcast(self._due()))
        if not (improved or last or due):
            return
        start = time.monotonic()
        self._save(trainer, self.run_dir.last)
        if improved:
            self._copy(trainer, self.run_dir.last, self.run_dir.best)
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - start

    @override
    def state_dict(self) -> dict[str, Any]:
        """The best validation accuracy so far."""
        return {"best_accuracy": self.best_accuracy}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best validation accuracy so far."""
        self.best_accuracy = float(state_dict["best_accuracy"])

    def _due(self) -> bool:
        elapsed = time.monotonic() - self._saved_at
        return elapsed >= self.every if self.every is not None else self._cost <= _SHARE * elapsed

    def _save(self, trainer: pl.Trainer, path: Path) -> None:
        if trainer.world_size > 1 and not trainer.is_global_zero:
            trainer.save_checkpoint(path)  # takes part in the collective; rank 0 writes
            return
        with atomic_path(path) as temporary:
            trainer.save_checkpoint(temporary)

    def _copy(self, trainer: pl.Trainer, source: Path, target: Path) -> None:
        if not trainer.is_global_zero:
            return
        with atomic_path(target) as temporary:
            temporary.unlink()
            try:
                os.link(source, temporary)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, temporary)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint without ever unpickling code.

    Raises:
        UserError: there is none, or it is not a checkpoint of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"no checkpoint at {path}", key="resume", remedy="give a run directory that has one"
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read ({reason})",
            key="resume",
            remedy="copy checkpoints/best.ckpt over it, or start anew",
        ) from None
    if not isinstance(checkpoint, dict) or "architecture" not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(
            f"{path} is not a checkpoint of effvit_train", key="resume", remedy="give another run"
        )
    return checkpoint
