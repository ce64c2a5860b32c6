"""The test set's predictions: collected over all ranks, kept beside the card."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from typing_extensions import override

from effvit_train.files import atomic_path
from effvit_train.models.record import ArchitectureRecord
from effvit_train.precision import autocast


class Predictions(pl.Callback):
    """Gathers logits (N, K), labels (N,) and sample ids (N,) of the test images, by sample id."""

    def __init__(self) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self.logits = torch.empty(0, 0)
        self.labels = self.index = torch.empty(0, dtype=torch.long)

    @override
    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Keep the batch."""
        self._parts.append((outputs["logits"].cpu(), outputs["labels"].cpu(), outputs["index"].cpu()))

    @override
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the batches of all ranks."""
        parts = self._parts
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for rank in gathered for part in rank]
        logits, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
        order = index.argsort()
        self.logits, self.labels, self.index = logits[order].float(), labels[order], index[order]

    def write(self, path: Path) -> None:
        """Write `predictions.npz` atomically."""
        arrays: dict[str, Any] = {
            "logits": self.logits.numpy(),
            "labels": self.labels.numpy(),
            "index": self.index.numpy(),
        }
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **arrays)


@torch.no_grad()
def predict(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    device: torch.device | str = "cpu",
    precision: str = "32-true",
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (N, K), labels and sample ids (N,) of a loader's images, in evaluation mode, as float32.

    Args:
        model: on `device`; its mode is given back.
        normalise: uint8 images to what the model sees.
        loader: of batches of images.
        device: where the model is.
        precision: Lightning's name; mixed ones run under autocast.
    """
    training = model.training
    model.eval()
    parts = []
    for batch in loader:
        with autocast(precision, torch.device(device)):
            logits = model(normalise(batch.images.to(device)))
        parts.append((logits.float().cpu(), batch.labels, batch.index))
    model.train(training)
    logits, labels, index = (torch.cat(column) for column in zip(*parts, strict=True))
    return logits, labels, index


def normaliser(record: ArchitectureRecord) -> Callable[[Tensor], Tensor]:
    """What makes uint8 images (B, C, H, W) into what a model of this record sees, on the CPU."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) * 255 for values in (record.mean, record.std))
    return lambda images: (images.float() - mean) / std
