"""A run that was stopped ends with the same bytes as one that was not, wherever it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from driving import SMALL, curves, data_of, exit_code, interrupted_run, run_in

from effvit_train import checkpoint_file, job, measuring
from effvit_train.card import Measured
from effvit_train.lock import RunLock
from effvit_train.runs import versions

# 3 epochs of 9 steps, with everything on that draws at random
BATCHES, EPOCHS = 9, 3
RANDOM = (
    *SMALL, "recipe.batch_size=128", f"trainer.max_epochs={EPOCHS}", "logger=none", "recipe.mixup=0.5", "recipe.cutmix=0.5",
    "recipe.ema=0.9", "recipe.erasing=0.3", "model.drop_path_rate=0.1", "model.drop_rate=0.1",
    "recipe.randaugment=rand-m9-mstd0.5-inc1", "dataset.num_workers=0",
)  # fmt: skip
FILES = ("model.safetensors", "metrics.csv")


def result(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FILES]


def state(run: Path) -> dict:
    return json.loads((run / "state.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing stopped."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
        run_in(directory, patch, *RANDOM, "run_dir=run")
    return directory / "run"


@pytest.mark.parametrize(
    ("hook", "count", "position"),
    [
        ("on_train_batch_end", 1, (0, 1)),
        ("on_train_batch_end", BATCHES - 1, (0, BATCHES - 1)),
        ("on_train_batch_end", BATCHES, (0, BATCHES)),  # the validation is still to be run
        ("on_train_batch_end", BATCHES + 1, (1, 1)),
        ("on_train_batch_end", 2 * BATCHES + 5, (2, 5)),
        ("on_validation_batch_end", 2, (1, BATCHES)),  # and here it is run again
        ("on_train_epoch_end", 1, (1, 0)),
        ("on_train_epoch_end", EPOCHS, (EPOCHS, 0)),  # all is trained, nothing is measured
    ],
)
def test_wherever_it_is_stopped(hook, count, position, whole, tmp_path, monkeypatch, no_probe):
    assert interrupted_run(tmp_path, monkeypatch, hook, count, *RANDOM, "run_dir=run") == 130
    run = tmp_path / "run"
    found = checkpoint_file.read(run / "checkpoints" / "last.ckpt")["position"]
    assert (found["epochs"], found["batches"]) == position
    assert found["step"] == position[0] * BATCHES + position[1]
    assert (state(run)["status"], state(run)["epochs"]) == ("interrupted", position[0])
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(run) == result(whole)
    assert (state(run)["status"], state(run)["resumes"]) == ("done", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("trainer.precision=bf16-mixed",),
        ("compress=distill", "compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1"),
        ("recipe.optimizer=sgd", "recipe.schedule=constant"),
        ("trainer.limit_train_batches=5", "trainer.check_val_every_n_epoch=3"),
        ("recipe.tune=lora", "recipe.lora_rank=4"),
    ],
)
def test_whatever_is_trained(arguments, tmp_path, monkeypatch, no_probe):
    arguments = (*RANDOM, *arguments)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole", "cache_dir=cache-whole")
    arguments = (*arguments, "run_dir=run", "cache_dir=cache")
    calls = 12 if "compress=distill" not in arguments else 48  # the teacher's 39 steps come first
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", calls, *arguments) == 130
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_run_that_is_stopped_while_its_teacher_is_trained_goes_on_with_the_teacher(
    tmp_path, monkeypatch, no_probe, capfd
):
    arguments = (*RANDOM, "compress=distill", "compress.distill.trained.max_epochs=2",
                 "compress.distill.trained.min_steps=1")  # fmt: skip
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole", "cache_dir=cache-whole")
    arguments = (*arguments, "run_dir=run", "cache_dir=cache")
    capfd.readouterr()
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 50, *arguments) == 130
    assert f"to go on: python train.py resume={tmp_path / 'run'}" in capfd.readouterr().out
    (teacher,) = (tmp_path / "cache" / "teachers").glob("*/state.json")
    assert state(teacher.parent)["status"] == "interrupted"
    run_in(tmp_path, monkeypatch, "resume=run")
    assert "going on from step 50" in capfd.readouterr().out
    assert state(teacher.parent)["status"] == "done"
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    (other,) = (tmp_path / "cache-whole" / "teachers").glob("*/model.safetensors")
    assert (teacher.parent / "model.safetensors").read_bytes() == other.read_bytes()


def test_stopped_again_and_again_with_other_numbers_of_workers(whole, tmp_path, monkeypatch, no_probe):
    run = tmp_path / "run"
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 4, *RANDOM, "run_dir=run") == 130
    for workers in (1, 2):
        arguments = ("resume=run", f"dataset.num_workers={workers}")
        assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 8, *arguments) == 130
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(run) == result(whole)
    assert state(run)["resumes"] == 3


def test_a_damaged_checkpoint_costs_time_and_nothing_else(whole, tmp_path, monkeypatch, no_probe, capfd):
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 13, *RANDOM, "run_dir=run") == 130
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    run_in(tmp_path, monkeypatch, "resume=run")
    said = capfd.readouterr().out
    assert "checkpoint last.ckpt is cut short or was changed" in said
    assert "going on from step" in said
    assert "previous.ckpt)" in said or "best.ckpt)" in said
    assert result(tmp_path / "run") == result(whole)


@pytest.mark.parametrize(
    ("every", "wanted"),
    [("2epochs", {(2, 0), (4, 0)}), ("1d", {(4, 0)}), ("0.0001s", {(k // 9, k % 9) for k in range(1, 37)})],
)
def test_when_it_is_saved(every, wanted, tmp_path, monkeypatch, no_probe):
    saved = []
    write = checkpoint_file.write

    def noted(checkpoint, path, previous=None):
        saved.append((checkpoint["position"]["epochs"], checkpoint["position"]["batches"]))
        write(checkpoint, path, previous)

    monkeypatch.setattr(checkpoint_file, "write", noted)
    arguments = (*SMALL, "recipe.batch_size=128", "trainer.max_epochs=4", "logger=none", "run_dir=run")
    run_in(tmp_path, monkeypatch, *arguments, f"trainer.checkpoint_every={every}")
    accuracies = [float(row["val/accuracy"]) for row in curves(tmp_path / "run")]
    best = {(k + 1, 0) for k in range(4) if accuracies[k] > max([-1.0, *accuracies[:k]])}
    assert saved == sorted(wanted | best)


def test_epochs_without_validation(tmp_path, monkeypatch, no_probe):
    arguments = (
        *SMALL,
        "recipe.batch_size=128",
        "trainer.max_epochs=4",
        "trainer.check_val_every_n_epoch=2",
        "logger=none",
    )
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    for count in (BATCHES, BATCHES + 1, 2 * BATCHES):
        assert (
            interrupted_run(
                tmp_path, monkeypatch, "on_train_batch_end", count, *arguments, f"run_dir=r{count}"
            )
            == 130
        )
        run_in(tmp_path, monkeypatch, f"resume=r{count}")
        assert result(tmp_path / f"r{count}") == result(tmp_path / "whole"), count


def test_a_finished_run_stays_as_it_is_until_it_is_to_be_longer(tmp_path, monkeypatch, no_probe, capfd):
    run_in(tmp_path, monkeypatch, *SMALL, "trainer.max_epochs=2", "logger=none", "run_dir=here")
    moved = tmp_path / "moved"
    (tmp_path / "here").rename(moved)
    before = (moved / "card.json").read_bytes()
    run_in(tmp_path, monkeypatch, f"resume={moved}")
    assert "nothing to do" in capfd.readouterr().out
    assert (moved / "card.json").read_bytes() == before
    run_in(tmp_path, monkeypatch, f"resume={moved}", "trainer.max_epochs=3")
    assert len(curves(moved)) == 3
    run_in(tmp_path, monkeypatch, f"resume={moved}")  # the longer training is the run's own now
    assert "(3 epochs): nothing to do" in capfd.readouterr().out
    assert exit_code(tmp_path, monkeypatch, f"resume={moved}", "recipe.lr=1") == 2
    assert exit_code(tmp_path, monkeypatch, f"resume={moved}", "trainer.max_epochs=2") == 2
    assert "trainer.max_epochs=2: 3 epochs are trained already; at least 3" in capfd.readouterr().err
    assert state(moved)["status"] == "done"


def test_it_keeps_its_name_and_model_and_finds_its_files_from_elsewhere(
    tmp_path, monkeypatch, no_probe, capfd
):
    arguments = ["dataset=synthetic", "dataset.num_samples=64", "model.name=test_vit", "recipe.batch_size=8",
                 "logger=none", "model.patch_size=8", "trainer.max_epochs=2", "run_dir=here"]  # fmt: skip
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 2, *arguments) == 130
    assert f"resume={tmp_path / 'here'}" in capfd.readouterr().out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_in(elsewhere, monkeypatch, f"resume={tmp_path / 'here'}")
    card = json.loads((tmp_path / "here" / "card.json").read_text())
    assert (card["run"]["name"], card["run"]["model"]) == ("synthetic-test_vit-plain", "test_vit")
    assert card["run"]["overrides"][0] == "dataset=synthetic"
    assert list(elsewhere.iterdir()) == []


def test_without_a_checkpoint_it_starts_again_in_place(whole, tmp_path, monkeypatch, no_probe, capfd):
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 2, *RANDOM, "run_dir=run") == 130
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    run_in(tmp_path, monkeypatch, "resume=run")
    assert "no checkpoint yet: the run starts again in its directory" in capfd.readouterr().out
    assert result(tmp_path / "run") == result(whole)


def test_other_data_are_refused_and_nothing_changes(tmp_path, monkeypatch, no_probe, capfd):
    root = tmp_path / "set"
    arguments = [
        *data_of("image_folder", root, monkeypatch),
        "dataset=image_folder",
        "recipe.batch_size=16",
        *SMALL,
    ]
    run_in(tmp_path, monkeypatch, *arguments, "trainer.max_epochs=1", "logger=none", "run_dir=run")
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    (root / "a" / "0.png").write_bytes((root / "a" / "1.png").read_bytes())
    assert exit_code(tmp_path, monkeypatch, "resume=run", "trainer.max_epochs=2") == 2
    assert "dataset.root: the data are not those" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == files


def test_what_the_promise_depends_on_is_compared(tmp_path, monkeypatch, no_probe, capfd):
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 2, *RANDOM, "run_dir=run") == 130
    file = tmp_path / "run" / "state.json"
    found = state(tmp_path / "run")
    found["environment"] |= {"torch": "2.0.0", "threads": 64}
    file.write_text(json.dumps(found))
    run_in(tmp_path, monkeypatch, "resume=run")
    changes = [f"threads 64 -> {torch.get_num_threads()}", f"torch 2.0.0 -> {versions()['torch']}"]
    assert f"not as it was: {', '.join(changes)}; the result may differ" in capfd.readouterr().out
    assert json.loads((tmp_path / "run" / "card.json").read_text())["provenance"]["changes"] == changes


def test_a_running_run_is_left_alone(tmp_path, monkeypatch, no_probe, capfd):
    run_in(tmp_path, monkeypatch, *SMALL, "trainer.max_epochs=1", "logger=none", "run_dir=run")
    with RunLock(tmp_path / "run"):
        before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
        assert exit_code(tmp_path, monkeypatch, "resume=run", "trainer.max_epochs=2") == 2
        assert f"run is running (process {os.getpid()} on this machine" in capfd.readouterr().err.replace(
            "run:", "run"
        )
        assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_new_run_never_takes_a_directory_that_holds_one(tmp_path, monkeypatch, no_probe, capfd):
    run_in(tmp_path, monkeypatch, *SMALL, "trainer.max_epochs=1", "logger=none", "run_dir=run")
    before = result(tmp_path / "run")
    for argument in ("run_dir=run", "hydra.run.dir=run"):
        assert exit_code(tmp_path, monkeypatch, *SMALL, argument) == 2
        assert "holds a run already; go on with resume=" in capfd.readouterr().err
    assert result(tmp_path / "run") == before


@pytest.mark.parametrize("lost", [0, 3])  # points that a kill kept from W&B's disk
def test_wandb_goes_on_in_the_same_run_without_a_point_twice(lost, tmp_path, monkeypatch, no_probe):
    logged: list[tuple[int, dict]] = []
    from effvit_train.report import tracking

    class Run:
        step = 0

        def log(self, values, step):
            assert step >= Run.step
            Run.step = step
            logged.append((step, values))

    def start(config, *, run_id, resumed, **_):
        ids.append((run_id, resumed))
        if resumed:
            del logged[len(logged) - lost :]
            Run.step = logged[-1][0] + 1  # as W&B: the last step that it knows is complete
        return tracking.Tracker(Run())  # type: ignore[arg-type]

    ids: list[tuple[str, bool]] = []
    monkeypatch.setattr(job, "start", start)
    monkeypatch.setattr(tracking.Tracker, "card", lambda self, card: None)
    monkeypatch.setattr(tracking.Tracker, "finish", lambda self, failed=False: None)
    arguments = [item for item in RANDOM if item != "logger=none"] + [
        "trainer.log_every_n_steps=2",
        "run_dir=run",
    ]
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 13, *arguments) == 130
    # as after a kill: points that the checkpoint does not know
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes((tmp_path / "run" / "checkpoints" / "previous.ckpt").read_bytes())
    run_in(tmp_path, monkeypatch, "resume=run")
    assert ids == [(state(tmp_path / "run")["id"], False), (state(tmp_path / "run")["id"], True)]
    points = [step for step, values in logged if "lr" in values]
    assert points == list(range(2, BATCHES * EPOCHS + 1, 2))
    epochs = [values["epoch"] for _, values in logged if "epoch" in values]
    assert epochs == [1, 2, 3]


def test_a_checkpoint_that_was_gone_on_from_is_not_lost_to_a_damaged_one(
    whole, tmp_path, monkeypatch, no_probe
):
    """The first save after going on from `previous` must not put the damaged `last` in its place."""
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 13, *RANDOM, "run_dir=run") == 130
    last, previous = (tmp_path / "run" / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    step = checkpoint_file.read(previous)["position"]["step"]
    last.write_bytes(last.read_bytes()[:-1])
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 1, "resume=run") == 130
    assert checkpoint_file.read(last)["position"]["step"] == step + 1
    assert checkpoint_file.read(previous)["position"]["step"] == step
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(tmp_path / "run") == result(whole)


def test_a_best_checkpoint_that_a_kill_came_before_is_made_up_for(tmp_path, monkeypatch, no_probe):
    arguments = (*RANDOM, "run_dir=run")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_epoch_end", 1, *arguments) == 130
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert checkpoint_file.read(best)["position"]["epochs"] == 1
    best.unlink()
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 1, "resume=run") == 130
    assert checkpoint_file.read(best)["position"]["epochs"] == 1


@pytest.mark.long
def test_two_processes(tmp_path):
    """Lightning's DDP on gloo, stopped by SIGTERM to the first process, as Slurm and Ctrl-C do to all."""
    arguments = (*RANDOM, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "audit=none",
                 "recipe.batch_size=64", "trainer.max_epochs=6", "trainer.checkpoint_every=0.01s")  # fmt: skip
    done = start(tmp_path, *arguments, "run_dir=whole")
    assert done.wait(timeout=300) == 0
    cut = start(tmp_path, *arguments, "run_dir=run")
    wait_for(cut, lambda: (tmp_path / "run" / "checkpoints" / "previous.ckpt").exists())
    cut.send_signal(signal.SIGTERM)
    assert cut.wait(timeout=120) == 130
    assert state(tmp_path / "run")["status"] == "interrupted"
    resumed = start(tmp_path, "resume=run")
    assert resumed.wait(timeout=300) == 0
    assert result(tmp_path / "run") == result(tmp_path / "whole")


@pytest.mark.slow
def test_killed_processes(tmp_path):
    """Three SIGKILLs, as scripts/bench/kill_resume.py does by the dozen."""
    script = Path(checkpoint_file.__file__).parents[1] / "scripts" / "bench" / "kill_resume.py"
    command = [
        sys.executable,
        str(script),
        "--kills",
        "3",
        "--small",
        "--epochs",
        "40",
        "--dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 x SIGKILL" in done.stdout
    assert (
        "model.safetensors EQUAL, metrics.csv EQUAL, quality EQUAL, matrix EQUAL, W&B order EQUAL"
        in done.stdout
    )


def start(directory: Path, *arguments: str) -> subprocess.Popen:
    train = str(Path(checkpoint_file.__file__).parents[1] / "train.py")
    return subprocess.Popen([sys.executable, train, *arguments], cwd=directory, stdout=subprocess.DEVNULL)


def wait_for(process: subprocess.Popen, condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.slow
def test_time_spent_before_a_kill_is_counted(tmp_path):
    """A real process, killed without warning."""
    process = start(tmp_path, *SMALL, "run_dir=run", "trainer.max_epochs=1000", "logger=none")
    file = tmp_path / "run" / "state.json"
    wait_for(process, lambda: file.exists() and state(tmp_path / "run")["epochs"] > 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = state(tmp_path / "run")
    assert found["status"] == "running"
    assert found["train_seconds"] > 0
    assert (
        found["epochs"]
        == checkpoint_file.read(tmp_path / "run" / "checkpoints" / "last.ckpt")["position"]["epochs"]
    )
