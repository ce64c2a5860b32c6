"""Digital changes: contrast, elastic deformation, pixelation, JPEG (Hendrycks & Dietterich 2019, section 4).

Functions take uint8 images (B, C, H, W), a severity 1..5 and a generator for each image, and return new images.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from effvit_train.audit.robustness.pixels import (
    Floats,
    Generators,
    Pixels,
    resample,
    smoothing_matrix,
    to_pixels,
    to_unit,
    uniform,
)
from effvit_train.audit.robustness.scale import Scale, Table

_CONTRAST: Table[float] = {
    32: (0.75, 0.5, 0.4, 0.3, 0.15),
    64: (0.4, 0.3, 0.2, 0.1, 0.05),
    224: (0.4, 0.3, 0.2, 0.1, 0.05),
}
# how far, how smoothly, and how skewed; shares of the published size (the published code has 244 for 224)
_WARP: Table[tuple[float, float, float]] = {
    32: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    64: ((0, 0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
    224: ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
}
_WARP_UNIT = {32: 32, 64: 64, 224: 244}
_SHRUNK: Table[float] = {
    32: (0.95, 0.9, 0.85, 0.75, 0.65),
    64: (0.9, 0.8, 0.7, 0.6, 0.5),
    224: (0.6, 0.5, 0.4, 0.3, 0.25),
}
_QUALITY: Table[int] = {
    32: (80, 65, 58, 50, 40),
    64: (65, 58, 50, 40, 25),
    224: (25, 18, 15, 10, 7),
}


def contrast(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Draw each channel towards its mean in the picture."""
    kept = Scale.of(*pixels.shape[-2:]).pick(_CONTRAST, severity)
    values = to_unit(pixels)
    mean = values.mean(axis=(2, 3), keepdims=True)
    return to_pixels((values - mean) * np.float32(kept) + mean)


def elastic_transform(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Skew the picture by an affine map, then move each pixel along a smooth random field."""
    height, width = pixels.shape[-2:]
    scale = Scale.of(height, width)
    # Lengths here are shares of the size in the published code too: they follow it below 32 px as well.
    unit = _WARP_UNIT[scale.published] * scale.ratio
    distance, sigma, skew = (share * unit for share in scale.pick(_WARP, severity))
    jitter = uniform(generators, (3, 2), -skew, skew).astype(np.float64)
    columns, rows = _skewed(jitter, height, width)
    values = resample(to_unit(pixels), rows, columns, edge_twice=False)
    if distance:
        noise = uniform(generators, (2, height, width), -1, 1).astype(np.float64)
        field = smoothing_matrix(height, sigma) @ noise @ smoothing_matrix(width, sigma).T
        moved = (distance * field).astype(np.float32)
        grid = np.indices((height, width), dtype=np.float32)
        values = resample(values, grid[0] + moved[:, 0], grid[1] + moved[:, 1], edge_twice=True)
    return to_pixels(values)


def _skewed(jitter: npt.NDArray[np.float64], height: int, width: int) -> tuple[Floats, Floats]:
    """Columns and rows (B, H, W) where an affine map looks, that moves three points by `jitter` (B, 3, 2)."""
    middle, arm = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = middle + arm * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = np.concatenate([corners + jitter, np.ones((len(jitter), 3, 1))], axis=2)
    back = np.linalg.solve(moved, np.broadcast_to(corners.astype(np.float64), jitter.shape))  # (B, 3, 2)
    y, x = np.indices((height, width))
    columns, rows = (
        back[:, 0, axis, None, None] * x + back[:, 1, axis, None, None] * y + back[:, 2, axis, None, None]
        for axis in (0, 1)
    )
    return columns.astype(np.float32), rows.astype(np.float32)


def pixelate(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Shrink and enlarge again, both by the mean over boxes."""
    share = Scale.of(*pixels.shape[-2:]).pick(_SHRUNK, severity)

    def change(picture: Image.Image) -> Image.Image:
        small = (int(picture.width * share), int(picture.height * share))
        return picture.resize(small, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BOX)

    return _through_pillow(change, pixels)


def jpeg_compression(pixels: Pixels, severity: int, generators: Generators) -> Pixels:
    """Write as JPEG and read again."""
    quality = Scale.of(*pixels.shape[-2:]).pick(_QUALITY, severity)

    def change(picture: Image.Image) -> Image.Image:
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _through_pillow(change, pixels)


def _through_pillow(change: Callable[[Image.Image], Image.Image], pixels: Pixels) -> Pixels:
    """Change each picture as RGB where it has three channels, else each channel as a grey picture."""
    if pixels.shape[1] == 3:
        pictures = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        changed = np.stack([np.asarray(change(Image.fromarray(one))) for one in pictures])
        return np.ascontiguousarray(changed.transpose(0, 3, 1, 2))
    flat = np.ascontiguousarray(pixels.reshape(-1, *pixels.shape[-2:]))
    return np.stack([np.asarray(change(Image.fromarray(one))) for one in flat]).reshape(pixels.shape)
