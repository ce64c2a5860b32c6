"""Which run is chosen to compare with."""

import os

import pytest

from effvit_train.card import Card
from effvit_train.report.baseline import find_baseline


def find(path):
    return find_baseline(path, Card.read(path / "card.json"))


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


def touch(path, stamp):
    os.utime(path / "card.json", (stamp, stamp))
    return path


def test_uncompressed_run_is_its_own_baseline(runs, run):
    run(runs / "x" / "1")
    found = find(run(runs / "x" / "2"))
    assert found.card is None
    assert found.run_dir is None
    assert "itself uncompressed" in found.reason


def test_same_seed_before_the_newest(runs, run):
    mine = run(runs / "x" / "me", compress=["distill"], seed=1)
    touch(run(runs / "x" / "a", seed=0), 3000)
    right = touch(run(runs / "x" / "b", seed=1), 2000)
    touch(run(runs / "x" / "c", seed=1), 1000)
    found = find(mine)
    assert found.run_dir == right
    assert found.reason == ""


def test_newest_among_other_seeds_and_the_seed_is_named(runs, run):
    mine = run(runs / "x" / "me", compress=["distill"], seed=7)
    touch(run(runs / "x" / "a", seed=1), 1000)
    right = touch(run(runs / "x" / "b", seed=2), 2000)
    found = find(mine)
    assert found.run_dir == right
    assert "seed 2 instead of 7" in found.reason


def test_same_recipe_before_the_same_seed(runs, run):
    mine = run(runs / "x" / "me", compress=["distill"], seed=1, overrides=["compress=distill", "seed=1"])
    run(runs / "x" / "a", seed=1, overrides=["recipe.lr=1.0", "seed=1"])
    right = run(runs / "x" / "b", seed=2, overrides=["seed=2", "logger.enabled=false"])
    assert find(mine).run_dir == right


def test_another_recipe_is_named(runs, run):
    mine = run(runs / "x" / "me", compress=["distill"], overrides=["compress=distill"])
    run(runs / "x" / "a", overrides=["recipe.lr=1.0"])
    assert "recipe.lr=1.0" in find(mine).reason


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"compress": ["distill"]}, "no uncompressed run"),
        ({"kwargs": {"depth": 6}}, "no uncompressed run"),
        ({"cuts": [{"block": 0}]}, "no uncompressed run"),
        ({"classes": ("a", "b")}, "no uncompressed run"),
        ({"privacy": "dp_sgd"}, "no uncompressed run"),
        ({"fingerprint": "0" * 64}, "has other data or another split"),
        ({"epochs": 5}, "has 5 epochs, not 3"),
        ({"fast_dev_run": True}, "saw one batch only"),
    ],
)
def test_what_does_not_compare_is_left_out(runs, run, other, reason):
    run(runs / "x" / "a", **other)
    found = find(run(runs / "x" / "me", compress=["distill"]))
    assert found.card is None
    assert reason in found.reason


def test_sweep_jobs_and_other_names_are_found_below_runs(runs, run):
    mine = run(runs / "sweep" / "2026" / "1", compress=["distill"])
    right = run(runs / "other" / "2025" / "0")
    assert find(mine).run_dir == right
    nearer = run(runs / "sweep" / "2026" / "0")
    touch(right, 1000)
    assert find(mine).run_dir == nearer


def test_without_runs_looks_beside_the_run(tmp_path, run):
    mine = run(tmp_path / "d" / "me", compress=["distill"])
    run(tmp_path / "elsewhere")
    assert find(mine).card is None
    right = run(tmp_path / "d" / "a")
    assert find(mine).run_dir == right


def test_damaged_cards_and_missing_records_are_passed_over(runs, run):
    mine = run(runs / "x" / "me", compress=["distill"])
    (run(runs / "x" / "a") / "card.json").write_text("{")
    (run(runs / "x" / "b") / "model.json").unlink()
    assert find(mine).card is None
    (mine / "model.json").unlink()
    assert "model.json" in find(mine).reason


def test_directories_inside_a_run_are_not_searched(runs, run):
    mine = run(runs / "x" / "me", compress=["distill"])
    run(runs / "x" / "me" / "checkpoints" / "old")
    assert find(mine).card is None
