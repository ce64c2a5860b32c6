"""When cuts are made, how much each leaves, and what is refused."""

from __future__ import annotations

import math

import pytest

from effvit_train.compress.prune.config import PruneConfig, TargetConfig
from effvit_train.compress.prune.schedule import left, positions
from effvit_train.errors import UserError
from effvit_train.moment import Moment

# --- schedule ----------------------------------------------------------------------------------


def test_cuts_are_evenly_spread():
    assert positions(1.0, 5.0, 5, one_shot=False) == [1, 2, 3, 4, 5]
    assert positions(0.0, 3.0, 3, one_shot=False) == [0, 1.5, 3]
    assert positions(2.0, 2.5, 2, one_shot=False) == [2, 2.5]
    assert positions(2.0, 9.0, 1, one_shot=False) == [2]
    assert positions(2.0, 9.0, 8, one_shot=True) == [2]
    assert positions(2.0, 2.0, 8, one_shot=False) == [2]
    found = positions(0.3, 7.7, 8, one_shot=False)
    assert (found[0], len(found)) == (0.3, 8)
    assert found[-1] == pytest.approx(7.7, abs=1e-12)


def test_what_is_left_after_each_cut_by_hand():
    # to a half in four cuts: s_t = s_f + (s_i - s_f) (1 - t)^3 of the sparsity, eq. 1 of Zhu and Gupta 2017
    cubic = [left(0.5, done, 4, schedule="cubic") for done in range(5)]
    assert cubic == [1, 0.5 + 0.5 * 27 / 64, 0.5 + 0.5 / 8, 0.5 + 0.5 / 64, 0.5]
    assert [left(0.5, done, 4, schedule="linear") for done in range(5)] == [1, 0.875, 0.75, 0.625, 0.5]
    assert left(0.2, 1, 1, schedule="one_shot") == 0.2


def test_the_cubic_schedule_is_the_papers():
    final, total = 0.7, 10  # sparsity
    for t in range(total + 1):
        sparsity = final + (0.0 - final) * (1 - (t - 0) / (total * 1)) ** 3
        assert 1 - left(1 - final, t, total, schedule="cubic") == pytest.approx(sparsity, abs=1e-12)


@pytest.mark.parametrize("schedule", ["cubic", "linear"])
def test_cuts_only_take_away_and_end_at_the_target(schedule):
    for target in (0.05, 0.5, 1.0):
        found = [left(target, done, 7, schedule=schedule) for done in range(8)]
        assert found == sorted(found, reverse=True)
        assert (found[0], found[-1]) == (1, target)


# --- moments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value", "unit", "epochs"),
    [
        (0.1, 0.1, "fraction", 3.0),
        (0, 0.0, "fraction", 0.0),
        ("10epochs", 10, "epoch", 10.0),
        ("1epoch", 1, "epoch", 1.0),
        ("3 epochs", 3, "epoch", 3.0),
        ("500steps", 500, "step", 12.5),
        ("1step", 1, "step", 0.025),
    ],
)
def test_a_moment_is_read(text, value, unit, epochs):
    moment = Moment.read(text, key="k")
    assert (moment.value, moment.unit) == (value, unit)
    assert moment.in_epochs(30, 40) == pytest.approx(epochs)


@pytest.mark.parametrize(
    "value",
    [1.0, 1, -0.1, "10", "0.1", "abc", True, False, None, "10 apples", "-1epochs", "1.5epochs", "epochs",
     math.nan, math.inf, [0.1]],
)  # fmt: skip
def test_other_moments_are_refused(value):
    with pytest.raises(UserError, match=r"compress\.prune\.start"):
        Moment.read(value, key="compress.prune.start")


# --- what is refused ---------------------------------------------------------------------------


def test_the_defaults_are_valid():
    PruneConfig().validate()
    for start, end in ((0.2, 0.2), ("5epochs", "5epochs"), (0.9, "3epochs"), ("100steps", "2epochs")):
        PruneConfig(start=start, end=end).validate()  # different units: only the training can tell
    PruneConfig(start=0.6, end=0.5, schedule="one_shot").validate()  # has no end
    PruneConfig(target=TargetConfig(macs=1.0, params=1e-3, latency_ms=0.5)).validate()


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("kinds", {"kinds": ["heads", "layers"]}),
        ("kinds", {"kinds": ["mlp", "heads", "mlp"]}),
        ("kinds", {"kinds": []}),
        ("kinds", {"kinds": None}),
        ("kinds", {"kinds": "neurons"}),
        ("kinds", {"kinds": [1]}),
        ("importance", {"importance": "gradient"}),
        ("norm", {"norm": "l3"}),
        ("allot", {"allot": "evenly"}),
        ("round_to", {"round_to": 0}),
        ("round_to", {"round_to": -8}),
        ("schedule", {"schedule": "exponential"}),
        ("cuts", {"cuts": 0}),
        ("calibration", {"calibration": 0}),
        ("compensate", {"compensate": "median"}),
        ("start", {"start": 1.0}),
        ("start", {"start": "soon"}),
        ("end", {"end": "10"}),
        ("end", {"start": 0.5, "end": 0.1}),
        ("end", {"start": "5epochs", "end": "4epochs"}),
        ("end", {"start": "5steps", "end": "4steps"}),
        ("target.macs", {"target": TargetConfig(macs=0)}),
        ("target.macs", {"target": TargetConfig(macs=1.5)}),
        ("target.macs", {"target": TargetConfig(macs=-0.5)}),
        ("target.macs", {"target": TargetConfig(macs=math.nan)}),
        ("target.params", {"target": TargetConfig(params=0.0)}),
        ("target.params", {"target": TargetConfig(params=2)}),
        ("target.latency_ms", {"target": TargetConfig(latency_ms=0)}),
        ("target.latency_ms", {"target": TargetConfig(latency_ms=-1)}),
        ("target.latency_ms", {"target": TargetConfig(latency_ms=math.inf)}),
        ("target.latency_ms", {"target": TargetConfig(latency_ms=math.nan)}),
    ],
)
def test_wrong_values_are_refused_with_their_key(key, values):
    with pytest.raises(UserError) as caught:
        PruneConfig(**values).validate()
    assert caught.value.key == f"compress.prune.{key}"
    line = str(caught.value)
    assert line.startswith(f"compress.prune.{key}=")
    assert caught.value.remedy
    assert "\n" not in line


def test_a_near_miss_gets_a_hint():
    with pytest.raises(UserError, match="did you mean 'heads'"):
        PruneConfig(kinds=["head"]).validate()
    with pytest.raises(UserError, match="did you mean 'hessian'"):
        PruneConfig(importance="hesian").validate()


def test_one_kind_needs_no_list():
    config = PruneConfig(kinds="mlp")
    config.validate()
    assert config.kinds == ["mlp"]


def test_what_follows_from_the_values():
    assert PruneConfig().targets == {"macs": 0.5}
    assert PruneConfig(target=TargetConfig(params=0.3)).targets == {"params": 0.3}
    both = PruneConfig(target=TargetConfig(macs=0.4, latency_ms=2.0))
    assert both.targets == {"macs": 0.4, "latency_ms": 2.0}
    for importance, fill_in, reads in (
        ("magnitude", "none", False), ("random", "none", False), ("taylor", "none", True),
        ("hessian", "none", True), ("variance", "mean", True),
    ):  # fmt: skip
        config = PruneConfig(importance=importance)
        assert (config.fill_in, config.reads_data) == (fill_in, reads)
    assert PruneConfig(importance="variance", compensate="none").fill_in == "none"
    assert PruneConfig(importance="magnitude", compensate="least_squares").reads_data
