import random

import numpy as np
import pytest
from PIL import Image

from effvit_train.data import augment, draws
from effvit_train.data.augment import Augmenter
from effvit_train.data.config import AugmentConfig
from effvit_train.errors import UserError

IMAGES = np.random.default_rng(0).integers(1, 256, (40, 3, 12, 12), dtype=np.uint8)
IDS = np.arange(1000, 1040)
KEY = 99
EVERYTHING = AugmentConfig(shift=2, hflip=True, vflip=True, resized_crop=0.4)


def slow_shift_and_flip(image, dy, dx, mirror, upside_down):
    """One pixel at a time: out[y, x] = flipped[y - dy, x - dx], else 0."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            sy, sx = y - dy, x - dx
            if 0 <= sy < height and 0 <= sx < width:
                sy, sx = (height - 1 - sy if upside_down else sy), (width - 1 - sx if mirror else sx)
                out[:, y, x] = image[:, sy, sx]
    return out


def test_shift_and_flip_equal_a_pixel_by_pixel_reference():
    config = AugmentConfig(shift=3, hflip=True, vflip=True)
    found = augment.shift_and_flip(IMAGES, IDS, KEY, config)
    plan = [
        draws.integers(KEY, IDS, count, draw) - offset
        for count, draw, offset in ((7, augment._SHIFT_Y, 3), (7, augment._SHIFT_X, 3), (2, augment._HFLIP, 0), (2, augment._VFLIP, 0))
    ]  # fmt: skip
    expected = [slow_shift_and_flip(image, *draw) for image, *draw in zip(IMAGES, *plan, strict=True)]
    assert (found == np.stack(expected)).all()
    assert found.dtype == np.uint8
    assert {tuple(draw) for draw in zip(plan[2], plan[3], strict=True)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_shifts_cover_every_offset_equally_and_flips_are_fair():
    # one bright pixel in the middle tells the shift; the second, beside it, tells the flip
    count = 9000
    images = np.zeros((count, 1, 7, 7), dtype=np.uint8)
    images[:, 0, 3, 3], images[:, 0, 3, 4] = 2, 1
    out = augment.shift_and_flip(images, np.arange(count), 5, AugmentConfig(shift=1, hflip=True))
    where = np.argwhere(out[:, 0] == 2)[:, 1:] - 3
    offsets, counts = np.unique(where, axis=0, return_counts=True)
    assert offsets.tolist() == [[dy, dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    assert ((counts - 1000) ** 2 / 1000).sum() < 26.1  # 0.999 quantile of chi squared, 8 degrees of freedom
    right = np.array(
        [image[0, 3 + dy, 4 + dx] == 1 for image, (dy, dx) in zip(out, where, strict=True) if dx < 1]
    )
    assert abs(right.mean() - 0.5) < 0.03


def test_no_augmentation_leaves_the_images():
    assert Augmenter(AugmentConfig(), size=12)(IMAGES, IDS, KEY) is IMAGES


@pytest.mark.parametrize("policy", [None, "rand-m9-n2-mstd0.5-inc1"])
def test_an_image_does_not_depend_on_its_batch(policy):
    augmenter = Augmenter(EVERYTHING, size=10, randaugment=policy, mean=(0.5, 0.4, 0.3))
    whole = augmenter(IMAGES, IDS, KEY)
    assert whole.shape == (40, 3, 10, 10)
    for some in ([3], [31, 2, 7], list(range(39, -1, -1))):
        assert (augmenter(IMAGES[some], IDS[some], KEY) == whole[some]).all()
    assert (augmenter(IMAGES, IDS, KEY + 1) != whole).any(axis=(1, 2, 3)).mean() > 0.9


def test_crop_boxes_have_the_wanted_areas_and_ratios():
    side, smallest = 1000, 0.35
    boxes = augment.crop_boxes(np.arange(20_000), 3, smallest=smallest, side=side)
    top, left, height, width = boxes.T
    assert ((top >= 0) & (left >= 0) & (top + height <= side) & (left + width <= side)).all()
    area, ratio = height * width / side**2, width / height
    whole = (height < side) & (width < side)  # where neither side was cut
    assert area[whole].min() > smallest - 0.01
    assert 3 / 4 - 0.01 < ratio[whole].min() < ratio[whole].max() < 4 / 3 + 0.01
    # up to an area of 3/4 no box is cut, and the area is uniform there
    below = [(area < limit).mean() for limit in (0.45, 0.55, 0.65)]
    assert below == pytest.approx([0.1 / 0.65, 0.2 / 0.65, 0.3 / 0.65], abs=0.012)
    assert abs(np.log(ratio).mean()) < 0.01
    assert (left[width < side] / (side - width)[width < side]).mean() == pytest.approx(0.5, abs=0.01)


def test_a_crop_of_the_whole_is_the_image_and_of_a_constant_is_constant():
    constant = np.full((5, 3, 16, 16), 77, dtype=np.uint8)
    assert (augment.resized_crop(constant, IDS[:5], KEY, smallest=0.3, size=12) == 77).all()
    gradient = np.broadcast_to(np.arange(0, 64, 4, dtype=np.uint8), (5, 1, 16, 16)).copy()
    boxes = augment.crop_boxes(IDS[:5], KEY, smallest=0.3, side=16)
    out = augment.resized_crop(gradient, IDS[:5], KEY, smallest=0.3, size=16)
    for image, (_, left, _, width) in zip(out[:, 0], boxes, strict=True):
        # a linear ramp stays one under bilinear resizing, away from the edges: value = 4 * x
        centres = left + (np.arange(16) + 0.5) * width / 16 - 0.5
        assert np.abs(image[8, 3:13] - 4 * centres[3:13]).max() <= 1.0


def test_randaugment_leaves_the_global_generators_alone():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    changed = Augmenter(AugmentConfig(), size=12, randaugment="rand-m9-n2-p1", mean=(0.5,) * 3)(
        IMAGES, IDS, KEY
    )
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert (changed != IMAGES).any(axis=(1, 2, 3)).mean() > 0.8


def test_randaugment_of_grey_images_is_that_of_three_equal_channels():
    grey = IMAGES[:, :1]
    found = Augmenter(AugmentConfig(), size=12, randaugment="rand-m9-n2", mean=(0.5,))(grey, IDS, KEY)
    colour = Augmenter(AugmentConfig(), size=12, randaugment="rand-m9-n2", mean=(0.5,) * 3)(
        np.repeat(grey, 3, axis=1), IDS, KEY
    )
    assert found.shape == grey.shape
    assert np.abs(found[:, 0].astype(int) - colour.mean(axis=1)).max() <= 1  # luma of equal channels, rounded


@pytest.mark.parametrize("policy", ["m9", "rand-x9"])
def test_a_policy_that_timm_does_not_know(policy):
    with pytest.raises(
        UserError, match=r"recipe.randaugment=.*not a RandAugment policy.*rand-m9-mstd0.5-inc1"
    ):
        Augmenter(AugmentConfig(), size=12, randaugment=policy)


def test_posterize_at_full_magnitude_does_not_crash():
    """timm asks Pillow to keep 0 bits there; Pillow refuses, in the middle of an epoch."""
    augmenter = Augmenter(AugmentConfig(), size=12, randaugment="rand-m10-n4-p1-inc1", mean=(0.5,) * 3)
    many = np.repeat(IMAGES, 10, axis=0)
    assert augmenter(many, np.arange(400), KEY).shape == many.shape
    one_bit = augment._posterize(Image.fromarray(np.array([[0, 127], [128, 255]], np.uint8)), 0)
    assert np.asarray(one_bit).tolist() == [[0, 0], [128, 128]]
