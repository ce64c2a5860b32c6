"""Square Attack: random search by squares, without gradients.

Andriushchenko, Croce, Flammarion & Hein 2020, "Square Attack: a query-efficient black-box adversarial attack via
random search" (arXiv 1912.00049), L-infinity, algorithms 1 and 2, with the settings of AutoAttack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from effvit_train.audit.robustness.victim import Logits, generators, others, project, wrong

LARGEST_SHARE = 0.8  # p: share of the pixels that the first squares cover
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # proposals, of 10,000 (section 3.2)
_DRAWN_AT_ONCE = 500  # proposals


@torch.no_grad()
def square(
    logits: Logits,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    queries: int = 5000,
    seed: int,
    ids: Sequence[int],
) -> Tensor:
    """Return the last points (B, C, H, W) of a search that keeps what lowers the margin.

    It starts from vertical stripes of +-epsilon. A proposal sets a square, at a place of its own for each image,
    to +-epsilon in each channel. AutoAttack does not rescale the schedule of the squares' size to its 5,000
    queries, and neither do we. A square may lie anywhere in the image: that the authors' code never lets it reach the
    last row and column matters in small images, where ours finds more.

    Args:
        logits: of images in 0..1.
        images: (B, C, H, W), correctly classified.
        labels: (B,).
        epsilon: budget in 0..1.
        queries: of the model for each image at most, the stripes included.
        seed: of the audit.
        ids: (B,) of the images.
    """
    batch, channels, height, width = images.shape
    chance = generators("square", seed, ids)
    stripes = _signs(chance, (channels, 1, width)).to(images.device)
    found = project(images + epsilon * stripes, images, epsilon)
    out = logits(found)
    margin, rows = _margin(out, labels), torch.arange(batch, device=images.device)
    rows = rows[~wrong(out, labels)]
    line, column = (torch.arange(side, device=images.device) for side in (height, width))
    for number in range(queries - 1):
        if len(rows) == 0:
            break
        if number % _DRAWN_AT_ONCE == 0:
            places = torch.from_numpy(np.stack([one.random((_DRAWN_AT_ONCE, 2)) for one in chance]))
            signs = _signs(chance, (_DRAWN_AT_ONCE, channels))
            places, signs = places.to(images.device), signs.to(images.device)
        side = side_of(number, height, width)
        free = torch.tensor([height - side + 1, width - side + 1], device=images.device)
        top, left = (places[rows, number % _DRAWN_AT_ONCE] * free).long().unbind(dim=1)
        inside = ((line >= top[:, None]) & (line < top[:, None] + side))[:, :, None]
        inside = inside & ((column >= left[:, None]) & (column < left[:, None] + side))[:, None, :]
        colour = signs[rows, number % _DRAWN_AT_ONCE][:, :, None, None]
        proposed = torch.where(inside[:, None], images[rows] + epsilon * colour, found[rows]).clamp(0, 1)
        out = logits(proposed)
        new, fooled = _margin(out, labels[rows]), wrong(out, labels[rows])
        better = (new < margin[rows]) | fooled
        found[rows[better]], margin[rows[better]] = proposed[better], new[better]
        rows = rows[~fooled]
    return found


def side_of(number: int, height: int, width: int) -> int:
    """Side in px of the square of proposal `number` (from 0)."""
    share = LARGEST_SHARE / 2 ** sum(number > after for after in _HALVED_AFTER)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """How far the label is ahead of all others (B,)."""
    return logits.gather(1, labels[:, None])[:, 0] - others(logits, labels).amax(dim=1)


def _signs(chance: Sequence[np.random.Generator], shape: tuple[int, ...]) -> Tensor:
    """Fair signs (B, *shape)."""
    return (
        torch.from_numpy(np.stack([one.integers(0, 2, shape, dtype=np.int8) for one in chance])) * 2.0 - 1.0
    )
