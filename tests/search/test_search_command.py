"""The whole command: what it refuses before anything is written, and a real search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driving import exit_code

FAST = (
    "model.args.depth=1", "model.args.embed_dim=16", "model.args.num_heads=2", "audit=none", "logger=none",
    "trainer.max_epochs=1",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["recipe.lrr=1e-3"], "error: recipe.lrr: unknown key; did you mean recipe.lr?"),
        (["recipe.lrr=1e-3,1e-2"], "error: recipe.lrr: unknown key; did you mean recipe.lr?"),
        (["model=vit_ti,vit_x"], "error: model=vit_x: must be one of "),
        (["recipe.lr=-1"], "error: recipe.lr=-1.0: must be positive"),
        (["sweep.space.model.args.depth=3"], "error: sweep.space.model.args.depth=3: must be {choices:"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, words, line):
    assert exit_code(tmp_path, monkeypatch, "sweep=pareto", *words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert len(shown.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_storage_that_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    words = ("sweep=pareto", "sweep.storage=nosuch://host/x", "run_dir=study")
    assert exit_code(tmp_path, monkeypatch, *words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: sweep.storage=nosuch://host/x: cannot be used (")
    assert len(shown.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_without_optuna_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert exit_code(tmp_path, monkeypatch, "sweep=pareto") == 2
    line = "error: sweep: needs Optuna, which is not installed; pip install 'effvit_train[search]'\n"
    assert capsys.readouterr().err == line
    assert not list(tmp_path.iterdir())


def test_a_directory_that_holds_a_run_is_still_resumed_as_a_run(tmp_path, monkeypatch, capsys):
    assert exit_code(tmp_path, monkeypatch, f"resume={tmp_path}") == 2
    assert "is not a run directory" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_a_real_search_under_privacy(train_py, tmp_path):
    words = ("recipe.lr=1e-3,2e-3", "privacy=dp_sgd", "privacy.epsilon=3", *FAST)
    done = train_py("sweep=pareto", "sweep.trials=2", "sweep.workers=2", "run_dir=study", *words)
    assert done.returncode == 0, done.stderr + done.stdout
    study = json.loads((tmp_path / "study" / "study.json").read_text())
    cards = [json.loads((tmp_path / "study" / str(n) / "card.json").read_text()) for n in range(2)]
    assert [row["state"] for row in study["trials"]] == ["complete", "complete"]
    for row, card in zip(study["trials"], cards, strict=True):
        assert row["values"]["cost/macs"] == card["measures"]["cost/macs"]
        assert card["run"]["overrides"][: len(FAST) + 2] == [*words[1:]]
        assert not any(word.startswith("sweep") for word in card["run"]["overrides"])
        last = (tmp_path / "study" / str(row["number"]) / "metrics.csv").read_text().splitlines()
        told = dict(zip(last[0].split(","), last[-1].split(","), strict=True))
        assert row["values"]["quality/accuracy"] == float(told["val/accuracy"])
    spent = sum(card["measures"]["privacy/epsilon"] for card in cards)
    assert study["privacy"]["epsilon"] == pytest.approx(spent, rel=1e-12)
    assert 0 < spent <= 6
    assert f"all 2 private trials together spent epsilon <= {spent:.4g}" in done.stdout
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "study").glob("*/card.json")}
    again = train_py("sweep=pareto", "run_dir=study")
    assert again.returncode == 0, again.stderr
    assert "2 of 2 trials: 2 complete" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds processes in /proc")
def test_a_search_that_is_stopped_goes_on_and_a_killed_worker_is_replaced(tmp_path):
    command = [
        sys.executable,
        str(Path(__file__).resolve().parents[2] / "train.py"),
        "sweep=pareto",
        "run_dir=study",
    ]
    words = ["sweep.trials=1", "recipe.lr=1e-3,2e-3", "compress=none", *FAST, "trainer.max_epochs=60"]
    run = tmp_path / "study" / "0"

    def start(name, *more):
        with open(tmp_path / name, "w") as file:
            return subprocess.Popen([*command, *more], cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT)

    def epochs() -> int:
        return (
            len((run / "metrics.csv").read_text().splitlines()) - 1 if (run / "metrics.csv").exists() else 0
        )

    def wait(process, count):
        while epochs() < count:
            assert process.poll() is None
            time.sleep(0.05)

    first = start("first", *words)
    wait(first, 1)
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=120) == 130
    assert "to go on: python train.py sweep=pareto run_dir=" in (tmp_path / "first").read_text()
    assert json.loads((run / "state.json").read_text())["status"] == "interrupted"
    second = start("second")
    wait(second, epochs() + 1)
    workers = [child for child in children(second.pid) if children(child)]
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    assert second.wait(timeout=240) == 0, (tmp_path / "second").read_text()
    shown = (tmp_path / "second").read_text()
    assert "worker 0 was killed (SIGKILL); another takes its place" in shown
    assert "1 of 1 trials: 1 complete" in shown
    assert epochs() == 60
    assert json.loads((run / "state.json").read_text())["resumes"] == 1  # the training itself was not touched
