"""Balance, groups, resolution and learning curves, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats.contingency import association

from effvit_train.errors import UserError
from effvit_train.stock.balance import balance, column, cramers_v, shared_groups
from effvit_train.stock.learning import Point, PowerLaw, answer, fit, read_accuracy
from effvit_train.stock.resolution import images_to_prove, provable, resolution


def test_balance_by_hand():
    found = balance([30, 10, 5, 55], ["a", "b", "c", "d"], wanted=30)
    assert (found.images, found.least, found.median, found.most, found.ratio) == (100, 5, 20.0, 55, 11.0)
    assert found.few == [("c", 5), ("b", 10)]
    assert (found.largest, found.largest_share) == ("d", 0.55)
    assert balance([3, 0], ["a", "b"], wanted=1).ratio is None


def test_a_column_by_hand():
    values = ["x", "x", "y", "y", "", "x", "y", "z"]
    labels = np.array([0, 1, 0, 0, 1, 1, 0, 1])
    split = np.array([0, 0, 0, 0, 0, 2, 2, 3])  # the last is unused
    found = column("c", values, labels, split, ["p", "q"], wanted=2, most_groups=50)
    assert (found.values, found.without) == (2, 1)
    assert found.shared == {"val": 0, "test": 2}
    assert found.table == {
        "train": {"x": [1, 1], "y": [2, 0]}, "val": {"x": [0, 0], "y": [0, 0]}, "test": {"x": [0, 1], "y": [1, 0]},
    }  # fmt: skip
    assert found.small_cells == {"train": (2, 1, 4), "val": (0, 4, 4), "test": (2, 2, 4)}
    assert column("c", values, labels, split, ["p", "q"], wanted=2, most_groups=1).table is None
    assert shared_groups({"c": values}, "c", split) == 2
    assert shared_groups({"c": values}, "c", np.array([0, 0, 2, 2, 0, 0, 2, 0])) == 0


def test_cramers_v_against_scipy():
    table = np.array([[10, 20, 30], [25, 5, 10]])
    assert cramers_v(table) == pytest.approx(association(table, method="cramer"))
    assert cramers_v(np.array([[5, 0], [0, 7]])) == pytest.approx(1)
    assert cramers_v(np.array([[2, 4], [3, 6]])) == pytest.approx(0)
    assert cramers_v(np.array([[2, 4], [0, 0]])) is None


def test_resolution_of_360_images_at_98_percent():
    found = resolution(360, 0.98)
    # the normal approximation has 1.96 sqrt(0.98 x 0.02 / 360) = 0.0145, Wilson's interval is a little wider
    assert found.half_width == pytest.approx(0.0150, abs=2e-4)
    # (1.960 + 0.842) sqrt(2 x 0.98 x 0.02 / 360)
    assert found.difference == pytest.approx(0.02924, abs=1e-5)
    assert provable(360) == pytest.approx(360 / (360 + 1.96**2), abs=1e-5)


def test_how_many_images_show_an_accuracy():
    assert images_to_prove(0.95) == 73  # n / (n + 3.8415) >= 0.95
    for accuracy in (0.9, 0.95, 0.99, 0.999):
        images = images_to_prove(accuracy)
        assert provable(images) >= accuracy - 1e-12
        assert provable(images - 1) < accuracy


def points(law: PowerLaw, images, total: int) -> list[Point]:
    return [Point(n, round(total * law.error(n)), total) for n in images]


def test_a_known_power_law_is_found():
    found = fit(points(PowerLaw(3.0, 0.5), (126, 377, 1257), 10**7), draws=20)
    assert (found.law.a, found.law.b, found.law.c) == pytest.approx((3.0, 0.5, 0.0), rel=1e-3)
    assert found.exponent == pytest.approx((0.5, 0.5), abs=0.005)
    ahead = found.forecast(10)
    assert ahead.images == 12570
    assert ahead.accuracy == pytest.approx(1 - 3 / math.sqrt(12570), abs=1e-4)
    assert ahead.interval[0] < ahead.accuracy < ahead.interval[1]


def test_a_floor_is_found_from_four_points_on():
    law = PowerLaw(3.0, 0.5, 0.02)
    found = fit(points(law, (100, 300, 1000, 3000, 10000), 10**7), draws=10)
    assert (found.law.a, found.law.b, found.law.c) == pytest.approx((3.0, 0.5, 0.02), rel=1e-2)
    assert found.law.images(0.02) == math.inf
    assert fit(points(law, (100, 300, 1000), 10**7), draws=2).law.c == 0


def test_two_points_are_met_exactly():
    found = fit([Point(100, 40, 100), Point(1000, 10, 100)], draws=2)
    assert found.law.error(100) == pytest.approx(0.4, abs=1e-3)
    assert found.law.error(1000) == pytest.approx(0.1, abs=1e-3)
    assert found.law.b == pytest.approx(math.log10(4), abs=1e-3)
    with pytest.raises(ValueError, match="two different numbers"):
        fit([Point(100, 1, 10), Point(100, 2, 10)])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    law, images = PowerLaw(2.0, 0.4), (100, 300, 1000)
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(12):
        drawn = [Point(n, int(generator.binomial(500, law.error(n))), 500) for n in images]
        low, high = fit(drawn, draws=40).exponent
        hits += low <= 0.4 <= high
    assert hits >= 9  # 11.4 of 12 on average


def test_answers():
    law = PowerLaw(3.0, 0.5)
    measured = points(law, (1000, 3000, 10_000), 10**6)  # the last is right in 97 %
    found = fit(measured, draws=40)
    assert answer(measured, found, 0.96).verdict == "enough"
    assert answer(measured, found, 0.97).verdict == "reached"
    more = answer(measured, found, 0.98)  # (3 / 0.02)^2 = 22,500
    assert more.verdict == "more"
    assert more.images == pytest.approx(22_500, rel=0.01)
    assert more.interval[0] < more.images < more.interval[1]
    assert "extrapolation" in more.sentence
    far = answer(measured, found, 0.999)  # 9 million
    assert (far.verdict, far.images) == ("far", None)
    assert "nor would 10 times as many" in far.sentence


def test_what_the_points_do_not_tell_is_not_told():
    flat = [Point(100, 10, 100), Point(300, 11, 100), Point(1000, 10, 100)]
    found = answer(flat, fit(flat, draws=100), 0.99)
    assert found.verdict in ("unknown", "far")
    assert found.images is None
    worse = [Point(100, 10, 1000), Point(1000, 50, 1000)]
    assert answer(worse, fit(worse, draws=20), 0.99).verdict == "far"
    none = [Point(100, 0, 50), Point(1000, 0, 50)]
    assert answer(none, fit(none, draws=20), 0.99).verdict == "reached"


def test_accuracies_as_they_are_typed():
    assert read_accuracy("0.99") == read_accuracy("99%") == read_accuracy(" 99 %") == 0.99
    for text in ("99", "0", "100%", "x", "nan"):
        with pytest.raises(UserError, match="must be between 0 and 1"):
            read_accuracy(text)
