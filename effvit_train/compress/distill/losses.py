"""The losses of distillation, as papers state them; each returns one number per sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def hard_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Cross entropy of the student against the class that the teacher holds likeliest, shape (B,).

    Touvron et al. 2021 (DeiT), eq. 3, its second half. `student`, `teacher`: logits (B, K).
    """
    return F.cross_entropy(student, teacher.argmax(dim=-1), reduction="none")


def feature_loss(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """Distance of projected student features from the teacher's, mean over positions, shape (B,).

    Romero et al. 2015 (FitNets), eq. 3, per element; or `1 - cosine`, which does not depend on scale.

    Args:
        student: (B, N, D), projected to the teacher's width.
        teacher: (B, N, D).
        kind: `mse` or `cosine`.
    """
    if kind == "mse":
        return (student - teacher).square().mean(dim=(1, 2))
    return 1 - F.cosine_similarity(student, teacher, dim=-1).mean(dim=1)


def relation(x: Tensor, heads: int) -> Tensor:
    """Log of the self-attention relation of a set of vectors, shape (B, heads, N, N).

    Wang et al. 2021 (MiniLMv2), eq. 5: `softmax(X X^T / sqrt(d / heads))` with the width d cut into
    relation heads, whose number needs not be that of the attention heads. `x`: (B, N, d).
    """
    batch, count, width = x.shape
    x = x.reshape(batch, count, heads, width // heads).transpose(1, 2)
    return F.log_softmax(x @ x.transpose(-2, -1) * (width // heads) ** -0.5, dim=-1)


def relation_loss(student: Tensor, teacher: Tensor, heads: int) -> Tensor:
    """KL divergence of the teacher's relation from the student's, shape (B,).

    Wang et al. 2021 (MiniLMv2), eq. 4: mean over relation heads and positions. `student` (B, N, d) and
    `teacher` (B, N, d') may differ in width.
    """
    log_p, log_q = relation(student, heads), relation(teacher, heads)
    return (log_q.exp() * (log_q - log_p)).sum(dim=-1).mean(dim=(1, 2))


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`||A' - A||^2 / ||A||^2` of what two attentions give, shape (B,).

    Zhang et al. 2025 (LoLCATs), attention transfer: the squared error of the output, given the same input; here relative
    to what is to be given, as in the card's `approximation/attention_error`, so that blocks count alike.
    `student`, `teacher`: (B, N, D).
    """
    error = (student - teacher).square().sum(dim=(1, 2))
    return error / teacher.square().sum(dim=(1, 2)).clamp_min(1e-12)


def ensemble(log_probs: list[Tensor]) -> Tensor:
    """Log of the arithmetic mean of distributions, given and returned as logarithms (B, K).

    Hinton, Vinyals & Dean 2015, section 1: the mean of an ensemble's predictive distributions. One
    member is returned as it is, bit for bit.
    """
    if len(log_probs) == 1:
        return log_probs[0]
    return torch.logsumexp(torch.stack(log_probs), dim=0) - torch.tensor(float(len(log_probs))).log()
