import numpy as np
import pytest

from effvit_train.data.config import DatasetConfig
from effvit_train.data.splits import POOL, TEST, TRAIN, UNUSED, VAL, Splitter, counts_by_share
from effvit_train.errors import UserError


def assign(sizes, given=None, groups=None, say=print, **keys):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"class{k}" for k in range(len(sizes))]
    splitter = Splitter(labels, names, groups, DatasetConfig(**keys), say)
    split = splitter.assign(np.full(len(labels), POOL) if given is None else given)
    table = {part: np.bincount(labels[split == part], minlength=len(sizes)).tolist() for part in range(4)}
    return split, table


def test_counts_by_share_by_hand():
    # quotas 2.0, 1.4, 0.6: ceil(4.0) = 4 in all; floors 2, 1, 0; the largest remainder, 0.6, gets the last
    assert counts_by_share(np.array([10, 7, 3]), 0.2).tolist() == [2, 1, 1]
    # quotas 1.2, 1.2, 1.2: ceil(3.6) = 4; of equal remainders the first class gets it
    assert counts_by_share(np.array([12, 12, 12]), 0.1).tolist() == [2, 1, 1]
    # no class is left without one, though its quota is 0.2
    assert counts_by_share(np.array([100, 2]), 0.1).tolist() == [10, 1]


def test_stratified_by_hand():
    _, table = assign([100, 50, 10], val_fraction=0.1, test_fraction=0.2)
    assert table[TEST] == [20, 10, 2]
    assert table[VAL] == [10, 5, 1]
    assert table[TRAIN] == [70, 35, 7]


def test_given_test_images_stay_and_validation_comes_from_the_rest():
    given = np.full(100, POOL)
    given[::5] = TEST
    split, table = assign([50, 50], given, val_fraction=0.1)
    assert (np.flatnonzero(split == TEST) == np.arange(0, 100, 5)).all()
    assert table[VAL] == [4, 4]
    assert table[TRAIN] == [36, 36]


def test_given_validation_and_test_images_leave_nothing_to_do():
    given = np.array([POOL, VAL, TEST] * 4)
    split, _ = assign([6, 6], given, val_fraction=0.0, test_fraction=0.0)
    assert split.tolist() == [TRAIN, VAL, TEST] * 4


def test_train_fraction_is_stratified_leaves_no_class_empty_and_touches_no_other_split():
    whole, _ = assign([100, 50, 10])
    split, table = assign([100, 50, 10], train_fraction=0.1)
    assert table[TRAIN] == [7, 3, 1]  # of 70, 35, 7: unused ceil(100.8) = 101 of quotas 63, 31.5, 6.3
    assert table[UNUSED] == [63, 32, 6]
    for part in (VAL, TEST):
        assert ((split == part) == (whole == part)).all()
    assert assign([100, 50, 10], train_fraction=0.001)[1][TRAIN] == [1, 1, 1]


def test_the_split_moves_with_split_seed_and_the_test_not_with_val_fraction():
    first, _ = assign([100, 100])
    again, _ = assign([100, 100])
    other, _ = assign([100, 100], split_seed=1)
    less, _ = assign([100, 100], val_fraction=0.05)
    assert (first == again).all()
    assert 0.2 < (first != other).mean() < 0.7
    assert ((first == TEST) == (less == TEST)).all()


def test_groups_stay_whole_and_the_shares_come_near():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 60, 1000)
    split, table = assign([700, 200, 100], groups=groups, val_fraction=0.1, test_fraction=0.2)
    assert all(len(set(split[groups == group])) == 1 for group in range(60))
    for part, share in ((VAL, 0.1), (TEST, 0.2), (TRAIN, 0.7)):
        assert np.array(table[part]) / [700, 200, 100] == pytest.approx([share] * 3, abs=0.04)


def test_groups_stay_whole_under_train_fraction_too():
    groups = np.arange(300) % 50
    split, table = assign([150, 150], groups=groups, train_fraction=0.3)
    assert all(len(set(split[groups == group])) == 1 for group in range(50))
    trained = sum(table[TRAIN]) / (sum(table[TRAIN]) + sum(table[UNUSED]))
    assert trained == pytest.approx(0.3, abs=0.05)
    assert assign([150, 150], groups=groups, train_fraction=0.001)[1][TRAIN] != [0, 0]


def test_a_given_split_that_divides_groups_is_mentioned():
    lines = []
    given = np.array([POOL] * 10 + [TEST] * 2 + [POOL] * 8)
    groups = np.arange(20)
    groups[10] = 0  # test image 10 is of the group of training image 0
    assign([10, 10], given, groups=groups, split_group="tile", say=lines.append)
    assert lines == ["the set's own split divides 1 group(s) of tile"]


@pytest.mark.parametrize(
    ("sizes", "keys", "line"),
    [
        ([50, 2], {}, "dataset.val_fraction=0.1: class 'class1' has 2 image(s), too few .* at least 3 images"),
        ([50, 50], {"val_fraction": 0.0}, "dataset.val_fraction=0: leaves the val split empty.*e.g. 0.1"),
        ([50, 50], {"test_fraction": 0.0}, "dataset.test_fraction=0: leaves the test split empty"),
        ([50, 50], {"val_fraction": 0.5, "test_fraction": 0.5}, "dataset.val_fraction=0.5: .*nothing is left"),
    ],
)  # fmt: skip
def test_fractions_that_leave_something_empty(sizes, keys, line):
    import re

    with pytest.raises(UserError, match=re.sub(r"([()])", r"\\\1", line)):
        assign(sizes, **keys)


def test_groups_that_cannot_be_divided():
    groups = np.repeat([0, 1], 10)  # each class is one group: it can be in one split only
    with pytest.raises(UserError, match=r"dataset.split_group=tile: with whole groups .*stays empty"):
        assign([10, 10], groups=groups, split_group="tile")


@pytest.mark.parametrize("fractions", [(0.45, 0.45), (0.1, 0.8), (0.8, 0.1)])
def test_three_images_of_a_class_are_enough_for_three_splits(fractions):
    _, table = assign([3, 90], val_fraction=fractions[0], test_fraction=fractions[1])
    assert [table[part][0] for part in (TRAIN, VAL, TEST)] == [1, 1, 1]


def test_a_rare_class_in_large_groups_still_reaches_every_split():
    # class 1 has 4 groups of 6 images; validation wants 2.4 of them, so the greedy pass gives it none
    groups = np.concatenate([np.arange(200) + 10, np.repeat([0, 1, 2, 3], 6)])
    _, table = assign([200, 24], groups=groups, val_fraction=0.1, test_fraction=0.2)
    assert [table[part][1] for part in (TRAIN, VAL, TEST)] == [12, 6, 6]
