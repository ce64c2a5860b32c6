"""All that is found in a data set before anything is trained on it."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from effvit_train.config import Config
from effvit_train.data.folder import list_images
from effvit_train.data.info import DataInfo
from effvit_train.data.prepare import Prepared, prepare
from effvit_train.data.splits import BAD, SPLITS, TEST, TRAIN, VAL
from effvit_train.stock import looks as look
from effvit_train.stock.balance import USED, Balance, Column, balance, column, shared_groups
from effvit_train.stock.findings import findings
from effvit_train.stock.resolution import LEVELS, Resolution, provable, resolution
from effvit_train.stock.twins import Twins, find_twins

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

EXAMPLES = 20  # pairs and files that are named
MOST_GROUPS = 50  # a column with more values gets no table
_LIKE_ALL = 0.2  # share of images with a near one from which it is doubtful that these are the same pictures


@dataclass(frozen=True)
class Sizes:
    """Sizes of the images as they are stored.

    Attributes:
        width, height: least, median and most, in pixels.
        aspect: least, median and most of width over height.
        modes: Pillow's mode -> images.
        input_shape: (C, H, W) of what the model sees.
        enlarged: images whose shorter side is less than that.
        shorter_side: median.
    """

    width: tuple[int, float, int]
    height: tuple[int, float, int]
    aspect: tuple[float, float, float]
    modes: dict[str, int]
    input_shape: tuple[int, int, int]
    enlarged: int
    shorter_side: float


@dataclass(frozen=True)
class Pixels:
    """What pixels are like.

    Attributes:
        mean, std: per channel, of training pixels in 0..1.
        given_mean, given_std: with what the model's input is normalised.
        constant: images without content, and the names of the first.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    given_mean: tuple[float, ...]
    given_std: tuple[float, ...]
    constant: int
    constant_examples: list[str]


@dataclass(frozen=True)
class Pair:
    """Two images that are the same picture.

    Attributes:
        kind: exact or near.
        one, other: names.
        splits, classes: of both.
        correlation, ratio: of near ones, see `twins`.
    """

    kind: str
    one: str
    other: str
    splits: tuple[str, str]
    classes: tuple[str, str]
    correlation: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Duplicates:
    """Images that are there twice.

    Attributes:
        exact: images whose content, byte for byte, an image before them has.
        near: near pairs; None where they were not looked for.
        near_missing: why not.
        doubtful: whether so many are near that it may be the way these images look.
        in_training: split -> images that are in training too, exactly.
        near_in_training: split -> the same, exactly or nearly; None where near ones were not looked for.
        conflicting: exact and near pairs whose classes differ.
        examples: pairs between splits and pairs with different classes first.
    """

    exact: int
    near: int | None
    near_missing: str
    doubtful: bool
    in_training: dict[str, int]
    near_in_training: dict[str, int] | None
    conflicting: dict[str, int]
    examples: list[Pair]


@dataclass(frozen=True)
class Unreadable:
    """Files that cannot be used: how many, and why, of the first."""

    images: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True)
class Stock:
    """What was found.

    Attributes:
        info: facts of the prepared set.
        balance: split -> its classes.
        sizes, pixels, unreadable, duplicates: see there.
        columns: of the table of labels.
        divided_groups: groups of `dataset.split_group` that lie in several splits; None without it.
        test_images: of the test split.
        resolution: what they show at some accuracies.
        provable: see `resolution.provable`.
        wanted: images that a class, or a cell of class and group, should have (`audit.min_cell`).
        findings: what deserves attention, worst first.
    """

    info: DataInfo
    balance: dict[str, Balance]
    sizes: Sizes
    pixels: Pixels
    unreadable: Unreadable
    duplicates: Duplicates
    columns: list[Column]
    divided_groups: int | None
    test_images: int
    resolution: list[Resolution]
    provable: float
    wanted: int
    findings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Surveyed:
    """A stock, and what pictures of its pairs are made from.

    Attributes:
        stock: what was found.
        prepared: the set.
        looks: of its used images.
        twins: among them.
        name: of a sample.
    """

    stock: Stock
    prepared: Prepared
    looks: look.Looks
    twins: Twins
    name: Callable[[int], str]


def survey(config: Config, say: Callable[[str], None]) -> Surveyed:
    """Take stock of `config.dataset`.

    Args:
        config: validated.
        say: prints one line.

    Raises:
        UserError: the set cannot be used as configured.
    """
    settings = copy.deepcopy(config.dataset)
    settings.on_bad_image = "skip"  # they are what is looked for
    prepared = prepare(settings, cache_dir=Path(config.cache_dir), say=say)
    info, split = prepared.info, prepared.split
    ids = np.flatnonzero((split >= 0) & (split < len(USED)))
    root, paths, unreadable = None, [], Unreadable(0, [])
    if settings.name == "image_folder":
        listing = list_images(settings)
        root, paths = listing.root, listing.paths
        looks = look.of_files(root, paths, ids, max_pixels=settings.max_pixels)
        bad = np.flatnonzero(split == BAD).tolist()
        reasons = [
            (paths[k], look.reason(root, paths[k], max_pixels=settings.max_pixels)) for k in bad[:EXAMPLES]
        ]
        unreadable = Unreadable(len(bad), reasons)
    else:
        channels, _, size = info.input_shape
        looks = look.of_arrays(prepared.source, ids, size, mode="L" if channels == 1 else "RGB")

    def name(sample: int) -> str:
        return paths[sample] if paths else f"image {sample}"

    coarse = int(np.median(looks.sizes.min(axis=1))) < look.SIDE
    twins = find_twins(looks, near=not coarse)
    seen_by_model = info.public() if config.privacy.on else info
    constant = [name(int(k)) for k in ids[twins.flat]]
    groups = {
        label: column(
            label, values, prepared.labels, split, info.classes, wanted=config.audit.min_cell,
            most_groups=MOST_GROUPS,
        )
        for label, values in prepared.columns.items()
    }  # fmt: skip
    test_images = info.counts["test"]
    stock = Stock(
        info=info,
        balance={
            part: balance(info.class_counts[part], info.classes, wanted=config.audit.min_cell)
            for part in USED
        },
        sizes=_sizes(looks, info),
        pixels=Pixels(
            info.mean, info.std, seen_by_model.mean, seen_by_model.std, len(constant), constant[:EXAMPLES]
        ),
        unreadable=unreadable,
        duplicates=_duplicates(looks, twins, prepared, name, coarse=coarse),
        columns=list(groups.values()),
        divided_groups=None
        if settings.split_group is None
        else shared_groups(prepared.columns, settings.split_group, split),
        test_images=test_images,
        resolution=[resolution(test_images, level) for level in LEVELS],
        provable=provable(test_images),
        wanted=config.audit.min_cell,
    )
    stock.findings.extend(findings(stock, settings.split_group))
    return Surveyed(stock, prepared, looks, twins, name)


def _sizes(looks: look.Looks, info: DataInfo) -> Sizes:
    width, height = looks.sizes[:, 0], looks.sizes[:, 1]
    aspect = width / height
    return Sizes(
        width=(int(width.min()), float(np.median(width)), int(width.max())),
        height=(int(height.min()), float(np.median(height)), int(height.max())),
        aspect=(float(aspect.min()), float(np.median(aspect)), float(aspect.max())),
        modes=dict(Counter(looks.modes).most_common()),
        input_shape=info.input_shape,
        enlarged=int((looks.sizes.min(axis=1) < info.input_shape[-1]).sum()),
        shorter_side=float(np.median(looks.sizes.min(axis=1))),
    )


def _duplicates(
    looks: look.Looks, twins: Twins, prepared: Prepared, name: Callable[[int], str], *, coarse: bool
) -> Duplicates:
    split, labels = prepared.split[looks.ids], prepared.labels[looks.ids]
    rows = np.arange(len(looks.ids))
    again = np.flatnonzero(twins.first != rows)
    exact = np.stack([twins.first[again], again], axis=1)
    training = split == TRAIN
    alone = Twins(twins.first, twins.pairs[:0], twins.correlation[:0], twins.ratio[:0], twins.flat)
    exactly, nearly = alone.seen_in(training), twins.seen_in(training)
    examples: list[tuple[str, int, int, int | None]]
    examples = [("exact", one, other, None) for one, other in exact.tolist()]
    examples += [("near", one, other, k) for k, (one, other) in enumerate(twins.pairs.tolist())]

    def interest(example: tuple[str, int, int, int | None]) -> int:
        _, one, other, _ = example
        return -2 * int(split[one] != split[other]) - int(labels[one] != labels[other])

    examples.sort(key=interest)
    touched = np.unique(twins.pairs)
    return Duplicates(
        exact=len(again),
        near=None if coarse else len(twins.pairs),
        near_missing=f"images of less than {look.SIDE} pixels look alike without being the same"
        if coarse
        else "",
        doubtful=len(touched) > _LIKE_ALL * len(rows),
        in_training=_of_parts(exactly, split),
        near_in_training=None if coarse else _of_parts(nearly, split),
        conflicting={
            "exact": int((labels[exact[:, 0]] != labels[exact[:, 1]]).sum()),
            "near": int((labels[twins.pairs[:, 0]] != labels[twins.pairs[:, 1]]).sum()),
        },
        examples=[
            Pair(
                kind,
                name(int(looks.ids[one])),
                name(int(looks.ids[other])),
                (SPLITS[split[one]], SPLITS[split[other]]),
                (prepared.info.classes[labels[one]], prepared.info.classes[labels[other]]),
                None if place is None else round(float(twins.correlation[place]), 4),
                None if place is None else round(float(twins.ratio[place]), 4),
            )
            for kind, one, other, place in examples[:EXAMPLES]
        ],
    )


def _of_parts(seen: Flags, split: Ints) -> dict[str, int]:
    return {SPLITS[part]: int((seen & (split == part)).sum()) for part in (VAL, TEST)}
