"""Streams: a data set that arrives task by task (van de Ven & Tolias 2019, three scenarios).

A stream is a list of tasks, each with ids of training, validation and test samples, and a selection that says
which samples a batch holds. All of it is a function of (seed, order, position), so that a resumed run goes on in
the middle of a task as if nothing had been.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from effvit_train.audit.robustness.scale import SMALLEST
from effvit_train.data import draws
from effvit_train.data.config import CLEAN, DatasetConfig
from effvit_train.data.corrupted import CorruptedSource, kinds_of_tasks, portions, severity_of
from effvit_train.data.prepare import Prepared, resplit
from effvit_train.data.sampler import rank_and_world
from effvit_train.data.splits import SPLITS, TRAIN
from effvit_train.errors import UserError, did_you_mean
from effvit_train.keys import stream_key

Ints = npt.NDArray[np.int64]
CLASS, DOMAIN, DATA = "class", "domain", "data"
CORRUPTION = "corruption"  # a stream of domains that are made


@dataclass(frozen=True)
class Task:
    """One part of a stream.

    Attributes:
        name: such as `classes 0, 1` or `exposure=2`.
        train, val, test: sample ids, ascending.
        classes: labels that occur in it, ascending.
    """

    name: str
    train: Ints
    val: Ints
    test: Ints
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Stream:
    """The tasks in their order.

    Attributes:
        kind: class, domain (corruptions too) or data.
        tasks: in the order in which they come.
        epochs: that each is trained for.
        first: the number of the task that is trained first; the model knows those before it already.
    """

    kind: str
    tasks: tuple[Task, ...]
    epochs: int
    first: int = 0

    def task_at(self, epoch: int) -> int:
        """The task of an epoch; after the last one the last."""
        return min(self.first + epoch // self.epochs, len(self.tasks) - 1)

    def seen(self, task: int) -> int:
        """Classes that have come by the end of a task."""
        return 1 + max(max(t.classes) for t in self.tasks[: task + 1])


class Rehearsal(Protocol):
    """Which earlier samples are shown again."""

    @property
    def share(self) -> float:
        """Of a batch that is shown again, in [0, 1)."""
        ...

    def ids(self, task: int, position: int, count: int) -> Ints:
        """`count` ids (or none, where nothing is kept) for batch number `position` of a task; 0 has none."""
        ...

    def memory(self, task: int) -> int:
        """Bytes that are kept after a task, to be shown in later ones."""
        ...


class StreamSelection:
    """The batches of a stream: new samples, pass after pass, and some that are shown again.

    Every task has as many batches: `epochs` times those of a pass over a task of mean size, so that an epoch is
    as long in every task; a smaller task is passed over more often, and one beside which earlier samples are shown
    less often.

    Args:
        stream: the tasks.
        batch_size: samples per batch and process, those that are shown again included.
        seed: of the order.
        rehearsal: what is shown again; None shows new samples only.
        cumulative: all tasks so far are new in each task (joint training, the upper bound).
    """

    def __init__(
        self,
        stream: Stream,
        *,
        batch_size: int,
        seed: int,
        rehearsal: Rehearsal | None = None,
        cumulative: bool = False,
    ) -> None:
        self.stream, self.batch_size, self.seed = stream, batch_size, seed
        self.rehearsal, self.cumulative = rehearsal, cumulative

    def __len__(self) -> int:
        _, world = rank_and_world()
        trained = self.stream.tasks[self.stream.first :]
        mean = sum(len(task.train) for task in trained) / len(trained)
        return max(1, int(mean) // (self.batch_size * world))

    def new(self, task: int) -> Ints:
        """Ids that are new in a task."""
        if not self.cumulative:
            return self.stream.tasks[task].train
        return np.sort(np.concatenate([part.train for part in self.stream.tasks[: task + 1]]))

    def batch(self, epoch: int, number: int) -> Ints:
        """Sample ids (n,) that this rank has in a batch: the new ones first."""
        rank, world = rank_and_world()
        task = self.stream.task_at(epoch)
        position = (epoch - (task - self.stream.first) * self.stream.epochs) * len(self) + number
        total = self.batch_size * world
        again = np.zeros(0, dtype=np.int64)
        if self.rehearsal is not None and task:
            again = self.rehearsal.ids(task, position, int(total * self.rehearsal.share))
        count = total - len(again)
        fresh = draws.passes(
            self.new(task), position * count, (position + 1) * count,
            lambda number: stream_key("stream order", self.seed, task, number),
        )  # fmt: skip
        return np.concatenate([fresh, again])[rank::world]


def make_stream(
    prepared: Prepared, config: DatasetConfig, *, epochs: int | None, dealt: Prepared | None = None
) -> tuple[Prepared, Stream]:
    """Part a set into tasks.

    In a class-incremental stream the classes are numbered in the order in which they come.

    Args:
        prepared: the set.
        config: `dataset`, with a `stream`.
        epochs: of the whole training; None = one for each task.
        dealt: the set before an audit left samples out, by which corruptions are dealt out: an image looks the same
            whether it is trained on or not. None = `prepared`.

    Raises:
        UserError: the set cannot be parted in this way, or the epochs not among the tasks.
    """
    if config.stream == CLASS:
        prepared, tasks = _by_class(prepared, config)
    elif config.stream == DOMAIN:
        tasks = _by_group(prepared, config)
    elif config.stream == CORRUPTION:
        prepared, tasks = _by_corruption(prepared, config, prepared if dealt is None else dealt)
    else:
        tasks = _by_chance(prepared, config)
    epochs = epochs or len(tasks)
    if epochs % len(tasks):
        raise UserError(
            f"cannot be shared equally by {len(tasks)} tasks", key="trainer.max_epochs", value=epochs,
            remedy=f"e.g. trainer.max_epochs={len(tasks) * max(1, round(epochs / len(tasks)))}",
        )  # fmt: skip
    assert config.stream is not None
    kind = DOMAIN if config.stream == CORRUPTION else config.stream
    return prepared, Stream(kind, tuple(tasks), epochs // len(tasks))


def _by_class(prepared: Prepared, config: DatasetConfig) -> tuple[Prepared, list[Task]]:
    names, count = prepared.info.classes, config.tasks or 5
    if count > len(names):
        raise UserError(
            f"are more than the {len(names)} classes", key="dataset.tasks", value=count,
            remedy=f"at most dataset.tasks={len(names)}",
        )  # fmt: skip
    order = _order(len(names), config)
    number = np.empty(len(names), dtype=np.int64)
    number[order] = np.arange(len(names))
    info = replace(
        prepared.info,
        classes=tuple(names[k] for k in order),
        class_counts={
            split: [found[k] for k in order] for split, found in prepared.info.class_counts.items()
        },
    )
    prepared = replace(prepared, info=info, labels=number[prepared.labels])
    tasks = []
    for labels in np.array_split(np.arange(len(names)), count):
        members = np.isin(prepared.labels, labels)
        title = f"classes {', '.join(info.classes[k] for k in labels)}"
        tasks.append(_task(prepared, title, members))
    return prepared, tasks


def _by_group(prepared: Prepared, config: DatasetConfig) -> list[Task]:
    column = config.stream_group
    if column is None or column not in prepared.columns:
        there = f"columns: {', '.join(prepared.columns)}" if prepared.columns else "the data set has none"
        raise UserError(
            "is not a column of the data set's table" if column else "names the column that parts the domains",
            key="dataset.stream_group", value=column,
            remedy=(did_you_mean(column, prepared.columns) if column else "") or there,
        )  # fmt: skip
    values = np.array(prepared.columns[column])
    found = sorted(set(values[prepared.split < SPLITS.index("unused")].tolist()), key=_by_value)
    found = [found[k] for k in _order(len(found), config)]
    count = config.tasks or len(found)
    if not 2 <= count <= len(found):
        raise UserError(
            f"must be 2 to {len(found)}, the values of {column}", key="dataset.tasks", value=count,
            remedy=f"e.g. dataset.tasks={min(5, len(found))}",
        )  # fmt: skip
    tasks = []
    for part in _even(found, values[prepared.split == TRAIN], count):
        shown = ", ".join(part) if len(part) <= 3 else f"{part[0]} … {part[-1]} ({len(part)})"
        tasks.append(_task(prepared, f"{column}={shown}", np.isin(values, part)))
    return tasks


def _by_value(name: str) -> tuple[float, str]:
    """Numbers in their order, then words in theirs."""
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    return (math.inf if math.isnan(value) else value), name


def _even(names: Sequence[str], values: npt.NDArray[np.str_], count: int) -> list[list[str]]:
    """Part names, in their order, into `count` runs with about as many samples each, none of them empty."""
    sizes = [int((values == name).sum()) for name in names]
    parts: list[list[str]] = [[]]
    held, total = 0, sum(sizes)
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        left = len(names) - number
        full = held + size / 2 > total * len(parts) / count
        if parts[-1] and len(parts) < count and (full or left <= count - len(parts)):
            parts.append([])
        parts[-1].append(name)
        held += size
    return parts


def _by_corruption(prepared: Prepared, config: DatasetConfig, dealt: Prepared) -> tuple[Prepared, list[Task]]:
    """Portions of every split, each under a corruption of its own: the same one in training and in each test."""
    kinds, severity = kinds_of_tasks(config), severity_of(config)
    sides = prepared.info.input_shape[1:]
    if min(sides) < SMALLEST:
        raise UserError(
            f"needs images of {SMALLEST} px a side, and these have {min(sides)}", key="dataset.stream",
            value=CORRUPTION, remedy=f"dataset.image_size={SMALLEST} or more",
        )  # fmt: skip
    portion = portions(dealt, len(kinds), config.split_seed)
    source = CorruptedSource(
        prepared.source, portion, kinds, severity=severity, seed=config.split_seed, keep=prepared.in_memory
    )
    # other images, so another data set: its accuracies are not those of the clean one
    what = f"corruption {' '.join(kinds)} {severity} {config.split_seed}"
    shown = resplit(replace(prepared, source=source), prepared.labels, prepared.split, what)
    tasks = []
    for number in _order(len(kinds), config):
        strength = "" if kinds[number] == CLEAN else f", severity {severity}"
        tasks.append(_task(shown, f"corruption={kinds[number]}{strength}", portion == number))
    return shown, tasks


def _by_chance(prepared: Prepared, config: DatasetConfig) -> list[Task]:
    """Portions of the training split; all are tested on the same images."""
    count = config.tasks or 5
    train = np.flatnonzero(prepared.split == SPLITS.index("train"))
    if count > len(train):
        raise UserError(
            f"are more than the {len(train)} training images", key="dataset.tasks", value=count,
            remedy=f"at most dataset.tasks={len(train)}",
        )  # fmt: skip
    order = draws.permutation(stream_key("portions", config.stream_order or 0), train)
    tasks = []
    for number, part in enumerate(np.array_split(order, count)):
        members = prepared.split != SPLITS.index("train")
        members[part] = True
        tasks.append(_task(prepared, f"portion {number + 1}", members))
    return tasks


def members_of_splits(prepared: Prepared, members: npt.NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Sample ids, ascending, of those members (n,) that are in the training, the validation and the test split."""
    train, val, test = (
        np.flatnonzero(members & (prepared.split == SPLITS.index(part))) for part in ("train", "val", "test")
    )
    return train, val, test


def _task(prepared: Prepared, name: str, members: npt.NDArray[np.bool_]) -> Task:
    ids = members_of_splits(prepared, members)
    for part, found in zip(("train", "test"), (ids[0], ids[2]), strict=True):
        if not len(found):
            raise UserError(
                f"the task {name} has no {part} images", key="dataset.stream",
                remedy="fewer dataset.tasks, or another split (dataset.split_group, dataset.split_seed)",
            )  # fmt: skip
    classes = tuple(int(k) for k in np.unique(prepared.labels[ids[0]]))
    return Task(name, ids[0], ids[1], ids[2], classes)


def _order(count: int, config: DatasetConfig) -> list[int]:
    """The set's own order, or one by seed."""
    if config.stream_order is None:
        return list(range(count))
    order = draws.permutation(stream_key("stream", config.stream_order), np.arange(count, dtype=np.int64))
    return [int(k) for k in order]
