"""Noise: Gaussian, shot and impulse (Hendrycks & Dietterich 2019, section 4).

Functions take uint8 images (B, C, H, W), a severity 1..5 and a generator for each image, and return new images.
"""

from __future__ import annotations

import numpy as np

from effvit_train.audit.robustness.pixels import Generators, Pixels, normal, to_pixels, to_unit, uniform
from effvit_train.audit.robustness.scale import Scale, Table

_DEVIATION: Table[float] = {
    32: (0.04, 0.06, 0.08, 0.09, 0.10),
    64: (0.04, 0.08, 0.12, 0.15, 0.18),
    224: (0.08, 0.12, 0.18, 0.26, 0.38),
}
_PHOTONS: Table[int] = {
    32: (500, 250, 100, 75, 50),
    64: (250, 100, 50, 30, 15),
    224: (60, 25, 12, 5, 3),
}
_SHARE: Table[float] = {
    32: (0.01, 0.02, 0.03, 0.05, 0.07),
    64: (0.01, 0.02, 0.05, 0.08, 0.14),
    224: (0.03, 0.06, 0.09, 0.17, 0.27),
}


def gaussian_noise(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Add N(0, deviation^2) to each value, in units of the whole range."""
    deviation = Scale.of(*pixels.shape[-2:]).pick(_DEVIATION, severity)
    return to_pixels(to_unit(pixels) + np.float32(deviation) * normal(generators, pixels.shape[1:]))


def shot_noise(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Count photons: Poisson, with `photons` of them at white, so the variance is value / photons."""
    photons = Scale.of(*pixels.shape[-2:]).pick(_PHOTONS, severity)
    expected = to_unit(pixels).astype(np.float64) * photons
    counted = [one.poisson(light) for one, light in zip(generators, expected, strict=True)]
    return to_pixels(np.stack(counted) / photons)


def impulse_noise(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Replace a share of the values, of each channel by itself, by 0 or 255, as often the one as the other."""
    share = Scale.of(*pixels.shape[-2:]).pick(_SHARE, severity)
    drawn = uniform(generators, pixels.shape[1:], 0, 1)
    pepper, salt = drawn < share / 2, drawn >= 1 - share / 2
    return np.where(pepper, np.uint8(0), np.where(salt, np.uint8(255), pixels))
