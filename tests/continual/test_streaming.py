"""Runs on a stream: the matrix against accuracies computed again, resume inside tasks, and what a resume may not do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving import SMALL, card, cuts, exit_code, interrupted_run, result, run_in

from effvit_train import checkpoint_file
from effvit_train.data.config import DatasetConfig
from effvit_train.data.known import digits
from effvit_train.data.splits import Splitter
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord

TASKS = 5
QUICK = (
    *SMALL, "dataset.stream=class", "recipe.batch_size=32", "trainer.max_epochs=5", "logger=none", "audit=none",
    "dataset.num_workers=0", "dataset.train_fraction=0.4", "recipe.lr=0.01",
)  # fmt: skip
STEPS = 3  # of a task: 503 images in 5 tasks, in batches of 32


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def facts(run):
    return card(run)["provenance"]["continual"]


def _tests(order):
    """Test images and labels of digits, the labels in the order in which the classes come; without our DataModule."""
    arrays = digits()
    config = DatasetConfig(train_fraction=0.4)
    split = Splitter(arrays.labels, arrays.classes, None, config, print).assign(arrays.given)
    place = {int(name): k for k, name in enumerate(order)}
    labels = np.array([place[k] for k in arrays.labels.tolist()])
    return arrays.images[split == 2], labels[split == 2]


def _accuracies(model, record, order):
    """On each task, among the classes that the model knows, and among the task's two."""
    images, labels = _tests(order)
    pixels = (torch.from_numpy(images).float() / 255 - record.mean[0]) / record.std[0]
    with torch.no_grad():
        logits = model.eval()(pixels).numpy()
    seen, within = [], []
    for task in range(TASKS):
        of_task = labels // 2 == task
        seen.append((logits[of_task].argmax(axis=1) == labels[of_task]).mean())
        own = logits[of_task][:, 2 * task : 2 * task + 2]
        within.append((own.argmax(axis=1) + 2 * task == labels[of_task]).mean() if own.shape[1] else 0.0)
    return seen, within


def test_each_row_of_the_matrix_is_the_accuracy_of_the_weights_at_the_end_of_its_task(tmp_path, monkeypatch):
    arguments = (*QUICK, "dataset.stream_order=1", "recipe.ema=0.8")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=run")
    whole = facts(tmp_path / "run")
    order = [name for task in whole["tasks"] for name in task["name"].removeprefix("classes ").split(", ")]
    assert sorted(order) == list("0123456789") != order
    for task in (0, 2):
        run = tmp_path / f"stopped-{task}"
        told = (*arguments, f"run_dir={run}")
        assert interrupted_run(tmp_path, monkeypatch, "on_train_epoch_end", task + 1, *told) == 130
        found = checkpoint_file.read(run / "checkpoints" / "last.ckpt")
        record = ArchitectureRecord.from_json(found["architecture"])
        assert record.classes == tuple(order[: 2 * task + 2])
        model = build(record)
        weights = {
            name.removeprefix("ema.module."): value
            for name, value in found["state_dict"].items()
            if name.startswith("ema.module.")
        }
        model.load_state_dict(weights)
        seen, within = _accuracies(model, record, order)
        assert whole["accuracy"][task] == pytest.approx(seen, abs=1e-9)
        assert whole["within_task"][task] == pytest.approx(within, abs=1e-9)
    # the last row, from the predictions that the run leaves
    saved = np.load(tmp_path / "run" / "predictions.npz")
    labels, right = saved["labels"], saved["logits"].argmax(axis=1) == saved["labels"]
    last = [right[labels // 2 == task].mean() for task in range(TASKS)]
    assert whole["accuracy"][-1] == pytest.approx(last)
    assert card(tmp_path / "run")["measures"]["continual/average_accuracy"] == pytest.approx(np.mean(last))
    assert [entry["classes"] for entry in cuts(tmp_path / "run")] == [order[k : k + 2] for k in (2, 4, 6, 8)]
    # what has not come yet is not known
    assert all(whole["accuracy"][i][j] == 0 for i in range(TASKS) for j in range(i + 1, TASKS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nothing stopped, by their arguments."""
    made = {}

    def run(arguments, monkeypatch):
        if arguments not in made:
            made[arguments] = tmp_path_factory.mktemp("whole") / "run"
            run_in(made[arguments].parent, monkeypatch, *arguments, "run_dir=run")
        return made[arguments]

    return run


NAIVE = (*QUICK, "continual=naive", "recipe.ema=0.9", "recipe.mixup=0.4")
NCM = (*QUICK, "continual=ncm", "continual.ncm.classifier=lda", "recipe.ema=0.9")
JOINT = (*QUICK, "continual=joint", "dataset.stream=data")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "hook", "count"),
    [
        (NAIVE, "on_train_batch_end", STEPS + 2),  # in the second task
        (
            NAIVE,
            "on_train_batch_end",
            STEPS,
        ),  # the last step of the first: its validation and test are to come
        (NAIVE, "on_train_epoch_end", 1),  # it is tested: the second is to begin
        (NAIVE, "on_train_batch_end", STEPS + 1),  # the second has just begun
        (NAIVE, "on_validation_batch_end", 3),  # in the validation of the third
        (NAIVE, "on_train_epoch_end", TASKS),  # all is trained and tested
        (NCM, "on_train_batch_end", STEPS),
        (NCM, "on_train_epoch_end", 1),
        (NCM, "on_train_batch_end", 2 * STEPS + 1),
        (JOINT, "on_train_batch_end", STEPS + 2),
    ],
)
def test_stopped_in_a_task_or_between_two_it_ends_with_the_same_bytes(
    arguments, hook, count, whole, tmp_path, monkeypatch
):
    straight = whole(arguments, monkeypatch)
    assert interrupted_run(tmp_path, monkeypatch, hook, count, *arguments, "run_dir=run") == 130
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(tmp_path / "run") == result(straight)
    ours, theirs = facts(tmp_path / "run"), facts(straight)
    for one in (ours, theirs):
        for cost in one["costs"]:
            assert cost.pop("seconds") > 0
    assert ours == theirs


@pytest.mark.slow
def test_the_length_of_the_tasks_stays_when_a_run_is_resumed(tmp_path, monkeypatch, capsys):
    arguments = (*QUICK, "trainer.max_epochs=10", "run_dir=run")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_epoch_end", 3, *arguments) == 130
    before = [(tmp_path / "run" / name).read_bytes() for name in ("state.json", ".hydra/config.yaml")]
    for epochs, line in (
        (
            15,
            "trainer.max_epochs=15: each task of this run is trained for 2 epochs; trainer.max_epochs=10",
        ),
        (12, "trainer.max_epochs=12: cannot be shared equally by 5 tasks"),
        (5, "trainer.max_epochs=5: each task of this run is trained for 2 epochs"),
    ):
        capsys.readouterr()
        assert exit_code(tmp_path, monkeypatch, "resume=run", f"trainer.max_epochs={epochs}") == 2
        (told,) = [one for one in capsys.readouterr().err.splitlines() if one]
        assert told.startswith(f"error: {line}")
        found = [(tmp_path / "run" / name).read_bytes() for name in ("state.json", ".hydra/config.yaml")]
        assert found == before
    run_in(tmp_path, monkeypatch, "resume=run")
    assert len(facts(tmp_path / "run")["accuracy"]) == TASKS
    # and when it has ended
    assert exit_code(tmp_path, monkeypatch, "resume=run", "trainer.max_epochs=20") == 2


def test_a_fast_run_shows_every_task_once(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "trainer.fast_dev_run=true", "run_dir=run")
    found = facts(tmp_path / "run")
    assert [cost["steps"] for cost in found["costs"]] == [1] * TASKS
    assert len(found["accuracy"]) == TASKS


def test_a_model_that_cannot_grow_is_refused_before_it_is_trained(tmp_path, monkeypatch, capsys):
    from effvit_train import build as built
    from effvit_train.models.heads import CannotGrowError

    def refuse(model):
        raise CannotGrowError("Odd has no classifier of linear layers, which could grow")

    monkeypatch.setattr(built, "logits_layers", refuse)
    assert exit_code(tmp_path, monkeypatch, *QUICK, "run_dir=run") == 2
    assert "Odd has no classifier of linear layers" in capsys.readouterr().err
    assert not (tmp_path / "run" / "state.json").exists()
    run_in(tmp_path, monkeypatch, *QUICK, "dataset.stream=data", "run_dir=portions")  # nothing grows
