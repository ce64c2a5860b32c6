"""A trained model and all that an audit may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from effvit_train.config import Config
from effvit_train.data.datamodule import DataModule
from effvit_train.models.record import ArchitectureRecord
from effvit_train.precision import autocast
from effvit_train.predictions import predict

Ids = npt.NDArray[np.int64]


@dataclass
class Subject:
    """A trained model and its public data: the test and the validation images.

    Attributes:
        model: what ships, in evaluation mode, on `device`.
        record: its architecture.
        normalise: uint8 images (B, C, H, W) to what it sees.
        data: of its training.
        config: of its training, with the audit's settings.
        device: where it is.
        logits: (N, K) of the test images.
        labels: (N,).
        ids: (N,) ascending.
        precision: Lightning's name of the one that it was trained and tested in: predictions are made in it,
            attacks and explanations, which need exact gradients, in 32 bits.
        say: prints one line.
    """

    model: nn.Module
    record: ArchitectureRecord
    normalise: Callable[[Tensor], Tensor]
    data: DataModule
    config: Config
    device: torch.device
    logits: Tensor
    labels: Tensor
    ids: Tensor
    precision: str = "32-true"
    say: Callable[[str], None] = field(default=print, repr=False)

    @cached_property
    def validation(self) -> tuple[Tensor, Tensor] | None:
        """Logits (M, K) and labels (M,) of the validation images; None where there are none."""
        if not len(self.data.indices("val")):
            return None
        return self.outputs(self.data.eval_dataloader("val"))[:2]

    def outputs(self, loader: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K), labels and sample ids (n,) of a loader's images, on the CPU."""
        return predict(self.model, self.normalise, loader, self.device, self.precision)

    def images(self, ids: Ids) -> tuple[Tensor, Tensor]:
        """uint8 images (n, C, H, W) and labels (n,) of these samples, on `device`."""
        batches = list(self.data.loader_of(ids))
        images, labels = (
            torch.cat([getattr(batch, name) for batch in batches]) for name in ("images", "labels")
        )
        return images.to(self.device), labels.to(self.device)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, K), fp32, of uint8 images (B, C, H, W)."""
        with autocast(self.precision, self.device):
            return self.model(self.normalise(images.to(self.device))).float()
