"""EWC: the information by hand and against a loop, the penalty, what cuts do to both, and whole runs."""

from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from driving import SMALL, card, curves, exit_code, interrupted_run, result, run_in
from torch import nn

from effvit_train.continual.ewc import EwcConfig, fisher
from effvit_train.continual.ewc.fisher import fisher_diagonal
from effvit_train.continual.ewc.penalty import Consolidated, EwcKeeper, EwcTerm
from effvit_train.data.stream import Stream, Task
from effvit_train.errors import UserError
from effvit_train.models.heads import grow
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import Fold, Slice, apply, cut_group, first_units
from effvit_train.parts import Step

NONE = torch.zeros(1)


class Linear(nn.Linear):
    """Softmax regression: images are vectors."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__(len(weight[0]), len(weight), bias=False)
        self.weight.data = torch.tensor(weight)


def vit(classes: int = 3, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=classes, **(sizes | kwargs))


def samples(count: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(classes, (count,), generator=generator)
    return images, labels, torch.rand(count, generator=generator)


# --- the information -----------------------------------------------------------------------------


def test_information_of_a_softmax_regression_by_hand():
    # (diag(p) - p p^T) x x^T on its diagonal: p_k (1 - p_k) x_j^2, and p is 1/2 where all weights are zero
    images = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    found = fisher_diagonal(
        Linear([[0.0, 0.0], [0.0, 0.0]]), [(images, torch.tensor([0, 1]), torch.zeros(2))], empirical=False
    )
    assert found["weight"].flatten().tolist() == pytest.approx([0.5, 2.0, 0.5, 2.0])
    # p = (3/4, 1/4): p (1 - p) = 3/16; of the label 1 alone (y - p)^2 = 9/16
    model, image = Linear([[np.log(3.0)], [0.0]]), torch.ones(1, 1)
    found = fisher_diagonal(model, [(image, torch.tensor([1]), NONE)], empirical=False)
    assert found["weight"].flatten().tolist() == pytest.approx([3 / 16, 3 / 16])
    found = fisher_diagonal(model, [(image, torch.tensor([1]), NONE)], empirical=True)
    assert found["weight"].flatten().tolist() == pytest.approx([9 / 16, 9 / 16])


def test_of_many_classes_one_is_drawn_and_the_mean_over_draws_is_the_sum_over_classes():
    model = Linear([[0.0]] * 12)
    found = fisher_diagonal(
        model, [(torch.ones(1, 1), torch.tensor([0]), torch.tensor([0.3]))], empirical=False
    )
    wanted = [1 / 144] * 12
    wanted[3] = (11 / 12) ** 2  # 3/12 < 0.3 < 4/12
    assert found["weight"].flatten().tolist() == pytest.approx(wanted)
    draws = (torch.arange(12) + 0.5) / 12
    found = fisher_diagonal(
        model, [(torch.ones(12, 1), torch.zeros(12, dtype=torch.long), draws)], empirical=False
    )
    assert found["weight"].flatten().tolist() == pytest.approx([11 / 144] * 12)  # p (1 - p)


def loop(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same by plain autograd, image by image and class by class."""
    model = copy.deepcopy(model).eval()
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    for image in images:
        log_probs = model(image[None])[0].log_softmax(dim=-1)
        for value in log_probs:
            gradients = torch.autograd.grad(value, list(weights.values()), retain_graph=True)
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += value.exp().detach() * gradient**2 / len(images)
    return total


class Odd(nn.Module):
    """Looks at what it computes, which no vectorised pass can do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum().item() > 0 else x


@pytest.mark.parametrize("odd", [False, True])
def test_information_of_a_vit_against_a_loop_in_evaluation_mode_and_in_any_chunks(odd, monkeypatch):
    model, (images, labels, draws) = vit(drop_rate=0.5), samples()
    model.blocks[0].attn.qkv.requires_grad_(False)
    if odd:
        model.norm = nn.Sequential(model.norm, Odd())
    wanted = loop(model, images)
    for chunk in (1, 1 << 26):
        monkeypatch.setattr(fisher, "_BYTES", chunk)
        batches = [(images[:2], labels[:2], draws[:2]), (images[2:], labels[2:], draws[2:])]
        found = fisher_diagonal(model.train(), batches, empirical=False)
        assert model.training
        assert set(found) == set(wanted)
        for name, value in wanted.items():
            assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-7), name


# --- the penalty ---------------------------------------------------------------------------------


def step(count: int = 3) -> Step:
    labels = torch.zeros(count, dtype=torch.long)
    return Step(torch.zeros(count, 1), labels, torch.ones(count, 1), torch.zeros(count, 2), labels)


def consolidated(model: nn.Module) -> Consolidated:
    return Consolidated(copy.deepcopy(model), copy.deepcopy(model))


def test_the_penalty_and_its_gradient_by_hand():
    model = Linear([[2.0, 0.0]])
    kept = consolidated(model)
    term = EwcTerm(model, kept, strength=10.0)
    assert term(step()).tolist() == [0, 0, 0]  # no task has ended
    kept.add({"weight": torch.tensor([[1.0, 2.0]])}, {"weight": torch.tensor([[4.0, 1.0]])}, gamma=1.0)
    assert term.weight == 10
    assert term(step()).tolist() == [4.0, 4.0, 4.0]  # (4 (2 - 1)^2 + 1 (0 - 2)^2) / 2, for each sample
    term(step()).mean().backward()
    assert model.weight.grad.tolist() == [[4.0, -2.0]]  # F (theta - theta*)
    # with half of what was known, and the weights of the last task
    kept.add({"weight": torch.tensor([[2.0, 0.0]])}, {"weight": torch.tensor([[1.0, 1.0]])}, gamma=0.5)
    assert kept.information.weight.tolist() == [[3.0, 1.5]]
    assert kept.penalty(model).item() == 0
    assert kept.mean.weight.grad is None


def filled(model: nn.Module) -> Consolidated:
    kept = consolidated(model)
    generator = torch.Generator().manual_seed(2)
    own = dict(model.named_parameters())
    mean = {name: w.detach() + torch.randn(w.shape, generator=generator) for name, w in own.items()}
    kept.add(mean, {name: torch.rand(w.shape, generator=generator) for name, w in own.items()}, gamma=1.0)
    return kept


@pytest.mark.parametrize("kind", ["mlp", "heads", "head_width", "embed"])
def test_the_penalty_of_a_cut_model_is_the_masked_one(kind):
    model = vit(num_heads=4, embed_dim=16)
    kept = filled(model)
    means, information = (dict(part.named_parameters()) for part in (kept.mean, kept.information))
    each = {
        name: (information[name] * (w - means[name]) ** 2).detach().double()
        for name, w in model.named_parameters()
    }
    assert kept.penalty(model).item() == pytest.approx(sum(float(e.sum()) for e in each.values()) / 2)
    structure = read_structure(model)
    group = next(group for group in structure.groups.values() if group.kind == kind)
    operations = cut_group(
        structure, group, first_units(structure, group, max(1, structure.size(group) // 2))
    )
    for cut in operations:
        if isinstance(cut, Slice):
            each[cut.parameter] = each[cut.parameter].index_select(cut.dim, cut.index)
    apply(model, operations)
    EwcTerm(model, kept, 1.0).after_cut(model, operations, None)
    # head_width multiplies weights too: their information is divided by the square
    assert kept.penalty(model).item() == pytest.approx(sum(float(e.sum()) for e in each.values()) / 2)


def test_new_rows_are_free_and_a_fold_moves_the_target_alone():
    model = vit()
    kept = filled(model)
    before = kept.penalty(model).item()
    operations, _ = grow(model, ["d", "e"], seed=3)
    apply(model, operations)
    kept.cut(operations)
    model.head.weight.data[3:] += 5
    assert kept.penalty(model).item() == pytest.approx(before)
    assert kept.information.head.weight[3:].abs().sum() == 0
    kept_units, removed = torch.arange(31), torch.tensor([31])
    fold = Fold("blocks.0.mlp.fc2", kept_units, removed, torch.ones(1, 31), torch.ones(1))
    information = kept.information.blocks[0].mlp.fc2.weight.clone()
    wanted = kept.mean.blocks[0].mlp.fc2.weight[:, :31] + kept.mean.blocks[0].mlp.fc2.weight[:, 31:]
    kept.cut([fold])
    assert torch.equal(kept.information.blocks[0].mlp.fc2.weight, information)
    assert torch.allclose(kept.mean.blocks[0].mlp.fc2.weight[:, :31], wanted)


# --- between tasks -------------------------------------------------------------------------------


class Data:
    """Three images of each task, in batches of two."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.images, self.labels, self.asked = images, labels, []
        ids = np.arange(len(labels))
        tasks = tuple(
            Task(f"{k}", ids[part], ids[:0], ids[part], (0,))
            for k, part in enumerate((slice(0, 3), slice(3, 5)))
        )
        self.stream = Stream("data", tasks, 1)

    def loader_of(self, ids):
        self.asked.append(ids.tolist())
        for start in range(0, len(ids), 2):
            part = torch.from_numpy(ids[start : start + 2])
            yield SimpleNamespace(images=self.images[part], labels=self.labels[part], index=part)


def module_of(model: nn.Module) -> SimpleNamespace:
    record = SimpleNamespace(classes=("a", "b", "c"))
    return SimpleNamespace(
        model=model, device=torch.device("cpu"), normalise=lambda images: images, record=record
    )


def test_what_is_kept_of_a_task_and_that_it_comes_back_from_a_checkpoint():
    model, (images, labels, _) = vit(), samples()
    data, module = Data(images, labels), module_of(model)
    kept = consolidated(model)
    keeper = EwcKeeper(kept, EwcConfig(images=2), 0, lambda line: None)
    assert keeper.kept() == {"tasks": 0}
    keeper.after_task(module, data, 0)
    keeper.after_task(module, data, 1)
    assert data.asked == [[0, 2], [3, 4]]  # evenly
    wanted = loop(model, images[[0, 2]])
    more = loop(model, images[[3, 4]])
    found = dict(kept.information.named_parameters())
    for name, value in wanted.items():
        assert torch.allclose(found[name], value + more[name], rtol=1e-4, atol=1e-7), name
    assert keeper.memory() == 2 * 4 * sum(w.numel() for w in model.parameters())
    file = io.BytesIO()
    torch.save(keeper.kept(), file)
    file.seek(0)
    other = consolidated(model)
    EwcKeeper(other, EwcConfig(), 0, print).restore(module, torch.load(file, weights_only=True))
    for weight in model.parameters():
        weight.data += 0.1
    assert other.tasks == 2
    assert other.penalty(model).item() == kept.penalty(model).item() > 0


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"fisher": "exact"}, r"continual\.ewc\.fisher=exact: must be one of true, empirical"),
        ({"fisher": False}, r"continual\.ewc\.fisher=false: must be one of"),
        ({"strength": -1.0}, r"continual\.ewc\.strength=-1\.0: must be at least 0"),
        ({"strength": float("nan")}, r"continual\.ewc\.strength=nan: must be at least 0"),
        ({"gamma": 0.0}, r"continual\.ewc\.gamma=0\.0: must be above 0"),
        ({"images": 0}, r"continual\.ewc\.images=0: must be at least 1"),
    ],
)
def test_wrong_settings(settings, line):
    with pytest.raises(UserError, match=line):
        EwcConfig(**settings).validate()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [(True, "true"), ("True", "true"), ("Empirical", "empirical"), ("empirical", "empirical")],
)
def test_yaml_reads_true_as_a_truth_value(typed, meant):
    config = EwcConfig(fisher=typed)
    config.validate()
    assert config.fisher == meant


# --- runs ----------------------------------------------------------------------------------------

STREAM = (
    *SMALL, "dataset.stream=class", "trainer.max_epochs=5", "recipe.batch_size=32", "trainer.num_threads=1",
    "logger=none", "audit=none", "dataset.num_workers=0",
)  # fmt: skip


@pytest.mark.slow
def test_stopped_within_a_task_it_ends_with_the_same_bytes(tmp_path, monkeypatch, no_probe):
    arguments = (*STREAM, "continual=ewc", "recipe.ema=0.9", "continual.ewc.images=64", "recipe.mixup=0.2")
    arguments += ("compress=prune", "compress.prune.cuts=2")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert float(curves(tmp_path / "whole")[-1]["train/ewc"]) > 0
    assert float(curves(tmp_path / "whole")[0]["train/ewc"]) == 0
    for name, steps in (("early", 10), ("late", 24)):  # in the second task; in the fourth, after the cuts
        assert (
            interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", steps, *arguments, f"run_dir={name}")
            == 130
        )
        run_in(tmp_path, monkeypatch, f"resume={name}")
        assert result(tmp_path / name) == result(tmp_path / "whole")
        found, wanted = (card(tmp_path / run)["provenance"]["continual"] for run in (name, "whole"))
        assert found["accuracy"] == wanted["accuracy"]


def test_factors_cannot_take_the_place_of_weights_that_are_held(tmp_path, monkeypatch, capfd):
    arguments = (*STREAM, "continual=ewc", "compress=lowrank")
    assert exit_code(tmp_path, monkeypatch, *arguments, "run_dir=run") == 2
    said = capfd.readouterr().err
    assert (
        "cannot be combined with continual=ewc, which holds each weight where an earlier task left it" in said
    )
    assert "compress.lowrank.start=1 factors the model after the training" in said
