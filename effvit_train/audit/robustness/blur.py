"""Blur: defocus, frosted glass, motion and zoom (Hendrycks & Dietterich 2019, section 4).

Functions take uint8 images (B, C, H, W), a severity 1..5 and a generator for each image, and return new images.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from effvit_train.audit.robustness.pixels import (
    Floats,
    Generators,
    Pixels,
    correlate,
    smear,
    smooth,
    to_nearest_pixels,
    to_pixels,
    to_unit,
    uniform,
    zoom,
)
from effvit_train.audit.robustness.scale import Scale, Table

# radius of the disc and sigma of the Gaussian that softens it, px
_DEFOCUS: Table[tuple[float, float]] = {
    32: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    64: ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    224: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
}
# sigma before and after, px; how far a pixel may come from, px; how often
_GLASS: Table[tuple[float, int, int]] = {
    32: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    64: ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    224: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
}
# radius and sigma of the half Gaussian, px
_MOTION: Table[tuple[float, float]] = {
    32: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    64: ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    224: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
}
# end (left out) and step of the enlargements from 1 on
_ZOOM: Table[tuple[float, float]] = {
    32: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    64: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    224: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
}
_SUPERSAMPLED = 16  # points per pixel and axis of a disc that is not a published one


def defocus_blur(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Spread each pixel over a softened disc."""
    scale = Scale.of(*pixels.shape[-2:])
    radius, softness = scale.pick(_DEFOCUS, severity)
    if scale.lengths == 1:
        disc = published_disc(radius)
    else:
        # The pixels whose centres lie in a disc jump with its radius: from 1 to 0.99 px, the blur would be gone.
        radius, softness = radius * scale.lengths, softness * scale.lengths
        disc = covered_disc(radius)
    return to_pixels(correlate(to_unit(pixels), soften(disc, radius, softness)))


def published_disc(radius: float) -> Floats:
    """The pixels whose centres lie in a disc, as weights of sum 1, (2n + 1, 2n + 1); `radius` in px."""
    reach = np.arange(-math.floor(radius), math.floor(radius) + 1)
    inside = (reach[:, None] ** 2 + reach[None, :] ** 2 <= radius**2).astype(np.float32)
    return inside / inside.sum()


def covered_disc(radius: float) -> Floats:
    """The area that a disc covers of each pixel, as weights of sum 1, (2n + 1, 2n + 1); `radius` in px."""
    half = max(0, math.ceil(radius - 0.5))
    fine = (np.arange((2 * half + 1) * _SUPERSAMPLED) + 0.5) / _SUPERSAMPLED - half - 0.5
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).astype(np.float32)
    side = 2 * half + 1
    area = inside.reshape(side, _SUPERSAMPLED, side, _SUPERSAMPLED).sum((1, 3))
    return area / area.sum()


def soften(disc: Floats, radius: float, sigma: float) -> Floats:
    """A disc under a Gaussian of 3 taps an axis, of 5 above a radius of 8 px.

    The published disc of 8 px or less lies in a field of 17 x 17, that of more in a field as wide as itself,
    and the Gaussian mirrors that field's edge (about its outermost pixel): hence its sum is not quite 1.
    """
    taps = 1 if radius <= 8 else 2
    reach = disc.shape[0] // 2
    margin = max(8, reach) - reach if radius <= 8 else 0
    weights = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    field = np.pad(disc, margin)
    for axis in (0, 1):
        field = ndimage.correlate1d(field, weights, axis, mode="mirror")
    spare = max(0, margin - taps)  # nothing but zeros
    return field[spare : len(field) - spare, spare : len(field) - spare]


def glass_blur(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Blur, let each pixel take the value of one near it, blur again.

    The published code means to exchange the two pixels, but both sides of its exchange are views of one array,
    so that the second keeps its value. The published images were made so, and so are ours.
    """
    scale = Scale.of(*pixels.shape[-2:])
    sigma, reach, repeats = scale.pick(_GLASS, severity)
    sigma, reach = sigma * scale.lengths, max(1, round(reach * scale.lengths))
    blurred = to_pixels(smooth(to_unit(pixels), sigma))
    batch, channels, height, width = pixels.shape
    places = np.broadcast_to(np.arange(height * width), (batch, height * width))
    for _ in range(repeats):
        shape = (2, height - 2 * reach, width - 2 * reach)
        moves = np.stack([one.integers(-reach, reach, shape, dtype=np.int64) for one in generators])
        places = np.take_along_axis(places, sources(moves, height, width), 1)
    moved = np.take_along_axis(blurred.reshape(batch, channels, -1), places[:, None], 2)
    return to_pixels(smooth(to_unit(moved.reshape(pixels.shape)), sigma))


def sources(moves: npt.NDArray[np.int64], height: int, width: int) -> npt.NDArray[np.int64]:
    """Which pixel's value each place holds after one pass from the last to the first, (B, H W).

    A pass goes through the places in descending order and lets each take what lies at its move. What lies
    further on was overwritten before and stands for its own source, and so on: chains, followed by doubling.

    Args:
        moves: (B, 2, H - 2 reach, W - 2 reach) in -reach..reach-1, down and right, for the rows
            reach + 1..H - reach and likewise columns.
        height, width: of the image, px.
    """
    reach = (height - moves.shape[2]) // 2
    rows, columns = np.arange(reach + 1, height - reach + 1), np.arange(reach + 1, width - reach + 1)
    here = (rows[:, None] * width + columns[None, :]).ravel()
    source = np.broadcast_to(np.arange(height * width), (len(moves), height * width)).copy()
    source[:, here] = here + (moves[:, 0] * width + moves[:, 1]).reshape(len(moves), -1)
    overwritten = np.zeros(height * width, dtype=np.bool_)
    overwritten[here] = True
    chained = overwritten & overwritten[source] & (source > np.arange(height * width))
    while chained.any():
        source, chained = (
            np.where(chained, np.take_along_axis(source, source, 1), source),
            chained & np.take_along_axis(chained, source, 1),
        )
    return source


def motion_blur(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Smear the picture in a direction within 45 degrees of the horizontal."""
    scale = Scale.of(*pixels.shape[-2:])
    radius, sigma = scale.pick(_MOTION, severity)
    degrees = uniform(generators, (), -45, 45)
    blurred = smear(to_unit(pixels), radius * scale.lengths, sigma * scale.lengths, degrees)
    return to_nearest_pixels(blurred)


def zoom_blur(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """The mean of the picture and its enlargements."""
    end, step = Scale.of(*pixels.shape[-2:]).pick(_ZOOM, severity)
    factors = np.arange(1, end, step)
    values = to_unit(pixels)
    total = values.copy()
    for factor in factors:
        total += zoom(values, float(factor))
    return to_pixels(total / (len(factors) + 1))
