"""Many cards at once, what one can afford, and which runs are the same but for the seed."""

import pytest
from made import make_run

from effvit_train.arms import arms
from effvit_train.budgets import judge, parse_budgets
from effvit_train.card import Card
from effvit_train.collect import collect
from effvit_train.errors import UserError


def test_runs_below_a_directory_once_each_and_what_is_left_out_is_told(tmp_path):
    make_run(tmp_path / "sweep" / "1", started="2026-01-02")
    make_run(tmp_path / "sweep" / "0", started="2026-01-01")
    make_run(tmp_path / "sweep" / "2", fast_dev_run=True)
    (tmp_path / "sweep" / "3").mkdir()
    (tmp_path / "sweep" / "3" / "state.json").write_text("{}")
    (tmp_path / "sweep" / "4").mkdir()
    (tmp_path / "sweep" / "4" / "card.json").write_text("{}")
    said = []
    found = collect([tmp_path, tmp_path / "sweep" / "0"], say=said.append)
    assert [entry.run_dir.name for entry in found.entries] == ["0", "1"]
    assert [path.name for path in found.unfinished] == ["3"]
    assert [path.name for path in found.trials] == ["2"]
    assert len(said) == 3
    assert "4/card.json is not a card" in said[0]
    with pytest.raises(UserError, match=r"no finished run at or below .*single batch"):
        collect([tmp_path / "sweep" / "2"])
    with pytest.raises(UserError, match="nowhere is no directory"):
        collect([tmp_path / "nowhere"])


def test_budgets(tmp_path):
    budgets = parse_budgets(["cost/latency_ms<=5,accuracy >= 98%", "cost/macs<1.5G", "privacy/epsilon<=8"])
    assert [(b.key, b.sign, b.limit) for b in budgets] == [
        ("cost/latency_ms", "<=", 5.0), ("quality/accuracy", ">=", 0.98), ("cost/macs", "<", 1.5e9),
        ("privacy/epsilon", "<=", 8.0),
    ]  # fmt: skip
    card = Card.read(
        make_run(tmp_path / "r", values={"cost/latency_ms": 5.0, "cost/macs": 1.5e9}) / "card.json"
    )
    assert [verdict.met for verdict in judge(card, budgets)] == [True, False, False, False]
    assert judge(card, budgets)[3].reason == "not measured"
    for text, says in (
        ("cost/latency<=5", "is no measure; did you mean 'cost/latency_ms'"),
        ("cost/latency_ms=5", "must be a measure, one of <= >= < >"),
        ("latency_msx<=5", "did you mean 'latency_ms'"),
    ):
        with pytest.raises(UserError, match=says):
            parse_budgets([text])


def test_arms_are_runs_that_differ_in_the_seed_only(tmp_path):
    own = ["compress=[prune]", "compress.prune.target.macs=0.5", "recipe.lr=0.01"]
    for number, (seed, compress, overrides) in enumerate([
        (1, [], ["recipe.lr=0.01", "seed=1"]), (2, [], ["recipe.lr=0.01", "logger=none", "seed=2"]),
        (2, [], ["seed=2", "recipe.lr=0.01", "run_dir=x"]), (1, ["prune"], [*own, "seed=1"]),
        (1, [], ["recipe.lr=0.02"]),
    ]):  # fmt: skip
        accuracy = {"quality/accuracy": 0.5 + number / 10}
        make_run(
            tmp_path / str(number), seed=seed, compress=compress, overrides=overrides, values=accuracy,
            started=f"2026-01-0{number + 1}",
        )  # fmt: skip
    found = arms(collect([tmp_path]).entries)
    assert [[entry.run_dir.name for entry in arm.entries] for arm in found] == [["0", "2"], ["3"], ["4"]]
    assert [arm.label for arm in found] == [
        "vit_micro plain recipe.lr=0.01", "vit_micro prune target.macs=0.5 recipe.lr=0.01",
        "vit_micro plain recipe.lr=0.02",
    ]  # fmt: skip
    assert found[0].values("quality/accuracy") == [0.5, 0.7]
    assert found[0].mean("quality/accuracy") == 0.6
    assert found[0].sd("quality/accuracy") == pytest.approx(0.2 / 2**0.5)
    assert found[1].sd("quality/accuracy") is None
    assert found[1].settings.without("prune") == found[0].settings


def test_private_runs_with_one_seed_are_different_runs(tmp_path):
    for name in "ab":
        make_run(tmp_path / name, privacy="dp_sgd", overrides=["privacy=dp_sgd"])
    (arm,) = arms(collect([tmp_path]).entries)
    assert len(arm.entries) == 2
    assert arm.settings.techniques == ("dp_sgd",)
