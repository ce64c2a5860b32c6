"""Exponents of known powers, and of mixers whose growth is known."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy import stats
from test_tally import VIT, FourierMixer, Fused, Tokens

from effvit_train.audit.growth import at_factor, exponents, fit_exponent, grow, meta_model, point, sizes_of
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import CUT


def record(name: str = "vit_tiny_patch16_224", **kwargs: object) -> ArchitectureRecord:
    return ArchitectureRecord(name, {**VIT, **kwargs}, (1, 8, 8), tuple("0123456789"), (0.0,), (1.0,))


def test_a_power_is_found_again() -> None:
    found = fit_exponent([1, 2, 4, 8], [3 * n**1.5 for n in (1, 2, 4, 8)])
    assert found.value == pytest.approx(1.5)
    assert found.stderr == pytest.approx(0, abs=1e-12)
    assert fit_exponent([1, 10], [1, 100]).value == pytest.approx(2)
    assert fit_exponent([1, 10], [1, 100]).stderr is None


def test_against_scipy() -> None:
    sizes, costs = [17, 65, 145, 257], [1.0, 3.1, 9.0, 14.2]
    expected = stats.linregress([math.log(n) for n in sizes], [math.log(c) for c in costs])
    found = fit_exponent(sizes, costs)
    assert (found.value, found.stderr, found.points) == (
        pytest.approx(expected.slope),
        pytest.approx(expected.stderr),
        4,
    )


@pytest.mark.parametrize(
    ("sizes", "costs"), [([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1]), ([1, 2], [1, 2, 3])]
)
def test_what_has_no_exponent(sizes: list[float], costs: list[float]) -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        fit_exponent(sizes, costs)


def test_attention_grows_with_the_square() -> None:
    points = [point(Tokens(Fused()), (8, side, side)) for side in (8, 16, 32)]
    found = exponents(points)
    assert sizes_of(points) == ([64, 256, 1024], "pixels")
    assert found["attention_macs"].value == pytest.approx(2)  # 2 N^2 x 8
    assert found["mixing_flops"].value == pytest.approx(2, abs=0.02)


def test_a_fourier_mixer_grows_hardly_faster_than_its_tokens() -> None:
    points = [point(Tokens(FourierMixer(side**2, 8)), (8, side, side)) for side in (8, 16, 32)]
    found = exponents(points)
    # 5 N log2 N for each of 8 channels, 2.5 each way; the filter adds little, and grows with N
    transforms = [8 * 5 * n * math.log2(n) for n in (64, 256, 1024)]
    assert all(t < p.mixing_flops < 1.2 * t for t, p in zip(transforms, points, strict=True))
    expected = fit_exponent([64, 256, 1024], transforms).value
    assert found["mixing_flops"].value == pytest.approx(expected, abs=0.03)
    assert 1 < found["mixing_flops"].value < 1.25
    assert "attention_macs" not in found


def test_a_vit_at_other_image_sizes() -> None:
    points, refused = grow(record(), (1, 2, 4))
    assert not refused
    assert [points[f].tokens for f in (1, 2, 4)] == [17, 65, 257]
    # patches, 4 blocks of projections, MLP and attention, head
    by_hand = [(n - 1) * 4 * 64 + 4 * (n * 12 * 64**2 + 2 * n**2 * 64) + 640 for n in (17, 65, 257)]
    assert [points[f].macs for f in (1, 2, 4)] == by_hand
    found = exponents(list(points.values()))
    assert found["attention_macs"].value == pytest.approx(2)
    assert 1 < found["macs"].value < 2
    assert found["peak_bytes"].value == pytest.approx(1, abs=0.01)  # fused: no scores in memory


def test_windows_grow_with_the_tokens() -> None:
    swin = ArchitectureRecord(
        "swin_tiny_patch4_window7_224", {"depths": (1, 2), "num_heads": (3, 6), "img_size": 56}, (3, 56, 56),
        (), (), (),
    )  # fmt: skip
    points, _ = grow(swin, (1, 2))
    assert exponents(list(points.values()))["attention_macs"].value == pytest.approx(1)


def test_cuts_stay_cut() -> None:
    cut = {"kind": CUT, "blocks": ["blocks.1"], "widths": {"blocks.0.mlp": 128}}
    larger = at_factor(dataclasses.replace(record(), cuts=[cut]), 2)
    assert (larger.input_shape, larger.kwargs["img_size"]) == ((1, 16, 16), 16)
    # 65 tokens; 3 blocks are left, one of them with half its hidden units
    by_hand = 64 * 4 * 64 + 3 * (65 * 4 * 64**2 + 2 * 65**2 * 64) + 65 * (2 * 8 + 4) * 64**2 + 640
    assert point(meta_model(larger), larger.input_shape).macs == by_hand


def test_an_architecture_for_one_size_says_so() -> None:
    kwargs = {k: v for k, v in VIT.items() if k != "img_size"}
    fixed = ArchitectureRecord(
        "vit_tiny_patch16_224", {**kwargs, "patch_size": 16}, (1, 224, 224), (), (), ()
    )
    points, refused = grow(fixed, (1, 2))
    assert list(points) == [1]
    assert refused[0]["factor"] == 2
    assert "448" in refused[0]["reason"]
