"""Which sample belongs to which split: stratified, whole groups, a function of `split_seed` alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws
from effvit_train.data.config import DatasetConfig
from effvit_train.errors import UserError
from effvit_train.keys import stream_key

SPLITS = ("train", "val", "test", "unused")
TRAIN, VAL, TEST, UNUSED = range(4)
POOL = -1  # not assigned by the set itself: training images, from which splits may be held out
BAD = -2  # left out

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Splitter:
    """Makes the splits that a set does not bring along.

    Attributes:
        labels: (n,) class of each sample.
        classes: class names.
        groups: (n,) group number of each sample, or None; a group is never divided.
        config: the fractions and `split_seed`.
        say: prints one line.
    """

    labels: Ints
    classes: Sequence[str]
    groups: Ints | None
    config: DatasetConfig
    say: Callable[[str], None] = print

    def assign(self, given: Ints) -> Ints:
        """Complete the set's own split.

        Where it has no test or no validation images, `test_fraction` and `val_fraction` of the pool
        are held out; of what then is training, `1 - train_fraction` goes unused.

        Args:
            given: (n,) VAL, TEST or POOL for each sample.

        Returns:
            (n,) one of TRAIN, VAL, TEST, UNUSED.

        Raises:
            UserError: a split, or a class of the training split, would be empty.
        """
        config = self.config
        split = given.copy()
        wanted = {
            part: fraction
            for part, fraction in ((VAL, config.val_fraction), (TEST, config.test_fraction))
            if not (given == part).any()
        }
        if sum(wanted.values()) >= 1:
            raise UserError(
                f"with test_fraction={config.test_fraction:g} nothing is left to train on",
                key="dataset.val_fraction", value=config.val_fraction, remedy="e.g. 0.1 and 0.2",
            )  # fmt: skip
        for part, fraction in wanted.items():
            if fraction == 0:
                raise UserError(
                    f"leaves the {SPLITS[part]} split empty, and the set brings none along",
                    key=f"dataset.{SPLITS[part]}_fraction", value=0, remedy="e.g. 0.1",
                )  # fmt: skip
        pool = np.flatnonzero(given == POOL)
        split[pool] = TRAIN
        if wanted:
            split[pool] = self._hold_out(pool, wanted)
        if config.train_fraction < 1:
            train = np.flatnonzero(split == TRAIN)
            split[train] = self._use_share(train)
        self._warn_of_divided_groups(split, given)
        return split

    def _hold_out(self, pool: Ints, wanted: dict[int, float]) -> Ints:
        key = stream_key("split", self.config.split_seed)
        names = " and ".join(SPLITS[part] for part in wanted)
        fraction_key = f"dataset.{SPLITS[min(wanted)]}_fraction"
        sizes = np.bincount(self.labels[pool], minlength=len(self.classes))
        if sizes.min() <= len(wanted):
            scarce = int(sizes.argmin())
            raise UserError(
                f"class '{self.classes[scarce]}' has {sizes[scarce]} image(s), too few to train on and hold out for {names}",
                key=fraction_key, value=self.config.val_fraction if VAL in wanted else self.config.test_fraction,
                remedy=f"give every class at least {len(wanted) + 1} images, or leave the class out",
            )  # fmt: skip
        if self.groups is None:
            return _stratified(key, pool, self.labels[pool], wanted, rest=TRAIN)
        split = _grouped(key, self.labels[pool], self.groups[pool], wanted, rest=TRAIN, full=(TRAIN, *wanted))
        self._check_grouped(pool, split, wanted)
        return split

    def _check_grouped(self, pool: Ints, split: Ints, wanted: dict[int, float]) -> None:
        labels = self.labels[pool]
        for part in (TRAIN, *wanted):
            counts = np.bincount(labels[split == part], minlength=len(self.classes))
            empty = [name for name, count in zip(self.classes, counts, strict=True) if not count]
            if not counts.any() or (empty and part == TRAIN):
                what = "the split" if not counts.any() else f"class '{empty[0]}'"
                raise UserError(
                    f"with whole groups {what} stays empty in {SPLITS[part]}",
                    key="dataset.split_group", value=self.config.split_group,
                    remedy="use a column with more groups, or split_group=null",
                )  # fmt: skip
            if empty:
                self.say(f"no image of {', '.join(empty)} in {SPLITS[part]}: its groups are kept whole")

    def _use_share(self, train: Ints) -> Ints:
        key = stream_key("train_fraction", self.config.split_seed)
        unused = {UNUSED: 1 - self.config.train_fraction}
        labels = self.labels[train]
        if self.groups is None:
            return _stratified(key, train, labels, unused, rest=TRAIN, least=0)
        return _grouped(key, labels, self.groups[train], unused, rest=TRAIN, full=(TRAIN,))

    def _warn_of_divided_groups(self, split: Ints, given: Ints) -> None:
        if self.groups is None or not (given != POOL).any():
            return
        parts = [set(self.groups[split == part].tolist()) for part in (TRAIN, VAL, TEST)]
        divided = (parts[0] & parts[1]) | (parts[0] & parts[2]) | (parts[1] & parts[2])
        if divided:
            self.say(f"the set's own split divides {len(divided)} group(s) of {self.config.split_group}")


def counts_by_share(sizes: Ints, fraction: float, *, least: int = 1) -> Ints:
    """How many of each class to take, so that the total is `ceil(fraction * sum(sizes))`.

    Largest remainders (Hamilton); ties go to the earlier class. At least `least` of each class, which
    may lift the total.

    Args:
        sizes: (K,) images per class.
        fraction: share to take.
        least: fewest images of a class to take.
    """
    quota = sizes * fraction
    taken = np.floor(quota + 1e-9).astype(np.int64)
    total = math.ceil(sizes.sum() * fraction - 1e-9)
    order = np.argsort(-(np.round(quota - taken, 9)), kind="stable")
    taken[order[: max(0, total - int(taken.sum()))]] += 1
    return np.minimum(np.maximum(taken, least), sizes)


def _stratified(
    key: int, ids: Ints, labels: Ints, wanted: dict[int, float], *, rest: int, least: int = 1
) -> Ints:
    """(n,) split of samples `ids`: of each class, a random share per wanted split, never all of it."""
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    taken = {part: counts_by_share(sizes, fraction, least=least) for part, fraction in wanted.items()}
    split = np.full(len(ids), rest, dtype=np.int64)
    random = draws.bits(key, ids)
    for label, size in enumerate(sizes):
        members = np.flatnonzero(inverse == label)
        members = members[np.argsort(random[members], kind="stable")]
        start = 0
        left = int(size) - 1  # one image always stays in `rest`
        for waiting, part in enumerate(sorted(wanted)[::-1], start=1 - len(wanted)):
            # test first, so that it does not move with val_fraction; leave `least` to those that wait
            count = min(int(taken[part][label]), max(0, left + waiting * least))
            split[members[start : start + count]] = part
            start, left = start + count, left - count
    return split


def _grouped(
    key: int, labels: Ints, groups: Ints, wanted: dict[int, float], *, rest: int, full: Sequence[int]
) -> Ints:
    """(n,) split that keeps groups whole and comes near the wanted class counts of every split.

    Greedy: groups from large to small (random among equals) go where they reduce the squared distance
    to the wanted counts most, in units of the wanted counts. Then each split of `full` that lacks a
    class gets the smallest group of it, if that leaves the split it came from with another.
    """
    _, group = np.unique(groups, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    table = np.zeros((int(group.max()) + 1, int(label.max()) + 1))  # (groups G, classes K)
    np.add.at(table, (group, label), 1)
    parts = np.array([rest, *wanted])
    shares = np.array([1 - sum(wanted.values()), *wanted.values()])
    target = np.maximum(shares[:, None] * table.sum(axis=0), 1e-9)  # (splits, K)
    placed = np.zeros_like(target)
    random = draws.bits(key, np.arange(len(table), dtype=np.int64))
    home = np.empty(len(table), dtype=np.int64)
    for index in np.lexsort((random, -table.sum(axis=1))):
        counts = table[index]
        growth = (counts * (2 * (placed - target) + counts) / target).sum(axis=1)
        best = int(growth.argmin())
        placed[best] += counts
        home[index] = parts[best]
    small_first = np.lexsort((random, table.sum(axis=1)))
    for part in full:
        for k in range(table.shape[1]):
            holders = [g for g in small_first.tolist() if table[g, k] and home[g] != part]
            if not table[home == part, k].any():
                # the last resort of training: a class that it lacks must come from somewhere
                spare = [
                    g for g in holders if part == rest or table[home == home[g], k].astype(bool).sum() > 1
                ]
                home[spare[:1]] = part
    return home[group]
