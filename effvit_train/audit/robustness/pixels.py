"""What the corruptions share: draws, and operations on a batch of images.

Each result depends on its own image and generator alone, to the last bit, whatever else is in the batch: sums
run in a fixed order over whole arrays, and no matrix product has the batch in one of its dimensions.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from effvit_train.audit.robustness.scale import PUBLISHED

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Generators = Sequence[np.random.Generator]

_NEGLIGIBLE = 1e-6  # weight of a tap: 255 of them are less than a grey level's thousandth
_ROUNDING = 1e-3  # grey levels: far above the error of float32, far below anything that is seen


def to_unit(pixels: Pixels) -> Floats:
    """0..255 to 0..1."""
    return pixels.astype(np.float32) / np.float32(255)


def to_pixels(values: npt.NDArray[np.floating]) -> Pixels:
    """0..1 to 0..255, clipped and cut off, not rounded: as the published images were made."""
    return (np.clip(values, 0, 1) * 255 + _ROUNDING).astype(np.uint8)


def to_nearest_pixels(values: npt.NDArray[np.floating]) -> Pixels:
    """0..1 to 0..255, clipped and rounded: as ImageMagick does."""
    return (np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)


def normal(generators: Generators, shape: tuple[int, ...]) -> Floats:
    """Standard normal numbers, (B, *shape)."""
    return np.stack([one.standard_normal(shape, dtype=np.float32) for one in generators])


def uniform(generators: Generators, shape: tuple[int, ...], low: float, high: float) -> Floats:
    """Uniform numbers in [low, high), (B, *shape)."""
    drawn = np.stack([one.random(shape, dtype=np.float32) for one in generators])
    return np.float32(low) + np.float32(high - low) * drawn


def correlate(images: Floats, kernel: Floats) -> Floats:
    """Each channel correlated with a kernel of odd sides, edges mirrored about the outermost pixel.

    Shapes: `images` (B, C, H, W), `kernel` (2p + 1, 2q + 1) with p < H, q < W; returns (B, C, H, W).
    """
    height, width = images.shape[-2:]
    p, q = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = np.pad(images, ((0, 0), (0, 0), (p, p), (q, q)), mode="reflect")
    out = np.zeros_like(images)
    for top, left in zip(*np.nonzero(kernel), strict=True):
        out += kernel[top, left] * padded[..., top : top + height, left : left + width]
    return out


def smear(images: Floats, radius: float, sigma: float, degrees: Floats) -> Floats:
    """Smear each image in its direction, as ImageMagick's MotionBlurImage does.

    A pixel becomes the mean of itself and the 2 ceil(radius) pixels next on a ray, under the half of a Gaussian;
    beyond the edge the picture repeats its outermost pixel.

    Shapes: `images` (B, C, H, W), `degrees` (B,), clockwise from the right; `radius`, `sigma` in px.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    steps, weights = steps[weights > _NEGLIGIBLE], weights[weights > _NEGLIGIBLE].astype(np.float32)
    height, width = images.shape[-2:]
    out = np.zeros_like(images)
    for image, angle, blurred in zip(images, np.deg2rad(degrees.astype(np.float64)), out, strict=True):
        down = np.ceil(steps * np.sin(angle) - 0.5).astype(int)
        right = np.ceil(steps * np.cos(angle) - 0.5).astype(int)
        margin_y, margin_x = int(np.abs(down).max()), int(np.abs(right).max())
        padded = np.pad(image, ((0, 0), (margin_y, margin_y), (margin_x, margin_x)), mode="edge")
        for weight, y, x in zip(weights, down + margin_y, right + margin_x, strict=True):
            blurred += weight * padded[:, y : y + height, x : x + width]
    return out


def zoom(images: Floats, factor: float) -> Floats:
    """Enlarge the middle to the size of the whole, bilinearly; `factor` >= 1, `images` (..., H, W)."""
    for axis in (-2, -1):
        below, share = _zoomed_axis(images.shape[axis], factor)
        share = share[:, None] if axis == -2 else share
        images = np.take(images, below, axis) * (1 - share) + np.take(images, below + 1, axis) * share
    return images


@lru_cache(maxsize=256)
def _zoomed_axis(size: int, factor: float) -> tuple[npt.NDArray[np.int64], Floats]:
    """Where each pixel of an enlarged axis comes from: the pixel before it, and the share of the next."""
    if size not in PUBLISHED:
        middle = (size - 1) / 2
        position = middle + (np.arange(size) - middle) / factor
        first, last = 0, size - 2
    else:
        # The published code enlarges whole pixels, so that the outermost of the crop stay the outermost, and the
        # result may be a pixel or two too long, which is cut off again. At 8 px it would leave out small factors.
        crop = math.ceil(size / factor)
        length, first = round(crop * factor), (size - crop) // 2
        position = first + (np.arange(size) + (length - size) // 2) * (crop - 1) / (length - 1)
        last = first + crop - 2
    below = np.clip(position.astype(np.int64), first, last)
    return below, (position - below).astype(np.float32)


def smooth(images: Floats, sigma: float) -> Floats:
    """Gaussian blur over (H, W), cut off at 4 sigma, edges repeated; `images` (B, C, H, W), `sigma` in px."""
    for axis in (2, 3):
        images = ndimage.gaussian_filter1d(images, sigma, axis, mode="nearest", truncate=4)
    return images


@lru_cache(maxsize=64)
def smoothing_matrix(size: int, sigma: float) -> npt.NDArray[np.float64]:
    """A Gaussian blur of an axis as a matrix (size, size), cut off at 3 sigma, edges mirrored.

    For blurs as wide as the picture: there a product takes a hundredth of the time of a filter.
    """
    return ndimage.gaussian_filter1d(np.eye(size), sigma, axis=0, mode="reflect", truncate=3)


def resample(images: Floats, rows: Floats, columns: Floats, *, edge_twice: bool) -> Floats:
    """Bilinear values at other places, in a picture that goes on mirrored.

    Args:
        images: (B, C, H, W).
        rows, columns: (B, H, W) where to look, px; may lie outside.
        edge_twice: whether the mirror repeats the outermost pixel (d c b a | a b c d) or not (d c b | a b c d).
    """
    batch, channels, height, width = images.shape
    flat = images.reshape(batch, channels, height * width)
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[:, None], (columns - left)[:, None]
    top, left = top.astype(np.int64), left.astype(np.int64)
    corners = []
    for y in (top, top + 1):
        y = _mirrored(y, height, edge_twice)
        for x in (left, left + 1):
            place = (y * width + _mirrored(x, width, edge_twice)).reshape(batch, 1, -1)
            corners.append(np.take_along_axis(flat, place, 2).reshape(images.shape))
    upper = corners[0] * (1 - right) + corners[1] * right
    lower = corners[2] * (1 - right) + corners[3] * right
    return (upper * (1 - down) + lower * down).astype(np.float32)


def _mirrored(index: npt.NDArray[np.int64], size: int, edge_twice: bool) -> npt.NDArray[np.int64]:
    period = 2 * size if edge_twice else 2 * (size - 1)
    index = index % period
    return np.where(index >= size, period - edge_twice - index, index)
