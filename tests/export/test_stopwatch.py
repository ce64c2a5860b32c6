"""Races: everyone has the same turns, and ratios are of turns in the same round."""

from __future__ import annotations

import pytest

from effvit_train.export.rows import MEASURED, merged, row
from effvit_train.stopwatch import median, race, ratio


def test_everyone_has_a_turn_in_every_round_and_the_first_rotates():
    calls: list[str] = []
    times = race({name: lambda name=name: calls.append(name) for name in "abc"}, runs=6, budget=10)
    # once each to begin with; then six rounds of one warm-up and one timed run each
    order = ["abc", "bca", "cab"] * 2
    assert calls == [*"abc", *(name for turn in order for name in turn for _ in range(2))]
    assert {name: [len(turn) for turn in turns] for name, turns in times.items()} == dict.fromkeys(
        "abc", [1] * 6
    )


def test_rounds_are_at_most_ten_and_the_runs_are_shared_among_them():
    times = race({"a": lambda: None}, runs=25, budget=10)
    assert [len(turn) for turn in times["a"]] == [3] * 10  # the next whole number of runs in each round


def test_without_time_three_rounds_are_made():
    assert len(race({"a": lambda: None}, runs=100, budget=0)["a"]) == 3


def test_a_ratio_is_the_median_over_rounds():
    # of the rounds' medians: 2/1, 4/2, 30/3 -> 2, 2, 10
    times = {"slow": [[1, 2, 3], [4], [30]], "fast": [[1], [2], [3]]}
    assert ratio(times, "slow", "fast") == 2
    assert ratio(times, "fast", "slow") == pytest.approx(0.5)
    assert median([1, 2, 3, 10]) == 2.5


def test_rows_take_the_place_of_their_like():
    one = {"runtime": "a", "precision": "fp32", "device": "d", "threads": 1, "made_by": "x", "n": 1}
    two, other = {**one, "n": 2}, {**one, "threads": 2}
    assert merged(None, [one]) == [one]
    assert merged([one, other], [two]) == [two, other]
    assert merged([one, "nonsense"], [other]) == [one, other]


def test_a_null_needs_a_reason():
    values = dict.fromkeys(MEASURED, 1.0)
    assert row({"file": "f"}, values, {"accuracy": "unused"}) == {"file": "f", **values, "missing": {}}
    made = row({}, {**values, "energy_j": None}, {"energy_j": "no counter"})
    assert (made["energy_j"], made["missing"]) == (None, {"energy_j": "no counter"})
    with pytest.raises(ValueError, match=r"null without a reason: energy_j"):
        row({}, {**values, "energy_j": None}, {})
