"""Keys of random streams: everything random is a function of (seed, what) (contract C6)."""

from __future__ import annotations

import hashlib


def stream_key(what: str, *parts: int | str) -> int:
    """A 63-bit key for the stream `what`, given its coordinates such as seed, epoch and step.

    Equal arguments give equal keys on every machine; different arguments give unrelated streams.
    """
    text = "\x1f".join([what, *(str(part) for part in parts)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
