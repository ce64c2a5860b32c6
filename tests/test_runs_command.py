"""`effvit runs`: every kind of run in one table, and commands that go on with those that did not end."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from driving import SMALL, interrupted_run, run_in

from effvit_train import cli, runs_command
from effvit_train.card import Card, Measured
from effvit_train.curves import write_rows
from effvit_train.lock import RunLock
from effvit_train.runs import RunDir, RunState
from effvit_train.runs_command import age, find

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)


def make(path: Path, status: str, *, minutes: int, epochs: int = 0, accuracies=(), card: float | None = None):
    """A run directory as a process leaves it, begun some minutes ago."""
    run = RunDir(path)
    started = (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat(timespec="seconds")
    RunState(status, "id", started, epochs=epochs).write(run.state)
    run.config.parent.mkdir()
    run.config.write_text("trainer:\n  max_epochs: 9\n  fast_dev_run: false\n")
    if accuracies:
        rows = [{"epoch": str(k), "val/accuracy": text} for k, text in enumerate(accuracies, start=1)]
        write_rows(run.metrics, rows)
    if card is not None:
        measured = Measured({"quality/accuracy": card})
        Card.of(run={}, model={}, measured=measured, provenance={}).write(run.card)
    return path


@pytest.fixture
def several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["effvit"])
    make(Path("runs/a/one"), "done", minutes=600, epochs=9, accuracies=("0.5", "0.75"), card=0.9375)
    make(Path("runs/a/sweep/0"), "interrupted", minutes=50, epochs=1, accuracies=("0.25", "0.5", ""))
    make(Path("runs/a/sweep/1"), "running", minutes=40)
    make(Path("runs/b with space"), "failed", minutes=30, epochs=4)
    (tmp_path / "runs" / "c").mkdir()
    (tmp_path / "runs" / "c" / "state.json").write_text("{")
    return tmp_path


def test_each_run_is_told_as_it_is(several):
    with RunLock(several / "runs" / "a" / "sweep" / "1"):
        found = {run.run_dir: run for run in find([Path("runs")])}
    assert {name: run.status for name, run in found.items()} == {
        "runs/c": "unreadable", "runs/a/one": "done", "runs/a/sweep/0": "interrupted",
        "runs/a/sweep/1": "running", "runs/b with space": "failed",
    }  # fmt: skip
    assert list(found) == [
        "runs/c",
        "runs/a/one",
        "runs/a/sweep/0",
        "runs/a/sweep/1",
        "runs/b with space",
    ]  # oldest first
    one, sweep = found["runs/a/one"], found["runs/a/sweep/0"]
    assert (one.accuracy, one.split, one.resume) == (0.9375, "test", None)
    assert (sweep.accuracy, sweep.split, sweep.epoch, sweep.max_epochs) == (0.5, "val", 3, 9)
    assert sweep.resume == "effvit train resume=runs/a/sweep/0"
    assert found["runs/b with space"].resume == "effvit train resume='runs/b with space'"
    assert found["runs/b with space"].epoch == 4  # no curves: what the state tells
    assert found["runs/a/sweep/1"].resume is None


def test_a_process_that_died_is_not_running(several):
    (run,) = find([several / "runs" / "a" / "sweep" / "1"])
    assert run.status == "killed"
    assert run.resume is not None


def test_the_table(several, capsys):
    cli.main(["runs"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "status", "epoch", "accuracy", "age"]
    assert lines[2].split() == ["runs/a/one", "done", "2/9", "0.938", "test", "10h"]
    assert lines[3].split() == ["runs/a/sweep/0", "interrupted", "3/9", "0.500", "val", "50m"]
    assert lines[-4:] == [
        "to go on:",
        "  effvit train resume=runs/a/sweep/0",
        "  effvit train resume=runs/a/sweep/1",
        "  effvit train resume='runs/b with space'",
    ]


def test_only_some_and_as_json(several, capsys):
    cli.main(["runs", "runs/a", "--status", "done,killed", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [(run["run_dir"], run["status"]) for run in found] == [
        ("runs/a/one", "done"),
        ("runs/a/sweep/1", "killed"),
    ]
    assert found[0]["accuracy"] == 0.9375


def test_a_run_below_two_of_the_directories_is_told_once(several):
    assert len(find([Path("runs"), Path("runs/a"), Path("runs/a/one")])) == 5


def test_none_is_no_error_and_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["runs"])
    assert capsys.readouterr().out == "no runs below runs\n"
    for arguments, line in (
        (["nowhere"], "error: nowhere is no directory"),
        (["--status", "stopped"], "error: --status=stopped: must be of running, done, interrupted"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(["runs", *arguments])
        assert caught.value.code == 2
        assert capsys.readouterr().err.startswith(line)


def test_it_needs_no_torch(several, monkeypatch):
    import subprocess

    code = "import sys; from effvit_train import cli; cli.main(['runs']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172799, "47h"), (172800, "2d")],
)
def test_age(seconds, text):
    assert age((NOW - timedelta(seconds=seconds)).isoformat(), NOW) == text


def test_what_it_prints_goes_on_with_a_real_run(tmp_path, monkeypatch, no_probe, capsys):
    arguments = (*SMALL, "trainer.max_epochs=2", "logger=none")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 50, *arguments) == 130
    capsys.readouterr()
    cli.main(["runs"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:3] == ["interrupted", "1/2"]
    program, _, argument = lines[-1].strip().rpartition(" ")
    assert program == "python train.py"
    run_in(tmp_path, monkeypatch, argument)
    capsys.readouterr()
    cli.main(["runs", "--status", "done"])
    assert capsys.readouterr().out.splitlines()[1].split()[1:3] == ["done", "2/2"]
    assert runs_command.find([Path("runs")])[0].resumes == 1
