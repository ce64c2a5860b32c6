"""The soft-label term by hand, against a second implementation, and the teacher's view of a batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from effvit_train.compress.distill import TrainedTeacherConfig
from effvit_train.compress.distill.teacher import Teacher
from effvit_train.compress.distill.term import SoftTerm, soft_loss
from effvit_train.config import RecipeConfig
from effvit_train.data.info import DataInfo
from effvit_train.parts import Step

INFO = DataInfo("d", ("a", "b"), (1, 2, 2), (0.4,), (0.2,), {}, {}, "f", {})


def test_soft_loss_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    # q = (1/4, 3/4), p = (1/2, 1/2): KL = 1/4 log(1/2) + 3/4 log(3/2)
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert soft_loss(student, teacher, 1.0).item() == pytest.approx(expected, abs=1e-6)
    # at T = 2: q = (1, sqrt 3) / (1 + sqrt 3), times T^2
    q = [1 / (1 + math.sqrt(3)), math.sqrt(3) / (1 + math.sqrt(3))]
    expected = 4 * sum(v * math.log(2 * v) for v in q)
    assert soft_loss(student, teacher, 2.0).item() == pytest.approx(expected, abs=1e-6)


def test_soft_loss_is_per_sample_and_equals_torchs_kl():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    ours = soft_loss(student, teacher, 3.0)
    theirs = F.kl_div(F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1), reduction="none").sum(1) * 9
    assert ours.shape == (5,)
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(ours.mean(), F.kl_div(
        F.log_softmax(student / 3, 1), F.softmax(teacher / 3, 1), reduction="batchmean") * 9, atol=1e-5)  # fmt: skip


def test_an_agreeing_student_has_no_loss_and_no_gradient():
    student = torch.randn(3, 4, requires_grad=True)
    loss = soft_loss(student, student.detach().clone(), 2.0)
    loss.sum().backward()
    assert torch.allclose(loss, torch.zeros(3), atol=1e-6)
    assert torch.allclose(student.grad, torch.zeros(3, 4), atol=1e-6)


def test_the_factor_t_squared_keeps_the_gradients_size():
    # Hinton 2015, eq. 4: for high T and centred logits dC/dz ~ (z - v) / K with the factor T^2
    student = torch.tensor([[0.3, -0.1, -0.2]], requires_grad=True)
    teacher = torch.tensor([[-0.4, 0.1, 0.3]])
    soft_loss(student, teacher, 1000.0).sum().backward()
    assert torch.allclose(student.grad, (student.detach() - teacher) / 3, atol=1e-3)


class _Sees(nn.Module):
    """Remembers its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)
        self.seen: torch.Tensor | None = None
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.drop(self.linear(x.flatten(1)))


def _term(model: nn.Module) -> SoftTerm:
    model.num_features = 4
    return SoftTerm(Teacher(model, (0.1,), (0.5,)), INFO, temperature=2.0, weight=0.7)


def test_the_teacher_sees_the_batch_in_its_own_normalisation():
    model = _Sees()
    pixels = torch.rand(3, 1, 2, 2)
    _term(model).teacher_logits((pixels - 0.4) / 0.2)
    assert torch.allclose(model.seen, (pixels - 0.1) / 0.5, atol=1e-5)


def test_the_teacher_is_frozen_in_eval_mode_and_learns_nothing():
    model = _Sees()
    term = _term(model)
    images = torch.randn(4, 1, 2, 2)
    logits = torch.randn(4, 2, requires_grad=True)
    none = torch.empty(0)
    loss = term(Step(images, none, none, logits, none))
    assert loss.shape == (4,)
    loss.sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not model.training
    assert torch.equal(term.teacher_logits(images), term.teacher_logits(images))  # no dropout


def test_the_teachers_length_follows_the_size_of_the_set():
    config = TrainedTeacherConfig(
        recipe=RecipeConfig(batch_size=32), max_epochs=60, min_steps=2400, max_steps=20_000
    )
    assert config.epochs(1257) == 62  # 39 steps an epoch: 60 epochs would be 2,340 steps
    assert config.epochs(251) == 343  # 7 steps
    assert config.epochs(5000) == 60  # 156 steps: neither limit
    assert config.epochs(54_000) == 12  # 1,687 steps: 12 epochs are the first over 20,000
