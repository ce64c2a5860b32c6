"""Fairness by hand, and against Fairlearn where it is installed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from effvit_train.audit.fairness import (
    GAP,
    KEYS,
    LISTED,
    ODDS,
    PARITY,
    REWEIGHTED,
    WORST,
    measure_fairness,
)
from effvit_train.proportions import wilson


def images(*rows: tuple[str, int, int, int]) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Predictions, labels and groups from rows of (group, label, prediction, how many)."""
    predicted = np.concatenate([np.full(count, guess) for _, _, guess, count in rows])
    labels = np.concatenate([np.full(count, label) for _, label, _, count in rows])
    return predicted, labels, [group for group, _, _, count in rows for _ in range(count)]


def drawn(count: int, classes: int, groups: int, seed: int, right: float = 0.7):
    """Images with every group and class; group 0 is worse."""
    rng = np.random.default_rng(seed)
    labels, code = rng.integers(0, classes, count), rng.integers(0, groups, count)
    wrong = rng.random(count) > right - 0.2 * (code == 0)
    predicted = np.where(wrong, rng.integers(0, classes, count), labels)
    return predicted, labels, [f"g{g}" for g in code]


BINARY = images(
    # north: 40 of class 0 (30 right), 60 of class 1 (54 right)
    ("north", 0, 0, 30), ("north", 0, 1, 10), ("north", 1, 1, 54), ("north", 1, 0, 6),
    # south: 60 of class 0 (30 right), 40 of class 1 (32 right)
    ("south", 0, 0, 30), ("south", 0, 1, 30), ("south", 1, 1, 32), ("south", 1, 0, 8),
)  # fmt: skip


def test_two_classes_by_hand() -> None:
    measured, facts = measure_fairness(*BINARY, classes=["no", "yes"])
    assert measured.missing == {}
    assert measured.values == pytest.approx({
        WORST: 0.62,  # 62 of 100
        GAP: 0.84 - 0.62,
        PARITY: 0.64 - 0.62,  # "yes" to 64 and to 62 of 100
        ODDS: 0.5 - 0.25,  # false positives: 10 of 40 and 30 of 60; true ones: 54 of 60 and 32 of 40
        # both classes have 100 of the 200 images: (0.75 + 0.9) / 2 and (0.5 + 0.8) / 2
        REWEIGHTED: 0.825 - 0.65,
    })  # fmt: skip
    south, north = facts["groups"]  # the worst on top
    assert (
        (facts["worst_group"], facts["best_group"]) == (south["group"], north["group"]) == ("south", "north")
    )
    assert (south["images"], south["accuracy"], south["reweighted"]) == (100, 0.62, 0.65)
    assert south["interval"] == pytest.approx(wilson(62, 100), abs=1e-6)
    # class 0 is right in 60 of 100, class 1 in 86 of 100; south has 60 and 40 of them
    assert south["expected"] == pytest.approx((60 * 0.6 + 40 * 0.86) / 100)
    low, high = south["reweighted_interval"]
    assert low < 0.65 < high
    classes = facts["classes"]
    assert (classes["name"], classes["images"], classes["accuracy"]) == (
        ["no", "yes"],
        [100, 100],
        [0.6, 0.86],
    )
    assert [classes["low"][0], classes["high"][0]] == pytest.approx(wilson(60, 100), abs=1e-6)
    assert classes["true_positive_rate_difference"] == pytest.approx([0.25, 0.1])
    assert classes["false_positive_rate_difference"] == pytest.approx([0.1, 0.25])
    assert classes["demographic_parity_difference"] == pytest.approx([0.02, 0.02])
    assert facts["classes_compared"] == {"reweighted": 2, "of_the_images": 1, "equalized_odds": 2}


def test_three_classes_by_hand() -> None:
    """One against the rest, and the largest class counts."""
    rows = images(
        ("a", 0, 0, 30), ("a", 1, 1, 30), ("a", 2, 2, 24), ("a", 2, 0, 6),
        ("b", 0, 0, 30), ("b", 1, 1, 30), ("b", 2, 2, 12), ("b", 2, 1, 18),
    )  # fmt: skip
    measured, facts = measure_fairness(*rows, classes="xyz")
    # said: a: 36, 30, 24 of 90; b: 30, 48, 12 of 90
    assert facts["classes"]["demographic_parity_difference"] == pytest.approx(
        [6 / 90, 18 / 90, 12 / 90], abs=1e-6
    )
    assert measured.values[PARITY] == pytest.approx(18 / 90)
    assert facts["classes"]["true_positive_rate_difference"] == pytest.approx([0, 0, 0.8 - 0.4])
    assert facts["classes"]["false_positive_rate_difference"] == pytest.approx([0.1, 0.3, 0])
    assert measured.values[ODDS] == pytest.approx(0.4)
    assert measured.values[GAP] == pytest.approx(84 / 90 - 72 / 90)


def test_a_group_with_easier_classes_is_not_better() -> None:
    """Both are right in 90 % of class 0 and 50 % of class 1; `easy` has more of class 0."""
    rows = images(
        ("easy", 0, 0, 180), ("easy", 0, 1, 20), ("easy", 1, 1, 20), ("easy", 1, 0, 20),
        ("hard", 0, 0, 36), ("hard", 0, 1, 4), ("hard", 1, 1, 100), ("hard", 1, 0, 100),
    )  # fmt: skip
    measured, facts = measure_fairness(*rows, classes=["x", "y"])
    assert measured.values[GAP] == pytest.approx(200 / 240 - 136 / 240)
    assert measured.values[REWEIGHTED] == pytest.approx(0, abs=1e-12)
    assert measured.values[ODDS] == pytest.approx(0, abs=1e-12)
    for row in facts["groups"]:
        assert row["expected"] == row["accuracy"]
        assert row["reweighted"] == pytest.approx(0.7)  # 240 images of either class
    assert facts["chance"][GAP]["p_value"] < 0.01
    assert facts["chance"][REWEIGHTED]["p_value"] == 1


def test_a_difference_that_the_mix_hides_is_found() -> None:
    """Equal accuracies, but `b` has the easier images: it is worse in either class."""
    rows = images(
        ("a", 0, 0, 90), ("a", 0, 1, 10), ("a", 1, 1, 60), ("a", 1, 0, 40),  # 0.9 and 0.6: 0.75
        ("b", 0, 0, 144), ("b", 0, 1, 36), ("b", 1, 1, 6), ("b", 1, 0, 14),  # 0.8 and 0.3: 0.75
    )  # fmt: skip
    measured, facts = measure_fairness(*rows, classes=["x", "y"])
    assert measured.values[GAP] == pytest.approx(0, abs=1e-12)
    # 280 images of class 0 and 120 of class 1
    assert measured.values[REWEIGHTED] == pytest.approx(0.7 * (0.9 - 0.8) + 0.3 * (0.6 - 0.3))
    assert facts["chance"][REWEIGHTED]["p_value"] < 0.02


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("classes", "groups"), [(2, 2), (2, 5), (7, 3)])
def test_against_fairlearn(seed: int, classes: int, groups: int) -> None:
    fairlearn = pytest.importorskip(
        "fairlearn.metrics", reason="fairlearn is not installed: only the cases by hand were checked"
    )
    predicted, labels, names = drawn(2000, classes, groups, seed)
    measured, facts = measure_fairness(
        predicted, labels, names, classes=[str(c) for c in range(classes)], min_cell=1
    )
    parity, odds = (
        [
            function(labels == c, predicted == c, sensitive_features=names)
            for c in (range(classes) if classes > 2 else [1])
        ]
        for function in (fairlearn.demographic_parity_difference, fairlearn.equalized_odds_difference)
    )
    assert measured.values[PARITY] == pytest.approx(max(parity))
    assert measured.values[ODDS] == pytest.approx(max(odds))
    assert facts["equalized_odds_with_all_cells"] == measured.values[ODDS]
    if classes > 2:
        assert facts["classes"]["demographic_parity_difference"] == pytest.approx(parity, abs=1e-6)
    frame = fairlearn.MetricFrame(
        metrics=lambda y, p: float((y == p).mean()), y_true=labels, y_pred=predicted, sensitive_features=names
    )
    assert measured.values[GAP] == pytest.approx(frame.difference())
    assert measured.values[WORST] == pytest.approx(frame.group_min())


@pytest.mark.parametrize("seed", range(3))
def test_against_loops(seed: int) -> None:
    """The same without Fairlearn, from the definitions."""
    predicted, labels, names = drawn(1500, 4, 3, seed)
    measured, _ = measure_fairness(predicted, labels, names, classes="abcd", min_cell=1)
    inside = [np.array(names) == name for name in sorted(set(names))]
    parity, odds = [], []
    for c in range(4):
        said = [float((predicted[g] == c).mean()) for g in inside]
        true = [float((predicted[g & (labels == c)] == c).mean()) for g in inside]
        false = [float((predicted[g & (labels != c)] == c).mean()) for g in inside]
        parity.append(max(said) - min(said))
        odds.append(max(max(true) - min(true), max(false) - min(false)))
    share = [float((labels == c).mean()) for c in range(4)]
    alike = [
        sum(w * float((predicted[g & (labels == c)] == c).mean()) for c, w in enumerate(share))
        for g in inside
    ]
    assert measured.values[PARITY] == pytest.approx(max(parity))
    assert measured.values[ODDS] == pytest.approx(max(odds))
    assert measured.values[REWEIGHTED] == pytest.approx(max(alike) - min(alike))


def test_an_empty_cell_is_no_rate_of_zero() -> None:
    """Group c has no image of class 1. Fairlearn takes its true positive rate for 0, and the difference for 1."""
    rows = images(
        ("a", 0, 0, 40), ("a", 1, 1, 40), ("b", 0, 0, 40), ("b", 1, 1, 36), ("b", 1, 0, 4), ("c", 0, 0, 40)
    )  # fmt: skip
    measured, facts = measure_fairness(*rows, classes=["x", "y"])
    assert measured.values[ODDS] == pytest.approx(0.1)
    assert facts["equalized_odds_with_all_cells"] == pytest.approx(0.1)
    assert facts["classes_compared"] == {"reweighted": 1, "of_the_images": 0.6, "equalized_odds": 2}
    assert measured.values[REWEIGHTED] == 0  # of class 0 alone


def test_small_groups_do_not_decide_and_are_told() -> None:
    small = [(f"s{i:03}", 0, i % 2, 5) for i in range(300)]
    rows = images(("a", 0, 0, 90), ("a", 1, 1, 50), ("b", 0, 0, 80), ("b", 1, 0, 20), ("b", 1, 1, 40), *small)
    measured, facts = measure_fairness(*rows, classes=["x", "y"], known=["a", "b", "nobody", ""])
    assert measured.values[WORST] == pytest.approx(120 / 140)  # though 150 small groups are all wrong
    assert facts["compared_groups"] == 2
    pool = facts["small_groups"]
    assert (pool["groups"], pool["images"], pool["accuracy"]) == (300, 1500, 0.5)
    assert pool["interval"] == pytest.approx(wilson(750, 1500), abs=1e-6)
    assert [row["group"] for row in facts["groups"][:2]] == ["b", "a"]
    assert (len(facts["groups"]), facts["groups_not_listed"]) == (LISTED, 302 - LISTED)
    assert not any(row["compared"] or "reweighted" in row for row in facts["groups"][2:])
    assert facts["groups_without_images"] == ["nobody"]
    assert facts["chance"]["all_groups"]["p_value"] < 0.01  # small ones together are no chance
    json.dumps(facts, allow_nan=False)


def test_small_cells_of_a_class_do_not_decide() -> None:
    rows = images(
        ("a", 0, 0, 100), ("a", 1, 1, 100), ("a", 2, 2, 5), ("b", 0, 0, 100), ("b", 1, 1, 90), ("b", 1, 0, 10),
        ("b", 2, 0, 5),
    )  # fmt: skip
    measured, facts = measure_fairness(*rows, classes="xyz")
    assert measured.values[ODDS] == pytest.approx(15 / 105)  # of the 105 others in b, 15 are taken for x
    assert facts["equalized_odds_with_all_cells"] == 1  # five images of z, right here and wrong there
    assert facts["classes"]["true_positive_rate_difference"] == [0, pytest.approx(0.1), None]
    assert facts["classes_compared"]["equalized_odds"] == 2


def test_what_cannot_be_compared_has_its_reason() -> None:
    few = images(("a", 0, 0, 20), ("a", 1, 1, 30), ("b", 0, 0, 29))
    measured, facts = measure_fairness(*few, classes=["x", "y"])
    reason = "fewer than two groups have 30 test images (the largest, 'a', has 50)"
    assert (measured.values, measured.missing) == ({}, dict.fromkeys(KEYS, reason))
    assert [row["images"] for row in facts["groups"]] == [50, 29]
    assert facts["classes"]["accuracy"] == [1, 1]

    apart = images(("a", 0, 0, 50), ("b", 1, 1, 50))
    measured, _ = measure_fairness(*apart, classes=["x", "y"])
    assert set(measured.values) == {WORST, GAP, PARITY}
    assert measured.missing == {
        REWEIGHTED: "the compared groups share 0 of 2 classes, with 0% of their images",
        ODDS: "no class has two groups with 30 test images of it and 30 others",
    }
    for groups, labels, classes, reason in (
        ([], [], ["x", "y"], "there are no test images"),
        (["", ""], [0, 1], ["x", "y"], "no test image has a group"),
        (["a", "b"], [0, 0], ["x"], "one class leaves nothing to get wrong"),
    ):
        measured, facts = measure_fairness(labels, labels, groups, classes=classes)
        assert (measured.values, measured.missing, facts) == ({}, dict.fromkeys(KEYS, reason), {})


def test_images_without_a_group_or_an_answer() -> None:
    predicted, labels, groups = images(
        ("a", 0, 0, 40), ("a", 1, -1, 40), ("b", 0, 0, 40), ("b", 1, 1, 40), ("", 0, 1, 9)
    )
    measured, facts = measure_fairness(predicted, labels, groups, classes=["x", "y"])
    assert measured.values[WORST] == 0.5  # no answer is wrong
    assert measured.values[PARITY] == 0.5  # and no class: "y" to none of 80, and to 40 of 80
    assert facts["classes"]["demographic_parity_difference"] == [
        0,
        0.5,
    ]  # and not "x" either: 40 of 80 in both
    assert (facts["images"], facts["without_group"]) == (160, 9)
    assert facts["classes"]["images"] == [89, 80]  # of all images


def test_chance_covers_a_fair_model() -> None:
    """Groups drawn apart from everything: a gap is there, and chance explains it in most cases."""
    p_values = {key: [] for key in (*KEYS, "all_groups")}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels, groups = rng.integers(0, 3, 600), [f"g{g}" for g in rng.integers(0, 4, 600)]
        predicted = np.where(rng.random(600) < 0.7, labels, rng.integers(0, 3, 600))
        measured, facts = measure_fairness(predicted, labels, groups, classes="xyz")
        assert measured.values[GAP] > 0
        for key, found in p_values.items():
            found.append(facts["chance"][key]["p_value"])
    for key, found in p_values.items():
        assert sum(p < 0.05 for p in found) <= 4, key  # Binomial(20, 0.05) is above 4 three times in 1,000
        assert 0.3 < np.mean(found) < 0.7, key
    _, facts = measure_fairness(*drawn(1000, 3, 4, 0), classes="xyz")
    assert max(facts["chance"][key]["p_value"] for key in (WORST, GAP, REWEIGHTED, "all_groups")) < 0.02
    assert facts["chance"][GAP]["p95"] < 0.2


def test_tensors_order_and_repetition() -> None:
    predicted, labels, groups = drawn(500, 3, 2, 5)
    first = measure_fairness(predicted, labels, groups, classes="xyz")
    again = measure_fairness(torch.from_numpy(predicted), torch.from_numpy(labels), groups, classes="xyz")
    assert first == again
    order = np.random.default_rng(0).permutation(500)
    there = measure_fairness(predicted[order], labels[order], [groups[i] for i in order], classes="xyz")
    assert there[0].values == pytest.approx(first[0].values)
    assert there[1]["groups"] == first[1]["groups"]


def test_wrong_inputs_are_refused() -> None:
    for predicted, labels, groups, cell in (
        ([0], [0, 1], ["a", "b"], 1), ([0, 1], [0, 1], ["a"], 1), ([0, 2], [0, 1], ["a", "b"], 1),
        ([0, 1], [0, -1], ["a", "b"], 1), ([0, -2], [0, 1], ["a", "b"], 1), ([0, 1], [0, 1], ["a", "b"], 0),
        ([0.0, math.nan], [0, 1], ["a", "b"], 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"match|outside|min_cell|integers"):
            measure_fairness(predicted, labels, groups, classes=["x", "y"], min_cell=cell)
