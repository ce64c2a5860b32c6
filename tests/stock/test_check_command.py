"""The gate: a line for each budget, unmeasured is not met, and the exit code says it all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made import make_run

from effvit_train import cli
from effvit_train.card import Card
from effvit_train.check_command import check, read_budgets
from effvit_train.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def checked(capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    with pytest.raises(SystemExit) as caught:
        check([str(argument) for argument in arguments])
    return caught.value.code, capsys.readouterr().out


def as_process(*arguments: str) -> subprocess.CompletedProcess:
    code = """
import sys
from effvit_train.cli import main
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""
    return subprocess.run(
        [sys.executable, "-c", code, "check", *map(str, arguments)], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"},
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """98 of 100 test images right, 3.5 ms."""
    labels = [k % 3 for k in range(100)]
    predicted = [(label + (k < 2)) % 3 for k, label in enumerate(labels)]
    return make_run(
        tmp_path / "r",
        labels=labels,
        predicted=predicted,
        values={"cost/latency_ms": 3.5, "cost/macs": 1.26e9},
    )


def test_exit_codes_as_a_process_and_no_torch(run, tmp_path):
    met = as_process(run, "--budget", "accuracy>=98%", "--budget", "cost/latency_ms<=5")
    assert met.returncode == 0, met.stderr
    lines = met.stdout.splitlines()
    assert len(lines) == 4  # the run, two budgets, a summary: a narrow terminal breaks none
    assert lines[1].split()[:5] == ["pass", "quality/accuracy", "98.0", "%", ">="]
    assert "95 % interval 93.0 % to 99.4 %" in lines[1]  # Wilson of 98 of 100
    assert lines[3] == "all 2 met"
    failed = as_process(run, "--budget", "cost/latency_ms<=3,cost/macs<=2G")
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[1].split()[:4] == ["FAIL", "cost/latency_ms", "3.5", "ms"]
    assert failed.stdout.splitlines()[-1] == "1 of 2 met"
    wrong = as_process(run, "--budget", "cost/latncy<=3")
    assert wrong.returncode == 2
    assert "did you mean 'cost/latency_ms'" in wrong.stderr
    assert as_process(tmp_path / "nowhere", "--budget", "accuracy>=0").returncode == 2
    assert "no budget is given" in as_process(run).stderr
    assert as_process("--help").returncode == 0


def test_unmeasured_is_failed_and_says_how_to_measure(run, capsys):
    code, out = checked(capsys, run, "--budget", "privacy/epsilon<=8,robustness/pgd_accuracy>=0.1")
    assert code == 1
    epsilon, pgd = out.splitlines()[1:3]
    assert epsilon.startswith("FAIL  privacy/epsilon")
    assert "not measured: not measured; train with privacy=dp_sgd" in epsilon
    assert f"effvit audit {run} audit=full" in pgd


def test_confident_asks_the_worse_end_of_the_interval(run, capsys):
    card = Card.read(run / "card.json")
    card.measures["calibration/ece"] = 0.02
    card.provenance["audit"] = {
        "calibration": {"intervals": {"calibration/ece": [0.01, 0.04]}, "images": 100}
    }
    card.write(run / "card.json")
    budgets = (
        "--budget",
        "accuracy>=95%",
        "--budget",
        "calibration/ece<=3%",
        "--budget",
        "cost/latency_ms<=5",
    )
    assert checked(capsys, run, *budgets)[0] == 0
    code, out = checked(capsys, run, *budgets, "--confident")
    assert code == 1
    accuracy, ece, latency = out.splitlines()[1:4]
    assert accuracy.startswith("FAIL")  # 93.0 is below 95
    assert "met, but not surely" in accuracy
    assert ece.startswith("FAIL")  # 4 is above 3
    assert latency.startswith("pass")
    assert "no interval is known" in latency
    assert checked(capsys, run, "--budget", "accuracy>=92%,calibration/ece<=4%", "--confident")[0] == 0


def test_a_value_that_prints_like_its_limit_is_told_in_full(run, capsys):
    _, out = checked(capsys, run, "--budget", "cost/latency_ms<3.49")
    assert "3.5 " in out
    assert ">= 98.0 %" in checked(capsys, run, "--budget", "accuracy>=0.98001")[1]
    assert " 0.98 " in checked(capsys, run, "--budget", "accuracy>=0.98001")[1]


def test_several_runs_and_runs_that_tell_nothing(run, tmp_path, capsys):
    make_run(tmp_path / "s", values={"cost/latency_ms": 9.0})
    code, out = checked(capsys, tmp_path, "--budget", "cost/latency_ms<=5", "--json")
    told = json.loads(out)
    assert code == 1
    assert not told["passed"]
    assert {Path(one["run_dir"]).name: one["passed"] for one in told["runs"]} == {"r": True, "s": False}
    (line,) = told["runs"][0]["budgets"]
    assert (line["key"], line["sign"], line["limit"], line["reason"]) == ("cost/latency_ms", "<=", 5.0, None)
    # a run that died is no run that passed
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "state.json").write_text("{}")
    code, out = checked(capsys, run, tmp_path / "t", "--budget", "cost/latency_ms<=5")
    assert code == 1
    assert "has no card yet" in out
    make_run(tmp_path / "u", fast_dev_run=True)
    assert checked(capsys, run, tmp_path / "u", "--budget", "cost/latency_ms<=5")[0] == 1


def test_budget_files(tmp_path, run, capsys):
    expected = [("quality/accuracy", ">=", 0.9), ("cost/latency_ms", "<=", 5.0)]
    for name, text in (
        ("a.txt", "# gate\naccuracy>=90%\n\ncost/latency_ms<=5  # ms\n"),
        ("b.yaml", "- accuracy>=90%\n- cost/latency_ms<=5\n"),
        ("c.yml", "budgets:\n  quality/accuracy: '>=90%'\n  cost/latency_ms: <=5\n"),
    ):
        (tmp_path / name).write_text(text)
        found = read_budgets(tmp_path / name)
        assert [(one.key, one.sign, one.limit) for one in found] == expected, name
    assert checked(capsys, run, "--file", tmp_path / "b.yaml")[0] == 0
    assert checked(capsys, run, "--file", tmp_path / "b.yaml", "--budget", "cost/latency_ms<=1")[0] == 1
    for name, text, says in (
        ("d.yaml", "3", "neither a list"), ("e.yaml", "- [", "is not YAML"), ("f.txt", "# none\n", "holds no budget"),
        ("g.txt", "accuracy 9\n", "must be a measure"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=says):
            read_budgets(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_budgets(tmp_path / "none.txt")


def test_the_command_is_wired(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "effvit check" in capsys.readouterr().out
