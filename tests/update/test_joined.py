"""A set behind another: who stands where, under which number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from effvit_train.data.config import DatasetConfig
from effvit_train.data.datamodule import DataModule
from effvit_train.data.joined import Earlier, join
from effvit_train.data.prepare import Prepared, prepare
from effvit_train.errors import UserError

MEAN, STD = (0.25,), (0.125,)


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Prepared:
    return prepare(DatasetConfig(), cache_dir=tmp_path_factory.mktemp("cache"), say=print)


def earlier(data: Prepared | None, classes, *, train: bool = True) -> Earlier:
    return Earlier(
        "digits", tuple(classes), (1, 8, 8), MEAN, STD, "pixels:old", data, train, "" if train else "no"
    )


def test_classes_ids_and_statistics(digits):
    backwards = digits.info.classes[::-1]
    found = join(earlier(digits, backwards), digits, epochs=3, private=False)
    info, n = found.prepared.info, len(digits.labels)
    assert (found.earlier, len(found.prepared.labels)) == (n, 2 * n)
    assert info.classes == backwards
    assert (info.mean, info.std) == (MEAN, STD)
    assert info.counts == {name: 2 * count for name, count in digits.info.counts.items()}
    # the digit 3 has number 6 of 9 ... 0, in both sets
    assert set(
        found.prepared.labels[
            [*np.flatnonzero(digits.labels == 3), n + np.flatnonzero(digits.labels == 3)[0]]
        ]
    ) == {6}
    ids = np.array([5, n + 5, 7, n + 9])
    assert np.array_equal(found.prepared.source.read(ids, 8), digits.source.read(np.array([5, 5, 7, 9]), 8))
    assert found.stream is not None
    assert (found.stream.first, found.stream.kind, found.stream.epochs) == (1, "domain", 3)
    old, new = found.stream.tasks
    assert np.array_equal(old.train + n, new.train)
    assert found.prepared.info.fingerprint not in (digits.info.fingerprint, "pixels:old")


def test_new_classes_come_after_those_that_are_known(digits):
    known = digits.info.classes[:8]
    found = join(earlier(None, known, train=False), digits, epochs=1, private=False)
    assert found.prepared.info.classes == digits.info.classes
    assert found.stream is not None
    assert found.stream.kind == "class"
    assert (found.stream.seen(0), found.stream.seen(1)) == (8, 10)
    assert [len(task.test) for task in found.stream.tasks] == [0, digits.info.counts["test"]]
    with pytest.raises(UserError, match=r"does not know \(8, 9\), and a private training cannot add them"):
        join(earlier(None, known, train=False), digits, epochs=1, private=True)


def test_training_images_that_may_not_be_shown_again_are_left_out(digits):
    found = join(earlier(digits, digits.info.classes, train=False), digits, epochs=1, private=False)
    counts = digits.info.counts
    assert found.prepared.info.counts["train"] == counts["train"]
    assert found.prepared.info.counts["test"] == 2 * counts["test"]
    assert found.stream is not None
    assert len(found.stream.tasks[0].train) == 0
    assert [info.name for info in found.shown] == ["digits"]


def test_a_private_update_is_of_the_new_set_alone(digits, tmp_path):
    after = earlier(digits, digits.info.classes, train=False)
    data = DataModule(DatasetConfig(), batch_size=8, seed=0, cache_dir=tmp_path, public=True, after=after)
    assert data.stream is None
    assert (data.info.name, data.info.fingerprint) == ("digits", digits.info.fingerprint)
    assert data.info.counts["train"] == digits.info.counts["train"]
    # not measured on private images: those that the model saw before
    assert (data.info.mean, data.info.std) == (MEAN, STD)
    parts = [data.part(old=old).indices("test") for old in (True, False)]
    assert [len(ids) for ids in parts] == [digits.info.counts["test"]] * 2
    assert parts[0].max() < len(digits.labels) <= parts[1].min()
    # no attack tells members from others by the set that they are of
    members, others, _ = data.attacked(0)
    assert min(members.min(), others.min()) >= len(digits.labels)
    assert len(members) == len(others) == digits.info.counts["test"]


def test_other_images_are_refused(digits):
    other = replace(earlier(None, digits.info.classes), input_shape=(3, 32, 32))
    with pytest.raises(UserError, match=r"takes images of 3x32x32, these are 1x8x8; dataset.image_size=32"):
        join(other, digits, epochs=1, private=False)


def test_columns_of_one_set_are_empty_in_the_other(digits):
    other = replace(digits, columns={"light": ["day"] * len(digits.labels)})
    found = join(earlier(digits, digits.info.classes), other, epochs=1, private=False)
    column = found.prepared.columns["light"]
    assert (column[0], column[-1], len(column)) == ("", "day", 2 * len(digits.labels))
    assert found.prepared.info.groups == {"light": ["day"]}
