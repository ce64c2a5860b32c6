"""The data of shadow models: the attacked model's, with halves of its training and of its test images exchanged.

Attacked are as many training as test images. Each of them is trained on by a random half of the shadow models,
so that what a model says of an image it knows, and of one that it does not, can be told apart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws
from effvit_train.data.planting import balanced_membership
from effvit_train.data.prepare import Prepared, resplit
from effvit_train.data.splits import BAD, TEST, TRAIN
from effvit_train.keys import stream_key

Ints = npt.NDArray[np.int64]

MOST = 5000  # images of either kind: more would hardly narrow the intervals


def attacked(prepared: Prepared, seed: int) -> tuple[Ints, Ints]:
    """Sample ids of training images, and of as many test images, each ascending."""
    train, test = (np.flatnonzero(prepared.split == part) for part in (TRAIN, TEST))
    count = min(MOST, len(train) // 2, len(test))
    found = []
    for what, ids in (("members", train), ("others", test)):
        found.append(np.sort(draws.permutation(stream_key(what, seed), ids)[:count]))
    return found[0], found[1]


def membership(prepared: Prepared, models: int, seed: int) -> npt.NDArray[np.bool_]:
    """(S, 2n): which shadow model is trained on which of the attacked images, members first."""
    return balanced_membership(
        models, np.concatenate(attacked(prepared, seed)), stream_key("shadow", seed, models)
    )


def as_shadow(prepared: Prepared, number: int, models: int, seed: int) -> Prepared:
    """The data of shadow model `number` of `models`."""
    ids = np.concatenate(attacked(prepared, seed))
    inside = membership(prepared, models, seed)[number]
    split = prepared.split.copy()
    split[ids] = np.where(inside, TRAIN, np.where(split[ids] == TEST, TEST, BAD))
    return resplit(prepared, prepared.labels, split, f"shadow {number} {models} {seed}")
