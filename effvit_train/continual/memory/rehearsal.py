"""A memory as what a stream shows again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from effvit_train.continual.memory.config import DEFAULT_SIZE, MemoryConfig
from effvit_train.continual.memory.keep import balanced, reservoir
from effvit_train.data import draws
from effvit_train.errors import UserError
from effvit_train.keys import stream_key
from effvit_train.parts import Context

Ints = npt.NDArray[np.int64]
LOGIT_BYTES = 4  # float32


@dataclass(frozen=True)
class Memory:
    """A `Rehearsal` of what a memory holds.

    Attributes:
        held: the sample ids after each task, ascending.
        capacity: images that it can hold.
        selection: of them.
        share: of a batch that is shown again.
        seed: of the order in which they are shown.
        image_bytes: of one image.
    """

    held: tuple[Ints, ...]
    capacity: int
    selection: str
    share: float
    seed: int
    image_bytes: int

    def ids(self, task: int, position: int, count: int) -> Ints:
        """`count` ids for batch number `position`: of passes over the memory, each in an order of its own."""
        return draws.passes(
            self.held[task - 1],
            position * count,
            (position + 1) * count,
            lambda number: stream_key("shown again", self.seed, task, number),
        )

    def memory(self, task: int) -> int:
        """Bytes of the images that are held after a task."""
        return len(self.held[task]) * self.image_bytes

    def facts(self) -> dict[str, Any]:
        """For the card."""
        return {
            "selection": self.selection, "share": self.share, "capacity": self.capacity,
            "images": [len(ids) for ids in self.held],
        }  # fmt: skip


def remember(config: MemoryConfig, context: Context, key: str, *, logits: int = 0) -> Memory:
    """The memory that these settings ask for.

    Args:
        config: its settings.
        context: of the run, whose data come in tasks.
        key: of the settings.
        logits: that are kept with an image at most.

    Raises:
        UserError: the memory cannot hold one image, or no image of a batch would be one of the memory.
    """
    stream, labels_of = context.stream_of_tasks, context.labels_of
    assert stream is not None
    assert labels_of is not None
    image_bytes = math.prod(context.info.input_shape)
    capacity = _capacity(config, image_bytes + LOGIT_BYTES * logits, key)
    batch_size = context.config.recipe.batch_size
    if int(batch_size * config.share) < 1:
        raise UserError(
            f"of a batch of {batch_size} images is less than one",
            key=f"{key}.share", value=config.share, remedy="a larger share, or a larger recipe.batch_size",
        )  # fmt: skip
    arrivals, seed = [task.train for task in stream.tasks], context.config.seed
    if config.selection == "reservoir":
        held = reservoir(arrivals, capacity, seed)
    else:
        held = balanced(arrivals, [labels_of(ids) for ids in arrivals], capacity, seed)
    return Memory(held, capacity, config.selection, config.share, seed, image_bytes)


def _capacity(config: MemoryConfig, each: int, key: str) -> int:
    """Images that the memory can hold, of so many bytes each."""
    if config.megabytes is None:
        return config.size or DEFAULT_SIZE
    capacity = round(config.megabytes * 1e6) // each
    if not capacity:
        raise UserError(
            f"holds no image: one takes {each} bytes",
            key=f"{key}.megabytes", value=config.megabytes, remedy=f"at least {key}.megabytes={each / 1e6:g}",
        )  # fmt: skip
    return capacity
