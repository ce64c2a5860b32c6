"""Weather: snow, frost, fog and brightness (Hendrycks & Dietterich 2019, section 4).

Functions take uint8 images (B, C, H, W), a severity 1..5 and a generator for each image, and return new images.
Three channels are taken for red, green and blue; any other number for brightnesses of equal standing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from effvit_train.audit.robustness.pixels import (
    Floats,
    Generators,
    Pixels,
    normal,
    smear,
    to_nearest_pixels,
    to_pixels,
    to_unit,
    uniform,
    zoom,
)
from effvit_train.audit.robustness.scale import Scale, Table

# mean and deviation of the flakes' brightness; enlargement; threshold; radius and sigma of their fall, px;
# share of the picture that is not whitened
_SNOW: Table[tuple[float, float, float, float, float, float, float]] = {
    32: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    64: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8), (0.1, 0.2, 1, 0.5, 10, 4, 0.8), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    224: (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
}  # fmt: skip
# weights of the picture and of the frost
_FROST: Table[tuple[float, float]] = {
    32: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    64: ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
    224: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
}
# thickness, and what the detail of the fog is divided by from one scale to the next
_FOG: Table[tuple[float, float]] = {
    32: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    64: ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    224: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
}
_BRIGHTER: Table[float] = {
    32: (0.05, 0.1, 0.15, 0.2, 0.3),
    64: (0.1, 0.2, 0.3, 0.4, 0.5),
    224: (0.1, 0.2, 0.3, 0.4, 0.5),
}

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601

FROST_MEAN = (0.44, 0.80)  # of the darkest and the brightest picture
FROST_DEVIATION = {32: (0.09, 0.05), 64: (0.10, 0.06), 224: (0.15, 0.08)}  # of the darkest and the brightest
FROST_SLOPE = 1.8  # the power spectrum falls as frequency^-slope
FROST_TINT = np.array([-0.07, 0.01, 0.06], dtype=np.float32)  # of red, green, blue; sum 0


def snow(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Whiten the picture and let flakes fall, each also rotated by half a turn."""
    scale = Scale.of(*pixels.shape[-2:])
    mean, deviation, size, threshold, radius, sigma, kept = scale.pick(_SNOW, severity)
    flakes = np.float32(mean) + np.float32(deviation) * normal(generators, (1, *pixels.shape[-2:]))
    flakes = zoom(flakes, max(1.0, size * scale.lengths))
    flakes = to_unit(to_pixels(np.where(flakes < threshold, 0, flakes)))
    degrees = uniform(generators, (), -135, -45)
    flakes = smear(flakes, radius * scale.lengths, sigma * scale.lengths, degrees)
    flakes = to_unit(to_nearest_pixels(flakes))
    values = to_unit(pixels)
    white = np.maximum(values, brightness_of(values) * 1.5 + 0.5)
    return to_pixels(kept * values + (1 - kept) * white + flakes + flakes[..., ::-1, ::-1])


def frost(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Lay ice over the picture, with the published weights; the ice itself is ours (`ice`)."""
    kept, added = Scale.of(*pixels.shape[-2:]).pick(_FROST, severity)
    return to_pixels(kept * to_unit(pixels) + added * ice(generators, pixels.shape[1:]))


def ice(generators: Generators, shape: tuple[int, ...]) -> Floats:
    """Procedural frost (B, C, H, W) in 0..1, in place of the five photographs of the published code.

    Those are not ours to ship. What is kept of them is what was measured on crops as the published code takes
    them: their means, uniform between those of the darkest and the brightest (`FROST_MEAN`); the deviation of
    their brightness, larger in darker ones (`FROST_DEVIATION` by published size, linear in between); the slope of
    their power spectrum (`FROST_SLOPE`, measured 1.5 to 2.0 at 224 px); and, for three channels, their blue tint
    (`FROST_TINT`). What is not kept is the shape of crystals: the field is Gaussian with random phases.
    Figures for frost are therefore comparable between models measured here, not with published ones.
    """
    channels, height, width = shape
    pure = uniform(generators, (), 0, 1)[:, None, None]
    field = _coloured(normal(generators, (height, width)))
    dark, bright = FROST_DEVIATION[Scale.of(height, width).published]
    mean = FROST_MEAN[0] + (FROST_MEAN[1] - FROST_MEAN[0]) * pure
    values = (mean + (dark + (bright - dark) * pure) * field)[:, None]
    tint = FROST_TINT if channels == 3 else np.zeros(channels, dtype=np.float32)
    return np.clip(values + tint[:, None, None], 0, 1).astype(np.float32)


def _coloured(white: Floats) -> npt.NDArray[np.float64]:
    """White noise (B, H, W) with the spectrum of frost, mean 0 and deviation 1 in each picture."""
    height, width = white.shape[1:]
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf  # no mean
    field = np.fft.irfft2(np.fft.rfft2(white) * frequency ** (-FROST_SLOPE / 2), s=(height, width))
    return field / field.std(axis=(1, 2), keepdims=True)


def fog(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Add a fractal haze, and darken the sum so that the brightest value stays what it was at most."""
    height, width = pixels.shape[-2:]
    thickness, decay = Scale.of(height, width).pick(_FOG, severity)
    side = 1 << (max(height, width) - 1).bit_length()
    haze = plasma(generators, side, decay)[:, None, :height, :width]
    values = to_unit(pixels)
    brightest = values.max(axis=(1, 2, 3), keepdims=True)
    return to_pixels((values + thickness * haze) * brightest / (brightest + thickness))


def plasma(generators: Generators, side: int, decay: float) -> Floats:
    """Fractal height maps (B, side, side) from exactly 0 to 1, by the diamond-square algorithm on a torus.

    Fournier, Fussell & Carpenter 1982, "Computer rendering of stochastic models". `side` is a power of two. A
    point is the mean of its four neighbours plus a uniform deviation, whose bound is squared, as in the
    published code: it falls by decay^2 from one step to the next.
    """
    drawn = np.stack([one.uniform(-1, 1, side * side - 1) for one in generators])
    field = np.zeros((len(generators), side, side))
    step, bound, used = side, 100.0, 0

    def deviation(count: int) -> npt.NDArray[np.float64]:
        nonlocal used
        used += count * count
        return bound**2 * drawn[:, used - count * count : used].reshape(-1, count, count)

    while step >= 2:
        half, count = step // 2, side // step
        corners = field[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, 1)
        field[:, half::step, half::step] = (pairs + np.roll(pairs, -1, 2)) / 4 + deviation(count)
        centres = field[:, half::step, half::step]
        above = corners + np.roll(corners, -1, 2) + centres + np.roll(centres, 1, 1)
        beside = corners + np.roll(corners, -1, 1) + centres + np.roll(centres, 1, 2)
        field[:, ::step, half::step] = above / 4 + deviation(count)
        field[:, half::step, ::step] = beside / 4 + deviation(count)
        step, bound = half, bound / decay
    field -= field.min(axis=(1, 2), keepdims=True)
    return (field / field.max(axis=(1, 2), keepdims=True)).astype(np.float32)


def brightness(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Add to the value of HSV, the largest of the channels; hue and saturation stay.

    With these kept, the channels stay in proportion: x' = x V' / V. Black has no hue and becomes grey.
    """
    added = Scale.of(*pixels.shape[-2:]).pick(_BRIGHTER, severity)
    values = to_unit(pixels)
    value = values.max(axis=1, keepdims=True)
    raised = np.minimum(value + np.float32(added), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return to_pixels(np.where(value > 0, values * (raised / value), raised))


def brightness_of(values: Floats) -> Floats:
    """The grey picture (B, 1, H, W) of (B, C, H, W): luma of three channels, else their mean."""
    channels = values.shape[1]
    weights = _LUMA if channels == 3 else np.full(channels, 1 / channels, dtype=np.float32)
    return (values * weights[:, None, None]).sum(axis=1, keepdims=True)
