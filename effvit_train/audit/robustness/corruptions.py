"""Common corruptions of images: 15 kinds in 5 severities, for any size and number of channels.

Hendrycks & Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations"
(arXiv 1903.12261): the kinds of ImageNet-C, with the parameters that were published for 224, 64 and 32 px and the
rule of `scale` in between. The published images of ImageNet-C were in addition kept as JPEG of quality 85; ours are
not kept. Frost is procedural (`weather.ice`), the rest follows the published code.

Only numpy, scipy and Pillow are used: the packages that offer these corruptions need OpenCV and scikit-image, know
the parameters of 224 px alone, or draw from a global generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from effvit_train.audit.robustness import blur, digital, noise, weather
from effvit_train.audit.robustness.pixels import Generators, Pixels
from effvit_train.audit.robustness.scale import SEVERITIES, Scale
from effvit_train.keys import stream_key

_KINDS: dict[str, Callable[[Pixels, int, Generators], Pixels]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
}
KINDS = tuple(_KINDS)

_VALUES_AT_ONCE = 1 << 21  # 8 MB as float32; there are several such arrays at a time


def corrupt(
    images: Tensor, kind: str, severity: int, *, seed: int, ids: int | Sequence[int] | Tensor
) -> Tensor:
    """Return corrupted images: uint8, of the shape and on the device of `images`.

    What an image gets depends on (seed, kind, severity, its id) alone, not on the batch it comes in.

    Args:
        images: uint8, (C, H, W) or (B, C, H, W), at least 8 px a side; not changed.
        kind: one of `KINDS`.
        severity: 1..5.
        seed: of the audit.
        ids: of the image, or (B,) of the images.

    Raises:
        ValueError: for another kind, severity, type or shape.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity={severity!r} is not one of {SEVERITIES}")
    if images.dtype != torch.uint8 or images.ndim not in (3, 4) or images.shape[-3] < 1:
        raise ValueError(
            f"images are {images.dtype} {tuple(images.shape)}, not uint8 (C, H, W) or (B, C, H, W)"
        )
    Scale.of(*images.shape[-2:])
    numbers = [int(one) for one in np.atleast_1d(ids.cpu() if isinstance(ids, Tensor) else ids)]
    batch = images.detach().cpu().numpy().reshape(-1, *images.shape[-3:])
    if len(numbers) != len(batch):
        raise ValueError(f"{len(numbers)} ids for {len(batch)} images")
    out = np.empty_like(batch)
    count = max(1, _VALUES_AT_ONCE // int(np.prod(batch.shape[1:])))
    for start in range(0, len(batch), count):
        part = slice(start, start + count)
        keys = [stream_key("corruption", seed, kind, severity, one) for one in numbers[part]]
        generators = [np.random.Generator(np.random.PCG64(key)) for key in keys]
        out[part] = _KINDS[kind](batch[part], severity, generators)
    return torch.from_numpy(out).reshape(images.shape).to(images.device)
