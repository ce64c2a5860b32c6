"""Which page `effvit report` writes, where, and what it refuses."""

import json
import subprocess
import sys

import pytest
from made import make_run

from effvit_train import cli


def report(*arguments):
    cli.main(["report", *map(str, arguments)])


@pytest.fixture
def two(tmp_path):
    for name in "ab":
        make_run(tmp_path / "runs" / name, seed=ord(name), id=name, values={"cost/macs": 5.0})
    return tmp_path / "runs"


def files(path):
    return sorted(one.name for one in path.iterdir() if one.is_file())


PAGES = ["frontier.csv", "frontier.html", "frontier.json"]


def test_one_run_is_its_card_again(two):
    report(two / "a")
    assert (two / "a" / "card.html").is_file()
    assert not (two / "a" / "frontier.html").exists()


def test_two_runs_or_a_directory_are_one_page(two, tmp_path):
    report(two / "a", two / "b")
    assert files(two) == PAGES
    report(two, "--out", tmp_path / "new" / "place")
    assert files(tmp_path / "new" / "place") == PAGES
    assert not (two / "a" / "card.html").exists()


def test_one_run_with_a_budget_is_a_page(two):
    report(two / "a", "--budget", "cost/params<=10")
    assert (two / "a" / "frontier.html").is_file()


def test_cards_are_every_card_again(two, tmp_path):
    report("--cards", two)
    assert (two / "a" / "card.html").is_file()
    assert (two / "b" / "card.html").is_file()
    report("--cards", two / "a", two / "b", "--out", tmp_path / "cards")
    assert files(tmp_path / "cards") == ["x-a.html", "x-b.html"]
    assert not (two / "frontier.html").exists()


def test_x_is_the_first_cost_that_runs_have(two):
    report(two)
    assert json.loads((two / "frontier.json").read_text())["objectives"][0]["key"] == "cost/latency_ms"
    for name in "ab":
        card = json.loads((two / name / "card.json").read_text())
        card["measures"]["cost/latency_ms"] = None
        card["missing"]["cost/latency_ms"] = "no clock"
        (two / name / "card.json").write_text(json.dumps(card))
    report(two, "--y", "accuracy", "--y", "nll")
    keys = [one["key"] for one in json.loads((two / "frontier.json").read_text())["objectives"]]
    assert keys == ["cost/macs", "quality/accuracy", "quality/nll"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--x", "latency"], "--x=latency: is no measure; did you mean 'latency_ms'?"),
        (["--y", "cost/latency_ms"], "--y=cost/latency_ms: is an objective twice"),
        (["--budget", "privacy/epsilon=8"], "must be a measure, one of <= >= < >, and a number"),
        (["--language", "ja"], "--language: only --summary has languages; add --summary"),
        (["--summary", "--language", "fr"], "--language=fr: must be one of en, ja, both; e.g. --language ja"),
        (["--cards", "--x", "macs"], "--cards: renders cards"),
        (["--summary", "--wandb"], "--wandb: goes with the frontier page"),
    ],
)
def test_what_is_refused_in_one_line(arguments, says, two, capfd):
    with pytest.raises(SystemExit) as caught:
        report(two, *arguments)
    assert caught.value.code == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert says in line
    assert files(two) == []


def test_no_run_and_no_place(two, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for arguments, says in (
        ([tmp_path / "empty"], "no finished run at or below"),
        ([tmp_path / "nowhere"], "nowhere is no directory"),
        ([two, "--out", tmp_path / "file"], "cannot be written"),
        (["--cards", tmp_path / "empty"], "no card at"),
    ):
        with pytest.raises(SystemExit) as caught:
            report(*arguments)
        assert caught.value.code == 2
        assert says in capfd.readouterr().err


def test_what_was_left_out_is_told(two, capsys):
    make_run(two / "c", fast_dev_run=True)
    report(two)
    assert "left out: 1 run of a single batch" in capsys.readouterr().out
    assert "left out: 1 of a single batch" in (two / "frontier.html").read_text()


def test_wandb_gets_the_table_and_the_chart_offline(two, capsys):
    report(two, "--wandb-project", "mine")
    assert f"W&B: {two / 'wandb'}" in capsys.readouterr().out
    (log,) = (two / "wandb").glob("offline-run-*")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)], capture_output=True,
        check=True, timeout=60,
    )  # fmt: skip
    summary = json.loads(done.stdout)["summary"]
    assert summary["frontier/runs"]["nrows"] == 2
    table = json.loads(next((log / "files" / "media" / "table" / "frontier").glob("runs_*.json")).read_text())
    row = dict(zip(table["columns"], table["data"][0], strict=True))
    assert row["cost/macs"] == 5.0
    assert row["on_front"] is True
    assert any(key.startswith("frontier/chart") for key in summary)
