"""Images of none of a model's classes: another data set, in the model's size and channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from effvit_train.axes.subject import Subject
from effvit_train.data.config import DatasetConfig
from effvit_train.data.datamodule import DataModule
from effvit_train.keys import stream_key

MOST = 2000


def foreign_images(subject: Subject) -> tuple[Tensor | None, str]:
    """uint8 images (n, C, H, W) of `audit.ood`, at most `MOST`, and which these are; or None and why not.

    Raises:
        UserError: there is no such data set, or it cannot be read.
    """
    settings, own = subject.config.audit, subject.config.dataset
    name = settings.ood
    if name is None:
        return None, "no other data set was named (audit.ood=digits)"
    if name == "auto":  # there wherever scikit-learn is
        name = "synthetic" if own.name == "digits" else "digits"
    if name == own.name and name != "image_folder":
        return None, f"audit.ood={name} is the data set that the model was trained on"
    channels, height, width = subject.record.input_shape
    if height != width:
        return None, "the model takes images that are not square, which data sets are not made in"
    data = DataModule(
        DatasetConfig(name=name, root=settings.ood_root, image_size=height, channels=channels, in_memory="false"),
        batch_size=1, seed=0, eval_batch_size=256, cache_dir=Path(subject.config.cache_dir), say=subject.say,
    )  # fmt: skip
    ids = data.indices("test")
    if len(ids) > MOST:
        generator = np.random.default_rng(stream_key("foreign", subject.config.seed))
        ids = np.sort(generator.choice(ids, MOST, replace=False))
    images = torch.cat([batch.images for batch in data.loader_of(ids)])
    return images, f"{len(images):,} test images of {data.info.name}"
