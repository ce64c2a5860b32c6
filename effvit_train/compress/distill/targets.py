"""What the teachers say of a step: asked live, or found in the cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from typing_extensions import override

from effvit_train.compress.distill.losses import ensemble
from effvit_train.compress.distill.store import Store
from effvit_train.errors import UserError
from effvit_train.frozen import Teacher
from effvit_train.parts import Step

Ints = npt.NDArray[np.int64]


class LiveTargets:
    """Runs the teachers on the step's images, once for all terms.

    Args:
        teachers: at least one.
    """

    def __init__(self, teachers: Sequence[Teacher]) -> None:
        self.teachers = list(teachers)

    def log_probs(self, step: Step) -> Tensor:
        """The mean distribution of the teachers, as log-probabilities (B, K)."""
        return self._see(step)[0]

    def outputs(self, step: Step, teacher: int) -> dict[str, Tensor]:
        """What the tapped submodules of a teacher gave."""
        return self._see(step)[1][teacher]

    def _see(self, step: Step) -> tuple[Tensor, list[dict[str, Tensor]]]:
        if "teachers" not in step.memo:
            seen = [teacher(step.images) for teacher in self.teachers]
            step.memo["teachers"] = ensemble([log_probs for log_probs, _ in seen]), [taps for _, taps in seen]
        return step.memo["teachers"]


class CachedTargets:
    """Finds what the teachers said; asks them, and keeps it, where nothing is found.

    What is learnt from is always the stored record, also on the pass that wrote it: the training does not
    depend on how much of the cache was there.

    Args:
        store: the records.
        load: brings the teachers into memory; called at the first miss, or never.
    """

    def __init__(self, store: Store, load: Callable[[], Sequence[Teacher]]) -> None:
        self.store = store
        self._teachers = functools.cache(load)

    def log_probs(self, step: Step) -> Tensor:
        """The stored log-probabilities (B, K)."""
        if "cached" not in step.memo:
            ids = step.index.numpy()
            found, there = self.store.read(ids, step.variant)
            if not there.all():
                rows = torch.from_numpy(np.flatnonzero(~there))
                # the whole batch: the record does not depend on which of it was there
                said = self._ask(step.images)
                found[~there] = self.store.write(said[rows.numpy()], ids[~there], step.variant)
            step.memo["cached"] = torch.from_numpy(found).to(step.images.device, non_blocking=True)
        return step.memo["cached"]

    def missing(self, ids: Ints, variant: int) -> npt.NDArray[np.bool_]:
        """Which of the samples have no record of this view."""
        return self.store.missing(ids, variant)

    def fill(self, images: Tensor, ids: Ints, variant: int) -> None:
        """Keep what the teachers say of normalised images (B, C, H, W)."""
        self.store.write(self._ask(images), ids, variant)

    def finish(self) -> None:
        """See that all that was written lasts."""
        self.store.sync()

    def _ask(self, images: Tensor) -> npt.NDArray[np.float32]:
        said = ensemble([teacher(images)[0] for teacher in self._teachers()])
        return said.cpu().numpy()


class SameTeacher(pl.Callback):
    """Keeps in the checkpoint which teachers taught; a resumed run learns from the same or not at all.

    Args:
        digest: of the teachers.
        store: the cache, which must be on the disk before a checkpoint that relies on it.
        say: prints one line.
    """

    def __init__(self, digest: str, store: Store | None, say: Callable[[str], None]) -> None:
        self._digest, self._store, self._say = digest, store, say

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the digest."""
        checkpoint["teacher"] = self._digest
        if self._store is not None:
            self._store.sync()

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse another teacher."""
        if checkpoint.get("teacher", self._digest) != self._digest:
            raise UserError(
                "is not the teacher that this run has learnt from",
                key="compress.distill.teacher",
                remedy="give back its files, or start a new run",
            )

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell what was damaged."""
        if self._store is not None and self._store.damaged:
            self._say(f"teacher cache: {self._store.damaged:,} damaged records were computed again")
