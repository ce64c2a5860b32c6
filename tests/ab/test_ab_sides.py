"""Which runs stand on which side."""

from __future__ import annotations

import pytest
from made import make_run

from effvit_train.errors import UserError
from effvit_train.report.ab.sides import choose

LABELS = [0, 1, 2, 0]


def run(path, seed=0, **more):
    return make_run(path, seed=seed, labels=LABELS, predicted=LABELS, curves=False, **more)


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """`compress=none,distill seed=1,2,3`, begun in this order."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        compress = ["distill"] if number >= 3 else []
        run(
            tmp_path / "sweep" / str(number), seed=number % 3 + 1, compress=compress,
            started=f"2026-11-24T02:0{number}:00+00:00", overrides=[f"compress={'distill' if compress else 'none'}"],
        )  # fmt: skip
    return tmp_path / "sweep"


def told(sides):
    return [(side.name, side.label, side.seeds) for side in sides]


def test_two_runs(sweep):
    assert told(choose("sweep/0", "sweep/3")) == [
        ("A", "vit_micro plain", [1]),
        ("B", "vit_micro distill", [1]),
    ]
    assert told(choose("sweep/3", "sweep/1")) == [
        ("A", "vit_micro distill", [1]),
        ("B", "vit_micro plain", [2]),
    ]


def test_several_runs_a_side_by_commas(sweep):
    a, b = choose("sweep/2,sweep/0,sweep/1", "sweep/4, sweep/5,sweep/3")
    assert (a.seeds, b.seeds) == ([1, 2, 3], [1, 2, 3])
    assert [entry.run_dir.name for entry in b.entries] == ["3", "4", "5"]


def test_a_sweep_of_two_arms_is_both_sides(sweep):
    both = told(choose("sweep", None))
    assert both == [("A", "vit_micro plain", [1, 2, 3]), ("B", "vit_micro distill", [1, 2, 3])]
    assert told(choose("sweep", None, arm_a="distill"))[0][1] == "vit_micro distill"
    assert told(choose("sweep", None, arm_b="distill")) == both


def test_two_of_several_arms(sweep):
    run(sweep / "6", compress=["distill", "prune"], started="2026-12-01")
    run(
        sweep / "7",
        compress=["prune"],
        started="2026-12-02",
        overrides=["compress.prune.importance=magnitude"],
    )
    with pytest.raises(UserError, match=r"sweep holds 4 arms \('vit_micro plain', .*--a ARM --b ARM"):
        choose("sweep", None)
    a, b = choose("sweep", None, arm_a="distill", arm_b="magnitude")
    assert (a.label, len(a.entries), len(b.entries)) == ("vit_micro distill", 3, 1)
    with pytest.raises(UserError, match=r"--a=vit_micro: fits 4 arms"):
        choose("sweep", None, arm_a="vit_micro", arm_b="plain")
    with pytest.raises(UserError, match=r"--b=cut: is no arm of sweep; it holds 4 arms"):
        choose("sweep", None, arm_a="plain", arm_b="cut")
    with pytest.raises(UserError, match=r"sweep holds 4 arms .*choose with --a 'vit_micro plain'"):
        choose("sweep", "sweep/0")
    assert choose("sweep", "sweep/0", arm_a="distill")[0].label == "vit_micro distill"


def test_the_same_settings_are_told_apart_by_their_seeds(sweep):
    assert [side.label for side in choose("sweep/0", "sweep/1,sweep/2")] == [
        "vit_micro plain seed 1", "vit_micro plain seeds 2, 3",
    ]  # fmt: skip
    run(sweep.parent / "again", seed=1, overrides=["compress=none"])
    assert [side.label for side in choose("sweep/0", "again")] == [
        "vit_micro plain sweep/0", "vit_micro plain again",
    ]  # fmt: skip


def test_no_side_or_the_same_run_twice(sweep):
    with pytest.raises(UserError, match=r"sweep/0 stands on both sides"):
        choose("sweep/0", "sweep/0")
    with pytest.raises(UserError, match=r"sweep/0 holds one arm only, .*give a second directory"):
        choose("sweep/0", None)
    with pytest.raises(UserError, match=r"nowhere is no directory"):
        choose("sweep/0", "nowhere")


def test_private_runs_are_no_pairs(sweep):
    for seed in (1, 2):
        run(sweep.parent / "dp" / str(seed), seed=seed, privacy="dp_sgd", overrides=["privacy=dp_sgd"])
    assert [side.private for side in choose("sweep/0", "dp")] == [False, True]


def test_labels_tell_data_apart_by_their_content(sweep):
    run(sweep.parent / "other", fingerprint="pixels:abcdef0123")
    run(sweep.parent / "third", fingerprint="pixels:123456abcd")
    assert [side.label for side in choose("other", "third")] == [
        "vit_micro plain data abcdef", "vit_micro plain data 123456",
    ]  # fmt: skip
