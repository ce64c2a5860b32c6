"""The scattering transform against sums over pixels, a published library's values, and what it must obey."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from effvit_train.models.scattering import Scattering, channels


def transform(scales: int, size: int, dtype: torch.dtype = torch.float64) -> Scattering:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Scattering(scales, size, size)
    finally:
        torch.set_default_dtype(before)


def images(count: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, 1, size, size, generator=generator, dtype=torch.float64)


def at(values: list[list[float]], row: int, column: int) -> float:
    return values[row % len(values)][column % len(values)]


def convolved(
    values: list[list[float]], kernel: dict[tuple[int, int], complex], row: int, column: int
) -> complex:
    return sum(k * at(values, row - y, column - x) for (y, x), k in kernel.items())


def test_one_scale_is_the_sums_over_pixels_that_define_it():
    size, margin = 8, 2
    (image,) = images(1, size)[:, 0].tolist()

    def mirrored(n: int) -> int:
        return -n if n < 0 else 2 * (size - 1) - n if n >= size else n

    side = range(-margin, size + margin)
    padded = [[image[mirrored(y)][mirrored(x)] for x in side] for y in side]
    reach, width = range(-11, 12), 0.8
    gauss = {
        (y, x): math.exp(-(y * y + x * x) / (2 * width**2)) / (2 * math.pi * width**2)
        for y in reach
        for x in reach
    }
    expected = []
    for k in range(-1, 8):
        maps = padded
        if k >= 0:
            angle = (3 - k) * math.pi / 8
            envelope, wave = {}, {}
            for y in reach:
                for x in reach:
                    along = y * math.cos(angle) + x * math.sin(angle)
                    across = x * math.cos(angle) - y * math.sin(angle)
                    envelope[y, x] = math.exp(-(along**2 + across**2 / 4) / (2 * width**2))
                    wave[y, x] = envelope[y, x] * cmath.exp(0.75j * math.pi * along)
            offset = sum(wave.values()) / sum(envelope.values())
            wavelet = {p: (wave[p] - offset * envelope[p]) / 2 / (2 * math.pi * width**2) for p in wave}
            maps = [[abs(convolved(padded, wavelet, y, x)) for x in range(12)] for y in range(12)]
        expected.append([[convolved(maps, gauss, y, x) for x in range(2, 10, 2)] for y in range(2, 10, 2)])
    found = transform(1, size)(torch.tensor([[image]], dtype=torch.float64))[0]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-7)


def test_two_scales_give_what_kymatio_gives():
    i = torch.arange(28, dtype=torch.float64)
    waves = torch.sin(0.9 * i)[:, None] * torch.cos(0.35 * i + 0.02 * i**2)[None]
    image = waves + 0.3 * ((i[:, None] + 2 * i[None]) % 7 < 3)
    found = transform(2, 28)(image[None, None])[0].mean(dim=(1, 2))
    # kymatio 0.3.0, Scattering2D(J=2, shape=(28, 28)), fp32: S0, S1 and S2, in our order of the channels
    theirs = {
        0: 0.133721,
        1: 0.114109,
        4: 0.059883,
        73: 0.087098,
        77: 0.103307,
        9: 0.013237,
        32: 0.005893,
        72: 0.008246,
    }
    for channel, value in theirs.items():
        assert float(found[channel]) == pytest.approx(value, rel=2e-4), channel


@pytest.mark.parametrize(("scales", "count"), [(1, 9), (2, 81), (3, 217), (4, 417)])
def test_channels(scales, count):
    size = 2 * 2**scales
    assert channels(scales) == count
    assert transform(scales, size)(images(2, size)).shape == (2, count, 2, 2)


def test_constant_images_have_no_waves():
    found = transform(2, 16)(torch.full((1, 2, 16, 16), 3.0, dtype=torch.float64)).view(2, 81, 4, 4)
    assert torch.allclose(found[:, 0], torch.tensor(3.0, dtype=torch.float64), atol=1e-4)
    assert found[:, 1:].abs().max() < 1e-11


def test_a_quarter_turn_turns_the_cells_and_the_orientations():
    transform_ = transform(2, 16)
    image = images(1, 16)
    turned = transform_(image.transpose(2, 3))[0]
    # a transposed image: y and x change places, an angle a becomes 90 degrees - a: k becomes 2 - k
    found = transform_(image)[0].transpose(1, 2)
    order = [(2 - k) % 8 for k in range(8)]
    assert torch.allclose(turned[0], found[0], atol=1e-12)
    for first in (1, 73):
        assert torch.allclose(turned[first : first + 8], found[first : first + 8][order], atol=1e-10)
    pairs = found[9:73].view(8, 8, 4, 4)[order][:, order].flatten(0, 1)
    assert torch.allclose(turned[9:73], pairs, atol=1e-10)


def test_it_contracts():
    """||S(x) - S(y)|| <= ||x - y|| per pixel: what made the transform known."""
    transform_ = transform(2, 32)
    x, y = images(2, 32)
    distance = (transform_(x[None]) - transform_(y[None])).square().sum() * 16  # a cell stands for 16 pixels
    assert float(distance) <= float((x - y).square().sum())


def test_gradients_reach_the_pixels():
    transform_ = transform(2, 8)
    image = images(1, 8).requires_grad_()
    torch.autograd.gradcheck(lambda x: transform_(x)[:, ::16], image, fast_mode=True)
    flat = torch.zeros(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    transform_(flat).sum().backward()
    assert flat.grad is not None
    assert bool(flat.grad.isfinite().all())


def test_autocast_leaves_it_alone():
    transform_ = transform(1, 8, torch.float32)
    image = images(2, 8).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = transform_(image)
    assert found.dtype == torch.float32
    assert torch.equal(found, transform_(image))


@pytest.mark.parametrize(("scales", "size"), [(0, 8), (2, 10), (3, 8)])
def test_images_that_are_no_whole_cells_are_refused(scales, size):
    with pytest.raises(ValueError, match="two or more cells"):
        transform(scales, size)
