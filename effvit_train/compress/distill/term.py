"""The soft-label term of Hinton et al. 2015."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from effvit_train.compress.distill.teacher import Teacher
from effvit_train.data.info import DataInfo
from effvit_train.parts import Step


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))` for each sample, shape (B,).

    Hinton, Vinyals & Dean 2015, section 2: the factor `T^2` keeps the gradient's size when the
    temperature changes. `student` and `teacher` are logits (B, K).
    """
    log_p = F.log_softmax(student / temperature, dim=-1)
    log_q = F.log_softmax(teacher / temperature, dim=-1)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1) * temperature**2


class SoftTerm:
    """Runs the teacher on the student's images, re-normalised to its own statistics.

    The teacher is in evaluation mode, without gradients, and no part of any module: it never enters
    a checkpoint.

    Args:
        teacher: the teacher.
        info: the student's data (its normalisation).
        temperature: T.
        weight: of the term in the total loss.
    """

    name = "distill"

    def __init__(self, teacher: Teacher, info: DataInfo, *, temperature: float, weight: float) -> None:
        self.teacher, self.temperature, self.weight = teacher, temperature, weight
        # (x * s + m - m') / s'  =  x * (s / s') + (m - m') / s'
        own, other = torch.tensor([info.mean, info.std]), torch.tensor([teacher.mean, teacher.std])
        self._scale = (own[1] / other[1]).view(1, -1, 1, 1)
        self._shift = ((own[0] - other[0]) / other[1]).view(1, -1, 1, 1)

    def __call__(self, step: Step) -> Tensor:
        """The term of each sample, shape (B,)."""
        return soft_loss(step.logits, self.teacher_logits(step.images), self.temperature)

    @torch.no_grad()
    def teacher_logits(self, images: Tensor) -> Tensor:
        """The teacher's logits (B, K) for the student's normalised images (B, C, H, W)."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return self.teacher.logits(images * self._scale + self._shift)
