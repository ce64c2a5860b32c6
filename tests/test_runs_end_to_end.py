"""From the command to the card, as a user would: files, values, sweeps, teachers, resume."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import cifar_batches, write_idx
from safetensors.torch import load_file

import effvit_train
from effvit_train import cli, job
from effvit_train.card import MEASURES, Measured
from effvit_train.compose import GROUPS, group_options
from effvit_train.curves import Curves
from effvit_train.data import known

SHORT_TEACHER = ("compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1")
SMALL = (
    "trainer.progress_bar=false",
    "model.args.depth=1",
    "model.args.embed_dim=16",
    "model.args.num_heads=2",
)


def run_in(directory: Path, monkeypatch, *arguments: str) -> None:
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cli.train(list(arguments))


@pytest.fixture
def no_probe(monkeypatch):
    """Cost has tests of its own; here its fresh process would only take time."""
    monkeypatch.setattr(job, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))


def runs_in(directory: Path) -> list[Path]:
    return sorted(path.parent for path in directory.rglob("card.json"))


def curves(run: Path) -> list[dict[str, str]]:
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of the default command, shortened, as a process."""
    directory = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, str(Path(effvit_train.__file__).parents[1] / "train.py"), *SMALL, "trainer.max_epochs=3"],
        cwd=directory, capture_output=True, text=True, timeout=300, env={**os.environ, "WANDB_MODE": "offline"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = runs_in(directory)
    return done, run


def test_the_run_directory_holds_what_the_contract_says(finished):
    _, run = finished
    for name in ("card.json", "card.html", "metrics.csv", "model.safetensors", "model.json", "state.json",
                 "checkpoints/last.ckpt", "checkpoints/best.ckpt", ".hydra/config.yaml", ".hydra/overrides.yaml"):  # fmt: skip
        assert (run / name).is_file(), name
    assert list((run / "wandb").glob("offline-run-*"))
    assert json.loads((run / "state.json").read_text())["status"] == "done"
    assert not list(run.rglob("*.tmp"))


def test_the_card_has_every_key_measured_or_with_a_reason(finished):
    _, run = finished
    card = json.loads((run / "card.json").read_text())
    assert set(card) == {"schema", "run", "model", "measures", "missing", "provenance"}
    assert set(card["measures"]) == set(MEASURES)
    nulls = {key for key, value in card["measures"].items() if value is None}
    assert nulls == set(card["missing"])
    assert nulls <= {"cost/energy_j"}
    assert card["run"]["overrides"] == [*SMALL, "trainer.max_epochs=3"]
    assert card["provenance"]["dataset"]["counts"]["test"] == 360


def test_the_card_agrees_with_the_files_beside_it(finished):
    _, run = finished
    card = json.loads((run / "card.json").read_text())
    arrays = np.load(run / "predictions.npz")
    accuracy = float((arrays["logits"].argmax(1) == arrays["labels"]).mean())
    assert card["measures"]["quality/accuracy"] == pytest.approx(accuracy)
    weights = load_file(run / "model.safetensors")
    assert card["measures"]["cost/params"] == sum(tensor.numel() for tensor in weights.values())
    assert card["measures"]["cost/size_mb"] == (run / "model.safetensors").stat().st_size / 1e6
    assert len(curves(run)) == 3
    assert not any("time" in name or "second" in name for name in curves(run)[0])


def test_what_shipped_predicts_what_the_card_says(finished):
    from effvit_train.config import DatasetConfig
    from effvit_train.data.datamodule import DataModule

    _, run = finished
    record = json.loads((run / "model.json").read_text())
    model = effvit_train.load_model(run)
    data = DataModule(DatasetConfig(), batch_size=32, seed=0, cache_dir=run)
    arrays = np.load(run / "predictions.npz")
    position = {int(index): row for row, index in enumerate(arrays["index"])}
    for batch in data.test_dataloader():
        pixels = batch.images.float() / 255
        with torch.no_grad():
            logits = model((pixels - record["mean"][0]) / record["std"][0])
        expected = arrays["logits"][[position[int(i)] for i in batch.index]]
        assert np.allclose(logits.numpy(), expected, atol=1e-3)


def test_the_terminal_ends_with_the_card_its_path_and_the_next_command(finished):
    done, _ = finished
    lines = done.stdout.strip().splitlines()
    assert any("Accuracy" in line for line in lines)
    assert lines[-2].startswith("card: runs/")
    assert lines[-1].startswith("next: python train.py ")
    assert "compress=distill" in lines[-1]
    assert done.stderr == ""


def test_the_same_command_gives_the_same_curves_and_weights(tmp_path, monkeypatch, no_probe):
    arguments = [*SMALL, "trainer.max_epochs=2", "recipe.mixup=0.5", "recipe.erasing=0.3", "logger=none",
                 "model.drop_path_rate=0.1", "recipe.ema=0.9"]  # fmt: skip
    for name in ("a", "b"):
        run_in(tmp_path, monkeypatch, *arguments, f"run_dir={tmp_path / name}")
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == (tmp_path / "b" / "metrics.csv").read_bytes()
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (
        tmp_path / "b" / "model.safetensors"
    ).read_bytes()
    run_in(tmp_path, monkeypatch, *arguments, "seed=1", f"run_dir={tmp_path / 'c'}")
    assert (tmp_path / "a" / "metrics.csv").read_bytes() != (tmp_path / "c" / "metrics.csv").read_bytes()


def _stop_at(epoch: int):
    start = Curves.on_train_epoch_start

    def stop(self, trainer, module):
        start(self, trainer, module)
        if trainer.current_epoch == epoch:
            os.kill(os.getpid(), signal.SIGINT)

    return stop


def test_an_interrupted_run_resumes_to_the_same_result(tmp_path, monkeypatch, no_probe, capfd):
    arguments = [*SMALL, "trainer.max_epochs=4", "recipe.mixup=0.5", "recipe.ema=0.9", "logger=none"]
    run_in(tmp_path, monkeypatch, *arguments, f"run_dir={tmp_path / 'whole'}")

    write = Curves.on_train_epoch_start
    monkeypatch.setattr(Curves, "on_train_epoch_start", _stop_at(2))
    with pytest.raises(SystemExit) as caught:
        run_in(tmp_path, monkeypatch, *arguments, f"run_dir={tmp_path / 'cut'}")
    assert caught.value.code == 130
    assert f"resume={tmp_path / 'cut'}" in capfd.readouterr().out
    assert json.loads((tmp_path / "cut" / "state.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr(Curves, "on_train_epoch_start", write)
    moved = tmp_path / "moved"
    (tmp_path / "cut").rename(moved)
    run_in(tmp_path, monkeypatch, f"resume={moved}")
    for name in ("metrics.csv", "model.safetensors"):
        assert (moved / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    state = json.loads((moved / "state.json").read_text())
    assert (state["status"], state["resumes"], state["epochs"]) == ("done", 1, 4)
    before = (moved / "card.json").read_bytes()
    run_in(tmp_path, monkeypatch, f"resume={moved}")
    assert "nothing to do" in capfd.readouterr().out
    assert (moved / "card.json").read_bytes() == before
    run_in(tmp_path, monkeypatch, f"resume={moved}", "trainer.max_epochs=5")
    assert len(curves(moved)) == 5
    run_in(tmp_path, monkeypatch, f"resume={moved}")  # the longer training is the run's own now
    assert "(5 epochs): nothing to do" in capfd.readouterr().out
    with pytest.raises(SystemExit) as caught:
        run_in(tmp_path, monkeypatch, f"resume={moved}", "recipe.lr=1")
    assert caught.value.code == 2


def test_a_resumed_run_keeps_its_name_and_model_and_finds_its_files_from_elsewhere(
    tmp_path, monkeypatch, no_probe
):
    arguments = [
        "dataset=synthetic",
        "dataset.num_samples=64",
        "model.name=test_vit",
        "recipe.batch_size=8",
        "logger=none",
    ]
    monkeypatch.setattr(Curves, "on_train_epoch_start", _stop_at(1))
    with pytest.raises(SystemExit):
        run_in(
            tmp_path, monkeypatch, *arguments, "model.patch_size=8", "trainer.max_epochs=2", "run_dir=here"
        )
    monkeypatch.undo()
    monkeypatch.setattr(job, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_in(elsewhere, monkeypatch, f"resume={tmp_path / 'here'}")
    card = json.loads((tmp_path / "here" / "card.json").read_text())
    assert (card["run"]["name"], card["run"]["model"]) == ("synthetic-test_vit-plain", "test_vit")
    assert card["run"]["overrides"][0] == "dataset=synthetic"
    assert list(elsewhere.iterdir()) == []


def test_a_model_named_by_an_experiment_replaces_the_groups_arguments(tmp_path, monkeypatch, no_probe):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\nmodel:\n  name: test_vit\n  patch_size: 2\n"
    )
    run_in(tmp_path, monkeypatch, "--config-dir", str(tmp_path / "mine"), "experiment=own", "trainer.fast_dev_run=true",
           "logger=none", "model.patch_size=2", "run_dir=run")  # fmt: skip
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["run"]["model"] == "test_vit"
    assert "embed_dim" not in json.loads((tmp_path / "run" / "model.json").read_text())["kwargs"]


def test_checkpoints_are_never_older_than_the_best_epoch(tmp_path, monkeypatch, no_probe):
    run_in(
        tmp_path,
        monkeypatch,
        *SMALL,
        "trainer.max_epochs=6",
        "trainer.checkpoint_every=1d",
        "logger=none",
        "run_dir=run",
    )
    rows = curves(tmp_path / "run")
    best = max(range(6), key=lambda k: (float(rows[k]["val/accuracy"]), -k))
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == best
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 5


def test_rows_without_a_validation_are_empty_there(tmp_path, monkeypatch, no_probe):
    run_in(tmp_path, monkeypatch, *SMALL, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2", "logger=none",
           "run_dir=run")  # fmt: skip
    assert [bool(row["val/accuracy"]) for row in curves(tmp_path / "run")] == [False, True, False, True]


def test_a_sweep_makes_its_runs_and_trains_the_teacher_once(tmp_path, monkeypatch, no_probe, capfd):
    run_in(
        tmp_path, monkeypatch, "-m", "compress=none", "seed=1,2", *SMALL, "trainer.max_epochs=1", f"run_dir={tmp_path / 'runs' / 'plain'}",
    )  # fmt: skip
    run_in(
        tmp_path, monkeypatch, "-m", "compress=distill", "seed=1,2", *SMALL, "trainer.max_epochs=1",
        *SHORT_TEACHER, f"cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'runs' / 'taught'}",
    )  # fmt: skip
    cards = [json.loads((run / "card.json").read_text()) for run in runs_in(tmp_path / "runs")]
    assert [(card["run"]["compress"], card["run"]["seed"]) for card in cards] == [
        ([], 1), ([], 2), (["distill"], 1), (["distill"], 2),
    ]  # fmt: skip
    assert len({card["run"]["id"] for card in cards}) == 4
    wandb = [
        path.name.rpartition("-")[2] for path in (tmp_path / "runs").rglob("offline-run-*") if path.is_dir()
    ]
    assert sorted(wandb) == sorted(card["run"]["id"] for card in cards)
    teachers = runs_in(tmp_path / "cache")
    assert len(teachers) == 1
    teacher = json.loads((teachers[0] / "card.json").read_text())
    for card in cards[2:]:
        assert card["provenance"]["teacher"]["accuracy"] == teacher["measures"]["quality/accuracy"]
    assert "trained before" in capfd.readouterr().out
    columns = curves(runs_in(tmp_path / "runs")[2])[0]
    assert {"train/loss", "train/label", "train/distill"} <= set(columns)


def test_a_teacher_is_keyed_by_what_it_was_trained_on(tmp_path, monkeypatch, no_probe):
    for fraction in ("1.0", "0.5"):
        run_in(
            tmp_path, monkeypatch, "compress=distill", f"dataset.train_fraction={fraction}", *SMALL,
            "trainer.max_epochs=1", *SHORT_TEACHER, f"cache_dir={tmp_path / 'cache'}",
        )  # fmt: skip
    assert len(runs_in(tmp_path / "cache")) == 2


def test_the_teacher_never_enters_the_students_files(tmp_path, monkeypatch, no_probe):
    arguments = [*SMALL, "trainer.max_epochs=1", *SHORT_TEACHER, "logger=none"]
    run_in(tmp_path, monkeypatch, *arguments[:2], *arguments[2:4], "trainer.max_epochs=1", "logger=none",
           f"run_dir={tmp_path / 'plain'}")  # fmt: skip
    run_in(tmp_path, monkeypatch, "compress=distill", *arguments, f"run_dir={tmp_path / 'taught'}")

    def names(run):
        checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        return set(checkpoint["state_dict"]), set(load_file(run / "model.safetensors"))

    assert names(tmp_path / "plain") == names(tmp_path / "taught")


def test_a_run_of_ours_can_teach(tmp_path, monkeypatch, no_probe, finished):
    _, teacher = finished
    run_in(tmp_path, monkeypatch, "compress=distill", f"compress.distill.teacher={teacher}", *SMALL,
           "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}")  # fmt: skip
    found = json.loads((tmp_path / "run" / "card.json").read_text())["provenance"]["teacher"]
    assert found["run_dir"] == str(teacher)
    accuracy = json.loads((teacher / "card.json").read_text())["measures"]["quality/accuracy"]
    assert found["accuracy"] == accuracy


def test_a_timm_model_with_a_weights_file_can_teach(tmp_path, monkeypatch, no_probe):
    import timm

    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    torch.save(model.state_dict(), tmp_path / "teacher.pt")
    run_in(
        tmp_path, monkeypatch, "compress=distill", "compress.distill.teacher=test_resnet", *SMALL,
        f"compress.distill.weights={tmp_path / 'teacher.pt'}", "trainer.max_epochs=1", f"run_dir={tmp_path / 'run'}",
    )  # fmt: skip
    found = json.loads((tmp_path / "run" / "card.json").read_text())["provenance"]["teacher"]
    assert (found["name"], found["source"]) == ("test_resnet", "file")
    assert 0.0 <= found["accuracy"] <= 0.4  # untrained


OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]


def option_arguments(group: str, option: str, directory: Path, monkeypatch) -> list[str]:
    arguments = [f"{group}={option}", "trainer.fast_dev_run=true", f"cache_dir={directory / 'cache'}"]
    if group != "logger":
        arguments.append("logger=none")
    if group != "model":
        arguments += [word for word in SMALL if word.startswith("model")]
    if group == "dataset" and option != "digits":
        arguments += [*data_of(option, directory / "set", monkeypatch), "recipe.batch_size=16"]
    if option == "ddp":
        arguments += ["trainer.devices=1", "trainer.accelerator=cpu"]
    return arguments


def data_of(option: str, root: Path, monkeypatch) -> list[str]:
    """Small files in the set's own format; a public set's checksums are replaced by theirs."""
    if option == "synthetic":
        return ["dataset.num_samples=256"]
    if option == "fashion_mnist":
        monkeypatch.setattr(known, "FASHION_MNIST_MD5", write_idx(root))
    if option == "cifar10":
        (root / known.CIFAR10_FOLDER).mkdir(parents=True)
        files = cifar_batches()
        for name, content in files.items():
            (root / known.CIFAR10_FOLDER / name).write_bytes(content)
        md5 = {name: hashlib.md5(files.get(name, b"")).hexdigest() for name in known.CIFAR10_MD5}
        monkeypatch.setattr(known, "CIFAR10_MD5", md5)
    if option == "image_folder":
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            for k in range(60):
                pixels = np.random.default_rng(k).integers(0, 255, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{k}.png")
        return [f"dataset.root={root}", "dataset.image_size=16"]
    return [f"dataset.root={root}"]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_runs(group, option, tmp_path, monkeypatch, no_probe):
    arguments = option_arguments(group, option, tmp_path, monkeypatch)
    if option == "gpu" and not torch.cuda.is_available():
        with pytest.raises(SystemExit) as caught:
            run_in(tmp_path, monkeypatch, *arguments)
        assert caught.value.code == 2
        return
    run_in(tmp_path, monkeypatch, *arguments)
    (run,) = runs_in(tmp_path / "runs")
    assert json.loads((run / "card.json").read_text())["run"]["fast_dev_run"] is True


@pytest.mark.slow
def test_two_processes_make_one_run(train_py, tmp_path):
    done = train_py(
        "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=2", "run_dir=run", *SMALL,
        "recipe.ema=0.9",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["run"]["epochs"] == 2
    arrays = np.load(tmp_path / "run" / "predictions.npz")
    assert len(arrays["index"]) == len(set(arrays["index"].tolist())) == 360
    assert len(curves(tmp_path / "run")) == 2
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_online_without_a_network_ends_with_a_card_and_says_so_once(train_py, tmp_path):
    environment = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = train_py("trainer.fast_dev_run=true", "run_dir=run", *SMALL, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "card.html").is_file()
    assert (done.stdout + done.stderr).count("logging offline") == 1
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1


def test_a_resume_with_other_data_is_refused(tmp_path, monkeypatch, no_probe, capfd):
    root = tmp_path / "set"
    arguments = [
        *data_of("image_folder", root, monkeypatch),
        "dataset=image_folder",
        "recipe.batch_size=16",
        *SMALL,
    ]
    run_in(tmp_path, monkeypatch, *arguments, "trainer.max_epochs=1", "logger=none", "run_dir=run")
    (root / "a" / "0.png").write_bytes((root / "a" / "1.png").read_bytes())
    with pytest.raises(SystemExit) as caught:
        run_in(tmp_path, monkeypatch, "resume=run", "trainer.max_epochs=2")
    assert caught.value.code == 2
    assert "dataset.root: the data are not those" in capfd.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()
    assert json.loads((tmp_path / "run" / "state.json").read_text())["status"] == "done"
