"""A frozen teacher, which sees the student's batch in its own size, channels and normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.models.factory import embed_width
from effvit_train.precision import choose_precision
from effvit_train.taps import Taps


class View:
    """From the student's normalised images to the teacher's.

    Args:
        mean, std: the student's, per channel, of pixels in 0..1.
        teacher_mean, teacher_std: the teacher's.
        size: (H, W) that the teacher takes; None = the student's.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        teacher_mean: Sequence[float],
        teacher_std: Sequence[float],
        size: tuple[int, int] | None = None,
    ) -> None:
        self.size, self.channels = size, len(teacher_mean)
        # (x s + m - m') / s'  =  x (s / s') + (m - m') / s'
        own, other = (
            torch.tensor([tuple(mean), tuple(std)]),
            torch.tensor([tuple(teacher_mean), tuple(teacher_std)]),
        )
        if own.shape[1] != self.channels:  # grey becomes colour before, colour grey after it is undone
            own = own.mean(dim=1, keepdim=True) if own.shape[1] == 1 else own
        self._own, self._other = own.view(2, 1, -1, 1, 1), other.view(2, 1, -1, 1, 1)
        self._same_channels = own.shape[1] == self.channels

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) as the teacher takes them."""
        if self._own.device != images.device:
            self._own, self._other = self._own.to(images.device), self._other.to(images.device)
        (mean, std), (teacher_mean, teacher_std) = self._own, self._other
        if self._same_channels:
            images = images * (std / teacher_std) + (mean - teacher_mean) / teacher_std
        else:
            pixels = images * std + mean
            if self.channels == 1:
                pixels = pixels.mean(dim=1, keepdim=True)
            images = (pixels - teacher_mean) / teacher_std
        if self.size is not None and self.size != tuple(images.shape[-2:]):
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images


class Teacher:
    """A model in evaluation mode, without gradients, part of no module: it never enters a checkpoint.

    Args:
        model: maps its own normalised images to logits (B, K).
        view: from the student's images to its own.
        outputs: of the model, one for each of the student's classes in their order; None = its own order.
    """

    def __init__(self, model: nn.Module, view: View, outputs: Sequence[int] | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.view = view
        self._outputs = None if outputs is None else torch.tensor(outputs)
        self._device: torch.device | None = None
        self._autocast = False
        self._taps = Taps(model, ())

    def tap(self, names: Iterable[str]) -> None:
        """Also return what these submodules give."""
        self._taps = Taps(self.model, names)

    def __call__(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities (B, K), float32, and tapped outputs, for the student's images (B, C, H, W).

        In bf16 where that is faster for its width.
        """
        if self._device != images.device:
            self.model.to(images.device)
            self._device = images.device
            precision = choose_precision(
                "auto", device_type=images.device.type, width=embed_width(self.model)
            )
            self._autocast = precision.name == "bf16-mixed"
        with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16, enabled=self._autocast):
            logits = self.model(self.view(images)).float()
        if self._outputs is not None:
            self._outputs = self._outputs.to(logits.device)
            logits = logits[:, self._outputs]
        return F.log_softmax(logits, dim=-1), self._taps.take()
