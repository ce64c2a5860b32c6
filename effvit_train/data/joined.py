"""A data set that comes after another: what an update of a model is trained and tested on.

The images of both lie side by side, the earlier ones first. Classes are those of the model, then those that
it does not know yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from effvit_train.data.info import DataInfo
from effvit_train.data.prepare import GROUP_VALUES, Prepared, resplit
from effvit_train.data.source import Source
from effvit_train.data.splits import BAD, TRAIN
from effvit_train.data.stream import CLASS, DOMAIN, Stream, Task, members_of_splits
from effvit_train.errors import UserError

Ints = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Earlier:
    """A model that is to be updated, and the data that it was trained on.

    Attributes:
        name: of these data.
        classes: that it knows, in the order of its outputs.
        input_shape: (C, H, W).
        mean, std: per channel, of what it sees.
        fingerprint: of its data, as its card tells it.
        data: its data; None where they are not at hand.
        train: whether its training images may be looked at again.
        why_not: why they may not, or why there are no data; empty where all may be.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    data: Prepared | None = None
    train: bool = False
    why_not: str = ""


@dataclass(frozen=True)
class Joined:
    """Both sets as one.

    Attributes:
        prepared: the images of both.
        stream: two tasks, the first of which is known; None where all is trained at once.
        earlier: images of the earlier set: the ids below it.
        shown: facts of the sets whose training images are trained on.
        new: facts of the later set.
    """

    prepared: Prepared
    stream: Stream | None
    earlier: int
    shown: tuple[DataInfo, ...]
    new: DataInfo


class _SideBySide:
    """Images of two sources; those of the second one are numbered on."""

    def __init__(self, first: Source, count: int, second: Source) -> None:
        self._first, self._count, self._second = first, count, second

    def read(self, ids: Ints, size: int) -> Pixels:
        """Images (B, C, size, size)."""
        later = ids >= self._count
        if later.all():
            return self._second.read(ids - self._count, size)
        if not later.any():
            return self._first.read(ids, size)
        first = self._first.read(ids[~later], size)
        images = np.empty((len(ids), *first.shape[1:]), np.uint8)
        images[~later], images[later] = first, self._second.read(ids[later] - self._count, size)
        return images


def join(earlier: Earlier, new: Prepared, *, epochs: int, private: bool) -> Joined:
    """Put a set behind the one that a model was trained on.

    Args:
        earlier: the model and its data.
        new: what it is to learn.
        epochs: of the training.
        private: train on the new images all at once, as differentially private training does.

    Raises:
        UserError: the images are not what the model takes, or it would have to grow in a private training.
    """
    _check_shape(earlier, new.info)
    classes = _united(earlier.classes, new.info.classes)
    added = classes[len(earlier.classes) :]
    if private and added:
        raise UserError(
            f"has classes that the model does not know ({_some(added)}), and a private training cannot add them",
            key="dataset", value=new.info.name, remedy="privacy=none, or train anew with privacy=dp_sgd",
        )  # fmt: skip
    old = earlier.data
    prepared = _side_by_side(earlier, old, new, classes)
    of_old = 0 if old is None else len(old.labels)
    if private:  # what is accounted for are the new images, under their own name
        info = replace(prepared.info, name=new.info.name, fingerprint=new.info.fingerprint)
        prepared = replace(prepared, info=info)
    tasks = tuple(
        _task(prepared, name, start, end, known)
        for name, start, end, known in (
            (f"before: {earlier.name}", 0, of_old, range(len(earlier.classes))),
            (f"new: {new.info.name}", of_old, len(prepared.labels), None),
        )
    )
    shown = (old.info,) if old is not None and earlier.train and not private else ()
    return Joined(
        prepared, None if private else Stream(CLASS if added else DOMAIN, tasks, epochs, first=1),
        of_old, (*shown, new.info), new.info,
    )  # fmt: skip


def _side_by_side(
    earlier: Earlier, old: Prepared | None, new: Prepared, classes: tuple[str, ...]
) -> Prepared:
    labels, split = _renumbered(new, classes), new.split
    source, columns, in_memory, name = new.source, new.columns, new.in_memory, new.info.name
    if old is not None:
        kept = old.split if earlier.train else np.where(old.split == TRAIN, BAD, old.split)
        labels = np.concatenate([_renumbered(old, classes), labels])
        split = np.concatenate([kept, split])
        source = _SideBySide(old.source, len(old.labels), new.source)
        columns = _columns(old, new)
        in_memory = old.in_memory and new.in_memory
        name = f"{earlier.name} + {new.info.name}"
    values = {column: sorted(set(found) - {""}) for column, found in columns.items()}
    info = replace(
        new.info,
        name=name,
        classes=classes,
        mean=earlier.mean,
        std=earlier.std,
        groups={column: found for column, found in values.items() if len(found) <= GROUP_VALUES},
    )
    joined = replace(
        new, info=info, source=source, labels=labels, split=split, in_memory=in_memory, columns=columns
    )
    return resplit(joined, labels, split, f"after {earlier.fingerprint} {'|'.join(classes)}")


def _columns(old: Prepared, new: Prepared) -> dict[str, list[str]]:
    """The columns of both; "" where a set has none of that name."""
    empty = [[""] * len(part.labels) for part in (old, new)]
    return {
        name: [*old.columns.get(name, empty[0]), *new.columns.get(name, empty[1])]
        for name in {**old.columns, **new.columns}
    }


def _renumbered(prepared: Prepared, classes: Sequence[str]) -> Ints:
    number = np.array([classes.index(name) for name in prepared.info.classes], dtype=np.int64)
    return number[prepared.labels]


def _united(known: tuple[str, ...], others: Sequence[str]) -> tuple[str, ...]:
    return (*known, *(name for name in others if name not in known))


def _task(prepared: Prepared, name: str, start: int, end: int, known: Sequence[int] | None) -> Task:
    here = np.zeros(len(prepared.labels), dtype=np.bool_)
    here[start:end] = True
    train, val, test = members_of_splits(prepared, here)
    found = known if known is not None else np.unique(prepared.labels[train]).tolist()
    return Task(name, train, val, test, tuple(int(k) for k in found))


def _check_shape(earlier: Earlier, new: DataInfo) -> None:
    if new.input_shape != earlier.input_shape:
        wanted, found = ("x".join(map(str, shape)) for shape in (earlier.input_shape, new.input_shape))
        raise UserError(
            f"the model takes images of {wanted}, these are {found}", key="dataset", value=new.name,
            remedy=f"dataset.image_size={earlier.input_shape[1]} dataset.channels={earlier.input_shape[0]}",
        )  # fmt: skip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
