"""LwF: its loss by hand, the model that it learns from, and whole runs."""

from __future__ import annotations

import io
import math
from types import SimpleNamespace

import pytest
import torch
from driving import SMALL, card, curves, interrupted_run, result, run_in
from torch.nn import functional as F

from effvit_train.continual.lwf import LwfConfig
from effvit_train.continual.lwf.term import Before, LwfKeeper, LwfTerm
from effvit_train.errors import UserError
from effvit_train.frozen import Teacher
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.tuning import tune
from effvit_train.parts import Step

SIZES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 1, "num_heads": 2}


def record(classes: tuple[str, ...] = ("a", "b")) -> ArchitectureRecord:
    return ArchitectureRecord(
        "vit_tiny_patch16_224", {**SIZES, "num_classes": len(classes), "drop_rate": 0.5}, (1, 8, 8), classes,
        (0.4,), (0.2,),
    )  # fmt: skip


def step(logits: torch.Tensor, images: torch.Tensor, token: torch.Tensor | None = None) -> Step:
    labels = torch.zeros(len(logits), dtype=torch.long)
    return Step(images, labels, torch.zeros_like(logits), logits, labels, token_logits=token)


def test_the_loss_by_hand():
    before = Before()
    term = LwfTerm(before, temperature=2.0, weight=3.0)
    student = torch.tensor([[0.0, 0.0, 5.0]], requires_grad=True)  # the third class is new
    images = torch.zeros(1, 1, 8, 8)
    assert term.weight == 3
    assert term(step(student, images)).tolist() == [0.0]  # of the first task
    before.teacher = lambda images: (torch.tensor([[0.0, math.log(9.0)]]), {})
    # at T = 2 it says (1, 3) / 4 and the student (1, 1) / 2: 4 (1/4 ln(1/2) + 3/4 ln(3/2))
    loss = term(step(student, images))
    assert loss.item() == pytest.approx(4 * (math.log(0.5) / 4 + 0.75 * math.log(1.5)), abs=1e-6)
    loss.sum().backward()
    ours = student.grad.clone()
    student.grad = None
    # eq. 2 and 3 of the paper: -sum y' log y'^, without the factor T^2
    said = torch.tensor([[1 / 4, 3 / 4]])
    paper = -(said * F.log_softmax(student[:, :2] / 2, dim=-1)).sum()
    paper.backward()
    assert torch.allclose(ours, 4 * student.grad)
    # two heads are compared by their mean, as the earlier model answers
    heads = step(torch.tensor([[1.0, 0.0, 5.0]]), images, torch.tensor([[-1.0, 0.0, 5.0]]))
    assert term(heads).item() == pytest.approx(loss.item())


def module_of(model: torch.nn.Module, found: ArchitectureRecord) -> SimpleNamespace:
    return SimpleNamespace(shipped=model, record=found)


@pytest.mark.parametrize("lora", [False, True])
def test_the_model_before_the_task_stays_as_it_was_and_comes_back_from_a_checkpoint(lora):
    torch.manual_seed(0)
    found = record()
    model = build(found)
    if lora:
        tune(model, "lora", rank=2, example=torch.zeros(1, 1, 8, 8))
        torch.nn.init.normal_(model.blocks[0].attn.qkv.up.weight)
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        wanted = model.eval()(images).log_softmax(dim=-1)
    before = Before()
    keeper = LwfKeeper(before)
    assert keeper.kept() == {}
    assert keeper.memory() == 0
    state = torch.get_rng_state()
    keeper.after_task(module_of(model.train(), found), None, 0)
    assert torch.equal(torch.get_rng_state(), state)
    for weight in model.parameters():
        weight.data += 1  # it is trained further
    said, _ = before.teacher(images)
    assert torch.allclose(said, wanted, atol=1e-6)  # in evaluation mode
    assert not said.requires_grad
    assert keeper.memory() == 4 * sum(w.numel() for w in build(found).parameters())
    file = io.BytesIO()
    torch.save(keeper.kept(), file)
    file.seek(0)
    again = Before()
    LwfKeeper(again).restore(None, torch.load(file, weights_only=True))
    assert torch.equal(again.teacher(images)[0], said)
    assert again.record == found


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"weight": -1.0}, r"continual\.lwf\.weight=-1\.0: must be at least 0"),
        ({"temperature": 0.0}, r"continual\.lwf\.temperature=0\.0: must be positive"),
        ({"temperature": float("inf")}, r"continual\.lwf\.temperature=inf: must be positive"),
    ],
)
def test_wrong_settings(settings, line):
    with pytest.raises(UserError, match=line):
        LwfConfig(**settings).validate()


# --- runs ----------------------------------------------------------------------------------------

STREAM = (
    *SMALL, "dataset.stream=class", "trainer.max_epochs=5", "recipe.batch_size=32", "trainer.num_threads=1",
    "logger=none", "audit=none", "dataset.num_workers=0",
)  # fmt: skip


@pytest.mark.slow
def test_stopped_within_a_task_it_ends_with_the_same_bytes(tmp_path, monkeypatch, no_probe):
    arguments = (
        *STREAM,
        "continual=lwf",
        "recipe.ema=0.9",
        "recipe.mixup=0.2",
        "recipe.tune=lora",
        "recipe.lora_rank=2",
    )
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    rows = curves(tmp_path / "whole")
    assert float(rows[0]["train/lwf"]) == 0
    assert float(rows[-1]["train/lwf"]) > 0
    for name, steps in (("early", 3), ("late", 24)):  # in the first task; in the fourth
        assert (
            interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", steps, *arguments, f"run_dir={name}")
            == 130
        )
        run_in(tmp_path, monkeypatch, f"resume={name}")
        assert result(tmp_path / name) == result(tmp_path / "whole")
        found, wanted = (card(tmp_path / run)["provenance"]["continual"] for run in (name, "whole"))
        assert found["accuracy"] == wanted["accuracy"]


@pytest.mark.slow
def test_two_teachers_each_say_their_own_and_one_is_asked_by_the_names_of_classes(
    tmp_path, monkeypatch, no_probe
):
    small = tuple(word for word in STREAM if "stream" not in word and "epochs" not in word)
    run_in(tmp_path, monkeypatch, *small, "trainer.max_epochs=1", "run_dir=all")
    orders, seen = [], []
    init, call = Teacher.__init__, Teacher.__call__

    def noted(self, model, view, outputs=None):
        orders.append(outputs)
        init(self, model, view, outputs)

    def asked(self, images):
        said = call(self, images)
        seen.append((said[0].shape[1], images))
        return said

    monkeypatch.setattr(Teacher, "__init__", noted)
    monkeypatch.setattr(Teacher, "__call__", asked)
    run_in(
        tmp_path, monkeypatch, *STREAM, "dataset.stream_order=1", "continual=lwf", "compress=distill",
        f"compress.distill.teacher={tmp_path / 'all'}", "compress.distill.kinds=[soft,hard]", "recipe.cutmix=1",
        "run_dir=run",
    )  # fmt: skip
    names = ArchitectureRecord.read(tmp_path / "run" / "model.json").classes
    assert orders[0] == [int(name) for name in names]  # digits are named by their number
    assert orders[0] != sorted(orders[0])
    row = curves(tmp_path / "run")[-1]
    assert {"train/lwf", "train/soft", "train/hard"} <= set(row)
    # of the last steps: ten classes from the one, the eight before the task from the other, of the same images
    (first, images), (second, others) = seen[-2:]
    assert sorted((first, second)) == [8, 10]
    assert images is others
