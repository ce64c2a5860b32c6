import numpy as np
import pytest
import torch

from effvit_train.data.datamodule import Augment, Batch, DataModule
from effvit_train.data.prepare import prepare
from effvit_train.errors import UserError

STRONG = {"shift": 2, "hflip": True, "resized_crop": 0.5}


def epoch(data: DataModule, number: int) -> dict[int, np.ndarray]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    return {
        int(index): image.numpy()
        for batch in loader
        for image, index in zip(batch.images, batch.index, strict=True)
    }


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all((one[k] == other[k]).all() for k in one)


def synthetic(module, **keys):
    return module(**{"name": "synthetic", "num_samples": 60, "image_size": 12, "num_classes": 3, **keys})


def test_batches_are_what_they_say(module):
    data = module(name="digits", batch_size=32)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 1257 // 32
    for batch in batches:
        assert isinstance(batch, Batch)
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (32, 1, 8, 8)
        assert batch.labels.dtype == batch.index.dtype == torch.int64
    seen = torch.cat([batch.index for batch in batches])
    assert len(seen.unique()) == 39 * 32
    test = list(data.test_dataloader())
    assert torch.cat([batch.index for batch in test]).tolist() == data.indices("test").tolist()


@pytest.mark.parametrize("loader", [Augment(), Augment(randaugment="rand-m9-n2-mstd0.5-inc1")])
def test_augmentation_is_a_function_of_seed_epoch_and_sample(module, loader):
    def at(number, **keys):
        return epoch(synthetic(module, augment=STRONG, loader=loader, **keys), number)

    first = at(1, num_workers=0)
    assert same(first, at(1, num_workers=2))
    assert same(first, at(1, num_workers=0, in_memory="false"))
    other_batches = at(1, num_workers=0, batch_size=5)
    assert all((other_batches[k] == first[k]).all() for k in first.keys() & other_batches.keys())
    for other in (at(2, num_workers=0), at(1, num_workers=0, seed=1)):
        differs = [(other[k] != first[k]).any() for k in first.keys() & other.keys()]
        assert np.mean(differs) > 0.9


def test_persistent_workers_follow_the_epoch(module):
    workers = synthetic(module, num_workers=2, augment=STRONG).train_dataloader()
    alone = synthetic(module, num_workers=0, augment=STRONG)
    for number in (0, 1, 5):
        workers.sampler.set_epoch(number)
        seen = {
            int(i): image.numpy()
            for batch in workers
            for image, i in zip(batch.images, batch.index, strict=True)
        }
        assert same(seen, epoch(alone, number))


def test_every_split_can_be_evaluated_without_augmentation(module):
    data = synthetic(module, augment=STRONG, train_fraction=0.5)
    plain = synthetic(module, train_fraction=0.5)
    for split in ("train", "val", "test", "unused"):
        one = torch.cat([batch.images for batch in data.eval_dataloader(split)])
        other = torch.cat([batch.images for batch in plain.eval_dataloader(split)])
        assert len(one) == data.info.counts[split]
        assert (one == other).all()


def test_workers_where_they_pay(module, monkeypatch):
    monkeypatch.setattr("effvit_train.data.datamodule.cores", lambda: 2)
    in_memory = synthetic(module)
    assert in_memory.train_dataloader().num_workers == 0
    augmented = synthetic(module, loader=Augment(randaugment="rand-m5"))
    assert augmented.train_dataloader().num_workers == 2
    assert augmented.val_dataloader().num_workers == 0
    streamed = synthetic(module, in_memory="false")
    assert streamed.train_dataloader().num_workers == streamed.val_dataloader().num_workers == 2
    assert synthetic(module, num_workers=1).test_dataloader().num_workers == 1


def test_evaluation_batches(module):
    assert synthetic(module).val_dataloader().batch_size == 256
    assert synthetic(module, image_size=96).val_dataloader().batch_size == 4


def test_a_batch_that_all_ranks_together_cannot_fill(module, monkeypatch):
    data = synthetic(module, batch_size=30)  # 42 train
    monkeypatch.setattr("effvit_train.data.datamodule.rank_and_world", lambda: (0, 2))
    with pytest.raises(
        UserError, match=r"recipe.batch_size=30: the batch of 2 processes .* at most recipe.batch_size=21"
    ):
        data.train_dataloader()


def test_synthetic_classes_can_be_learnt(module):
    data = synthetic(module, num_samples=400, num_classes=4)
    assert data.info.counts == {"train": 280, "val": 40, "test": 80, "unused": 0}
    assert data.info.class_counts["test"] == [20] * 4
    train = next(iter(data.eval_dataloader("train")))
    (test,) = data.test_dataloader()
    means = torch.stack([train.images[train.labels == k].double().mean(dim=0) for k in range(4)])
    nearest = (test.images.double()[:, None] - means).flatten(2).norm(dim=2).argmin(dim=1)
    assert (nearest == test.labels).double().mean() > 0.95
    assert test.images.double().std() > 30  # and no two are alike
    assert len(test.images.flatten(1).unique(dim=0)) == 80


def test_synthetic_images_depend_on_their_number_only(module):
    few, many = synthetic(module, num_samples=60), synthetic(module, num_samples=600, in_memory="false")
    ids = np.arange(60)
    assert (few._prepared.source.read(ids, 12) == many._prepared.source.read(ids, 12)).all()
    assert few.info.fingerprint.startswith("rule:")


def test_synthetic_with_too_few_images(module):
    with pytest.raises(
        UserError, match=r"dataset.num_samples=60: 100 classes need three images each.*num_samples=1000"
    ):
        synthetic(module, num_classes=100)


def test_streamed_statistics_come_from_a_sample_that_does_not_move_with_seed(module, monkeypatch):
    monkeypatch.setattr("effvit_train.data.prepare.STATISTICS_SAMPLE", 10)
    first = synthetic(module, in_memory="false").info
    assert first.mean == synthetic(module, in_memory="false", seed=3).info.mean
    exact = synthetic(module).info
    assert first.mean != exact.mean
    assert first.mean == pytest.approx(exact.mean, abs=0.05)


def test_a_constant_channel_is_not_divided_by_zero():
    from effvit_train.data.facts import mean_and_std

    images = np.full((3, 2, 4, 4), 51, dtype=np.uint8)
    images[:, 1, :2] = 0
    mean, std = mean_and_std([images[:1], images[1:]], 2)
    assert mean == pytest.approx((0.2, 0.1))
    assert std == pytest.approx((1.0, 0.1))


def test_digits_start_fast(module):
    """Issue 2 allows little beyond the imports: 0.15 s here, in practice some milliseconds."""
    import time

    from effvit_train.data.config import DatasetConfig

    times = []
    for _ in range(3):
        start = time.perf_counter()
        prepare(DatasetConfig(), cache_dir="unused", say=print)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.15
