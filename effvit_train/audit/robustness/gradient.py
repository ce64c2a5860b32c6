"""Attacks that follow the gradient: PGD, and APGD on cross-entropy and on the difference of logits ratio.

Every attack takes logits of images in 0..1, correctly classified images (B, C, H, W) and their labels (B,), and
returns images within epsilon (L-infinity) of them. An image is left alone as soon as it is misclassified: what
matters is whether it can be, not by how much. All arithmetic is per image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from effvit_train.audit.robustness.victim import Logits, others, project, wrong

Loss = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # logits (B, K), labels (B,), targets (B,) -> (B,) to enlarge

DECAY = 0.75  # rho: of steps that must gain for a step size to stay (Croce & Hein 2020, section 3.3)
MOMENTUM = 0.75  # alpha: weight of the new direction


def cross_entropy(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-log p of the label (B,); `targets` are not used."""
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def targeted_dlr(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """How far the target t is ahead of the label y, whatever the scale of the logits z, (B,).

    Croce & Hein 2020, eq. 7: -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2), with z_1 >= z_2 >= ... sorted. It needs four
    classes. With three, the denominator is that of the untargeted loss (eq. 6), z_1 - z_3. With two, no difference
    is left that is not the numerator: z_t - z_y itself, whose sign of the gradient is all that L-infinity steps
    look at.
    """
    places = torch.stack([labels, targets], dim=1)
    label, target = logits.gather(1, places).unbind(dim=1)
    classes = logits.shape[1]
    if classes == 2:
        return target - label
    ranked = logits.sort(dim=1, descending=True).values
    low = ranked[:, 2] if classes == 3 else (ranked[:, 2] + ranked[:, 3]) / 2
    return (target - label) / (ranked[:, 0] - low + 1e-12)


def runner_up(logits: Tensor, labels: Tensor, rank: int) -> Tensor:
    """The class (B,) that is number `rank` (1, 2, ...) of those that are not the label, by logit."""
    return others(logits, labels).argsort(dim=1, descending=True, stable=True)[:, rank - 1]


def pgd(
    logits: Logits, images: Tensor, labels: Tensor, start: Tensor, *, epsilon: float, steps: int, step: float
) -> Tensor:
    """Projected gradient ascent on the cross-entropy (Madry et al. 2018, section 2.1).

    x <- P(x + step sign(grad)), P onto the ball of epsilon and 0..1.

    Args:
        logits, images, labels: see above.
        start: (B, C, H, W) in the ball.
        epsilon: budget in 0..1.
        steps: of ascent.
        step: their size, in 0..1.
    """
    found = start.clone()
    rows = torch.arange(len(images), device=images.device)
    for _ in range(steps):
        points = found[rows]
        _, gradient, fooled = _ascend(logits, cross_entropy, points, labels[rows], labels[rows])
        rows, points, gradient = rows[~fooled], points[~fooled], gradient[~fooled]
        if len(rows) == 0:
            break
        found[rows] = project(points + step * gradient.sign(), images[rows], epsilon)
    return found


def checkpoints(steps: int) -> list[int]:
    """After how many steps APGD looks back: ceil(p_j N) (Croce & Hein 2020, section 3.3).

    p_0 = 0, p_1 = 0.22, p_(j+1) = p_j + max(p_j - p_(j-1) - 0.03, 0.06).
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    # in double precision 0.22 x 100 is a little more than 22
    return [math.ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1]


@dataclass
class _Climb:
    """What APGD knows of each image that it has not broken yet; the first axis of all is B.

    Attributes:
        row: number of the image.
        image, label, target: as given.
        point, before: x of this step and of the last one, with `gradient` and `loss` at x.
        top, top_gradient, top_loss: of the largest loss so far.
        step: size.
        gains: steps since the last checkpoint that enlarged the loss.
        halved: whether the step size was halved at the last checkpoint.
        last_top: the largest loss at the last checkpoint.
    """

    row: Tensor
    image: Tensor
    label: Tensor
    target: Tensor
    point: Tensor
    before: Tensor
    gradient: Tensor
    loss: Tensor
    top: Tensor
    top_gradient: Tensor
    top_loss: Tensor
    step: Tensor
    gains: Tensor
    halved: Tensor
    last_top: Tensor

    def keep(self, chosen: Tensor) -> None:
        """Forget the other images."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[chosen])


def apgd(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    targets: Tensor,
    start: Tensor,
    loss: Loss,
    *,
    epsilon: float,
    steps: int = 100,
) -> Tensor:
    """Auto-PGD: gradient ascent with momentum whose step size follows its success.

    Croce & Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks" (arXiv 2003.01690), algorithm 1, L-infinity. The step starts at 2 epsilon. At a checkpoint it is halved,
    and the ascent taken up again at the best point, where since the last one at most `DECAY` of the steps gained, or
    neither the step size nor the best loss has changed. (In the paper it is "less than `DECAY`", in its authors' code
    "at most".)

    Args:
        logits, images, labels: see above.
        targets: (B,) classes for `loss`.
        start: (B, C, H, W) in the ball.
        loss: to enlarge.
        epsilon: budget in 0..1.
        steps: gradients after the first.
    """
    found = start.clone()
    value, gradient, fooled = _ascend(logits, loss, start, labels, targets)
    rows = torch.arange(len(images), device=images.device)
    # no step size has been left alone yet, so that only its gains count at the first checkpoint
    halved = torch.ones_like(fooled)
    now = _Climb(
        rows, images, labels, targets, start, start, gradient, value, start, gradient, value,
        torch.full_like(value, 2 * epsilon), torch.zeros_like(value), halved, value,
    )  # fmt: skip
    now.keep(~fooled)
    looks = checkpoints(steps)
    for taken in range(steps):
        if len(now.row) == 0:
            break
        size = now.step.view(-1, *[1] * (images.ndim - 1))
        ahead = project(now.point + size * now.gradient.sign(), now.image, epsilon)
        if taken:
            ahead = now.point + MOMENTUM * (ahead - now.point) + (1 - MOMENTUM) * (now.point - now.before)
            ahead = project(ahead, now.image, epsilon)
        value, gradient, fooled = _ascend(logits, loss, ahead, now.label, now.target)
        now.gains = now.gains + (value > now.loss)
        now.before, now.point, now.gradient, now.loss = now.point, ahead, gradient, value
        better = value > now.top_loss
        now.top = _choose(better, ahead, now.top)
        now.top_gradient = _choose(better, gradient, now.top_gradient)
        now.top_loss = torch.where(better, value, now.top_loss)
        found[now.row] = ahead
        now.keep(~fooled)
        if taken + 1 in looks:
            _look_back(now, taken + 1 - [0, *looks][looks.index(taken + 1)])
    return found


def _look_back(now: _Climb, since: int) -> None:
    """Halve the step sizes that do not serve, `since` steps after the last checkpoint."""
    halve = (now.gains <= DECAY * since) | (~now.halved & (now.last_top >= now.top_loss))
    now.step = torch.where(halve, now.step / 2, now.step)
    now.point = _choose(halve, now.top, now.point)
    now.gradient = _choose(halve, now.top_gradient, now.gradient)
    now.loss = torch.where(halve, now.top_loss, now.loss)
    now.halved, now.last_top, now.gains = halve, now.top_loss, torch.zeros_like(now.gains)


def _choose(rows: Tensor, there: Tensor, elsewhere: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (there.ndim - 1)), there, elsewhere)


def _ascend(
    logits: Logits, loss: Loss, points: Tensor, labels: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss (B,), its gradient (B, C, H, W), and which points are misclassified (B,)."""
    points = points.detach().requires_grad_()
    out = logits(points)
    value = loss(out, labels, targets)
    (gradient,) = torch.autograd.grad(value.sum(), points)
    return value.detach(), gradient, wrong(out.detach(), labels)
