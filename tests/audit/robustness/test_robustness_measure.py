"""From outcomes to figures: by hand, against scipy, and taken up again part by part."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from effvit_train.audit.robustness.corruptions import KINDS, corrupt
from effvit_train.audit.robustness.measure import (
    ADVERSARIAL_KEYS,
    CLEAN,
    CORRUPTION_KEYS,
    adversarial_figures,
    bootstrap,
    corruption_figures,
    corruption_outcomes,
    measure_adversarial,
    measure_corruptions,
    stratified,
)
from effvit_train.proportions import wilson

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8))
IMAGES[3:] = IMAGES[3:] // 2  # the second class is darker
LABELS = torch.tensor([0, 0, 0, 1, 1, 1])


def bright(images: Tensor) -> Tensor:
    """Class 0 for a mean of 96 or more."""
    mean = images.float().mean(dim=(1, 2, 3))
    return torch.stack([mean - 96, 96 - mean], dim=1)


def test_corruption_figures_by_hand() -> None:
    parts = {
        CLEAN: np.array([[True, True, True, False]]),
        "fog": np.array([[True, True, False, False], [True, False, False, False]]),
        "snow": np.array([[True, True, True, True], [False, False, False, False]]),
    }
    measured, facts = corruption_figures(parts, (1, 5), (28, 28), seed=0)
    assert facts["accuracy"] == {"fog": [0.5, 0.25], "snow": [1.0, 0.0]}
    assert facts["clean_accuracy"] == 0.75
    assert facts["mean"] == 0.4375
    assert facts["drop"] == 0.3125
    assert facts["clean_interval"] == list(wilson(3, 4))
    assert (facts["parameters"], facts["lengths"]) == (32, 1.0)
    # images survive 3/4, 2/4, 1/4, 1/4 of the corruptions: resampled means lie in between
    assert 0.25 <= facts["interval"][0] < 0.4375 < facts["interval"][1] <= 0.75
    # the drop is paired: 1/4, 1/2, 3/4, -1/4
    assert -0.25 <= facts["drop_interval"][0] < 0.3125 < facts["drop_interval"][1] <= 0.75
    assert measured.values == {}
    assert set(measured.missing) == set(CORRUPTION_KEYS)
    assert "2 of 15 kinds in 2 of 5" in measured.missing[CORRUPTION_KEYS[0]]
    json.dumps(facts)


def test_all_kinds_of_a_simple_model() -> None:
    measured, facts = measure_corruptions(bright, IMAGES, LABELS, range(6), seed=3)
    assert facts["clean_accuracy"] == 1.0
    assert list(facts["accuracy"]) == list(KINDS)
    # by hand, one of the 75
    shown = corrupt(IMAGES, "brightness", 5, seed=3, ids=range(6))
    assert facts["accuracy"]["brightness"][4] == float((bright(shown).argmax(1) == LABELS).float().mean())
    mean = np.mean([facts["accuracy"][kind] for kind in KINDS])
    assert measured.values == {
        CORRUPTION_KEYS[0]: pytest.approx(mean),
        CORRUPTION_KEYS[1]: pytest.approx(1 - mean),
    }
    assert 0.5 < mean < 1
    assert measured.missing == {}
    json.dumps(facts)
    again, facts_again = measure_corruptions(bright, IMAGES, LABELS, torch.arange(6), seed=3, batch_size=2)
    assert (again, facts_again) == (measured, facts)


def test_a_model_that_does_not_look_loses_nothing() -> None:
    measured, facts = measure_corruptions(
        lambda x: torch.eye(2)[[0] * len(x)], IMAGES, LABELS, range(6), seed=0
    )
    assert measured.values == {CORRUPTION_KEYS[0]: 0.5, CORRUPTION_KEYS[1]: 0.0}
    assert facts["drop_interval"] == [0.0, 0.0]


def test_numbers_that_are_not_finite_are_wrong() -> None:
    right = corruption_outcomes(
        lambda x: torch.full((len(x), 2), torch.nan), IMAGES, LABELS, range(6), CLEAN, seed=0
    )
    assert not right.any()


def test_corruptions_go_on_after_each_kind() -> None:
    told: dict[str, np.ndarray] = {}
    whole = measure_corruptions(bright, IMAGES, LABELS, range(6), seed=3, tell=told.__setitem__)
    assert list(told) == [CLEAN, *KINDS]
    assert told["fog"].shape == (5, 6)
    known = {kind: told[kind] for kind in (CLEAN, *KINDS[:13])}
    rest: list[str] = []
    again = measure_corruptions(
        bright, IMAGES, LABELS, range(6), seed=3, known=known, tell=lambda kind, _: rest.append(kind)
    )
    assert again == whole
    assert rest == list(KINDS[13:])


class Sum(nn.Module):
    """Class 0 where the mean of the pixels is above 3/8: an image with margin m is broken by epsilon > m."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(1, 2, 3)) - 0.375
        return torch.stack([mean, -mean], dim=1)


def scaled(pixels: Tensor) -> Tensor:
    return pixels / 255


def flat(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()


def test_attacks_break_exactly_what_the_budget_reaches() -> None:
    # threshold 0.375 x 255 = 95.6: distances 15.4, 5.4, 7.4, 9.6, 4.6, and one on the wrong side
    images, labels = flat(111, 101, 103, 86, 91, 120), torch.tensor([0, 0, 0, 1, 1, 1])
    told: dict[str, np.ndarray] = {}
    measured, facts = measure_adversarial(
        Sum(), scaled, images, labels, range(6), seed=0, tell=told.__setitem__
    )
    assert list(told) == [CLEAN, "pgd", "apgd-ce", "apgd-t", "fab-t", "square"]
    for name in told:
        assert told[name].tolist() == (
            [True] * 5 + [False] if name == CLEAN else [True, False, False, True, False, False]
        )
    assert measured.values == dict.fromkeys(ADVERSARIAL_KEYS, 2 / 6)
    assert facts["epsilon"] == 8 / 255
    assert facts["clean_accuracy"] == 5 / 6
    assert facts["pgd"] == {"accuracy": 2 / 6, "interval": list(wilson(2, 6)), "steps": 20, "step": 2 / 255}
    assert facts["autoattack"]["after"] == dict.fromkeys(("apgd-ce", "apgd-t", "fab-t", "square"), 2 / 6)
    json.dumps(facts)

    known = {name: told[name] for name in told if name != "fab-t"}
    rest: list[str] = []
    again = measure_adversarial(
        Sum(), scaled, images, labels, range(6), seed=0, known=known, tell=lambda name, _: rest.append(name)
    )
    assert again == (measured, facts)
    assert rest == ["fab-t"]

    half, facts = measure_adversarial(
        Sum(), scaled, images, labels, range(6), seed=0, epsilon=5 / 255, attacks=("pgd",)
    )
    assert half.values == {ADVERSARIAL_KEYS[0]: 4 / 6}
    assert half.missing == {ADVERSARIAL_KEYS[1]: "autoattack was not run"}
    with pytest.raises(ValueError, match="fgsm"):
        measure_adversarial(Sum(), scaled, images, labels, range(6), seed=0, attacks=("fgsm",))


def test_no_images() -> None:
    none, no_labels = IMAGES[:0], LABELS[:0]
    measured, facts = measure_corruptions(bright, none, no_labels, [], seed=0)
    assert (measured.values, facts) == ({}, {"images": 0})
    assert set(measured.missing) == set(CORRUPTION_KEYS)
    measured, facts = measure_adversarial(Sum(), scaled, none, no_labels, [], seed=0)
    assert (measured.values, facts) == ({}, {"images": 0})
    assert set(measured.missing) == set(ADVERSARIAL_KEYS)
    assert adversarial_figures({}, 0.1)[0] == measured


def test_bootstrap_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap(values, seed=1)
    width = 2 * 1.96 * values.std() / np.sqrt(400)
    assert high - low == pytest.approx(width, rel=0.08)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.05 * width)
    assert bootstrap(values, seed=1) == (low, high) != bootstrap(values, seed=2)
    assert bootstrap([0.25], seed=0) == (0.25, 0.25)
    with pytest.raises(ValueError, match="n >= 1"):
        bootstrap([], seed=0)


def test_stratified_keeps_proportions() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    order = np.random.default_rng(0).permutation(100)
    mixed = torch.from_numpy(labels[order])
    for n, counts in ((10, [6, 3, 1]), (50, [30, 15, 5]), (1, [1, 0, 0])):
        chosen = stratified(mixed, n, seed=0)
        assert np.array_equal(chosen, np.unique(chosen))
        assert np.bincount(mixed[chosen], minlength=3).tolist() == counts
    # 12 of 100: 7.2, 3.6, 1.2, and the one that is left goes to the largest remainder
    assert np.bincount(mixed[stratified(mixed, 12, seed=0)]).tolist() == [7, 4, 1]
    assert np.array_equal(stratified(mixed, 12, seed=0), stratified(mixed.numpy(), 12, seed=0))
    assert not np.array_equal(stratified(mixed, 12, seed=0), stratified(mixed, 12, seed=1))
    for n in (100, 1000):
        assert np.array_equal(stratified(mixed, n, seed=0), np.arange(100))
    # ten equal classes and five images: which classes, is drawn
    tied = np.arange(10)
    assert len({tuple(stratified(tied, 5, seed=number)) for number in range(20)}) > 10
    with pytest.raises(ValueError, match="at least 1"):
        stratified(mixed, 0, seed=0)
    with pytest.raises(ValueError, match=r"\(N,\)"):
        stratified(np.zeros((2, 2)), 1, seed=0)


def test_shapes_that_do_not_match() -> None:
    for images, labels, ids in (
        (IMAGES[0], LABELS, range(6)),
        (IMAGES, LABELS[:5], range(6)),
        (IMAGES, LABELS, range(5)),
    ):
        with pytest.raises(ValueError, match="match"):
            measure_corruptions(bright, images, labels, ids, seed=0)
