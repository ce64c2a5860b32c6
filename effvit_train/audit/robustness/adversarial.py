"""PGD and AutoAttack: whether an adversary who may move each pixel by epsilon can have an image misclassified.

AutoAttack (Croce & Hein 2020, arXiv 2003.01690) in its standard version for L-infinity: APGD on the cross-entropy,
APGD on the targeted difference of logits ratio, targeted FAB, and Square; each attacks what the ones before have
left standing. It is written here (`gradient`, `fab`, `square`): the authors' package ends in an error below four
classes, draws from the global generator by an image's place in its batch, and brings 45 MB of example weights. Its
figures are the same (tests/audit/robustness).

Targeted attacks aim at the nine classes that come next after the label, or at all others where there are fewer; what
stands in for the targeted loss with two or three classes is told in `gradient.targeted_dlr`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from effvit_train.audit.robustness import gradient
from effvit_train.audit.robustness.fab import fab
from effvit_train.audit.robustness.square import square
from effvit_train.audit.robustness.victim import Logits, attacked, device_of, in_ball, wrong

AUTOATTACK = ("apgd-ce", "apgd-t", "fab-t", "square")
ATTACKS = ("pgd", *AUTOATTACK)

_ROUNDING = 1e-6  # of differences of numbers in 0..1; a budget of 4/255 is 0.0157


@dataclass(frozen=True)
class Strength:
    """How much each attack may try; the defaults are Madry's for CIFAR-10 and AutoAttack's standard.

    Attributes:
        pgd_steps: of PGD, from one random start.
        pgd_share: their size, as a share of epsilon.
        steps: of APGD and FAB, for each target.
        targets: classes that targeted attacks aim at.
        queries: of Square.
    """

    pgd_steps: int = 20
    pgd_share: float = 0.25
    steps: int = 100
    targets: int = 9
    queries: int = 5000


STANDARD = Strength()


# Sets with a usual L-infinity budget of their own: Wong & Kolter 2018, arXiv 1711.00851.
_BUDGETS = {"fashion_mnist": 0.1}


def default_budget(image_size: int, dataset: str = "") -> float:
    """The usual L-infinity budget for images of a size (px, the shorter side) or of a known set, in 0..1.

    0.1 for Fashion-MNIST (Wong & Kolter 2018). Else 8/255 for CIFAR-10 (32 px) and 4/255 for ImageNet (224 px), as on
    RobustBench; any other size takes that of the nearer of the two in ratio: 8/255 up to 84 px, 4/255 above.
    """
    return _BUDGETS.get(dataset, (8 if image_size**2 <= 32 * 224 else 4) / 255)


def stands(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    batch_size: int = 128,
) -> Tensor:
    """Which images (N,) bool are classified right without an attack. Arguments as in `withstands`."""
    points, truth = _checked(images, labels)
    device = device_of(model)
    with attacked(model, normalise) as logits, torch.no_grad():
        right = torch.zeros(len(points), dtype=torch.bool)
        for rows in _parts(torch.arange(len(points)), batch_size):
            right[rows] = ~wrong(logits(_unit(points[rows], device)), truth[rows].to(device)).cpu()
    return right


def withstands(
    name: str,
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int] | Tensor,
    standing: Tensor,
    *,
    seed: int,
    epsilon: float,
    batch_size: int = 128,
    strength: Strength = STANDARD,
) -> Tensor:
    """Which images (N,) bool one attack leaves standing.

    Random draws are of (seed, attack, id), so any part of the images can be attacked alone: what their results
    share with others is only the rounding of the model's own batched arithmetic.

    Args:
        name: one of `ATTACKS`.
        model: maps normalised images to logits (N, K); left as it is found, its `.grad` too.
        normalise: pixels 0..255 (N, C, H, W), on the model's device, to what the model sees; differentiable.
        images: (N, C, H, W), uint8, or floating point in 0..1.
        labels: (N,) in 0..K-1.
        ids: (N,) of the images.
        standing: (N,) bool; only these are attacked. Misclassified images have nothing to lose: see `stands`.
        seed: of the audit.
        epsilon: budget in 0..1.
        batch_size: images at a time.
        strength: of the attack.

    Raises:
        ValueError: for an attack that there is not, or shapes, types or an epsilon that cannot be.
    """
    if name not in ATTACKS:
        raise ValueError(f"{name!r} is not one of {', '.join(ATTACKS)}")
    if not 0 < epsilon <= 1:
        raise ValueError(f"epsilon={epsilon} is outside 0..1")
    points, truth = _checked(images, labels)
    numbers = [int(one) for one in ids]
    if len(numbers) != len(points) or standing.shape != truth.shape or standing.dtype != torch.bool:
        raise ValueError(f"{len(numbers)} ids, standing {tuple(standing.shape)} for {len(points)} images")
    device = device_of(model)
    with attacked(model, normalise) as logits:
        left = standing.cpu().clone()
        for rows in _parts(left.nonzero()[:, 0], batch_size):
            _, broken = perturb(
                name, logits, _unit(points[rows], device), truth[rows].to(device),
                [numbers[int(row)] for row in rows], seed=seed, epsilon=epsilon, strength=strength,
            )  # fmt: skip
            left[rows] = ~broken.cpu()
    return left


def perturb(
    name: str,
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int],
    *,
    seed: int,
    epsilon: float,
    strength: Strength = STANDARD,
) -> tuple[Tensor, Tensor]:
    """One attack on a batch: images that it ends with (B, C, H, W), and which of them are broken (B,).

    Broken is what the model misclassifies in one more forward pass, no farther than epsilon from its image.

    Args:
        name: one of `ATTACKS`.
        logits: of images in 0..1, from `victim.attacked`.
        images: (B, C, H, W) in 0..1, correctly classified.
        labels: (B,).
        ids: (B,).
        seed, epsilon, strength: as in `withstands`.
    """

    def start(what: str, chosen: Tensor) -> Tensor:
        return in_ball(what, seed, [ids[int(row)] for row in chosen], images[chosen], epsilon)

    rows = torch.arange(len(images), device=images.device)
    if name == "pgd":
        points = gradient.pgd(
            logits, images, labels, start(name, rows), epsilon=epsilon, steps=strength.pgd_steps,
            step=strength.pgd_share * epsilon,
        )  # fmt: skip
        return points, _broken(logits, points, images, labels, epsilon)
    if name == "apgd-ce":
        points = gradient.apgd(
            logits, images, labels, labels, start(name, rows), gradient.cross_entropy, epsilon=epsilon,
            steps=strength.steps,
        )  # fmt: skip
        return points, _broken(logits, points, images, labels, epsilon)
    if name == "square":
        points = square(logits, images, labels, epsilon=epsilon, queries=strength.queries, seed=seed, ids=ids)
        return points, _broken(logits, points, images, labels, epsilon)

    with torch.no_grad():
        clean = logits(images)
    points, broken = images.clone(), torch.zeros_like(labels, dtype=torch.bool)
    for rank in range(1, min(strength.targets, clean.shape[1] - 1) + 1):
        rows = (~broken).nonzero()[:, 0]
        if len(rows) == 0:
            break
        inputs, truth = images[rows], labels[rows]
        targets = gradient.runner_up(clean[rows], truth, rank)
        if name == "apgd-t":
            points[rows] = gradient.apgd(
                logits, inputs, truth, targets, start(f"{name}/{rank}", rows), gradient.targeted_dlr,
                epsilon=epsilon, steps=strength.steps,
            )  # fmt: skip
        else:
            points[rows] = fab(logits, inputs, truth, targets, epsilon=epsilon, steps=strength.steps)
        broken[rows] = _broken(logits, points[rows], inputs, truth, epsilon)
    return points, broken


@torch.no_grad()
def _broken(logits: Logits, points: Tensor, images: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    # A number that is not finite is in no ball.
    within = (points - images).abs().flatten(1).amax(dim=1) <= epsilon + _ROUNDING
    return within & wrong(logits(points), labels)


def _parts(rows: Tensor, size: int) -> tuple[Tensor, ...]:
    return rows.split(size) if len(rows) else ()


def _unit(images: Tensor, device: torch.device) -> Tensor:
    images = images.detach().to(device)
    # cloned, because a tensor from inference mode cannot take part in a gradient
    return images.float() / 255 if images.dtype == torch.uint8 else images.float().clone()


def _checked(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(f"images {tuple(images.shape)} and labels {tuple(labels.shape)} do not match")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, not uint8 or floating point")
    if (
        images.is_floating_point()
        and len(images)
        and not 0 <= float(images.min()) <= float(images.max()) <= 1
    ):
        raise ValueError("images of floating point must lie in 0..1")
    return images, labels.detach().long()
