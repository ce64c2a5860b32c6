"""What the terminal shows while training: stage, loss, accuracy, images/s, time left."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typing_extensions import override

_REFRESH = 0.25  # seconds: reading the loss synchronises a GPU, so only as often as it is shown
_WINDOW = 40  # refreshes over which the speed is averaged
_LINES = 10  # lines in all where the output is no terminal


class ProgressBar(pl.Callback):
    """One line over the whole training; where the output is no terminal, about ten plain lines."""

    def __init__(self, console: Console, stage: str = "train") -> None:
        self.console, self.stage = console, stage
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._shown = 0.0
        self._images = 0
        self._recent: deque[tuple[float, int]] = deque(maxlen=_WINDOW)
        self._loss: float | None = None
        self._speed = 0.0

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the bar."""
        if not trainer.is_global_zero:
            return
        self._recent.append((time.monotonic(), self._images))
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(bar_width=None),
                TextColumn("{task.fields[figures]}"), TimeElapsedColumn(), TextColumn("<"), TimeRemainingColumn(),
                console=self.console, transient=True, expand=True,
            )  # fmt: skip
            total = trainer.num_training_batches * (trainer.max_epochs or 1)
            self._task = self._progress.add_task(
                self.stage, total=total, figures="", completed=trainer.global_step
            )
            self._progress.start()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images; refresh a few times a second."""
        self._images += len(batch.labels) * trainer.world_size
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._shown < _REFRESH:
            return
        self._shown = now
        self._loss = float(outputs["loss"]) if outputs["terms"] else None  # a private training tells none
        self._recent.append((now, self._images))
        since, images = self._recent[0]
        self._speed = (self._images - images) / max(now - since, 1e-9)
        if self._progress is not None:
            self._progress.update(
                self._task,
                completed=trainer.global_step,
                description=f"{self.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}",
                figures=self._figures(trainer),
            )

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without a terminal, print a line at every tenth of the training."""
        epochs = trainer.max_epochs or 1
        epoch = trainer.current_epoch + 1
        if (
            self._progress is None
            and trainer.is_global_zero
            and epoch * _LINES // epochs > (epoch - 1) * _LINES // epochs
        ):
            self.console.print(f"{self.stage} {epoch}/{epochs}  {self._figures(trainer)}", highlight=False)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    @override
    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar away."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _figures(self, trainer: pl.Trainer) -> str:
        figures = [] if self._loss is None else [f"loss {self._loss:.3f}"]
        accuracy = trainer.callback_metrics.get("val/accuracy")
        if accuracy is not None:
            figures.append(f"val accuracy {float(accuracy):.3f}")
        figures.append(f"{self._speed:,.0f} images/s")
        return "  ".join(figures)
