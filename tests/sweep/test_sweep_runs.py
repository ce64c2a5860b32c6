"""Sweeps that train: one job after the other, several at once, stopped, and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driving import SMALL, exit_code, interrupted_run, run_in

from effvit_train import cli
from effvit_train.sweep.plan import Sweep
from effvit_train.sweep.status import look

ROOT = Path(__file__).resolve().parents[2]
SHORT_TEACHER = ("compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1")
QUICK = (*SMALL, "trainer=cpu", "trainer.max_epochs=1", "audit=none", "logger=none")


def statuses(sweep: Path) -> list[str]:
    return [row.status for row in look(Sweep.read(sweep))]


def process(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "train.py"), "-m", *QUICK, *arguments]
    return subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_job_that_fails_does_not_end_the_others(tmp_path, monkeypatch, no_probe, capfd):
    code = exit_code(
        tmp_path, monkeypatch, "-m", *QUICK, "seed=1", "model.weights=nofile.pt,null", "run_dir=s"
    )
    assert code == 2
    assert statuses(tmp_path / "s") == ["failed", "done"]
    told = capfd.readouterr()
    line = "nofile.pt: no such file; give a file of weights"
    assert line in told.err
    assert f"job 0: model.weights={tmp_path / line}" in told.out
    assert told.out.rstrip().endswith("to go on with what is not done:  effvit sweep retry s")
    run = json.loads((tmp_path / "s" / "0" / "state.json").read_text())
    assert run["error"] == f"model.weights={tmp_path / line}"
    # the record of the other is that of a run of its own
    state = json.loads((tmp_path / "s" / "1" / "state.json").read_text())
    assert (state["resumes"], state["model"], state["error"]) == (0, "vit_micro", None)


def test_what_cannot_be_is_told_before_anything_starts(tmp_path, monkeypatch, no_probe, capfd):
    assert exit_code(tmp_path, monkeypatch, "-m", *QUICK, "recipe.lr=-1,0.001", "run_dir=s") == 2
    told = capfd.readouterr().out
    refused = "job 0 cannot be: recipe.lr=-1.0: must be positive; e.g. recipe.lr=0.001"
    assert told.index(refused) < told.index("job 1 (1 of 1)")
    assert statuses(tmp_path / "s") == ["failed", "done"]
    assert not (tmp_path / "s" / "0").exists()


@pytest.mark.parametrize("launcher", ["serial", "parallel", "slurm"])
def test_a_sweep_in_which_no_job_can_be_leaves_nothing(tmp_path, monkeypatch, capfd, launcher):
    monkeypatch.setattr("effvit_train.sweep.cluster.check_installed", lambda: None)
    assert exit_code(tmp_path, monkeypatch, "-m", f"hydra/launcher={launcher}", "recipe.lr=-1,-2") == 2
    assert capfd.readouterr().err == "error: recipe.lr=-1.0: must be positive; e.g. recipe.lr=0.001\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("hydra/launcher=paralel", "must be one of basic, parallel, serial, slurm; did you mean 'parallel'?"),
        ("hydra.launcher.jobs=2", "hydra.launcher.jobs: unknown key"),
        (
            "compress.prune.dry_run=true",
            "compress.prune.dry_run=true: shows what would be done, of one model",
        ),
        (
            "trainer.devices=2",
            "trainer.devices=2: several processes cannot be started from a sweep in this process",
        ),
    ],
)
def test_a_wrong_launch_is_one_line(tmp_path, monkeypatch, capfd, override, line):
    arguments = ["compress=prune"] if "prune" in override else []
    assert exit_code(tmp_path, monkeypatch, "-m", "seed=1,2", *arguments, override) == 2
    told = capfd.readouterr().err
    assert line in told
    assert len(told.splitlines()) == 1


def test_without_slurm_or_submitit_one_line_says_so(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert exit_code(tmp_path, monkeypatch, "-m", "hydra/launcher=slurm", "seed=1,2") == 2
    assert "there is no Slurm on this machine" in capfd.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert exit_code(tmp_path, monkeypatch, "-m", "hydra/launcher=slurm", "seed=1,2") == 2
    assert "pip install 'effvit_train[slurm]'" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.long
def test_a_serial_sweep_that_was_stopped_goes_on_with_what_is_not_done(
    tmp_path, monkeypatch, no_probe, capfd
):
    """The first job is stopped in its second epoch, the second never began; both end as if nothing had been."""
    several = (*QUICK, "trainer.max_epochs=3", "trainer.num_threads=1", "seed=1,2")
    run_in(tmp_path, monkeypatch, "-m", *several, "run_dir=whole")
    assert (
        interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 60, "-m", *several, "run_dir=s") == 130
    )
    assert statuses(tmp_path / "s") == ["interrupted", "not started"]
    assert "interrupted; to go on: effvit sweep retry s" in capfd.readouterr().out
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "retry", "s"])
    assert ended.value.code == 0
    assert statuses(tmp_path / "s") == ["done", "done"]
    for job in ("0", "1"):
        for file in ("model.safetensors", "metrics.csv"):
            assert (tmp_path / "s" / job / file).read_bytes() == (
                tmp_path / "whole" / job / file
            ).read_bytes()
    capfd.readouterr()
    cli.main(["sweep", "retry", "s"])
    assert "has no job to go on with" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.long
def test_parallel_jobs_share_a_teacher_and_have_runs_of_their_own(tmp_path):
    done = process(
        tmp_path, "hydra/launcher=parallel", "hydra.launcher.jobs=2", "logger=wandb", "compress=distill", "seed=1,2",
        *SHORT_TEACHER, f"cache_dir={tmp_path / 'cache'}", "run_dir=s",
    )  # fmt: skip
    told, _ = done.communicate(timeout=300)
    assert done.returncode == 0, told
    assert "2 at once, CPU threads each: 1" in told
    logs = [(tmp_path / "s" / "logs" / f"{job}.log").read_text() for job in (0, 1)]
    assert sorted(
        ("training" in log.split("first; kept in")[0]) and "first; kept in" in log for log in logs
    ) == [False, True]
    assert sorted("trained before" in log for log in logs) == [False, True]
    assert len(list((tmp_path / "cache").rglob("card.json"))) == 1
    ids = [json.loads((tmp_path / "s" / job / "state.json").read_text())["id"] for job in ("0", "1")]
    found = [path.name.rpartition("-")[2] for path in sorted((tmp_path / "s").glob("*/wandb/offline-run-*"))]
    assert found == ids
    for job in ("0", "1"):
        assert "num_threads: 1\n" in (tmp_path / "s" / job / ".hydra" / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.long
def test_a_parallel_sweep_that_is_stopped_saves_all(tmp_path):
    sweep = tmp_path / "s"
    launched = process(tmp_path, "hydra/launcher=parallel", "hydra.launcher.jobs=2", "seed=1,2,3",
                       "trainer.max_epochs=1000", "trainer.checkpoint_every=1epoch", "run_dir=s")  # fmt: skip

    def training(job: int) -> bool:
        file = sweep / str(job) / "state.json"
        return file.exists() and json.loads(file.read_text())["epochs"] > 0

    end = time.monotonic() + 200
    while not (training(0) and training(1)):
        assert time.monotonic() < end
        time.sleep(0.1)
    os.kill(launched.pid, signal.SIGTERM)
    told, _ = launched.communicate(timeout=200)
    assert launched.returncode == 130, told
    assert statuses(sweep) == ["interrupted", "interrupted", "not started"]
    assert all((sweep / job / "checkpoints" / "last.ckpt").exists() for job in ("0", "1"))
    assert "to go on: effvit sweep retry s" in told
