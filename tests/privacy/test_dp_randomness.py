"""Secrets, streams, selection and noise: what they depend on, and their distributions."""

import math
import os
import stat

import numpy as np
import pytest
import torch
from scipy import stats

from effvit_train.errors import UserError
from effvit_train.privacy.dp_sgd.randomness import Selection, Stream, open_secret

SECRET = bytes(range(64))


def test_a_secret_is_made_once_and_only_for_its_owner(tmp_path):
    path = tmp_path / "deep" / "secret"
    first = open_secret(path, create=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert open_secret(path, create=True) == first == open_secret(path, create=False)
    assert first != path.read_bytes()
    assert open_secret(tmp_path / "other", create=True) != first
    assert [entry.name for entry in path.parent.iterdir()] == ["secret"]


def test_bad_secrets_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"privacy.secret=.*: cannot be used"):
        open_secret(tmp_path / "missing", create=False)
    short = tmp_path / "short"
    short.write_bytes(b"x" * 31)
    short.chmod(0o600)
    with pytest.raises(UserError, match="holds 31 bytes"):
        open_secret(short, create=False)
    open_secret(tmp_path / "open", create=True)
    os.chmod(tmp_path / "open", 0o640)
    with pytest.raises(UserError, match="can be read by others"):
        open_secret(tmp_path / "open", create=False)


def test_a_stream_depends_on_all_of_its_lineage_and_on_the_secret():
    lineages = [["w", ["c", 0]], ["w", ["c", 1]], ["w", ["d", 0]], ["v", ["c", 0]], ["w", ["c", 0], ["c", 5]]]
    ids = [Stream(SECRET, lineage).id for lineage in lineages] + [Stream(SECRET[::-1], lineages[0]).id]
    assert len(set(ids)) == len(ids)
    assert Stream(SECRET, ["w", ("c", 0)]).id == ids[0]
    like = torch.zeros(1000)
    one, two = Stream(SECRET, lineages[0]), Stream(SECRET, lineages[1])
    for source in ("philox", "shake256"):
        first = one.normal(like, source, "noise", 0, 3, "w")
        assert torch.equal(first, one.normal(like, source, "noise", 0, 3, "w"))
        for other in (
            two.normal(like, source, "noise", 0, 3, "w"), one.normal(like, source, "noise", 0, 4, "w"),
            one.normal(like, source, "noise", 1, 3, "w"), one.normal(like, source, "noise", 0, 3, "v"),
        ):  # fmt: skip
            assert abs(np.corrcoef(first, other)[0, 1]) < 5 / math.sqrt(1000)
    assert one.seal("x") != one.seal("y")
    assert one.seal("x") != two.seal("x")


@pytest.mark.parametrize("source", ["philox", "shake256"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_standard_normal(source, dtype):
    drawn = Stream(SECRET, ["w", [source, 0]]).normal(torch.zeros(200, 500, dtype=dtype), source, "noise")
    assert drawn.shape == (200, 500)
    assert drawn.dtype == dtype
    assert stats.kstest(drawn.flatten().double().numpy(), "norm").pvalue > 1e-3
    assert abs(drawn.std().item() - 1) < 4 / math.sqrt(2 * 100_000)
    assert drawn.abs().max() > 4  # of 100,000 draws the largest is near 4.4


def selection(rate=0.3, images=500, batches=1000, **ranks) -> Selection:
    ids = np.arange(images) * 7 + 3
    return Selection(Stream(SECRET, ["w", ["c", 0]]), ids, rate=rate, batches=batches, **ranks)


def test_every_image_is_drawn_with_probability_q_by_itself():
    chosen = selection()
    drawn = np.zeros((1000, 500), dtype=bool)
    for step in range(1000):
        ids = chosen.batch(0, step)
        assert (np.diff(ids) > 0).all()
        drawn[step, (ids - 3) // 7] = True
    each = drawn.sum(axis=0)
    expected = 1000 * 0.3
    chi = ((each - expected) ** 2 / (expected * 0.7)).sum()
    assert stats.chi2.sf(chi, 500) > 1e-3
    assert stats.chi2.cdf(chi, 500) > 1e-3  # nor are they too even, as shuffled batches would be
    sizes = drawn.sum(axis=1)  # Binomial(500, 0.3): variance 105
    low, high = stats.chi2.ppf([5e-4, 1 - 5e-4], 999) * 105 / 999
    assert low < sizes.var(ddof=1) < high


def test_two_epochs_and_two_steps_are_independent():
    chosen = selection()
    for other in ((1, 0), (0, 1)):
        both = sum(len(np.intersect1d(chosen.batch(e, s), chosen.batch(e + other[0], s + other[1])))
                   for e in range(0, 20, 2) for s in range(0, 20, 2))  # fmt: skip
        trials = 100 * 500
        assert abs(both - trials * 0.09) < 4 * math.sqrt(trials * 0.09 * 0.91)


def test_ranks_share_one_draw():
    whole = selection().batch(2, 5)
    parts = [selection(rank=rank, world=3).batch(2, 5) for rank in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == whole.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rates_at_the_ends():
    assert len(selection(rate=1.0).batch(0, 0)) == 500
    empty = sum(len(selection(rate=1 / 500).batch(0, step)) == 0 for step in range(300))
    assert abs(empty / 300 - math.exp(-1)) < 0.1  # (1 - 1/500)^500
    assert len(selection(batches=17)) == 17
