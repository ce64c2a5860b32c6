"""Which sizes and patches images are shown at, and which of them at which step. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from effvit_train.compress.resolution.config import KEY, ResolutionConfig
from effvit_train.errors import UserError
from effvit_train.keys import stream_key

_DEFAULT = 4  # sizes


@dataclass(frozen=True)
class Shape:
    """How an image is shown: its size and that of the patches it is cut into, in pixels per side."""

    size: int
    patch: int

    @property
    def tokens(self) -> int:
        """Patches of an image."""
        return (self.size // self.patch) ** 2


def default_sizes(image: int, patch: int) -> list[int]:
    """Up to four multiples of the patch, evenly from half the image to the whole."""
    whole = image // patch
    least = (whole + 1) // 2
    steps = min(_DEFAULT - 1, whole - least)
    grids = {round(least + (whole - least) * k / steps) for k in range(steps + 1)} if steps else {whole}
    return [grid * patch for grid in sorted(grids)]


def shapes_of(config: ResolutionConfig, image: int, patch: int) -> list[Shape]:
    """The sizes and patches to show, the fewest tokens first.

    Where both are given, all pairs of them of which the patch divides the size.

    Args:
        config: a validated `compress.resolution`.
        image: pixels per side of the data's images.
        patch: of the model's patches.

    Raises:
        UserError: a size that is larger than the images or that no patch divides, a patch that divides no size,
            or nothing to choose from.
    """
    patches = config.patches or [patch]
    # patches alone: the same image is cut into fewer tokens
    sizes = config.sizes or ([image] if config.patches else default_sizes(image, patch))
    for size in sizes:
        if size > image:
            raise UserError(
                f"is larger than the images, which have {image} pixels per side", key=f"{KEY}.sizes", value=size,
                remedy=f"at most {image}, or dataset.image_size={size}",
            )  # fmt: skip
        if all(size % p for p in patches):
            word = "no patch of" if len(patches) > 1 else "the patch of"
            divides = "divides" if len(patches) > 1 else "does not divide"
            near = ", ".join(str(n) for n in multiples(patches, image))
            raise UserError(
                f"{word} {', '.join(map(str, patches))} pixels {divides} it", key=f"{KEY}.sizes", value=size,
                remedy=f"possible: {near}" if near else f"a patch that divides {size}",
            )  # fmt: skip
    for p in patches:
        if all(size % p for size in sizes):
            allowed = ", ".join(str(d) for d in range(2, image + 1) if any(size % d == 0 for size in sizes))
            raise UserError(
                f"does not divide {' or '.join(map(str, sizes))} pixels", key=f"{KEY}.patches", value=p,
                remedy=f"possible: {allowed}",
            )  # fmt: skip
    shapes = [Shape(size, p) for size in sizes for p in patches if size % p == 0]
    if shapes == [Shape(image, patch)]:
        raise UserError(
            f"leaves one size and one patch, {image} and {patch} pixels: there is nothing to choose from",
            key=f"{KEY}.sizes", value=sizes, remedy=f"name several sizes, or {KEY}.patches, or leave resolution out",
        )  # fmt: skip
    return sorted(shapes, key=lambda shape: (shape.tokens, shape.size))


def multiples(patches: Sequence[int], image: int) -> list[int]:
    """Sizes up to the image's that a patch divides; the larger half of them."""
    found = [n for n in range(1, image + 1) if any(n % p == 0 for p in patches)]
    return found[len(found) // 2 :][-8:]


def pick(shapes: Sequence[Shape], schedule: str, *, seed: int, step: int, steps: int) -> Shape:
    """What a step shows: a function of (seed, step) alone, or of (step, steps), the same on all processes.

    Args:
        shapes: the fewest tokens first.
        schedule: random (uniform) | progressive (as many steps of each, in order).
        seed: of the run.
        step: of the optimizer, from 0.
        steps: of the whole training.
    """
    if schedule == "progressive":
        return shapes[min(len(shapes) - 1, step * len(shapes) // max(1, steps))]
    return shapes[stream_key("resolution", seed, step) % len(shapes)]
