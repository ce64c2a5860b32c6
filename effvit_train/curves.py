"""The curves: a row of `metrics.csv` per epoch, and points in the W&B run."""

from __future__ import annotations

import csv
import io
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from effvit_train.files import write_text

_RECENT = 10.0  # seconds: W&B writes its log every 2, later on a busy disk


class Curves(pl.Callback):
    """Writes one row per epoch: the mean of each loss term, and the validation's loss and accuracy.

    The file holds no wall-clock columns. It is rewritten whole and atomically. Rows and the sums of the
    epoch under way travel in the checkpoint: after a resume the file is what the checkpoint knows.

    Args:
        path: `metrics.csv`.
        classes: number of classes.
        log: receives (values, step), for W&B.
        every: optimizer steps between two points within an epoch; None = no points there.
        say: prints one line.
    """

    def __init__(
        self,
        path: Path,
        classes: int,
        log: Callable[[Mapping[str, float], int], None],
        every: int | None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.path, self.every, self._say = path, every, say
        # not `self.log`: Lightning puts the module's own `log` there
        self._publish = log
        self._accuracy = MulticlassAccuracy(num_classes=classes, average="micro")
        self._loss = MeanMetric()
        self._rows: list[dict[str, str]] = []
        self._sums: dict[str, Tensor] = {}
        self._steps = 0
        self._validated = self._failing = False
        self._recent: deque[tuple[float, int, dict[str, float]]] = deque()

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the file to where the checkpoint stands."""
        self._accuracy, self._loss = self._accuracy.to(pl_module.device), self._loss.to(pl_module.device)
        self._sums = {name: value.to(pl_module.device) for name, value in self._sums.items()}
        if trainer.is_global_zero:
            if self._rows:
                self._write()
            for _, step, point in self._recent:
                self._publish(point, step)

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Rows, the sums of every process, and the last points, which a kill may have kept from W&B's log."""
        sums = torch.zeros(trainer.world_size, len(self._sums), device=pl_module.device)
        if self._sums:
            sums[trainer.global_rank] = torch.stack(list(self._sums.values()))
        sums = trainer.strategy.reduce(sums, reduce_op="sum").cpu()
        checkpoint["curves"] = {
            "rows": self._rows, "terms": list(self._sums), "sums": sums, "steps": self._steps,
            "recent": [[step, point] for _, step, point in self._recent],
        }  # fmt: skip

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the rows and this process's sums (their mean where the number of processes changed)."""
        found = checkpoint["curves"]
        self._rows, self._steps = [dict(row) for row in found["rows"]], int(found["steps"])
        self._recent = deque((time.monotonic(), int(step), dict(point)) for step, point in found["recent"])
        sums = found["sums"]
        mine = sums[trainer.global_rank] if len(sums) == trainer.world_size else sums.mean(dim=0)
        self._sums = dict(zip(found["terms"], mine.clone(), strict=True))

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's means."""
        self._sums, self._steps, self._validated = {}, 0, False

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the step's terms (no synchronisation of a GPU except where a point is logged)."""
        values = {f"train/{name}": value for name, value in outputs["terms"].items()}
        if values:  # a private training tells none
            values = {"train/loss": outputs["loss"].detach(), **values}
        self._sums = {
            name: self._sums[name] + value if name in self._sums else value for name, value in values.items()
        }
        self._steps += 1
        if self.every is not None and trainer.global_step % self.every == 0 and trainer.is_global_zero:
            point = {name: float(value) for name, value in values.items()}
            self._point({**point, "lr": _learning_rate(trainer)}, trainer.global_step)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the validation's means."""
        self._accuracy.reset()
        self._loss.reset()
        self._validated = True

    @override
    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Add the batch."""
        logits, labels = outputs["logits"], outputs["labels"]
        known = labels < len(pl_module.record.classes)  # type: ignore[union-attr,arg-type]
        if not known.all():  # of a stream, whose classes have not all come yet
            logits, labels = logits[known], labels[known]
        if not len(labels):
            return
        self._accuracy.update(logits, labels)
        self._loss.update(F.cross_entropy(logits, labels), weight=len(labels))

    @override
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Publish `val/accuracy` and `val/loss` (means over all ranks)."""
        pl_module.log("val/accuracy", self._accuracy.compute())
        pl_module.log("val/loss", self._loss.compute())

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        names = list(self._sums)
        values: dict[str, float] = {}
        if names:
            means = torch.stack([self._sums[name] for name in names]) / max(1, self._steps)
            means = trainer.strategy.reduce(means, reduce_op="mean")
            values = dict(zip(names, means.tolist(), strict=True))
        values |= getattr(pl_module, "figures", {})
        values |= {
            name: float(trainer.callback_metrics[name])
            for name in ("val/loss", "val/accuracy")
            if self._validated and name in trainer.callback_metrics
        }
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        row = {"epoch": str(epoch), "step": str(trainer.global_step), "lr": f"{_learning_rate(trainer):.6g}"}
        row |= {name: f"{value:.6g}" for name, value in values.items()}
        self._rows.append(row)
        self._write()
        self._point({**values, "epoch": epoch}, trainer.global_step)

    def _point(self, values: dict[str, float], step: int) -> None:
        now = time.monotonic()
        self._recent.append((now, step, values))
        while now - self._recent[0][0] > _RECENT:
            self._recent.popleft()
        self._publish(values, step)

    def _write(self) -> None:
        try:
            write_rows(self.path, self._rows)
            self._failing = False
        except OSError as error:  # the rows are kept, and written with the next one
            if not self._failing:
                self._say(f"{self.path.name} not written ({error.strerror}); training goes on")
            self._failing = True


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    """Write a `metrics.csv` atomically; its columns are all that occur, in order of appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _learning_rate(trainer: pl.Trainer) -> float:
    return float(trainer.optimizers[0].param_groups[-1]["lr"])
