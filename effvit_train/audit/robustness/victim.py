"""The model under attack: logits of images in 0..1, and nothing of the attack left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from effvit_train.keys import stream_key

Logits = Callable[[Tensor], Tensor]


@contextmanager
def attacked(model: nn.Module, normalise: Callable[[Tensor], Tensor]) -> Iterator[Logits]:
    """Give logits (B, K) in float32 of images (B, C, H, W) in 0..1, differentiable with respect to these.

    While it lasts the model is in evaluation mode and its parameters need no gradient; afterwards each module has
    its mode and each parameter its flag again. No `.grad` is touched.

    Args:
        model: maps normalised images to logits.
        normalise: pixels of 0..255 to what the model sees.
    """
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    device = device_of(model)
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield lambda images: model(normalise(images * 255)).float()
    finally:
        for module, training in modes:
            module.training = training
        for parameter, needed in flags:
            parameter.requires_grad_(needed)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def wrong(logits: Tensor, labels: Tensor) -> Tensor:
    """Which images (B,) are not classified right; a row with a number that is not finite is not."""
    return (logits.argmax(dim=1) != labels) | ~logits.isfinite().all(dim=1)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """The logits (B, K) with that of the label at minus infinity."""
    return logits.scatter(1, labels[:, None], -torch.inf)


def generators(what: str, seed: int, ids: Sequence[int]) -> list[np.random.Generator]:
    """A generator for each image, of (seed, what, its id) alone."""
    return [np.random.Generator(np.random.PCG64(stream_key(what, seed, one))) for one in ids]


def in_ball(what: str, seed: int, ids: Sequence[int], images: Tensor, epsilon: float) -> Tensor:
    """Uniform points of the L-infinity balls around images (B, C, H, W), clipped to 0..1."""
    shape = tuple(images.shape[1:])
    drawn = [one.random(shape, dtype=np.float32) for one in generators(what, seed, ids)]
    moves = torch.from_numpy(np.stack(drawn)).to(images.device) * 2 - 1
    return (images + epsilon * moves).clamp(0, 1)


def project(points: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """The nearest points within epsilon of the images and in 0..1."""
    return torch.clamp(points, images - epsilon, images + epsilon).clamp(0, 1)
