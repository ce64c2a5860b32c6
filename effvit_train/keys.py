"""Keys of random streams: everything random is a function of (seed, what) (contract C6)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


def stream_key(what: str, *parts: int | str) -> int:
    """A 63-bit key for the stream `what`, given its coordinates such as seed, epoch and step.

    Equal arguments give equal keys on every machine; different arguments give unrelated streams.
    """
    text = "\x1f".join([what, *(str(part) for part in parts)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class AugmentStream:
    """Which augmentation a sample gets in which epoch.

    A cached teacher needs views that are found again: `count` views of each sample, in turn, from a seed
    that the runs which share the cache have in common.

    Attributes:
        seed: of the augmentation.
        count: how many different views each sample has; None = a new one in every epoch.
    """

    seed: int
    count: int | None = None

    def variant(self, epoch: int) -> int:
        """The number of the view that epoch `epoch` shows."""
        return epoch if self.count is None else epoch % self.count

    def key(self, what: str, epoch: int, *parts: int) -> int:
        """The key of the draws of `what` in this epoch."""
        return stream_key(what, self.seed, self.variant(epoch), *parts)
