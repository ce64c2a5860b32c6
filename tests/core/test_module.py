"""The training module against hand-computed losses and independent implementations."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F

from effvit_train.config import RecipeConfig
from effvit_train.data.info import DataInfo
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.module import LabelTerm, VisionModule, check_recipe, smooth
from effvit_train.parts import Step, Term

RECORD = ArchitectureRecord("none", {}, (1, 2, 2), ("a", "b", "c"), (0.5,), (0.25,))


def _module(model: nn.Module | None = None, **recipe) -> VisionModule:
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    return VisionModule(model, RECORD, RecipeConfig(**recipe), total_steps=lambda world: 100, seed=0)


def _step(logits: torch.Tensor, targets: torch.Tensor) -> Step:
    none = torch.empty(0)
    return Step(none, none, targets, logits, none)


def test_label_term_is_per_sample_and_as_by_hand():
    logits = torch.tensor([[0.0, math.log(2.0), 0.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    term = LabelTerm()(_step(logits, targets))
    # softmax of the first row is (1, 2, 1) / 4, of the second 1 / 3 each
    assert torch.allclose(term, torch.tensor([-math.log(0.5), -math.log(1 / 3)]))


def test_smoothing_equals_torchs():
    labels, logits = torch.tensor([0, 2, 1]), torch.randn(3, 3)
    ours = LabelTerm()(_step(logits, smooth(labels, 3, 0.1)))
    assert torch.allclose(ours, F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none"))


def test_total_is_the_weighted_sum_of_the_terms():
    class Two(Term):
        name, weight = "two", 0.25

        def __call__(self, step: Step) -> torch.Tensor:
            return torch.full((len(step.logits),), 2.0)

    module = VisionModule(
        nn.Identity(),
        RECORD,
        RecipeConfig(),
        total_steps=lambda world: 1,
        seed=0,
        terms=[Two()],
        label_weight=0.5,
    )
    terms = module.loss_terms(_step(torch.zeros(4, 3), torch.eye(3)[[0, 1, 2, 0]]))
    assert list(terms) == ["label", "two"]
    assert all(value.shape == (4,) for value in terms.values())
    assert torch.allclose(module.total(terms), torch.full((4,), 0.5 * math.log(3) + 0.25 * 2.0))


def test_normalise_is_what_the_record_says():
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
    assert torch.allclose(_module().normalise(images).flatten(), torch.tensor([-2.0, 2.0]))


def _learning_rates(module: VisionModule, steps: int) -> list[float]:
    optimizer = module.configure_optimizers()
    rates = []
    for step in range(steps):
        module.scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def test_cosine_with_warmup_by_hand():
    rates = _learning_rates(_module(lr=1.0, warmup=0.1, min_lr=0.01), 100)
    assert rates[0] == pytest.approx(1e-3)
    assert rates[5] == pytest.approx(1e-3 + 5 * (1 - 1e-3) / 10)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[99] == pytest.approx(0.01, abs=2e-3)


def test_constant_and_linear_schedules_by_hand():
    assert _learning_rates(_module(lr=1.0, warmup=0.0, schedule="constant"), 100)[99] == pytest.approx(1.0)
    linear = _learning_rates(_module(lr=1.0, warmup=0.0, min_lr=0.0, schedule="linear"), 100)
    assert linear[50] == pytest.approx(0.5)


def test_the_learning_rate_depends_on_the_step_alone():
    once = _module(lr=1.0)
    optimizer = once.configure_optimizers()
    once.scheduler.step_update(73)
    assert optimizer.param_groups[0]["lr"] == _learning_rates(_module(lr=1.0), 74)[73]


def test_no_weight_decay_on_biases_and_norms():
    optimizer = _module(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.LayerNorm(3))).configure_optimizers()
    decay = {len(group["params"]): group["weight_decay"] for group in optimizer.param_groups}
    assert decay == {3: 0.0, 1: 0.05}  # bias, norm's weight and bias; the linear weight


def test_dropout_depends_on_seed_and_step_not_on_what_ran_before(monkeypatch):
    module = _module(nn.Sequential(nn.Flatten(), nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3)))
    batch = SimpleNamespace(
        images=torch.full((2, 1, 2, 2), 200, dtype=torch.uint8),
        labels=torch.tensor([0, 1]),
        index=torch.arange(2),
    )
    first = module.training_step(batch, 0)["loss"]
    torch.rand(17)
    assert torch.equal(first, module.training_step(batch, 0)["loss"])
    monkeypatch.setattr(VisionModule, "global_step", property(lambda self: 1))
    assert not torch.equal(first, module.training_step(batch, 0)["loss"])


@pytest.mark.parametrize("recipe", [{"mixup": 0.8}, {"cutmix": 1.0}, {"erasing": 0.9}])
def test_batch_augmentation_is_keyed_and_restores_the_global_generators(recipe):
    import random

    import numpy as np

    record = ArchitectureRecord("none", {}, (1, 16, 16), ("a", "b", "c"), (0.5,), (0.25,))
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    module = VisionModule(model, record, RecipeConfig(**recipe), total_steps=lambda world: 9, seed=0)
    images = torch.randint(0, 256, (4, 1, 16, 16), dtype=torch.uint8)
    batch = SimpleNamespace(images=images, labels=torch.tensor([0, 1, 2, 0]), index=torch.arange(4))
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    one, one_targets = module._training_batch(batch)
    assert (random.random(), np.random.rand()) == expected
    two, two_targets = module._training_batch(batch)
    assert torch.equal(one, two)
    assert torch.equal(one_targets, two_targets)
    assert not torch.equal(one, module.normalise(images))
    assert torch.allclose(one_targets.sum(dim=1), torch.ones(4))


def test_erasing_follows_the_sample_not_its_place_in_the_batch():
    record = ArchitectureRecord("none", {}, (1, 16, 16), ("a", "b", "c"), (0.5,), (0.25,))
    module = VisionModule(
        nn.Identity(), record, RecipeConfig(erasing=0.9), total_steps=lambda world: 9, seed=0
    )
    images = torch.full((4, 1, 16, 16), 200, dtype=torch.uint8)

    def erased(index):
        labels = torch.zeros(len(index), dtype=torch.long)
        batch = SimpleNamespace(images=images[: len(index)], labels=labels, index=torch.tensor(index))
        return module._training_batch(batch)[0]

    assert torch.equal(erased([0, 1, 2, 3]), erased([3, 2, 1, 0]).flip(0))


def test_ema_by_hand(monkeypatch):
    monkeypatch.setattr(VisionModule, "global_step", property(lambda self: 50))
    module = _module(ema=0.5)
    with torch.no_grad():
        for parameter in module.ema.module.parameters():
            parameter.fill_(0.0)
        for parameter in module.model.parameters():
            parameter.fill_(1.0)
    module.ema.use_warmup = False
    monkeypatch.setattr(pl.LightningModule, "optimizer_step", lambda *args, **kwargs: None)
    module.optimizer_step(0, 0, None)
    assert all(torch.all(parameter == 0.5) for parameter in module.ema.module.parameters())
    assert module.shipped is module.ema.module
    plain = _module()
    assert plain.shipped is plain.model


def test_a_checkpoint_of_another_architecture_is_refused():
    other = ArchitectureRecord("other", {"depth": 2}, (1, 2, 2), ("a", "b", "c"), (0.5,), (0.25,))
    with pytest.raises(UserError, match="the checkpoint holds other"):
        _module().on_load_checkpoint({"architecture": other.to_json()})
    _module().on_load_checkpoint({"architecture": RECORD.to_json()})


def test_an_unknown_optimizer_and_an_odd_batch_with_mixup_are_refused():
    with pytest.raises(UserError, match=r"recipe.optimizer=adamww: .*did you mean 'adamw'"):
        check_recipe(RecipeConfig(optimizer="adamww"))
    with pytest.raises(UserError, match=r"recipe.batch_size=7: must be even"):
        check_recipe(RecipeConfig(batch_size=7, mixup=0.8))
    with pytest.raises(UserError, match=r"recipe.opt_args"):
        _module(opt_args={"beta": 3}).configure_optimizers()


def test_info_is_json():
    info = DataInfo("d", ("a",), (1, 2, 2), (0.5,), (0.25,), {}, {}, "f", {})
    assert info.to_json()["classes"] == ("a",)
