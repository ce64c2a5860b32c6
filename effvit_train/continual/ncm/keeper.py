"""Freezes the model, counts each task's images in, and writes the classifier."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from typing_extensions import override

from effvit_train.continual.ncm import KEY, NearestMeanConfig
from effvit_train.continual.ncm.layers import features, write
from effvit_train.continual.ncm.statistics import Statistics, linear_discriminant, nearest_mean
from effvit_train.errors import UserError
from effvit_train.parts import Keeper


class NearestMean(pl.Callback, Keeper):
    """Class means of the features of shipped weights that are trained no more.

    A task after the first is counted in when it begins: there is nothing to wait for.

    Args:
        settings: `continual.ncm`.
    """

    def __init__(self, settings: NearestMeanConfig) -> None:
        self._settings = settings
        self.statistics = Statistics(products=settings.classifier == "lda")
        self.counted = 0  # tasks

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Without a task that trains, or after it, nothing moves."""
        if self._settings.adapt == "none" or self.counted:
            _freeze(pl_module)

    @override
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count in the task that has just begun."""
        module: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if module.frozen:
            self.after_task(module, data, data.stream.task_at(trainer.current_epoch))

    @override
    def after_task(self, module: Any, data: Any, task: int) -> None:
        """Count in the images of a task, all of them, without augmentation, and write the classifier."""
        if task < self.counted:
            return
        _freeze(module)
        loader = data.loader_of(data.stream.tasks[task].train)
        for found, labels in features(
            module.shipped, module.normalise, loader, device=module.device, precision=str(module.trainer.precision)
        ):  # fmt: skip
            self.statistics.add(found, labels, len(module.record.classes))
        self.counted = task + 1
        try:
            weight, bias = self._classifier()
        except ValueError as error:
            raise UserError(
                str(error), key=f"{KEY}.classifier", value=self._settings.classifier,
                remedy=f"{KEY}.classifier=mean",
            ) from None  # fmt: skip
        for model in {id(one): one for one in (module.model, module.shipped)}.values():
            write(model, weight, bias)

    @override
    def kept(self) -> dict[str, Any]:
        """The sums, and how many tasks are in them."""
        return {"counted": self.counted, **self.statistics.to_dict()}

    @override
    def restore(self, module: Any, kept: dict[str, Any]) -> None:
        """Take over what `kept` told."""
        self.counted = int(kept["counted"])
        self.statistics.take(kept)

    @override
    def memory(self) -> int:
        """Bytes of the sums."""
        return self.statistics.memory()

    def _classifier(self) -> Any:
        if self._settings.classifier == "lda":
            return linear_discriminant(self.statistics, self._settings.shrinkage)
        return nearest_mean(self.statistics)


def _freeze(module: Any) -> None:
    """Train nothing any more; what was trained becomes what ships."""
    if module.frozen:
        return
    module.frozen = True
    if module.shipped is not module.model:
        module.model.load_state_dict(module.shipped.state_dict())
