"""The LightningDataModule: batches of uint8 images, whatever the set and wherever it lives."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from typing_extensions import override

from effvit_train.data import draws
from effvit_train.data.augment import Augmenter
from effvit_train.data.canaries import with_canaries
from effvit_train.data.config import DatasetConfig
from effvit_train.data.info import DataInfo
from effvit_train.data.joined import Earlier, Joined, join
from effvit_train.data.planting import Canaries
from effvit_train.data.prepare import Prepared, prepare, resplit
from effvit_train.data.sampler import DrawnSampler, EvalSampler, Selection, TrainSampler, rank_and_world
from effvit_train.data.shadows import as_shadow, attacked, membership
from effvit_train.data.source import cores
from effvit_train.data.splits import BAD, SPLITS
from effvit_train.data.stream import Rehearsal, Stream, StreamSelection, make_stream
from effvit_train.errors import UserError, did_you_mean
from effvit_train.keys import AugmentStream, stream_key
from effvit_train.signals import ignore_in_worker

Ints = npt.NDArray[np.int64]
_EVAL_BATCH = 256
_SMALL_PIXELS = 64 * 64  # images up to here are evaluated in large batches


class Batch(NamedTuple):
    """What a loader yields.

    Attributes:
        images: (B, C, H, W) uint8; normalising is the module's.
        labels: (B,) int64.
        index: (B,) int64, the sample's id in the whole set, the same in every split and order.
    """

    images: Tensor
    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple.index, which nobody calls here


@dataclass(frozen=True)
class Augment:
    """What the loader does to training images beyond `dataset.augment`.

    Attributes:
        randaugment: timm's policy string, or None.
        stream: which view of a sample an epoch shows; None = a new one in every epoch, by the run's seed.
    """

    randaugment: str | None = None
    stream: AugmentStream | None = None


class DataModule(pl.LightningDataModule):
    """A prepared data set and its loaders.

    Args:
        config: `dataset`.
        batch_size: training images per batch and process.
        seed: of sample order and augmentation (not of the splits).
        cache_dir: where the outcome of checking files is remembered.
        augment: beyond `dataset.augment`.
        eval_batch_size: images per batch of evaluation; None chooses by the size of the images.
        canaries: how many are planted (see `data.canaries`).
        shadow: (number, of how many) of a shadow model, if this is the data of one (see `data.shadows`).
        public: use constants for what would be measured on training images (contract C7).
        epochs: of the whole training, which the tasks of a stream share; None = one for each task.
        after: the model that is to be updated, with its data, if this is the data of an update.
        say: prints one line.

    Raises:
        UserError: the set cannot be used as configured.
    """

    def __init__(
        self,
        config: DatasetConfig,
        *,
        batch_size: int,
        seed: int,
        cache_dir: Path,
        augment: Augment = Augment(),
        eval_batch_size: int | None = None,
        canaries: int = 0,
        shadow: tuple[int, int] | None = None,
        public: bool = False,
        epochs: int | None = None,
        after: Earlier | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        super().__init__()
        self._config, self._seed, self._batch_size = config, seed, batch_size
        self._prepared = whole = prepare(config, cache_dir=Path(cache_dir), say=say)
        self.canaries: Canaries | None = None
        if canaries:
            self._prepared, self.canaries = with_canaries(self._prepared, canaries, seed)
        if shadow is not None:
            self._prepared = as_shadow(self._prepared, *shadow, seed)
        self.stream: Stream | None = None
        if config.stream is not None:
            self._prepared, self.stream = make_stream(self._prepared, config, epochs=epochs, dealt=whole)
        self.after = after
        self.joined: Joined | None = None
        if after is not None:
            self.joined = join(after, self._prepared, epochs=epochs or 1, private=public)
            self._prepared, self.stream = self.joined.prepared, self.joined.stream
        self.info = self._prepared.info.public() if public else self._prepared.info
        if after is not None:  # what the model sees stays what it learnt on
            self.info = replace(self.info, mean=after.mean, std=after.std)
        self._selection: tuple[Selection, int] | None = None
        if self.stream is not None:
            self.rehearse()
        self._augmented = augment.randaugment is not None
        self._stream = augment.stream or AugmentStream(seed)
        self._augmenter = Augmenter(
            config.augment,
            size=self.info.input_shape[-1],
            randaugment=augment.randaugment,
            mean=self.info.mean,
        )
        small = self.info.input_shape[1] * self.info.input_shape[2] <= _SMALL_PIXELS
        self._eval_batch_size = eval_batch_size or (max(batch_size, _EVAL_BATCH) if small else batch_size)
        self._check_batch_size()

    def train_dataloader(self) -> DataLoader:
        """Augmented training batches in the order of the epoch; the last partial one is dropped."""
        self._check_batch_size()
        prepared = self._prepared
        dataset = _Samples(prepared, self._stream, self._augmenter)
        workers = self._workers(cheap=prepared.in_memory and not self._augmented)
        total = len(prepared.labels)
        if self._selection is not None:
            selection, views = self._selection
            drawn = DrawnSampler(selection, total=total, views=views)
            return self._loader(dataset, drawn, None, workers, persistent=workers > 0)
        sampler = TrainSampler(
            self.indices("train"), total=total, seed=self._seed, batch_size=self._batch_size
        )
        return self._loader(dataset, sampler, self._batch_size, workers, persistent=workers > 0)

    def draw(self, selection: Selection, *, views: int = 1) -> None:
        """Let training batches be those of the selection, with so many views of each sample side by side."""
        self._selection = selection, views

    def rehearse(self, rehearsal: Rehearsal | None = None, *, cumulative: bool = False) -> None:
        """Let training batches be those of the stream; see `StreamSelection`."""
        assert self.stream is not None
        self.draw(
            StreamSelection(
                self.stream,
                batch_size=self._batch_size,
                seed=self._seed,
                rehearsal=rehearsal,
                cumulative=cumulative,
            )
        )

    @property
    def prepared(self) -> Prepared:
        """The set as it was prepared, for an update that comes after it."""
        return self._prepared

    @property
    def shown(self) -> tuple[DataInfo, ...]:
        """Facts of the sets whose training images are trained on."""
        return (self.info,) if self.joined is None else self.joined.shown

    def part(self, *, old: bool) -> DataModule:
        """Of the data of an update, the earlier set alone, or the new one, with the numbers that they have here."""
        assert self.joined is not None
        ids, count = np.arange(len(self._prepared.labels)), self.joined.earlier
        split = np.where((ids < count) == old, self._prepared.split, BAD)
        other = copy.copy(self)
        other._prepared = resplit(self._prepared, self._prepared.labels, split, "old" if old else "new")
        counts, print_ = other._prepared.info.counts, other._prepared.info.fingerprint
        other.info = replace(self.info, counts=counts, fingerprint=print_)
        return other

    def join_tasks(self) -> None:
        """Let training batches be of all tasks together: for what is done when a stream has ended."""
        self.stream = self._selection = None

    def labels_of(self, ids: Ints) -> Ints:
        """Classes (n,) of samples."""
        return self._prepared.labels[ids]

    def train_batches(self, epoch: int) -> list[Ints]:
        """Sample ids of the batches that one process trains on in this epoch, then of the remainder."""
        if self.stream is not None and self._selection is not None:
            selection, _ = self._selection
            return [selection.batch(epoch, number) for number in range(len(selection))]
        order = draws.permutation(stream_key("order", self._seed, epoch), self.indices("train"))
        return [order[start : start + self._batch_size] for start in range(0, len(order), self._batch_size)]

    def first_train_batches(self, epoch: int, count: int) -> list[Ints]:
        """The first `count` sample ids of an epoch, in batches."""
        chosen: list[Ints] = []
        for ids in self.train_batches(epoch):
            left = count - sum(map(len, chosen))
            if left <= 0:
                break
            chosen.append(ids[:left])
        return chosen

    def augmented_loader(self, batches: list[Ints], epoch: int) -> DataLoader:
        """These samples as the training sees them in this epoch."""
        prepared = self._prepared
        positions = [(ids + epoch * len(prepared.labels)).tolist() for ids in batches]
        return DataLoader(
            _Samples(prepared, self._stream, self._augmenter),
            batch_sampler=positions,
            num_workers=self._workers(cheap=prepared.in_memory and not self._augmented),
            collate_fn=_as_it_is,
            worker_init_fn=ignore_in_worker,
        )

    def val_dataloader(self) -> DataLoader:
        """The validation split, in its own order, as it is."""
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        """The test split, in its own order, as it is."""
        return self.eval_dataloader("test")

    def eval_dataloader(self, split: str) -> DataLoader:
        """Any split (`train` and `unused` too), in its own order, without augmentation."""
        return self._eval_loader(EvalSampler(self.indices(split)))

    def attacked(self, models: int) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
        """Ids of attacked training and test images (n,) each, and which shadow model knows which (S, 2n)."""
        prepared = self._prepared
        if self.after is not None and not self.after.train:
            # members are of the new set alone: earlier test images would be told apart by their looks
            prepared = self.part(old=False).prepared
        known = membership(prepared, models, self._seed) if models else np.zeros((0, 0), dtype=np.bool_)
        return *attacked(prepared, self._seed), known

    def loader_of(self, ids: Ints) -> DataLoader:
        """These samples, in this order, all of them on every process, without augmentation."""
        return self._eval_loader(ids.tolist())

    def _eval_loader(self, sampler: Any) -> DataLoader:
        dataset = _Samples(self._prepared, self._stream, None)
        workers = self._workers(cheap=self._prepared.in_memory)
        return self._loader(dataset, sampler, self._eval_batch_size, workers)

    @override
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move images and labels; the ids stay where their readers are, who would wait for a GPU."""
        return super().transfer_batch_to_device(batch, device, dataloader_idx)._replace(index=batch.index)

    def indices(self, split: str) -> Ints:
        """Sample ids of a split, ascending: the order of its evaluation."""
        return np.flatnonzero(self._prepared.split == SPLITS.index(split))

    def evenly(self, split: str, most: int) -> Ints:
        """Sample ids of a split: all, or `most` that lie evenly in it (folders come class by class)."""
        ids = self.indices(split)
        return ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).round().astype(int)]

    def groups(self, split: str, names: Sequence[str] | None = None) -> dict[str, list[str]]:
        """Group column -> value of each sample, in the order of `indices(split)`.

        Args:
            split: of the data set.
            names: of the columns; None takes those with few values.

        Raises:
            UserError: there is no such column.
        """
        ids = self.indices(split).tolist()
        columns = self._prepared.columns
        for name in names or ():
            if name not in columns:
                there = (
                    f"columns: {', '.join(columns)}" if columns else "the data set has no table with columns"
                )
                raise UserError(
                    "is not a column of the table", key="audit.groups", value=name,
                    remedy=did_you_mean(name, columns) or there,
                )  # fmt: skip
        wanted = self.info.groups if names is None else names
        return {name: [columns[name][i] for i in ids] for name in wanted}

    def _workers(self, *, cheap: bool) -> int:
        if self._config.num_workers is not None:
            return self._config.num_workers
        return 0 if cheap else cores()

    def _loader(
        self,
        dataset: _Samples,
        sampler: Sampler,
        batch_size: int | None,
        workers: int,
        *,
        persistent: bool = False,
    ) -> DataLoader:
        return _LateLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=persistent,
            collate_fn=_as_it_is,  # `__getitems__` made the batch already
            worker_init_fn=ignore_in_worker if workers else None,
            pin_memory=workers > 0 and torch.cuda.is_available(),
        )

    def _check_batch_size(self) -> None:
        _, world = rank_and_world()
        images = self.info.counts["train"]
        if self._batch_size * world > images:
            processes = f" of {world} processes" if world > 1 else ""
            raise UserError(
                f"the batch{processes} is larger than the training split of {images} images",
                key="recipe.batch_size",
                value=self._batch_size,
                remedy=f"at most recipe.batch_size={max(1, images // world)}",
            )


class _Samples(Dataset):
    """Fetches and augments a whole batch at once; positions carry the epoch (see `TrainSampler`)."""

    def __init__(self, prepared: Prepared, stream: AugmentStream, augmenter: Augmenter | None) -> None:
        self._source, self._stream, self._augmenter = prepared.source, stream, augmenter
        self._labels, self._shape = prepared.labels, prepared.info.input_shape
        self._size = prepared.info.input_shape[-1] if augmenter is None else prepared.train_size

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, position: int | list[int]) -> Batch:
        return self.__getitems__(position if isinstance(position, list) else [position])

    def __getitems__(self, positions: list[int]) -> Batch:
        epoch, ids = np.divmod(np.array(positions, dtype=np.int64), len(self._labels))
        images = self._source.read(ids, self._size) if len(ids) else np.empty((0, *self._shape), np.uint8)
        if self._augmenter is not None and len(ids):
            # a batch lies within one epoch
            images = self._augment(images, ids, int(epoch[0]))
        return Batch(torch.from_numpy(images), torch.from_numpy(self._labels[ids]), torch.from_numpy(ids))

    def _augment(self, images: Any, ids: Ints, epoch: int) -> Any:
        """Augment; a sample that stands there more than once is shown in as many ways."""
        assert self._augmenter is not None
        order = np.argsort(ids, kind="stable")
        first = np.searchsorted(ids[order], ids[order])
        occurrence = np.empty(len(ids), dtype=np.int64)
        occurrence[order] = np.arange(len(ids)) - first
        views = 1 + int(occurrence.max())
        if views == 1:
            return self._augmenter(images, ids, self._stream.key("augment", epoch))
        result = None
        for view in range(views):
            rows = np.flatnonzero(occurrence == view)
            shown = self._augmenter(
                images[rows], ids[rows], self._stream.key("augment", epoch, *([view] * (view > 0)))
            )
            result = np.empty((len(ids), *shown.shape[1:]), shown.dtype) if result is None else result
            result[rows] = shown
        return result


class _LateLoader(DataLoader):
    """Starts to fetch when the first batch is asked for, not when the iterator is made.

    Lightning makes the first iterator of `fit` before it calls `set_epoch`; workers would by then have
    fetched the beginning of epoch 0, also in a run that resumes in a later epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


def _as_it_is(batch: Any) -> Any:
    return batch
