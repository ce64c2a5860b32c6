"""FAB: the nearest misclassified point, by steps onto the linearised boundary.

Croce & Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack"
(arXiv 1907.02044), L-infinity, in the targeted version of AutoAttack: the boundary is that to one class.
"""

from __future__ import annotations

import torch
from torch import Tensor

from effvit_train.audit.robustness.victim import Logits, wrong

LARGEST_SHARE = 0.1  # alpha_max: of the step that starts from the image itself
OVERSHOOT = 1.05  # eta
RETREAT = 0.9  # beta: towards the image, after a misclassified point


def fab(
    logits: Logits, images: Tensor, labels: Tensor, targets: Tensor, *, epsilon: float, steps: int = 100
) -> Tensor:
    """Return the nearest misclassified points that were found, as soon as one is within epsilon.

    Each step goes to the hyperplane where, to first order, the target has caught up with the label: partly from
    the point where it is (d_1), partly from the image (d_2), alpha = min(|d_1| / (|d_1| + |d_2|), `LARGEST_SHARE`)
    of it (algorithm 1). Without random restarts it draws nothing.

    Args:
        logits: of images in 0..1.
        images: (B, C, H, W), correctly classified.
        labels, targets: (B,).
        epsilon: within which to stop, in 0..1.
        steps: at most.

    Returns:
        (B, C, H, W), the images themselves where nothing was found; may be farther than epsilon.
    """
    found, nearest = images.clone(), torch.full((len(images),), torch.inf, device=images.device)
    rows = torch.arange(len(images), device=images.device)
    points = images.clone()
    for _ in range(steps):
        rows, points = rows[nearest[rows] > epsilon], points[nearest[rows] > epsilon]
        if len(rows) == 0:
            break
        origin = images[rows]
        lead, slope = _lead(logits, points, labels[rows], targets[rows])
        flat, normal = points.flatten(1), slope.flatten(1)
        offset = (normal.double() * flat.double()).sum(
            dim=1
        ) - lead.double()  # the plane: normal . z = offset
        from_point = onto_plane(flat, normal, offset).view_as(points)
        from_image = onto_plane(origin.flatten(1), normal, offset).view_as(points)
        share = _share(from_point, from_image).view(-1, *[1] * (images.ndim - 1))
        points = (1 - share) * (points + OVERSHOOT * from_point) + share * (origin + OVERSHOOT * from_image)
        points = points.clamp(0, 1)
        with torch.no_grad():
            fooled = wrong(logits(points), labels[rows])
        distance = (points - origin).abs().flatten(1).amax(dim=1)
        closer = fooled & (distance < nearest[rows])
        found[rows[closer]], nearest[rows[closer]] = points[closer], distance[closer]
        back = origin + RETREAT * (points - origin)
        points = torch.where(fooled.view_as(share), back, points)
    return found


def onto_plane(points: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """The smallest step (L-infinity) from points in 0..1 to a hyperplane, that stays in 0..1.

    Every coordinate moves by the same distance t in the direction that helps, or as far as it can. What is gained,
    sum |normal_i| min(t, room_i), is concave and piecewise linear in t: its pieces are sorted by room, and t lies
    in the first that is enough. Where the plane does not meet the box, all move as far as they can.

    Shapes: `points`, `normal` (B, D), `offset` (B,) with the plane normal . z = offset; returns steps (B, D).
    """
    points_, normal_ = points.double(), normal.double()
    missing = offset.double() - (normal_ * points_).sum(dim=1)  # what normal . z has to change by
    direction = normal_.sign() * torch.where(missing < 0, -1.0, 1.0)[:, None]
    room = torch.where(direction > 0, 1 - points_, torch.where(direction < 0, points_, 0.0))
    weight = normal_.abs()
    ordered, order = room.sort(dim=1)
    sorted_weight = weight.gather(1, order)
    used = (sorted_weight * ordered).cumsum(dim=1)  # gained by the coordinates that are at their end
    free = sorted_weight.flip(1).cumsum(dim=1).flip(1)  # weight of this coordinate and all with more room
    gained = used - sorted_weight * ordered + free * ordered  # with t = this coordinate's room
    need = missing.abs()[:, None]
    piece = torch.searchsorted(gained, need).clamp(max=gained.shape[1] - 1)
    before = (used - sorted_weight * ordered).gather(1, piece)
    distance = (need - before) / free.gather(1, piece).clamp(min=1e-300)
    beyond = need > gained[:, -1:]
    distance = torch.where(beyond, ordered[:, -1:], distance)
    return (direction * torch.minimum(room, distance)).to(points.dtype)


def _share(from_point: Tensor, from_image: Tensor) -> Tensor:
    """alpha (B,): the nearer the point is to the boundary, the less is begun again from the image."""
    here, there = (step.abs().flatten(1).amax(dim=1).clamp(min=1e-8) for step in (from_point, from_image))
    return (here / (here + there)).clamp(max=LARGEST_SHARE)


def _lead(logits: Logits, points: Tensor, labels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """How far the target's logit is ahead of the label's (B,), and its gradient (B, C, H, W)."""
    points = points.detach().requires_grad_()
    out = logits(points)
    label, target = out.gather(1, torch.stack([labels, targets], dim=1)).unbind(dim=1)
    lead = target - label
    (slope,) = torch.autograd.grad(lead.sum(), points)
    return lead.detach(), slope
