"""Soft labels: what another model says of a step's images, and the loss of a student that learns it."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from effvit_train.parts import Step, Term


class Targets(Protocol):
    """What a student's distribution over the classes learns from."""

    def log_probs(self, step: Step) -> Tensor:
        """Log-probabilities (B, K) for the step's samples, up to a constant per sample."""
        ...


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))` for each sample, shape (B,).

    Hinton, Vinyals & Dean 2015, section 2: the factor `T^2` keeps the gradient's size when the
    temperature changes. `student` and `teacher` are logits (B, K), up to a constant per sample.
    """
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1) * temperature**2


def student_logits(step: Step) -> Tensor:
    """The head that learns from the teacher: the distillation token's where there is one."""
    return step.logits if step.token_logits is None else step.token_logits


def answered(step: Step) -> Tensor:
    """Logits (B, K) as the model answers in evaluation: the mean of its heads."""
    return step.logits if step.token_logits is None else (step.logits + step.token_logits) / 2


class SoftTerm(Term):
    """The teacher's distribution (Hinton et al. 2015), over the classes that the student knows by now."""

    name = "soft"

    def __init__(self, targets: Targets, *, temperature: float, weight: float) -> None:
        self.targets, self.temperature, self.weight = targets, temperature, weight

    @override
    def __call__(self, step: Step) -> Tensor:
        student = student_logits(step)
        return soft_loss(student, self.targets.log_probs(step)[:, : student.shape[1]], self.temperature)
