"""Who is in: the coins of canaries and the halves of shadow models, each a function of a key (contract C6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from effvit_train.data import draws

_CHOICE, _COIN = 0, 1  # the numbers of the two draws that one sample needs


@dataclass(frozen=True)
class Canaries:
    """The samples whose presence an audit guesses.

    Attributes:
        ids: (m,) of the canaries, ascending.
        included: (m,) whether the sample is trained on. One that is not leaves its slot empty (zero-out
            adjacency): number and order of all other samples stay as they are.
    """

    ids: npt.NDArray[np.int64]
    included: npt.NDArray[np.bool_]

    @property
    def left_out(self) -> npt.NDArray[np.int64]:
        """The ids whose slots are empty."""
        return self.ids[~self.included]


def plant(ids: npt.ArrayLike, m: int, key: int | bytes) -> Canaries:
    """Choose m canaries, and toss an independent fair coin for each (Steinke et al. 2023, Algorithm 1).

    The number that is in is itself random. Planting exactly m/2 would make the coins depend on each other,
    and the bound of `one_run` would not hold.

    Args:
        ids: (n,) of the samples to choose from, without repeats.
        m: canaries, 1..n.
        key: an integer from `keys.stream_key`, or secret bytes. Nothing else may read this stream: a score
            that knew the coins would prove anything.
    """
    samples = _distinct(ids)
    if not 1 <= m <= len(samples):
        raise ValueError(f"m={m} canaries of {len(samples)} samples")
    number = _as_int(key)
    rank = np.lexsort((samples, draws.bits(number, samples, _CHOICE)))
    chosen = np.sort(samples[rank[:m]])
    return Canaries(chosen, draws.uniform(number, chosen, _COIN) < 0.5)


def balanced_membership(models: int, ids: npt.ArrayLike, key: int | bytes) -> npt.NDArray[np.bool_]:
    """A membership matrix (S, n) in which each sample is in exactly half of the S models.

    The half is uniform and independent from sample to sample (the online attack of Carlini et al. 2022,
    section VI), and a function of the sample's id: other samples do not change it.

    Args:
        models: S, even and at least 2.
        ids: (n,) of the samples, without repeats.
        key: an integer from `keys.stream_key`, or secret bytes.
    """
    if models < 2 or models % 2:
        raise ValueError(f"models={models}: an even number is needed for each sample to be in half of them")
    samples, number = _distinct(ids), _as_int(key)
    numbers = np.stack([draws.bits(number, samples, model) for model in range(models)])
    # Each column is a random order of the models: the first half of their numbers is a random half of rows.
    return np.argsort(numbers, axis=0, kind="stable") < models // 2


def _distinct(ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
    samples = np.asarray(ids, dtype=np.int64)
    if samples.ndim != 1 or len(np.unique(samples)) != len(samples):
        raise ValueError("ids must be one-dimensional and without repeats")
    return samples


def _as_int(key: int | bytes) -> int:
    return (
        key if isinstance(key, int) else int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
    )
