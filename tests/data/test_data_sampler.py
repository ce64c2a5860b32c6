import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from effvit_train.data import sampler
from effvit_train.data.sampler import EvalSampler, TrainSampler

IDS = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31])
TOTAL = 40


def ranks(monkeypatch, world, make):
    found = []
    for rank in range(world):
        monkeypatch.setattr(sampler, "rank_and_world", lambda rank=rank: (rank, world))
        found.append(list(make()))
    return found


def train(epoch=0, seed=0, batch_size=2, start=0):
    one = TrainSampler(IDS, total=TOTAL, seed=seed, batch_size=batch_size)
    one.set_epoch(epoch)
    one.set_start(epoch, start)
    return one


def test_positions_carry_the_epoch_and_drop_the_remainder():
    positions = list(train(epoch=3, batch_size=4))
    assert len(positions) == len(train(batch_size=4)) == 8
    assert {p // TOTAL for p in positions} == {3}
    ids = [p % TOTAL for p in positions]
    assert set(ids) <= set(IDS.tolist())
    assert len(set(ids)) == 8


def test_order_is_a_function_of_seed_and_epoch():
    assert list(train(epoch=1)) == list(train(epoch=1))
    orders = {tuple(p % TOTAL for p in train(epoch=epoch, seed=seed)) for epoch in (0, 1) for seed in (0, 1)}
    assert len(orders) == 4


def test_a_start_in_the_middle_counts_for_its_epoch_alone():
    one = train(epoch=2, start=3)
    assert list(one) == list(train(epoch=2))[6:]
    one.set_epoch(3)
    assert list(one) == list(train(epoch=3))


def test_ranks_partition_the_epoch(monkeypatch):
    alone = list(train(epoch=1, batch_size=4))
    first, second = ranks(monkeypatch, 2, lambda: train(epoch=1, batch_size=2))
    assert len(first) == len(second) == 4
    # batch k of the two ranks together is batch k of one process with twice the batch size
    for k in range(2):
        part = slice(2 * k, 2 * k + 2)
        assert set(first[part]) | set(second[part]) == set(alone[4 * k : 4 * k + 4])


def test_ranks_partition_an_evaluation_and_drop_nothing(monkeypatch):
    parts = ranks(monkeypatch, 3, lambda: EvalSampler(IDS))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert sorted(parts[0] + parts[1] + parts[2]) == IDS.tolist()
    assert parts[1] == [3, 11, 19, 31]


class _Watch(pl.LightningModule):
    """Records the sample ids and a checksum of the pixels of every batch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.index.tolist(), int(batch.images.long().sum())))
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, directory, epochs, checkpoint=None):
    watch = _Watch()
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False, default_root_dir=directory,
    )  # fmt: skip
    trainer.fit(watch, datamodule=data, ckpt_path=checkpoint)
    path = directory / "last.ckpt"
    trainer.save_checkpoint(path)
    return watch.seen, path


@pytest.mark.parametrize("workers", [0, 2])
def test_lightning_tells_the_epoch_also_after_a_restart(module, tmp_path, workers):
    """Without `_LateLoader` this fails with workers: they fetch epoch 0 before `set_epoch(1)`."""

    def data():
        return module(
            name="synthetic",
            num_samples=40,
            image_size=4,
            num_classes=2,
            num_workers=workers,
            augment={"shift": 1},
        )

    straight, _ = fit(data(), tmp_path, epochs=3)
    before, checkpoint = fit(data(), tmp_path, epochs=1)
    after, _ = fit(data(), tmp_path, epochs=3, checkpoint=checkpoint)
    assert [epoch for epoch, _, _ in straight] == [0] * 7 + [1] * 7 + [2] * 7
    assert before + after == straight
    assert len({tuple(ids) for _, ids, _ in straight}) == 21
