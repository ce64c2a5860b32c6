"""The rule of the verdict, on numbers that were computed by hand."""

from __future__ import annotations

import pytest

from effvit_train.budgets import Budget
from effvit_train.budgets import Verdict as Held
from effvit_train.check_command import Line
from effvit_train.paired import Table
from effvit_train.proportions import Z95
from effvit_train.verdict import (
    HOLD,
    PROMOTE,
    ROLL_BACK,
    Pair,
    Rule,
    corrected,
    decide,
    pair_of,
    signed_points,
)

SAME = Table(both=950, only_a=0, only_b=0, neither=50)  # of 1,000 images, all alike


def pair(name: str, table: Table) -> Pair:
    return pair_of(name, table, z=Z95)


def verdict(old: Pair | str, new: Pair | str, **more):
    given = {"groups": {}, "budgets": [], "rule": Rule(), **more}
    return decide(sets={"old": old, "new": new}, **given)


def line(value: float | None, limit: float, *, confident: bool = False, interval=None) -> Line:
    budget = Budget("cost/latency_ms", "<=", limit, f"cost/latency_ms<={limit:g}")
    met = value is not None and value <= limit
    return Line(
        Held(budget, value, met, "" if value is not None else "no clock"), interval, confident, "measure it"
    )


def test_a_pair_is_newcombes_interval_and_mcnemars_test():
    # 20 images right in A only, 8 in B only: by hand, p = 2 * sum(C(28, k), k <= 8) / 2^28 = 0.0357
    found = pair("old", Table(both=300, only_a=20, only_b=8, neither=32))
    assert (found.a, found.b, found.images) == (320 / 360, 308 / 360, 360)
    assert found.p_value == pytest.approx(0.0357, abs=5e-4)
    assert found.low < -12 / 360 < found.high < 0


def test_promoted_where_nothing_is_lost():
    word, findings = verdict(pair("old", SAME), pair("new", Table(800, 10, 150, 40)))
    assert word == PROMOTE
    assert findings[0].text.startswith("old test set: no worse, 95.0 % → 95.0 % (±0 pp")
    assert findings[1].text.startswith("new test set: better, 81.0 % → 95.0 % (+14 pp")


@pytest.mark.parametrize("which", ["old", "new"])
def test_rolled_back_where_the_whole_interval_is_beyond_the_tolerance(which):
    worse = pair(which, Table(800, 150, 10, 40))  # 95 % -> 81 %
    sets = {"old": pair("old", SAME), "new": pair("new", SAME), which: worse}
    word, findings = verdict(sets["old"], sets["new"])
    assert word == ROLL_BACK
    assert findings[0].kind == which
    assert "95.0 % → 81.0 % (−14 pp" in findings[0].text
    # the same loss is accepted by a wider tolerance
    assert verdict(sets["old"], sets["new"], rule=Rule(tolerance=0.2))[0] == PROMOTE


def test_held_where_too_few_images_decide():
    few = pair("old", Table(45, 2, 2, 1))
    word, findings = verdict(few, pair("new", SAME))
    assert word == HOLD
    # the half-width would have to shrink to the tolerance: n * (half / 0.02)^2
    needed = round(50 * (-few.low / 0.02) ** 2 + 0.5)
    assert findings[0].text.endswith(
        f"more than a loss of 2 pp cannot be excluded; about {needed:,} images would tell"
    )


def test_held_where_a_test_set_is_not_at_hand():
    word, findings = verdict("the folder is gone", pair("new", SAME))
    assert word == HOLD
    assert findings[0].text == "old test set: not tested (the folder is gone)"


def test_a_group_is_held_when_it_lost_more_than_chance_and_tolerance():
    lost = pair("light=night", Table(10, 15, 2, 3))  # 25 -> 12 of 30
    kept = pair("light=day", Table(250, 10, 9, 1))
    pairs = corrected([lost, kept])
    # Holm: the smaller p-value of two is doubled
    assert pairs[0].p_value == pytest.approx(2 * lost.p_value)
    word, findings = verdict(pair("old", SAME), pair("new", SAME), groups={"old": pairs})
    assert word == HOLD
    assert findings[0].text.startswith("light=night (old test set): worse, 83.3 % → 40.0 % (−43 pp")
    # 15 against 2 is no chance; with as many groups as make it one, it is let through
    many = corrected([lost, *[kept] * 40])
    assert verdict(pair("old", SAME), pair("new", SAME), groups={"old": many})[0] == PROMOTE
    # and so is a loss below the tolerance
    word, findings = verdict(
        pair("old", SAME), pair("new", SAME), groups={"old": pairs}, rule=Rule(tolerance=0.5)
    )
    assert word == PROMOTE
    assert "2 groups of the old test set: none worse beyond chance" in findings[-1].text


@pytest.mark.parametrize(("held", "word", "text"), [
    (line(4.0, 5), PROMOTE, "cost/latency_ms: 4.0 ms, budget <= 5.0 ms"),
    (line(6.0, 5), HOLD, "cost/latency_ms: 6.0 ms breaks the budget <= 5.0 ms"),
    (line(None, 5), HOLD, "cost/latency_ms: budget <= 5.0 ms and not measured: no clock; measure it"),
    (line(4.0, 5, confident=True, interval=(3.0, 6.0)), HOLD, "95 % interval 3.0 ms to 6.0 ms: met, but not surely"),
])  # fmt: skip
def test_budgets(held, word, text):
    found, findings = verdict(pair("old", SAME), pair("new", SAME), budgets=[held])
    assert found == word
    assert any(text in one.text for one in findings)


def test_new_classes_must_have_been_learnt():
    word, findings = verdict(pair("old", SAME), pair("new", SAME), added=["c"])
    assert word == HOLD
    assert findings[0].text.endswith("though the shipped model does not know c")
    assert verdict(pair("old", SAME), pair("new", Table(600, 0, 350, 50)), added=["c"])[0] == PROMOTE


def test_the_gravest_comes_first():
    worse = pair("old", Table(800, 150, 10, 40))
    word, findings = verdict(worse, pair("new", SAME), budgets=[line(6.0, 5)], missing=["x: not known"])
    assert word == ROLL_BACK
    assert [one.verdict for one in findings] == [ROLL_BACK, HOLD, HOLD, PROMOTE]


@pytest.mark.parametrize(("share", "text"), [
    (0.0, "±0"), (0.0004, "±0"), (0.123, "+12"), (-0.0312, "−3.1"), (0.02, "+2"),
])  # fmt: skip
def test_points(share, text):
    assert signed_points(share) == text
