"""Prepared sets made by hand, for tests of streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from effvit_train.data.config import DatasetConfig
from effvit_train.data.info import DataInfo
from effvit_train.data.prepare import Prepared, resplit
from effvit_train.data.stream import Stream, make_stream
from effvit_train.errors import UserError

TRAIN, VAL, TEST, UNUSED = range(4)


class Constant:
    """Image number k is grey level k everywhere."""

    def read(self, ids, size):
        return np.broadcast_to(ids.astype(np.uint8)[:, None, None, None], (len(ids), 1, size, size)).copy()


def prepared(
    labels: Sequence[int], split: Sequence[int], classes: Sequence[str], size: int = 8, **columns: list[str]
) -> Prepared:
    """A set of grey images."""
    info = DataInfo("made", tuple(classes), (1, size, size), (0.5,), (0.5,), {}, {}, "pixels:0", {})
    empty = np.zeros(0, dtype=np.int64)
    base = Prepared(info, Constant(), empty, empty, size, True, columns)
    return resplit(base, np.array(labels, dtype=np.int64), np.array(split, dtype=np.int64), "made")


def stream_of(made: Prepared, epochs: int | None = None, **keys: Any) -> tuple[Prepared, Stream]:
    """Its stream, with keys of `dataset`."""
    config = DatasetConfig(**keys)
    config.validate()
    return make_stream(made, config, epochs=epochs)


def refusal(call: Callable[[], object]) -> str:
    """The line of a `UserError`."""
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)
