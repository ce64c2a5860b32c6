"""Images that are there twice: against a second implementation that compares every pair."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from effvit_train.stock import twins
from effvit_train.stock.looks import SIDE, Looks, of_arrays, of_files
from effvit_train.stock.twins import CORRELATION, RATIO, find_twins


def looks_of(small: np.ndarray, digests=None) -> Looks:
    count = len(small)
    digests = np.array([f"{k:016x}".encode() for k in range(count)] if digests is None else digests)
    return Looks(np.arange(count), small, digests, np.full((count, 2), SIDE), ["L"] * count)


def smooth(count: int, seed: int = 0, cells: int = 4) -> np.ndarray:
    """Random patches: few degrees of freedom, as photographs have."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, cells, cells), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for one in coarse]
    )


def by_all_pairs(small: np.ndarray) -> set[tuple[int, int]]:
    """The definition, word for word; for up to 4,096 images the neighbour of rank 20 is that of all."""
    correlation = np.corrcoef(small.reshape(len(small), -1).astype(float))
    distance = np.sqrt(np.maximum(0, 2 - 2 * correlation))
    np.fill_diagonal(distance, np.inf)
    usual = np.sort(distance, axis=1)[:, min(20, (len(small) - 1) // 2) - 1]
    return {
        (i, j)
        for i in range(len(small))
        for j in range(i + 1, len(small))
        if correlation[i, j] >= CORRELATION and distance[i, j] <= RATIO * min(usual[i], usual[j])
    }


@pytest.mark.parametrize("leaf", [1024, 16])
def test_pairs_are_those_that_comparing_all_finds(leaf, monkeypatch):
    monkeypatch.setattr(twins, "_LEAF", leaf)
    small = smooth(300)
    generator = np.random.default_rng(1)
    for copy, (original, noise) in enumerate(((3, 1), (7, 4), (11, 10), (13, 20), (13, 30), (17, 45))):
        noisy = small[original] + generator.normal(0, noise, (SIDE, SIDE))
        small[290 + copy] = np.clip(noisy, 0, 255).astype(np.uint8)
    found = find_twins(looks_of(small))
    expected = by_all_pairs(small)
    assert {tuple(sorted(pair)) for pair in found.pairs.tolist()} == expected
    assert {(3, 290), (7, 291), (11, 292)} <= expected
    assert len(expected) < 10
    assert (np.diff(found.ratio) >= 0).all()


def test_brightness_and_contrast_make_no_other_picture():
    small = smooth(60)
    small[50] = small[4] // 2 + 60
    found = find_twins(looks_of(small))
    assert found.pairs.tolist() == [[4, 50]]
    assert found.correlation[0] == pytest.approx(1, abs=1e-3)


def test_what_all_images_share_makes_no_twins():
    """A hundred images that differ little from one another correlate above 0.99, and none stands out."""
    generator = np.random.default_rng(2)
    small = np.clip(smooth(1)[0] + generator.normal(0, 4, (100, SIDE, SIDE)), 0, 255).astype(np.uint8)
    assert np.corrcoef(small.reshape(100, -1).astype(float)).min() > 0.98
    assert not len(find_twins(looks_of(small)).pairs)


def test_exact_twins_and_who_has_seen_whom():
    small = smooth(30)
    small[20] = small[1]
    small[25] = np.clip(small[2] + np.random.default_rng(0).normal(0, 2, (SIDE, SIDE)), 0, 255)
    small[28] = 77
    digests = [f"{1 if k == 20 else k:016x}".encode() for k in range(30)]
    found = find_twins(looks_of(small, digests))
    assert found.first.tolist() == [*range(20), 1, *range(21, 30)]
    assert found.pairs.tolist() == [[2, 25]]
    assert np.flatnonzero(found.flat).tolist() == [28]
    members = np.arange(30) < 10
    assert np.flatnonzero(found.seen_in(members) & ~members).tolist() == [20, 25]
    # a copy of the first of a near pair is as near as that one
    members = np.arange(30) == 25
    assert np.flatnonzero(found.seen_in(members)).tolist() == [2, 25]


def test_near_twins_of_copies_are_seen_too():
    small = smooth(30)
    small[20] = small[2]
    small[25] = np.clip(small[2] + np.random.default_rng(0).normal(0, 2, (SIDE, SIDE)), 0, 255)
    digests = [f"{2 if k == 20 else k:016x}".encode() for k in range(30)]
    found = find_twins(looks_of(small, digests))
    assert np.flatnonzero(found.seen_in(np.arange(30) == 20)).tolist() == [2, 20, 25]


def test_few_images_have_exact_twins_only():
    found = find_twins(looks_of(smooth(7), [b"a" * 16] * 2 + [f"{k:016x}".encode() for k in range(5)]))
    assert found.first.tolist() == [0, 0, 2, 3, 4, 5, 6]
    assert not len(found.pairs)


def test_files_are_looked_at_upright_and_by_content(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.convert("L").save(tmp_path / "c.jpg", exif=exif)
    looks = of_files(tmp_path, ["a.png", "b.png", "c.jpg"], np.arange(3), max_pixels=10**6)
    assert looks.sizes.tolist() == [[40, 20], [40, 20], [20, 40]]
    assert looks.modes == ["RGB", "RGB", "L"]
    assert looks.digests[0] == looks.digests[1] != looks.digests[2]
    assert looks.small.shape == (3, SIDE, SIDE)


def test_arrays_give_the_same_small_pictures_as_files(tmp_path):
    from effvit_train.data.decode import Decoder
    from effvit_train.data.source import ArraySource

    pixels = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    for k in range(3):
        Image.fromarray(pixels[k, 0]).save(tmp_path / f"{k}.png")
    files = of_files(tmp_path, [f"{k}.png" for k in range(3)], np.array([2, 0]), max_pixels=10**6)
    source = ArraySource(pixels, Decoder(1, "squash", 10**6))
    arrays = of_arrays(source, np.array([2, 0]), 32, mode="L")
    assert (files.small == arrays.small).all()
    assert arrays.sizes.tolist() == [[32, 32]] * 2
