"""How many images the classes have, and the groups, and the cells where both meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effvit_train.data.splits import SPLITS

Ints = npt.NDArray[np.int64]
USED = SPLITS[:3]  # what a model is trained, chosen and tested on


@dataclass(frozen=True)
class Balance:
    """The classes of one split.

    Attributes:
        images: of the split.
        least, median, most: images of a class.
        ratio: most over least; None where a class has none.
        few: names and images of the classes with fewer than are wanted, scarcest first.
        largest: name of the largest class.
        largest_share: its share of the images: how often a model is right that always says it.
    """

    images: int
    least: int
    median: float
    most: int
    ratio: float | None
    few: list[tuple[str, int]]
    largest: str
    largest_share: float


@dataclass(frozen=True)
class Column:
    """One group column of the table.

    Attributes:
        name: of the column.
        values: how many different ones the used splits have.
        without: images of the used splits that have no value.
        shared: values that training images have in common with test images, and with validation images.
        table: split -> group -> images per class; None where there are too many groups to tell.
        small_cells: split -> (cells with fewer images than are wanted though not none, empty cells, all cells).
        association: Cramér's V of group and class among training images: 0 = none, 1 = one tells the other;
            None where it is not defined.
    """

    name: str
    values: int
    without: int
    shared: dict[str, int]
    table: dict[str, dict[str, list[int]]] | None
    small_cells: dict[str, tuple[int, int, int]]
    association: float | None


def balance(counts: Sequence[int], classes: Sequence[str], *, wanted: int) -> Balance:
    """The balance of classes.

    Args:
        counts: (K) images of each class; not all 0.
        classes: (K) names.
        wanted: images that a class should have.
    """
    numbers = np.asarray(counts, dtype=np.int64)
    order = np.argsort(numbers, kind="stable").tolist()
    least, most = int(numbers.min()), int(numbers.max())
    top = int(numbers.argmax())
    return Balance(
        images=int(numbers.sum()),
        least=least,
        median=float(np.median(numbers)),
        most=most,
        ratio=most / least if least else None,
        few=[(classes[k], int(numbers[k])) for k in order if numbers[k] < wanted],
        largest=classes[top],
        largest_share=most / int(numbers.sum()),
    )


def column(
    name: str, values: Sequence[str], labels: Ints, split: Ints, classes: Sequence[str], *, wanted: int,
    most_groups: int,
) -> Column:  # fmt: skip
    """What a column tells of the splits and classes.

    Args:
        name: of the column.
        values: (n) of each sample; empty = none.
        labels: (n,) classes of the samples.
        split: (n,) numbers of `SPLITS`; others are left out.
        classes: names.
        wanted: images that a cell of group and class should have.
        most_groups: columns with more values get no table.
    """
    column_values = np.asarray(values)
    used = (split >= 0) & (split < len(USED))
    has = used & (column_values != "")
    kinds, group = np.unique(column_values[has], return_inverse=True)
    parts = {part: split[has] == number for number, part in enumerate(USED)}
    members = {part: set(group[inside].tolist()) for part, inside in parts.items()}
    tables: dict[str, npt.NDArray[np.int64]] = {}
    for part, inside in parts.items():
        cells = np.zeros((len(kinds), len(classes)), dtype=np.int64)
        np.add.at(cells, (group[inside], labels[has][inside]), 1)
        tables[part] = cells
    tell = 0 < len(kinds) <= most_groups
    return Column(
        name=name,
        values=len(kinds),
        without=int((used & (column_values == "")).sum()),
        shared={part: len(members["train"] & members[part]) for part in USED[1:]},
        table={
            part: {str(kind): row.tolist() for kind, row in zip(kinds, cells, strict=True)}
            for part, cells in tables.items()
        }
        if tell
        else None,
        small_cells={
            part: (int(((cells > 0) & (cells < wanted)).sum()), int((cells == 0).sum()), cells.size)
            for part, cells in tables.items()
        }
        if tell
        else {},
        association=cramers_v(tables["train"]) if tell else None,
    )


def cramers_v(table: npt.NDArray[np.int64]) -> float | None:
    """Cramér's V of a table of counts (Cramér 1946, section 21.9): sqrt(chi^2 / (n (min(rows, columns) - 1))).

    None where fewer than two rows or columns hold anything.
    """
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0]
    if min(table.shape) < 2:
        return None
    total = table.sum()
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / total
    chi2 = ((table - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi2 / (total * (min(table.shape) - 1))))


def shared_groups(columns: Mapping[str, Sequence[str]], name: str, split: Ints) -> int:
    """How many groups of a column are divided between used splits."""
    values = np.asarray(columns[name])
    parts = [set(values[(split == number) & (values != "")].tolist()) for number in range(len(USED))]
    return len((parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2]))
