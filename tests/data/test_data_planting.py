"""Coins and halves: fair, independent of what else is there, and a function of the key."""

from __future__ import annotations

import numpy as np
import pytest

from effvit_train.data.planting import balanced_membership, plant
from effvit_train.keys import stream_key

IDS = np.arange(1000, 3000)


def test_canaries_are_distinct_samples_in_order() -> None:
    canaries = plant(IDS, 300, stream_key("audit", 1))
    assert canaries.ids.shape == canaries.included.shape == (300,)
    assert np.isin(canaries.ids, IDS).all()
    assert (np.diff(canaries.ids) > 0).all()
    assert np.array_equal(canaries.left_out, canaries.ids[~canaries.included])


def test_a_plant_is_a_function_of_the_key_and_not_of_the_order_of_the_ids() -> None:
    first, again = plant(IDS, 300, b"secret"), plant(IDS[::-1], 300, b"secret")
    assert np.array_equal(first.ids, again.ids)
    assert np.array_equal(first.included, again.included)
    other = plant(IDS, 300, b"another")
    assert not np.array_equal(first.ids, other.ids)
    # Where all are canaries, the keys differ in the coins alone.
    same = plant(IDS, len(IDS), 1).included == plant(IDS, len(IDS), 2).included
    assert 0.45 < same.mean() < 0.55


def test_coins_are_fair_and_independent_of_each_other_and_of_the_choice() -> None:
    coins = np.stack([plant(IDS[:64], 64, stream_key("coins", seed)).included for seed in range(2000)])
    # 64 means of 2,000 coins: standard deviation 0.0112, five of them 0.056.
    assert np.abs(coins.mean(axis=0) - 0.5).max() < 0.056
    # The number that is in has the variance of a binomial, 16, and not 0 as with exactly half; the estimate
    # from 2,000 has a standard deviation of 0.5.
    assert coins.sum(axis=1).var() == pytest.approx(16, abs=2.5)
    # Of 512 canaries among 1,024: a sample that is more readily chosen is not more readily in.
    halves = [plant(IDS[:1024], 512, stream_key("half", seed)).included.mean() for seed in range(200)]
    assert np.mean(halves) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(512 * 200))


def test_each_sample_is_in_exactly_half_of_the_models() -> None:
    members = balanced_membership(8, IDS, 5)
    assert members.shape == (8, 2000)
    assert (members.sum(axis=0) == 4).all()
    # Each model has about half of the samples; each of the 70 halves of 8 models occurs about equally often.
    assert np.abs(members.mean(axis=1) - 0.5).max() < 5 * 0.5 / np.sqrt(2000)
    counts = np.unique(members.T @ (1 << np.arange(8)), return_counts=True)[1]
    assert len(counts) == 70
    assert ((counts - 2000 / 70) ** 2 / (2000 / 70)).sum() < 69 + 5 * np.sqrt(2 * 69)  # chi-squared


def test_a_half_depends_on_the_id_alone() -> None:
    members = balanced_membership(6, IDS, b"key")
    some = np.array([2500, 1001, 1700])
    assert np.array_equal(balanced_membership(6, some, b"key"), members[:, some - 1000])


@pytest.mark.parametrize("models", [0, 1, 3])
def test_half_of_an_odd_number_of_models_is_refused(models: int) -> None:
    with pytest.raises(ValueError, match="even"):
        balanced_membership(models, IDS, 1)


@pytest.mark.parametrize(("ids", "m"), [([1, 2, 3], 4), ([1, 2, 3], 0), ([1, 1, 2], 2)])
def test_canaries_that_cannot_be_are_refused(ids: list[int], m: int) -> None:
    with pytest.raises(ValueError, match=r"canaries|repeats"):
        plant(ids, m, 1)
