"""Which patch and window suit an image: the rules behind `model.patch_size=auto`. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

# A patch of about the square root of the image gives about as many tokens per side as pixels per
# patch; 1.1 lets the usual pairs fall out: 8 -> 2, 28 and 32 -> 4, 224 -> 16.
_SLACK = 1.1
_FINE_GRID = 14  # tokens per side of ViT/16 at 224: as fine as the published models
MAX_GRID = 40  # tokens per side that `auto` may choose (1,600 tokens)


@dataclass(frozen=True)
class Geometry:
    """How an architecture cuts images, as timm builds it when nothing is said.

    Attributes:
        image_size: pixels per side that it was made for.
        patch: pixels per side of its patches; None when it has none that can be set.
        span: how many times its last stage is coarser than its patches; 1 for a plain ViT.
        window: tokens per side of its attention windows; None when it has none.
    """

    image_size: int
    patch: int | None
    span: int = 1
    window: int | None = None


def divisors(number: int) -> list[int]:
    """Divisors of `number`, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def auto_patch(size: int, native: Geometry) -> int | None:
    """Patch size for images of `size` pixels per side, or None when no divisor is reasonable.

    timm's own patch is kept where it divides the image and leaves a grid as fine as the model was
    made for. Otherwise: the largest divisor of about the square root of the image; for a pyramid
    also no larger than its own patch, and small enough that the last stage is 2 tokens wide.
    """
    assert native.patch is not None
    if size % native.patch == 0 and (
        size >= native.image_size or size // native.patch >= _FINE_GRID * native.span
    ):
        return native.patch
    limit = _SLACK * math.sqrt(size)
    if native.span > 1:
        limit = min(limit, native.patch)
    fitting = [d for d in divisors(size) if d <= limit]
    if native.span > 1:
        fitting = [d for d in fitting if size // d > native.span] or [1]
    patch = max(fitting)
    return patch if size // patch <= MAX_GRID * native.span else None


def auto_window(grid: int, window: int) -> int | None:
    """Window that tiles a `grid` of tokens without padding, or None to keep timm's own `window`.

    timm clamps a window to a smaller grid by itself, and pads a grid that the window does not divide.
    """
    if grid <= window or grid % window == 0:
        return None
    fitting = [d for d in divisors(grid) if window / 2 <= d <= window + 1]
    return max(fitting, default=None)
