"""Compression inside streams, and what is done with a run of a stream when it has ended."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from driving import card, cuts, exit_code, run_in

from effvit_train import cli, load_model, measuring
from effvit_train.card import Card, Measured
from effvit_train.finished import open_finished
from effvit_train.frozen import Teacher, View
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create
from effvit_train.models.record import ArchitectureRecord
from effvit_train.report.baseline import Baseline
from effvit_train.report.commands import next_commands

STREAM = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "dataset.stream=class", "trainer.max_epochs=5", "recipe.batch_size=32", "trainer.num_threads=1", "logger=none",
    "audit=none", "dataset.num_workers=0", "dataset.train_fraction=0.5",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (("compress=prune", "compress.prune.kinds=[heads,head_width,mlp,embed,blocks]", "compress.prune.cuts=3",
          "compress.prune.compensate=least_squares", "recipe.ema=0.9"), "prune"),
        (("compress=merge_tokens", "compress.merge_tokens.start=0.5"), "merge_tokens"),
        (("compress=lowrank", "compress.lowrank.start=1"), "lowrank"),
        (("compress=lowrank", "compress.lowrank.start=0", "compress.lowrank.energy=0.9"), "lowrank"),
        (("compress=quantize", "recipe.tune=lora", "recipe.lora_rank=2"), "quantize"),
        (("compress=quantize", "compress.quantize.qat=true"), "fake_quantize"),
        (("compress=resolution",), "resolution"),
        (("compress=distill", "compress.distill.kinds=[self]"), "grow_head"),
    ],
)  # fmt: skip
def test_each_technique_runs_between_growing_heads(settings, kind, tmp_path, monkeypatch, no_probe):
    run_in(tmp_path, monkeypatch, *STREAM, "continual=[ewc,lwf]", *settings, "run_dir=run")
    run = tmp_path / "run"
    kinds = [cut["kind"] for cut in cuts(run)]
    assert kinds.count("grow_head") == 4
    assert kind in kinds
    with torch.no_grad():
        assert load_model(run)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    matrix = card(run)["provenance"]["continual"]["accuracy"]
    assert [len(row) for row in matrix] == [5] * 5
    # what ships is what was measured last, unless it was changed after that
    if kind in ("prune", "merge_tokens", "resolution"):
        sizes = [task["test"] for task in card(run)["provenance"]["continual"]["tasks"]]
        mean = sum(a * n for a, n in zip(matrix[-1], sizes, strict=True)) / sum(sizes)
        assert mean == pytest.approx(card(run)["measures"]["quality/accuracy"])


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("compress=distill",), "compress.distill.teacher=null: trains a teacher first, on the data of all tasks before"),
        (("compress=distill", "compress.distill.teacher=resnet18", "dataset.stream_order=1"),
         "compress.distill.teacher=resnet18: does not name its outputs, and this stream numbers the classes"),
    ],
)  # fmt: skip
def test_teachers_that_cannot_be(settings, line, tmp_path, monkeypatch, capfd):
    assert exit_code(tmp_path, monkeypatch, *STREAM, *settings, "run_dir=run") == 2
    assert line in capfd.readouterr().err


def test_a_teacher_gives_the_outputs_that_it_is_asked_for():
    class Ramp(torch.nn.Module):
        num_features = 4

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[0.0, 1.0, 2.0]]).expand(len(x), 3)

    view = View((0.4,), (0.2,), (0.4,), (0.2,))
    plain, ordered = (
        Teacher(Ramp(), view, outputs)(torch.zeros(2, 1, 8, 8))[0] for outputs in (None, [2, 0, 1])
    )
    assert torch.allclose(ordered, plain[:, [2, 0, 1]])


# --- when it has ended ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    directory = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
        run_in(directory, patch, *STREAM, "dataset.stream_order=1", "run_dir=run")
    return directory / "run"


@pytest.mark.slow
def test_what_is_done_to_a_run_of_a_stream(ended, tmp_path, monkeypatch, no_probe):
    record = ArchitectureRecord.read(ended / "model.json")
    assert record.classes != tuple("0123456789")
    # images of all tasks, not of the first: importance, ranges and ranks are of all of them
    finished = open_finished(ended, print)
    ids = np.concatenate(finished.data.train_batches(0))
    assert set(finished.data.labels_of(ids).tolist()) == set(range(10))
    # as weights to start from, its rows are of the classes that they were
    lines: list[str] = []
    shape = {"input_shape": (1, 8, 8), "mean": record.mean, "std": record.std}
    config = ModelConfig(
        name=record.name, weights=str(ended), args={"depth": 2, "embed_dim": 32, "num_heads": 4},
    )  # fmt: skip
    for classes in (tuple("0123456789"), ("7", "2")):
        model, _ = create(config, classes=classes, **shape, say=lines.append)
        shipped = load_model(ended).head.weight
        rows = [record.classes.index(name) for name in classes]
        assert torch.equal(model.head.weight, shipped[rows])
    assert lines == ["model.weights: the classifier's rows are taken by the names of the classes"] * 2
    monkeypatch.chdir(tmp_path)
    for command in (
        ["prune", str(ended), "--target", "macs=0.8", "--out", "cut"],
        ["compress", str(ended), "compress=lowrank", "compress.lowrank.energy=0.9", "--out", "narrow"],
        ["export", str(ended), "--format", "safetensors"],
        ["audit", str(ended), "audit=quick"],
    ):
        monkeypatch.setattr(sys, "argv", ["effvit", *command])
        cli.main(command)
    assert cuts(tmp_path / "cut")[-1]["kind"] == "prune"
    assert cuts(tmp_path / "narrow")[-1]["kind"] == "lowrank"
    found = Card.read(ended / "card.json")
    assert found.measures["continual/average_accuracy"] is not None
    # no teacher is trained first in a stream: none is advised
    assert [command.split()[-1] for command, _ in next_commands(found, Baseline(None, None, ""))] == [
        "continual=joint"
    ]
