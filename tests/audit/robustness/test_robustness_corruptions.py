"""The 15 corruptions: their published parameters as they show in pixels, any size, and what they depend on."""

from __future__ import annotations

import colorsys
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, special, stats

from effvit_train.audit.robustness import blur, pixels, weather
from effvit_train.audit.robustness.corruptions import KINDS, corrupt
from effvit_train.audit.robustness.scale import Scale

RANDOM = {
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
}
# Published parameters of ImageNet-C at 224 px, severities 1 to 5 (Hendrycks & Dietterich 2019, released code).
GAUSSIAN = (0.08, 0.12, 0.18, 0.26, 0.38)
SHOT = (60, 25, 12, 5, 3)
IMPULSE = (0.03, 0.06, 0.09, 0.17, 0.27)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
BRIGHTNESS = (0.1, 0.2, 0.3, 0.4, 0.5)
QUALITY = (25, 18, 15, 10, 7)
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)


def flat(value: int, size: int = 224, channels: int = 3) -> torch.Tensor:
    return torch.full((channels, size, size), value, dtype=torch.uint8)


def picture(channels: int, height: int, width: int, count: int = 1) -> torch.Tensor:
    """Smooth shapes with edges, as photographs have, from arithmetic alone."""
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    number = np.arange(count * channels).reshape(count, channels, 1, 1)
    waves = (
        np.sin(9 * x + number)
        + np.cos(7 * y * (1 + 0.1 * number))
        + 1.5 * ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.09)
    )
    return torch.from_numpy(((waves + 2) / 5.5 * 230).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_noise_has_the_published_strength_at_224(severity: int) -> None:
    grey = 128 / 255
    noisy = corrupt(flat(128), "gaussian_noise", severity, seed=0, ids=3).numpy() / 255
    # N(grey, c^2) cut off at 0 and 1, integrated over its quantiles; values are cut to whole grey levels: 1/510 less
    expected = np.clip(
        grey + GAUSSIAN[severity - 1] * special.ndtri((np.arange(100_000) + 0.5) / 100_000), 0, 1
    )
    assert noisy.std() == pytest.approx(expected.std(), rel=0.01)
    assert noisy.mean() == pytest.approx(expected.mean() - 1 / 510, abs=0.004)

    photons = SHOT[severity - 1]
    counted = corrupt(flat(51), "shot_noise", severity, seed=0, ids=3).numpy() / 255
    counts = np.arange(200)
    values, mass = np.minimum(counts / photons, 1), stats.poisson(51 / 255 * photons).pmf(counts)
    mean = (values * mass).sum()
    assert counted.mean() == pytest.approx(mean, abs=0.005)
    assert counted.std() == pytest.approx(np.sqrt((values**2 * mass).sum() - mean**2), rel=0.02)

    salted = corrupt(flat(100), "impulse_noise", severity, seed=0, ids=3).numpy()
    for extreme in (0, 255):
        assert (salted == extreme).mean() == pytest.approx(IMPULSE[severity - 1] / 2, rel=0.06)
    assert set(np.unique(salted)) == {0, 100, 255}


def test_discs_have_the_published_radius_and_energy() -> None:
    # points of the square lattice within radius r (OEIS A000328)
    # energies: above 1 where the disc touches its field, whose edge the Gaussian mirrors (as OpenCV's does)
    for radius, softness, points, energy in (
        (3, 0.1, 29, 1), (4, 0.5, 49, 1), (6, 0.5, 113, 1), (8, 0.5, 197, 1.013), (10, 0.5, 317, 1.011),
    ):  # fmt: skip
        disc = blur.published_disc(radius)
        assert (disc > 0).sum() == points
        assert disc.max() == pytest.approx(1 / points)
        kernel = blur.soften(disc, radius, softness)
        assert kernel.sum() == pytest.approx(energy, abs=1e-3)
        assert (kernel > 1e-6).sum() >= points
    # the area of a disc, and one of half a pixel blurs nothing
    assert blur.covered_disc(0.4).tolist() == [[1.0]]
    area = blur.covered_disc(5.0)
    assert 1 / area.max() == pytest.approx(np.pi * 25, rel=0.01)


def test_defocus_spreads_a_point_over_the_disc() -> None:
    point = flat(0)
    point[:, 100, 100] = 255
    spread = corrupt(point, "defocus_blur", 1, seed=0, ids=0)
    assert (spread[0] > 0).sum() == 29  # radius 3
    assert set(spread[0].unique().tolist()) == {0, 8}  # 255 / 29 = 8.8, cut off


def test_motion_blur_is_half_a_gaussian_on_a_ray() -> None:
    point = np.zeros((2, 1, 64, 64), dtype=np.float32)
    point[:, 0, 32, 32] = 1
    blurred = pixels.smear(point, 10, 3, np.array([0, 90], dtype=np.float32))
    weights = np.exp(-(np.arange(21) ** 2) / (2 * 3**2))
    weights /= weights.sum()
    assert blurred[0, 0, 32, 12:33][::-1] == pytest.approx(weights, abs=1e-6)  # a pixel looks to its right
    assert blurred[1, 0, 12:33, 32][::-1] == pytest.approx(weights, abs=1e-6)  # or down
    assert blurred.sum(axis=(1, 2, 3)) == pytest.approx([1, 1], abs=1e-5)


def test_zoom_is_about_the_middle() -> None:
    ramp = np.broadcast_to(np.arange(224, dtype=np.float32), (1, 1, 224, 224))
    # twice as large: the 112 pixels from 56 to 167, stretched over 224
    assert pixels.zoom(ramp, 2.0)[0, 0, 7] == pytest.approx(56 + np.arange(224) * 111 / 223, abs=1e-3)
    assert np.array_equal(pixels.zoom(ramp, 1.0), ramp)
    # at any other size about the exact middle
    ramp = np.broadcast_to(np.arange(9, dtype=np.float32), (1, 1, 9, 9))
    assert pixels.zoom(ramp, 1.25)[0, 0, 0] == pytest.approx(4 + (np.arange(9) - 4) / 1.25, abs=1e-5)
    assert torch.equal(corrupt(flat(77), "zoom_blur", 5, seed=0, ids=0), flat(77))


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_colours_follow_their_formulae_at_224(severity: int) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8))
    values = image.numpy() / 255
    means = values.mean(axis=(1, 2), keepdims=True)
    expected = np.clip((values - means) * CONTRAST[severity - 1] + means, 0, 1) * 255
    assert np.abs(corrupt(image, "contrast", severity, seed=0, ids=0).numpy() - expected + 0.5).max() < 0.51

    brighter = corrupt(image, "brightness", severity, seed=0, ids=0).numpy()
    for y, x in np.random.default_rng(1).integers(0, 224, (200, 2)):
        hue, saturation, value = colorsys.rgb_to_hsv(*values[:, y, x])
        rgb = np.array(colorsys.hsv_to_rgb(hue, saturation, min(1, value + BRIGHTNESS[severity - 1]))) * 255
        assert np.abs(brighter[:, y, x] - rgb + 0.5).max() < 0.51
    # grey, and black, which has no hue
    for value in (0, 60):
        raised = int(255 * min(1, value / 255 + BRIGHTNESS[severity - 1]) + 1e-6)
        assert corrupt(
            flat(value, 8, 1), "brightness", severity, seed=0, ids=0
        ).float().mean() == pytest.approx(
            int(255 * min(1, value / 255 + {1: 0.05, 2: 0.1, 3: 0.15, 4: 0.2, 5: 0.3}[severity]) + 1e-3)
        )
        assert corrupt(flat(value), "brightness", severity, seed=0, ids=0).unique().tolist() == [raised]


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_jpeg_and_pixelate_are_pillows(severity: int) -> None:
    image = picture(3, 224, 224)[0]
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    file = BytesIO()
    pillow.save(file, "JPEG", quality=QUALITY[severity - 1])
    expected = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert torch.equal(corrupt(image, "jpeg_compression", severity, seed=0, ids=0), expected)
    small = (int(224 * PIXELATE[severity - 1]),) * 2
    boxed = pillow.resize(small, Image.Resampling.BOX).resize((224, 224), Image.Resampling.BOX)
    expected = torch.from_numpy(np.array(boxed)).permute(2, 0, 1)
    assert torch.equal(corrupt(image, "pixelate", severity, seed=0, ids=0), expected)


def test_pixelate_at_a_quarter_is_the_mean_of_blocks() -> None:
    image = picture(1, 224, 224)[0]
    boxed = corrupt(image, "pixelate", 5, seed=0, ids=0)[0].float().view(56, 4, 56, 4)
    assert torch.equal(boxed.amax((1, 3)), boxed.amin((1, 3)))
    means = image[0].float().view(56, 4, 56, 4).mean((1, 3))
    assert (boxed[:, 0, :, 0] - means).abs().max() <= 1  # Pillow rounds after either axis


@pytest.mark.parametrize(("height", "width", "reach"), [(8, 8, 1), (20, 13, 2), (32, 32, 4)])
def test_glass_moves_pixels_as_the_published_loop(height: int, width: int, reach: int) -> None:
    moves = np.random.default_rng(5).integers(-reach, reach, (3, 2, height - 2 * reach, width - 2 * reach))
    found = blur.sources(moves, height, width)
    for one, expected in zip(moves, found, strict=True):
        # three channels: then x[h, w] is a view, and the published exchange copies one way only
        x = np.repeat(np.arange(height * width).reshape(height, width, 1), 3, axis=2)
        for h in range(height - reach, reach, -1):
            for w in range(width - reach, reach, -1):
                dy, dx = one[:, h - reach - 1, w - reach - 1]
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
        assert np.array_equal(x[..., 0].ravel(), expected)


def test_elastic_building_blocks() -> None:
    image = picture(2, 12, 17).numpy().astype(np.float32)
    y, x = np.indices((12, 17), dtype=np.float32)
    for edge_twice, mode in ((False, "mirror"), (True, "reflect")):
        for down, right in ((0, 0), (0.25, -0.5), (-30, 40), (3.75, 8.5)):
            found = pixels.resample(image, y[None] + down, x[None] + right, edge_twice=edge_twice)
            expected = [
                ndimage.map_coordinates(one, [y + down, x + right], order=1, mode=mode) for one in image[0]
            ]
            assert found[0] == pytest.approx(np.stack(expected), abs=2e-3)
    for sigma in (0.3, 2.0, 170.8):
        field = np.random.default_rng(0).uniform(-1, 1, (40, 24))
        smoothed = pixels.smoothing_matrix(40, sigma) @ field @ pixels.smoothing_matrix(24, sigma).T
        assert smoothed == pytest.approx(
            ndimage.gaussian_filter(field, sigma, mode="reflect", truncate=3), abs=1e-12
        )


def test_fog_ends_at_the_formula() -> None:
    white = corrupt(flat(255, 32), "fog", 5, seed=0, ids=0)  # (1 + 1.5 haze) / (1 + 1.5), haze from 0 to 1
    assert (int(white.min()), int(white.max())) == (102, 255)
    assert corrupt(flat(0, 32), "fog", 5, seed=0, ids=0).max() == 0  # the brightest value stays what it was
    generators = [np.random.default_rng(number) for number in range(200)]
    rough, soft = weather.plasma(generators, 32, 1.5), weather.plasma(generators, 32, 3)
    for field in (rough, soft):
        assert field.min(axis=(1, 2)).max() == 0
        assert field.max(axis=(1, 2)).min() == 1
    assert np.abs(np.diff(rough)).mean() > 2 * np.abs(np.diff(soft)).mean()


def test_snow_falls_twice_half_a_turn_apart() -> None:
    snowy = corrupt(flat(0), "snow", 1, seed=0, ids=0)
    assert torch.equal(snowy, snowy.flip(1, 2))
    assert snowy.min() == 25  # black is whitened to (1 - 0.8) x 0.5 = 0.1
    assert snowy.max() > 60


def test_frost_has_the_documented_statistics() -> None:
    generators = [np.random.default_rng(number) for number in range(24)]
    for size, darkest, brightest in ((32, 0.09, 0.05), (224, 0.15, 0.08)):
        ice = weather.ice(generators, (3, size, size))
        grey = ice.mean(axis=1)
        means, deviations = grey.mean(axis=(1, 2)), grey.std(axis=(1, 2))
        assert 0.43 <= means.min() < 0.55
        assert 0.7 < means.max() <= 0.81
        assert brightest * 0.95 < deviations.min() < deviations.max() < darkest * 1.05
        assert np.corrcoef(means, deviations)[0, 1] < -0.9
        tint = ice.mean(axis=(0, 2, 3)) - ice.mean()
        assert tint == pytest.approx([-0.07, 0.01, 0.06], abs=0.01)
        power = (np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True))) ** 2).mean(axis=0)
        distance = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
        fit = (distance > 0.05) & (distance < 0.4)
        slope = np.polyfit(np.log(distance[fit]), np.log(power[fit]), 1)[0]
        assert slope == pytest.approx(-1.8, abs=0.15)
    black = corrupt(flat(0), "frost", 2, seed=0, ids=0).float().mean() / 255  # 0.6 x ice
    assert 0.6 * 0.43 < black < 0.6 * 0.81


def test_the_rule_of_sizes() -> None:
    for side, published, lengths in (
        (8, 32, 1), (28, 32, 1), (32, 32, 1), (45, 32, 45 / 32), (46, 64, 46 / 64), (64, 64, 1), (119, 64, 119 / 64),
        (120, 224, 120 / 224), (224, 224, 1), (448, 224, 2),
    ):  # fmt: skip
        scale = Scale.of(side, side + 7)
        assert (scale.published, scale.lengths) == (published, pytest.approx(lengths))
        assert Scale.of(side + 7, side) == scale
    with pytest.raises(ValueError, match="below 8"):
        Scale.of(7, 100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("channels", "height", "width"),
    [(1, 8, 8), (3, 8, 8), (3, 9, 14), (1, 28, 28), (4, 32, 32), (2, 50, 46), (3, 130, 120), (3, 250, 240)],
)
def test_any_size_and_channels(kind: str, channels: int, height: int, width: int) -> None:
    images = picture(channels, height, width, 1 if height == 250 else 2)
    before = images.clone()
    for severity in (1, 5):
        changed = corrupt(images, kind, severity, seed=1, ids=[4, 9][: len(images)])
        assert changed.dtype == torch.uint8
        assert changed.shape == images.shape
        assert not torch.equal(changed, images)
    assert torch.equal(images, before)
    assert corrupt(images[:0], kind, 1, seed=1, ids=[]).shape == images[:0].shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [32, 64, 224])
def test_severity_5_is_worse_than_1(kind: str, size: int) -> None:
    images = picture(3, size, size, 2 if size == 224 else 12)
    lost = [
        float(
            (corrupt(images, kind, level, seed=0, ids=range(len(images))).float() - images.float())
            .square()
            .mean()
        )
        for level in (1, 5)
    ]
    if kind == "elastic_transform":
        # Published so: severity 1 moves the whole picture far, which costs a classifier little; 5 tears it up.
        assert min(lost) > 50
    else:
        assert lost[1] > 1.2 * lost[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 100)])
def test_an_image_gets_the_same_in_any_batch(kind: str, channels: int, size: int) -> None:
    images = picture(channels, size, size, 5)
    ids = [10, 3, 77, 5, 123456789]
    together = corrupt(images, kind, 4, seed=7, ids=ids)
    assert torch.equal(together, corrupt(images, kind, 4, seed=7, ids=torch.tensor(ids)))
    assert torch.equal(together.flip(0), corrupt(images.flip(0), kind, 4, seed=7, ids=ids[::-1]))
    for number in (0, 3):
        assert torch.equal(together[number], corrupt(images[number], kind, 4, seed=7, ids=ids[number]))
    other_seed = corrupt(images, kind, 4, seed=8, ids=ids)
    other_ids = corrupt(images, kind, 4, seed=7, ids=range(5))
    assert torch.equal(together, other_seed) == torch.equal(together, other_ids) == (kind not in RANDOM)


def test_large_batches_are_cut_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from effvit_train.audit.robustness import corruptions

    images = picture(3, 32, 32, 5)
    whole = corrupt(images, "glass_blur", 5, seed=0, ids=range(5))
    monkeypatch.setattr(corruptions, "_VALUES_AT_ONCE", 2 * 3 * 32 * 32)
    assert torch.equal(whole, corrupt(images, "glass_blur", 5, seed=0, ids=range(5)))


def test_no_global_generator_is_touched() -> None:
    np.random.seed(1)
    torch.manual_seed(1)
    before, before_torch = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    for kind in KINDS:
        corrupt(picture(3, 16, 16)[0], kind, 3, seed=0, ids=0)
    assert np.array_equal(before, np.random.get_state()[1])
    assert torch.equal(before_torch, torch.random.get_rng_state())


def test_wrong_inputs_are_refused() -> None:
    image = picture(3, 32, 32)[0]
    for arguments, message in (
        ((image, "rain", 1), "not one of"), ((image, "fog", 0), "severity"), ((image, "fog", 6), "severity"),
        ((image.float(), "fog", 1), "uint8"), ((image[0], "fog", 1), "uint8"), ((image[:, :7], "fog", 1), "below 8"),
        ((image[:0], "fog", 1), "uint8"), ((torch.stack([image, image]), "fog", 1), "1 ids for 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            corrupt(*arguments, seed=0, ids=0)


def test_against_imagecorruptions() -> None:
    """The kinds without chance, against a package that follows the published code at 224 px."""
    reference = pytest.importorskip(
        "imagecorruptions", reason="imagecorruptions is not installed: not compared"
    )
    image = picture(3, 224, 224)[0]
    for kind in ("defocus_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        for severity in (1, 2, 3, 4, 5):
            theirs = reference.corrupt(
                image.permute(1, 2, 0).numpy(), severity=severity, corruption_name=kind
            )
            ours = corrupt(image, kind, severity, seed=0, ids=0).permute(1, 2, 0).numpy()
            assert np.abs(ours.astype(int) - theirs).max() <= 1, (kind, severity)
