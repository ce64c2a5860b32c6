"""A disk that fills up: training goes on with the checkpoint before; at the end one line and exit 1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from driving import SMALL, exit_code, run_in
from test_resume import RANDOM, result

from effvit_train import checkpoint_file, checkpoints
from effvit_train.curves import Curves

ROOM = 2 << 20  # bytes: a run of the small model takes about 0.4 MB, W&B's files included


@pytest.fixture
def disk(tmp_path):
    """A file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip()}")
    yield path
    os.chdir(tmp_path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path) -> None:
    with open(disk / "filler", "ab") as file:
        for size in (1 << 16, 1 << 8, 1):
            try:
                while True:
                    os.write(file.fileno(), b"\0" * size)
            except OSError:
                continue
    free = os.statvfs(disk)
    assert free.f_bavail == 0


def empty(disk: Path) -> None:
    (disk / "filler").unlink()


def at_steps(monkeypatch, **actions) -> None:
    """Call `actions["at_<n>"]` after step n, before anything is saved there."""
    original = Curves.on_train_batch_end

    def hooked(self, trainer, *args):
        original(self, trainer, *args)
        action = actions.get(f"at_{trainer.global_step}")
        if action is not None:
            action()

    monkeypatch.setattr(Curves, "on_train_batch_end", hooked)


@pytest.fixture
def saves_often(monkeypatch):
    """A checkpoint after every step, also right after one that failed."""
    monkeypatch.setattr(checkpoints, "_RETRY", 0.0)
    return "trainer.checkpoint_every=0.0001s"


def test_a_disk_that_is_full_for_a_while_costs_a_warning(
    disk, tmp_path, monkeypatch, no_probe, capfd, saves_often
):
    run_in(tmp_path, monkeypatch, *RANDOM, "run_dir=whole")
    at_steps(monkeypatch, at_5=lambda: fill(disk), at_12=lambda: empty(disk))
    capfd.readouterr()
    run_in(disk, monkeypatch, *RANDOM, saves_often, "run_dir=run")
    out, err = capfd.readouterr()
    assert (
        "checkpoint of step 5 not written (No space left on device): step 4's is kept; training goes on"
        in out
    )
    assert "checkpoint of step 11 not written" in out
    assert "checkpoint of step 12 not written" not in out
    assert out.count("metrics.csv not written (No space left on device); training goes on") == 1
    assert "Traceback" not in out + err
    assert result(disk / "run") == result(tmp_path / "whole")
    assert json.loads((disk / "run" / "state.json").read_text())["status"] == "done"
    assert checkpoint_file.read(disk / "run" / "checkpoints" / "last.ckpt")["position"]["step"] == 27


def test_a_disk_that_is_full_at_the_end_ends_with_one_line_and_resumes_when_there_is_room(
    disk, tmp_path, monkeypatch, no_probe, capfd, saves_often
):
    run_in(tmp_path, monkeypatch, *RANDOM, "run_dir=whole")
    with monkeypatch.context() as patch:
        at_steps(patch, at_14=lambda: fill(disk))
        capfd.readouterr()
        assert exit_code(disk, patch, *RANDOM, saves_often, "run_dir=run") == 1
    out, err = capfd.readouterr()
    (line,) = err.strip().splitlines()
    assert line == (
        f"error: {disk}/run/model.safetensors could not be written (No space left on device); "
        f"make room, then: python train.py resume={disk}/run"
    )
    assert "Traceback" not in out
    assert not list((disk / "run").rglob("*.tmp"))
    assert not (disk / "run" / "card.json").exists()
    for name in ("last.ckpt", "previous.ckpt"):
        found = checkpoint_file.read(disk / "run" / "checkpoints" / name)["position"]["step"]
        assert found == {"last.ckpt": 13, "previous.ckpt": 12}[name]
    assert exit_code(disk, monkeypatch, "resume=run") == 1  # still full
    assert "make room" in capfd.readouterr().err
    empty(disk)
    run_in(disk, monkeypatch, "resume=run")
    assert result(disk / "run") == result(tmp_path / "whole")


def test_a_last_checkpoint_that_could_not_be_written_is_what_the_run_ends_with(
    disk, monkeypatch, no_probe, capfd
):
    """Everything else fits, as the model is smaller than its checkpoint."""
    write = checkpoint_file.write

    def fails_at_the_end(checkpoint, path, previous=None):
        if checkpoint["position"]["epochs"] == 2:
            raise OSError(28, "No space left on device", str(path))
        write(checkpoint, path, previous)

    arguments = (*SMALL, "trainer.max_epochs=2", "logger=none", "run_dir=run")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_file, "write", fails_at_the_end)
        assert exit_code(disk, patch, *arguments) == 1
    assert "checkpoints/last.ckpt could not be written" in capfd.readouterr().err
    assert json.loads((disk / "run" / "state.json").read_text())["status"] == "failed"
    run_in(disk, monkeypatch, "resume=run")
    assert json.loads((disk / "run" / "state.json").read_text())["status"] == "done"


@pytest.mark.long
def test_a_process_that_logs_to_wandb_says_no_more_than_that(disk):
    """A real process: W&B writes to the same disk, from processes and threads of its own."""
    train = str(Path(checkpoint_file.__file__).parents[1] / "train.py")
    command = [sys.executable, train, *SMALL, "run_dir=run", "trainer.max_epochs=30",
               "trainer.checkpoint_every=0.1s"]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=disk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "WANDB_MODE": "offline"},
    )  # fmt: skip
    while not (disk / "run" / "checkpoints" / "previous.ckpt").exists():
        assert process.poll() is None
    fill(disk)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1, out + err
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: {disk}/run/")
    assert "could not be written (No space left on device); make room, then: " in line
    assert "training goes on" in out
    checkpoint_file.read(disk / "run" / "checkpoints" / "last.ckpt")
