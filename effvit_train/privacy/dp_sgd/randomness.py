"""Selection and noise: functions of a secret and of what they are for, never of what ran before (C6, C7).

A training has a stream of randomness. Its key is derived from the secret and from all that shapes the values
that the steps publish: a step that is made again with the same key gives the same values, and costs no
privacy; if anything has changed the key has too, and the noise is fresh.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effvit_train.errors import UserError
from effvit_train.files import atomic_path, sync_directory

_LEAST = 32  # bytes of a secret
_KEY = "privacy.secret"


def open_secret(path: Path, *, create: bool) -> bytes:
    """The secret in a file that only its owner may read.

    Args:
        path: the file.
        create: make it of the operating system's randomness where it does not exist.

    Raises:
        UserError: it cannot be read or made, is too short, or others may read it.
    """
    try:
        if create and not path.exists():
            with atomic_path(path, mode=0o600) as temporary:
                temporary.write_bytes(secrets.token_bytes(_LEAST))
            sync_directory(path.parent)  # before anything is drawn from it
        content = path.read_bytes()
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(
            f"cannot be used ({error.strerror})", key=_KEY, value=path,
            remedy="head -c 32 /dev/urandom > FILE; chmod 600 FILE",
        ) from None  # fmt: skip
    if os.name == "posix" and mode & 0o077:
        raise UserError(
            "can be read by others: it is no secret", key=_KEY, value=path,
            remedy=f"make a new one; chmod 600 {path}",
        )  # fmt: skip
    if len(content) < _LEAST:
        raise UserError(
            f"holds {len(content)} bytes", key=_KEY, value=path,
            remedy=f"at least {_LEAST}: head -c 32 /dev/urandom > FILE",
        )  # fmt: skip
    return hashlib.blake2b(content, digest_size=64).digest()


class Stream:
    """The randomness of a training.

    Args:
        secret: of `open_secret`.
        lineage: all that shapes the published values, as JSON: of the start, then of each part of the
            training that went on under other conditions.
    """

    def __init__(self, secret: bytes, lineage: Sequence[Any]) -> None:
        text = json.dumps(list(lineage), sort_keys=True, allow_nan=False).encode()
        self._key = hashlib.blake2b(text, key=secret, person=b"dp stream").digest()

    @property
    def id(self) -> str:
        """Tells streams apart without giving them away."""
        return self._derive("id").hex()[:32]

    def seal(self, text: str) -> str:
        """A keyed digest: equal texts are recognised by those who know the secret, and by nobody else."""
        return self._derive("seal", text).hex()[:32]

    def uniform64(self, count: int, *what: int | str) -> npt.NDArray[np.uint64]:
        """Uniform 64-bit words (count,), from SHAKE-256: cryptographic."""
        data = hashlib.shake_256(self._derive(*what)).digest(8 * count)
        return np.frombuffer(data, dtype="<u8")

    def normal(self, like: Tensor, source: str, *what: int | str) -> Tensor:
        """Standard normal numbers in the shape, type and place of `like`.

        Args:
            like: float32 or float64.
            source: `philox` (counter-based, Salmon et al. 2011; on CUDA torch's own) | `shake256`.
            what: the numbers are for.
        """
        key = self._derive(*what)
        if source == "shake256":
            return torch.from_numpy(_normal_shake(key, like.numel())).to(like).view(like.shape)
        if like.device.type == "cuda":
            generator = torch.Generator(like.device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
            return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)
        generator_ = np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64)))
        kind = np.float64 if like.dtype == torch.float64 else np.float32
        return (
            torch.from_numpy(generator_.standard_normal(like.numel(), dtype=kind)).to(like).view(like.shape)
        )

    def _derive(self, *what: int | str) -> bytes:
        text = "\x1f".join(str(part) for part in what).encode()
        return hashlib.blake2b(text, key=self._key).digest()


def describe_source(source: str, device: str) -> str:
    """The generator, for the card."""
    if source == "shake256":
        return "SHAKE-256 (cryptographic), Box-Muller, sums of four"
    return "Philox 4x32 of torch, 63-bit key" if device == "cuda" else "Philox 4x64 of numpy, 128-bit key"


def _normal_shake(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """Box-Muller on 53-bit uniforms; the mean of four draws hides which floats one draw can reach.

    Holohan and Braghin 2021, "Secure random sampling in differential privacy", section 3.
    """
    half = (4 * count + 1) // 2
    words = np.frombuffer(hashlib.shake_256(key).digest(16 * half), dtype="<u8").reshape(2, half)
    radius, angle = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2 * np.log(radius))
    pair = np.concatenate([radius * np.cos(2 * np.pi * angle), radius * np.sin(2 * np.pi * angle)])
    return pair[: 4 * count].reshape(4, count).sum(axis=0) / 2


class Selection:
    """Poisson sampling: in each step every slot is drawn with probability q, by itself.

    Args:
        stream: of the training.
        ids: sample ids of the training split (n,).
        rate: q; slots are drawn with this probability rounded down to 64 bits.
        batches: steps of an epoch.
        rank, world: rank r has every world-th of the drawn.
        absent: ids whose slots are empty: drawn like the others, with nothing in them.
    """

    def __init__(
        self,
        stream: Stream,
        ids: npt.NDArray[np.int64],
        *,
        rate: float,
        batches: int,
        rank: int = 0,
        world: int = 1,
        absent: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._absent = absent
        self._stream, self._ids, self._batches = stream, ids, batches
        self._rank, self._world = rank, world
        self._least = None if rate >= 1 else np.uint64(int(rate * 2.0**64))

    def __len__(self) -> int:
        return self._batches

    def batch(self, epoch: int, number: int) -> npt.NDArray[np.int64]:
        """Ids that this rank has in a step, ascending; there may be none."""
        drawn = self._ids
        if self._least is not None:
            drawn = drawn[self._stream.uniform64(len(drawn), "selection", epoch, number) < self._least]
        if self._absent is not None and len(self._absent):
            drawn = drawn[~np.isin(drawn, self._absent)]
        return drawn[self._rank :: self._world]
