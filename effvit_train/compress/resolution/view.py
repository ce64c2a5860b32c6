"""What a step of the training sees of its images: another size, other patches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from effvit_train.compress.resolution.shapes import Shape, pick
from effvit_train.models.resample import patch_inverse, recut, resize


class View:
    """Shows all images of a step at one size, cut into patches of one size.

    Nothing is learnt here and every image is treated alike: what composes with the plain training composes with it.

    Args:
        shapes: the fewest tokens first.
        schedule: random | progressive.
        seed: of the run.
        patch: pixels of the model's own patches.
        compiled: the model is compiled, once for each size.
    """

    def __init__(
        self, shapes: Sequence[Shape], schedule: str, *, seed: int, patch: int, compiled: bool = False
    ) -> None:
        self.shapes, self.schedule, self.seed, self.compiled = list(shapes), schedule, seed, compiled
        self._inverse = {
            shape.patch: patch_inverse(patch, shape.patch).float() for shape in shapes if shape.patch != patch
        }

    def __call__(self, images: Tensor, step: int, steps: int) -> Tensor:
        """Normalised images (B, C, H, W) of a step of so many, as the model is given them."""
        shape = pick(self.shapes, self.schedule, seed=self.seed, step=step, steps=steps)
        images = resize(images, shape.size)
        inverse = self._inverse.get(shape.patch)
        if inverse is not None:
            if inverse.device != images.device:
                inverse = self._inverse[shape.patch] = inverse.to(images.device)
            images = recut(images, inverse)
        if self.compiled:
            for dim in (2, 3):
                torch._dynamo.mark_static(images, dim)
        return images
