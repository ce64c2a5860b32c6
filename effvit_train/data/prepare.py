"""From a configuration to a set that is ready to be read: samples, splits, pixels, facts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws, known
from effvit_train.data.config import DatasetConfig
from effvit_train.data.decode import Decoder, is_grey
from effvit_train.data.facts import fingerprint, mean_and_std
from effvit_train.data.folder import Listing, check_not_empty, group_numbers, list_images
from effvit_train.data.info import DataInfo
from effvit_train.data.source import ArraySource, FileSource, MemorySource, Source, decode_all, each
from effvit_train.data.splits import BAD, POOL, SPLITS, TRAIN, Splitter
from effvit_train.data.synthetic import SyntheticSource
from effvit_train.data.verify import settle_bad, verify
from effvit_train.errors import UserError, one_of
from effvit_train.keys import stream_key

Ints = npt.NDArray[np.int64]
Say = Callable[[str], None]

NAMES = ("digits", "fashion_mnist", "cifar10", "image_folder", "synthetic")
FOLDER_SIZE = 224
STATISTICS_SAMPLE = 2000  # images of a streamed set from which mean and std are taken
GROUP_VALUES = 50  # a column with more values is not a group to report on
_CROP_MARGIN = 8 / 7  # stored size over image size under a resized crop, as 256 is to 224
_BLOCK = 1024  # images read at once for statistics and fingerprints
_SAID_FROM = 5000  # files whose decoding deserves a line


@dataclass(frozen=True)
class Prepared:
    """A set that is ready to be read.

    Attributes:
        info: its facts.
        source: its pixels.
        labels: (n,).
        split: (n,) number of the split in `SPLITS`, or BAD.
        train_size: height = width at which training images are stored, before a resized crop.
        in_memory: whether reading costs next to nothing.
        columns: group column -> value per sample.
    """

    info: DataInfo
    source: Source
    labels: Ints
    split: Ints
    train_size: int
    in_memory: bool
    columns: dict[str, list[str]] = field(default_factory=dict)


def prepare(config: DatasetConfig, *, cache_dir: Path, say: Say) -> Prepared:
    """Find, check, split and, where it fits, decode the set.

    Raises:
        UserError: the set cannot be used as configured.
    """
    one_of("dataset.name", config.name, NAMES)
    if config.name == "image_folder":
        return _from_files(config, cache_dir, say)
    if config.split_group is not None:
        raise UserError(
            f"{config.name} has no groups",
            key="dataset.split_group", value=config.split_group, remedy="dataset.split_group=null",
        )  # fmt: skip
    if config.name == "synthetic":
        return _synthetic(config, say)
    return _from_arrays(config, say)


def _from_arrays(config: DatasetConfig, say: Say) -> Prepared:
    if config.name == "digits":
        arrays = known.digits()
    else:
        arrays = known.fashion_mnist(config) if config.name == "fashion_mnist" else known.cifar10(config)
    _check_num_classes(config, arrays.classes)
    size = config.image_size or arrays.images.shape[-1]
    channels = config.channels or arrays.images.shape[1]
    split = Splitter(arrays.labels, arrays.classes, None, config, say).assign(arrays.given)
    origin = ArraySource(arrays.images, Decoder(channels, config.crop_mode, config.max_pixels))
    sizes = _sizes(config, split, size)
    source: Source = origin
    in_memory = _fits(config, sizes, channels)
    if in_memory and not all(origin.is_stored(one) for one in np.unique(sizes).tolist()):
        source = _held(origin, sizes)
    source_of_split = "stratified" if (arrays.given == POOL).all() else "the set's own test images"
    shape = f"{config.crop_mode if size != arrays.images.shape[-1] else ''} {channels} {size}".encode()
    print_ = fingerprint("pixels", [shape, arrays.images], arrays.labels, split)
    return _prepared(
        config, source, arrays.labels, split, arrays.classes, (channels, size), in_memory,
        print_, source_of_split,
    )  # fmt: skip


def _synthetic(config: DatasetConfig, say: Say) -> Prepared:
    size, channels, classes = config.image_size or 32, config.channels or 3, config.num_classes or 10
    if config.num_samples < 3 * classes:
        raise UserError(
            f"{classes} classes need three images each, to train, validate and test",
            key="dataset.num_samples", value=config.num_samples, remedy=f"dataset.num_samples={10 * classes}",
        )  # fmt: skip
    labels = np.arange(config.num_samples, dtype=np.int64) % classes
    names = tuple(str(k) for k in range(classes))
    split = Splitter(labels, names, None, config, say).assign(np.full(len(labels), POOL))
    origin = SyntheticSource(channels, classes)
    sizes = _sizes(config, split, size)
    in_memory = _fits(config, sizes, channels)
    source: Source = _held(origin, sizes) if in_memory else origin
    rule = f"synthetic {channels} {size} {classes}".encode()
    return _prepared(
        config, source, labels, split, names, (channels, size), in_memory,
        fingerprint("rule", [rule], labels, split), "stratified",
    )  # fmt: skip


def _from_files(config: DatasetConfig, cache_dir: Path, say: Say) -> Prepared:
    listing = list_images(config)
    groups = group_numbers(config, listing)
    split = Splitter(listing.labels, listing.classes, groups, config, say).assign(listing.given)
    size = config.image_size or FOLDER_SIZE
    channels = config.channels or _channels(config, listing)
    files = FileSource(listing.root, listing.paths, Decoder(channels, config.crop_mode, config.max_pixels))
    sizes = _sizes(config, split, size)
    in_memory = _fits(config, sizes, channels)
    source: Source = files
    if in_memory:
        if len(sizes) >= _SAID_FROM:
            say(f"decoding {len(sizes):,} images from {listing.root} ...")
        pools, bad = decode_all(files, sizes, channels, keep=True)
        settle_bad(config, listing, bad, say)
        source = _pools(files, pools, len(sizes))
        content: list = [images for _, (_, images) in sorted(pools.items())]
    else:
        found = verify(
            listing, files, channels=channels, max_pixels=config.max_pixels, cache_dir=cache_dir, say=say
        )
        bad = found.bad
        settle_bad(config, listing, bad, say)
        content = [digest.encode() for digest in found.content]
    split[list(bad)] = BAD
    if bad:
        check_not_empty(config, split, listing)
    kind = "pixels" if in_memory else "files"
    return _prepared(
        config, source, listing.labels, split, listing.classes, (channels, size), in_memory,
        fingerprint(kind, content, listing.labels, split), _source_of_split(listing), listing, len(bad),
    )  # fmt: skip


def _prepared(
    config: DatasetConfig,
    source: Source,
    labels: Ints,
    split: Ints,
    classes: tuple[str, ...],
    shape: tuple[int, int],
    in_memory: bool,
    content: str,
    source_of_split: str,
    listing: Listing | None = None,
    skipped: int = 0,
) -> Prepared:
    channels, size = shape
    train_size = _train_size(config, size)
    train = np.flatnonzero(split == TRAIN)
    sample = train
    if not in_memory:
        order = draws.permutation(stream_key("statistics", config.split_seed), train)
        sample = np.sort(order[:STATISTICS_SAMPLE])
    mean, std = mean_and_std(_blocks(source, sample, train_size, parallel=not in_memory), channels)
    members = {name: labels[split == part] for part, name in enumerate(SPLITS)}
    columns = {} if listing is None else listing.columns
    values = {name: sorted(set(column)) for name, column in columns.items()}
    info = DataInfo(
        name=Path(config.root or "").resolve().name if config.name == "image_folder" else config.name,
        classes=classes,
        input_shape=(channels, size, size),
        mean=mean,
        std=std,
        counts={name: len(found) for name, found in members.items()},
        class_counts={
            name: np.bincount(found, minlength=len(classes)).tolist() for name, found in members.items()
        },
        fingerprint=content,
        split={
            "source": source_of_split, "seed": config.split_seed, "group": config.split_group,
            "train_fraction": config.train_fraction,
        },
        groups={name: found for name, found in values.items() if len(found) <= GROUP_VALUES},
        skipped=skipped,
        ignored=0 if listing is None else listing.ignored,
    )  # fmt: skip
    return Prepared(info, source, labels, split, train_size, in_memory, columns)


def resplit(prepared: Prepared, labels: Ints, split: Ints, what: str) -> Prepared:
    """The same images with other labels and splits; `what` tells its fingerprint from others of the same set."""
    members = {name: labels[split == part] for part, name in enumerate(SPLITS)}
    kind, _, content = prepared.info.fingerprint.partition(":")
    classes = len(prepared.info.classes)
    info = replace(
        prepared.info,
        counts={name: len(found) for name, found in members.items()},
        class_counts={
            name: np.bincount(found, minlength=classes).tolist() for name, found in members.items()
        },
        fingerprint=f"{kind}:{hashlib.sha256(f'{content} {what}'.encode()).hexdigest()}",
    )
    return replace(prepared, info=info, labels=labels, split=split)


def _sizes(config: DatasetConfig, split: Ints, size: int) -> Ints:
    """(n,) height = width at which each sample is stored."""
    return np.where(split == TRAIN, _train_size(config, size), size)


def _train_size(config: DatasetConfig, size: int) -> int:
    return round(size * _CROP_MARGIN) if config.augment.resized_crop < 1 else size


def _fits(config: DatasetConfig, sizes: Ints, channels: int) -> bool:
    choice = config.in_memory.lower()
    if choice != "auto":
        return choice == "true"
    return int((sizes**2).sum()) * channels <= config.memory_limit_mb * 2**20


def _held(origin: Source, sizes: Ints) -> MemorySource:
    """All images of `origin` in memory, each at its size."""
    memory = MemorySource(origin, len(sizes))
    for size in np.unique(sizes).tolist():
        ids = np.flatnonzero(sizes == size)
        memory.hold(ids, np.concatenate(list(_blocks(origin, ids, size, parallel=True))))
    return memory


def _pools(origin: Source, pools: dict[int, tuple[Ints, npt.NDArray[np.uint8]]], total: int) -> MemorySource:
    memory = MemorySource(origin, total)
    for ids, images in pools.values():
        memory.hold(ids, images)
    return memory


def _blocks(
    source: Source, ids: Ints, size: int, *, parallel: bool = False
) -> Iterator[npt.NDArray[np.uint8]]:
    starts = range(0, len(ids), _BLOCK)
    if not parallel:
        for start in starts:
            yield source.read(ids[start : start + _BLOCK], size)
        return
    small = range(0, len(ids), _BLOCK // 16)
    yield from each(lambda start: source.read(ids[start : start + _BLOCK // 16], size), small)


def _channels(config: DatasetConfig, listing: Listing) -> int:
    """1 where no file that can be read holds colour, else 3."""
    paths = [listing.root / path for path in listing.paths]
    chunks = range(0, len(paths), _BLOCK)

    def any_colour(start: int) -> bool:
        return any(is_grey(path, config.max_pixels) is False for path in paths[start : start + _BLOCK])

    # nearly every colour set shows it in its first files; only grey ones are looked through
    return 3 if any_colour(0) or any(each(any_colour, chunks[1:])) else 1


def _check_num_classes(config: DatasetConfig, classes: tuple[str, ...]) -> None:
    if config.num_classes not in (None, len(classes)):
        raise UserError(
            f"{config.name} has {len(classes)} classes",
            key="dataset.num_classes", value=config.num_classes, remedy="leave it null",
        )  # fmt: skip


def _source_of_split(listing: Listing) -> str:
    given = {SPLITS[part] for part in np.unique(listing.given).tolist() if part != POOL}
    return f"{listing.source} ({' and '.join(sorted(given))})" if given else "stratified"
