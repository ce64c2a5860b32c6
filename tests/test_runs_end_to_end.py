"""From the command to the card, as a user would: files, values, sweeps, teachers, resume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import SMALL, curves, data_of, run_in, runs_in
from safetensors.torch import load_file

import effvit_train
from effvit_train.axes.parts import PARTS
from effvit_train.card import MEASURES
from effvit_train.compose import GROUPS, group_options

SHORT_TEACHER = ("compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1")


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
    later = {key for part in PARTS.values() if not part.quick for key in part.keys}
    # without groups, and not in tasks
    not_here = {key for key in MEASURES if key.startswith(("fairness/", "continual/"))}
    never = {"cost/energy_j", "privacy/epsilon", "privacy/delta", "privacy/epsilon_lower_bound"}
    may_not = {
        "calibration/ece_scaled",
        "spectral/log_norm_bound",
    }  # of a model that is always or hardly right
    assert later | not_here <= nulls <= later | not_here | never | may_not
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
    told = capfd.readouterr().out
    assert "trained before" in told
    assert told.count("next: effvit report runs/") == 2
    columns = curves(runs_in(tmp_path / "runs")[2])[0]
    assert {"train/loss", "train/label", "train/soft"} <= set(columns)


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


SETS = ("first_steps",)  # of runs, each of which tests/advice looks at
OPTIONS = [(group, option) for group in GROUPS for option in group_options(group) if option not in SETS]


def option_arguments(group: str, option: str, directory: Path, monkeypatch) -> list[str]:
    arguments = [f"{group}={option}", "trainer.fast_dev_run=true", f"cache_dir={directory / 'cache'}"]
    if group != "logger":
        arguments.append("logger=none")
    if group != "model":
        arguments += [word for word in SMALL if word.startswith("model")]
    data = option if group == "dataset" else "digits"
    if group == "experiment":  # named after their data
        data = next((name for name in ("fashion_mnist", "cifar10") if option.endswith(name)), "digits")
    if data != "digits":
        arguments += [*data_of(data, directory / "set", monkeypatch), "recipe.batch_size=16"]
    if group == "continual":
        arguments += ["dataset.stream=class"]
    if option == "ddp":
        arguments += ["trainer.devices=1", "trainer.accelerator=cpu"]
    return arguments


LARGE = ("vit_s", "vit_b", "deit_s", "deit3_s", "swin_t")  # as others here, only larger


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "option"),
    [pytest.param(*pair, marks=[pytest.mark.long] if pair[1] in LARGE else []) for pair in OPTIONS],
)
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


@pytest.mark.long
def test_online_without_a_network_ends_with_a_card_and_says_so_once(train_py, tmp_path):
    environment = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    done = train_py("trainer.fast_dev_run=true", "run_dir=run", *SMALL, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "card.html").is_file()
    assert (done.stdout + done.stderr).count("logging offline") == 1
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*"))) == 1
