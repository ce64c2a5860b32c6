"""Augmentation of uint8 batches; each image's change depends on (key, its id) alone (contract C6).

Order: random resized crop, mirror, shift, RandAugment. Nothing here draws from a global generator.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch.nn.functional import interpolate

from effvit_train.data import draws
from effvit_train.data.config import AugmentConfig
from effvit_train.errors import UserError

Pixels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]

# numbers of the draws of one sample; a new augmentation takes a new number
_SHIFT_Y, _SHIFT_X, _HFLIP, _VFLIP, _AREA, _RATIO, _TOP, _LEFT, _RANDAUGMENT = range(9)
_RATIOS = (3 / 4, 4 / 3)  # of width to height (Szegedy et al. 2015, section 6)


class Augmenter:
    """Changes a batch of training images.

    Args:
        config: `dataset.augment`.
        size: height = width of what comes out.
        randaugment: timm's policy string, or None.
        mean: per channel in 0..1, fills what RandAugment's geometric operations uncover.

    Raises:
        UserError: timm does not understand the policy.
    """

    def __init__(
        self, config: AugmentConfig, *, size: int, randaugment: str | None = None, mean: Sequence[float] = ()
    ) -> None:
        self._config, self._size = config, size
        self._randaugment: Callable[[Image.Image], Image.Image] | None = None
        if randaugment is not None:
            self._randaugment = _policy(randaugment, size, mean)

    def __call__(self, images: Pixels, ids: Ids, key: int) -> Pixels:
        """Return new images (B, C, size, size).

        Args:
            images: (B, C, S, S), not changed; S = size unless a resized crop is configured.
            ids: (B,) sample ids.
            key: of (seed, epoch).
        """
        config = self._config
        if config.resized_crop < 1.0:
            images = resized_crop(images, ids, key, smallest=config.resized_crop, size=self._size)
        images = shift_and_flip(images, ids, key, config)
        if self._randaugment is not None:
            images = _apply_policy(self._randaugment, images, ids, key)
        return images


def shift_and_flip(images: Pixels, ids: Ids, key: int, config: AugmentConfig) -> Pixels:
    """Mirror, then shift by up to `config.shift` pixels along each axis; what enters is 0.

    Args:
        images: (B, C, H, W).
        ids: (B,) sample ids.
        key: of (seed, epoch).
        config: `dataset.augment`.
    """
    shift = config.shift
    if not (shift or config.hflip or config.vflip):
        return images
    count, _, height, width = images.shape
    zeros = np.zeros(count, dtype=np.int64)
    down = draws.integers(key, ids, 2 * shift + 1, _SHIFT_Y) - shift if shift else zeros
    right = draws.integers(key, ids, 2 * shift + 1, _SHIFT_X) - shift if shift else zeros
    hflip = draws.integers(key, ids, 2, _HFLIP) if config.hflip else zeros
    vflip = draws.integers(key, ids, 2, _VFLIP) if config.vflip else zeros
    # Plain slices, image by image: one short copy each, three times as fast as an index per pixel.
    changed = np.zeros_like(images)
    plan = zip(down.tolist(), right.tolist(), hflip.tolist(), vflip.tolist(), strict=True)
    for k, (dy, dx, mirror, upside_down) in enumerate(plan):
        image = images[k]
        if mirror:
            image = image[:, :, ::-1]
        if upside_down:
            image = image[:, ::-1]
        changed[k, :, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)] = image[
            :, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)
        ]
    return changed


def crop_boxes(ids: Ids, key: int, *, smallest: float, side: int) -> npt.NDArray[np.int64]:
    """Boxes (B, 4) of (top, left, height, width) in a square of `side` pixels.

    The share of the area is uniform in [smallest, 1], the logarithm of width / height uniform between
    those of 3/4 and 4/3; a side that would not fit is cut to `side`.
    """
    area = side * side * (smallest + (1 - smallest) * draws.uniform(key, ids, _AREA))
    low, high = map(math.log, _RATIOS)
    ratio = np.exp(low + (high - low) * draws.uniform(key, ids, _RATIO))
    height = np.clip(np.rint(np.sqrt(area / ratio)), 1, side).astype(np.int64)
    width = np.clip(np.rint(np.sqrt(area * ratio)), 1, side).astype(np.int64)
    top = draws.integers(key, ids, side - height + 1, _TOP)
    left = draws.integers(key, ids, side - width + 1, _LEFT)
    return np.stack([top, left, height, width], axis=1)


def resized_crop(images: Pixels, ids: Ids, key: int, *, smallest: float, size: int) -> Pixels:
    """Random resized crop (Szegedy et al. 2015) of images (B, C, S, S) to (B, C, size, size).

    One image at a time, so that no image depends on the rest of its batch; bilinear, antialiased.
    """
    boxes = crop_boxes(ids, key, smallest=smallest, side=images.shape[-1])
    result = np.empty((*images.shape[:2], size, size), dtype=np.uint8)
    for k, (top, left, height, width) in enumerate(boxes.tolist()):
        window = torch.from_numpy(images[k : k + 1, :, top : top + height, left : left + width])
        result[k] = interpolate(window, (size, size), mode="bilinear", antialias=True)[0].numpy()
    return result


def _policy(policy: str, size: int, mean: Sequence[float]) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import rand_augment_transform

    fill = tuple(round(255 * value) for value in mean) or (128, 128, 128)
    hparams = {"translate_const": int(size * 0.45), "img_mean": fill if len(fill) == 3 else fill * 3}
    try:
        transform = rand_augment_transform(policy, hparams)
    except (AssertionError, ValueError, KeyError):
        raise UserError(
            "is not a RandAugment policy of timm",
            key="recipe.randaugment",
            value=policy,
            remedy="e.g. rand-m9-mstd0.5-inc1",
        ) from None
    for operation in transform.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    # At full magnitude timm asks to keep 0 bits, which Pillow 13 refuses
    return image if bits >= 8 else ImageOps.posterize(image, max(1, bits))


def _apply_policy(
    transform: Callable[[Image.Image], Image.Image], images: Pixels, ids: Ids, key: int
) -> Pixels:
    changed = np.empty_like(images)
    grey = images.shape[1] == 1
    keys = draws.bits(key, ids, _RANDAUGMENT).tolist()
    with _global_generators():
        for k, seed in enumerate(keys):
            random.seed(seed)  # timm draws from both generators
            np.random.seed(seed % 2**32)
            # timm fills with a colour: grey images pass through RGB
            pixels = np.repeat(images[k], 3, axis=0) if grey else images[k]
            image = transform(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))))
            result = np.asarray(image.convert("L"))[None] if grey else np.asarray(image).transpose(2, 0, 1)
            changed[k] = result
    return changed


@contextlib.contextmanager
def _global_generators() -> Iterator[None]:
    """Leave Python's and numpy's global generators as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
