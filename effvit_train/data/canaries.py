"""Canaries: images with a wrong label, each trained on or not by a coin, that tell how much a model remembers.

They are public: taken from the validation images, whose number they lower. What a finished model says of them
shows nothing of any training image that the model itself does not show (contract C7), so that it may be told.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from effvit_train.data import draws
from effvit_train.data.planting import Canaries, plant
from effvit_train.data.prepare import Prepared, resplit
from effvit_train.data.splits import BAD, TRAIN, VAL
from effvit_train.errors import UserError
from effvit_train.keys import stream_key

_KEY = "audit.canaries"


def with_canaries(prepared: Prepared, count: int, seed: int) -> tuple[Prepared, Canaries]:
    """The set with so many canaries: those that the coins chose are training images, the others in no split.

    Steinke et al. 2023, section 6: mislabelled images, drawn at random.

    Args:
        prepared: the set.
        count: of canaries.
        seed: of the choice, the labels and the coins.

    Raises:
        UserError: there are too few validation images or classes.
    """
    candidates = np.flatnonzero(prepared.split == VAL)
    classes = len(prepared.info.classes)
    if count > len(candidates) // 2:
        raise UserError(
            f"are taken from the {len(candidates)} validation images, of which half must stay", key=_KEY, value=count,
            remedy=f"at most {_KEY}={len(candidates) // 2}, or a larger dataset.val_fraction",
        )  # fmt: skip
    if classes < 2:
        raise UserError(
            "have a wrong label: there is one class only", key=_KEY, value=count, remedy=f"{_KEY}=0"
        )
    canaries = plant(candidates, count, stream_key("canaries", seed))
    labels, split = prepared.labels.copy(), prepared.split.copy()
    wrong = draws.integers(stream_key("canary labels", seed), canaries.ids, classes - 1)
    labels[canaries.ids] = (labels[canaries.ids] + 1 + wrong) % classes
    split[canaries.ids] = np.where(canaries.included, TRAIN, BAD)
    planted = resplit(prepared, labels, split, f"canaries {count} {seed}")
    info = dataclasses.replace(planted.info, split=planted.info.split | {"canaries": count})
    return dataclasses.replace(planted, info=info), canaries
