"""Each loss by hand and against a second implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from effvit_train.compress.distill.losses import (
    ensemble,
    feature_loss,
    hard_loss,
    relation,
    relation_loss,
)
from effvit_train.soft_labels import soft_loss


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


def test_the_teachers_logits_count_up_to_a_constant():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    shifted = F.log_softmax(teacher, dim=-1)
    assert torch.allclose(soft_loss(student, teacher, 3.0), soft_loss(student, shifted, 3.0), atol=1e-5)


def test_the_gradient_keeps_its_size_as_the_temperature_rises():
    # Hinton 2015, eq. 4: for high T and centred logits dC/dz -> (z - v) / K with the factor T^2
    student, teacher = torch.tensor([[0.3, -0.1, -0.2]]), torch.tensor([[-0.4, 0.1, 0.3]])
    sizes = []
    for temperature in (10.0, 100.0, 1000.0):
        z = student.clone().requires_grad_()
        soft_loss(z, teacher, temperature).sum().backward()
        sizes.append(z.grad.norm().item())
    assert torch.allclose(z.grad, (student - teacher) / 3, atol=1e-3)
    assert max(sizes) / min(sizes) == pytest.approx(1, abs=0.05)  # without the factor: 10^4


def test_hard_loss_by_hand():
    student = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    teacher = torch.tensor([[5.0, 1.0], [-1.0, 2.0]])
    # p = (1/4, 3/4); the teacher says class 0, then class 1
    assert hard_loss(student, teacher).tolist() == pytest.approx([math.log(4), math.log(4 / 3)])


def test_the_deit_losses_against_the_papers_equations():
    """Touvron et al. 2021, eq. 2 and 3, written with probabilities and loops, not with torch's losses."""
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    labels, weight, tau = torch.tensor([0, 3, 2, 4]), 0.1, 3.0

    def psi(z: list[float]) -> list[float]:
        total = sum(math.exp(v) for v in z)
        return [math.exp(v) / total for v in z]

    def cross_entropy(p: list[float], y: int) -> float:
        return -math.log(p[y])

    for k in range(4):
        z, t, y = student[k].tolist(), teacher[k].tolist(), int(labels[k])
        q, p = psi([v / tau for v in t]), psi([v / tau for v in z])
        divergence = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
        soft = (1 - weight) * cross_entropy(psi(z), y) + weight * tau**2 * divergence
        hard = 0.5 * cross_entropy(psi(z), y) + 0.5 * cross_entropy(psi(z), t.index(max(t)))
        label = F.cross_entropy(student, labels, reduction="none")
        assert ((1 - weight) * label + weight * soft_loss(student, teacher, tau))[k].item() == pytest.approx(
            soft
        )
        assert (0.5 * label + 0.5 * hard_loss(student, teacher))[k].item() == pytest.approx(hard)


def test_feature_loss_by_hand():
    student = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [6.0, 8.0]]])
    # squares: (1, 4), (9, 16); angles: right, none
    assert feature_loss(student, teacher, "mse").tolist() == pytest.approx([30 / 4])
    assert feature_loss(student, teacher, "cosine").tolist() == pytest.approx([0.5])


def test_relation_by_hand():
    x = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])  # one head: X X^T / sqrt(2) = 4 / sqrt(2) on the diagonal
    on, off = math.exp(4 / math.sqrt(2)), 1.0
    expected = [[on / (on + off), off / (on + off)], [off / (on + off), on / (on + off)]]
    assert torch.allclose(relation(x, 1).exp()[0, 0], torch.tensor(expected))
    # two heads, one number wide each: products without the other's part
    assert torch.allclose(relation(x, 2).exp()[0, 0, 0], F.softmax(torch.tensor([4.0, 0.0]), dim=0))


def test_relation_loss_against_loops_and_across_widths():
    torch.manual_seed(0)
    student, teacher, heads = torch.randn(2, 5, 6), torch.randn(2, 5, 12), 3
    ours = relation_loss(student, teacher, heads)
    for b in range(2):
        total = 0.0
        for h in range(heads):
            s, t = student[b, :, 2 * h : 2 * h + 2], teacher[b, :, 4 * h : 4 * h + 4]
            p, q = torch.softmax(s @ s.T / 2**0.5, 1), torch.softmax(t @ t.T / 4**0.5, 1)
            total += sum(F.kl_div(p[i].log(), q[i], reduction="sum").item() for i in range(5)) / 5
        assert ours[b].item() == pytest.approx(total / heads, abs=1e-5)
    assert torch.allclose(relation_loss(teacher, teacher, heads), torch.zeros(2), atol=1e-6)


def test_an_ensemble_is_the_mean_distribution():
    one, other = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.6, 0.4]])
    assert torch.allclose(ensemble([one.log(), other.log()]).exp(), torch.tensor([[0.4, 0.6]]))
    alone = torch.randn(3, 4)
    assert ensemble([alone]) is alone
