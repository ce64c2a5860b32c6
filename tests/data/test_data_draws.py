import numpy as np

from effvit_train.data import draws

IDS = np.arange(20_000, dtype=np.int64)


def test_the_mixer_is_splitmix64():
    # Vigna's splitmix64.c with state 0 gives these first two numbers: mix(1 * golden), mix(2 * golden)
    golden = 0x9E3779B97F4A7C15
    states = np.array([golden, 2 * golden % 2**64], dtype=np.uint64)
    assert draws.mix(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_a_draw_depends_on_key_id_and_number_only():
    whole = draws.uniform(7, IDS, 3)
    some = np.array([17, 4, 9999])
    assert (draws.uniform(7, some, 3) == whole[some]).all()
    for other in (draws.uniform(8, IDS, 3), draws.uniform(7, IDS, 4)):
        assert abs(np.corrcoef(whole, other)[0, 1]) < 0.03  # 4 standard errors of 1 / sqrt(20000)
        assert (whole != other).all()


def test_uniform_has_the_moments_of_a_uniform():
    values = draws.uniform(1, IDS)
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / len(IDS))
    assert abs(values.var() - 1 / 12) < 0.003


def test_integers_are_equally_frequent():
    counts = np.bincount(draws.integers(5, IDS, 9), minlength=9)
    expected = len(IDS) / 9
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 9
    assert chi_squared < 26.1  # 0.999 quantile with 8 degrees of freedom


def test_a_permutation_keeps_every_id_and_moves_with_the_key():
    first, second = draws.permutation(1, IDS), draws.permutation(2, IDS)
    assert sorted(first) == IDS.tolist()
    assert (first != second).mean() > 0.99
    assert (first == draws.permutation(1, IDS)).all()
