"""How many tokens merge in which block. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence


def spread(total: int, blocks: int, schedule: str) -> list[int]:
    """Tokens that merge in each block, for a mean of `total / blocks`.

    `constant`: the same in every block; what does not divide evenly goes to the first ones. `decreasing`: from
    twice the mean in the first block linearly to none in the last, rounded down (Bolya et al. 2023, section 4.1).
    """
    if schedule == "constant" or blocks == 1:
        each, more = divmod(total, blocks)
        return [each + (k < more) for k in range(blocks)]
    return [2 * total * (blocks - 1 - k) // (blocks * (blocks - 1)) for k in range(blocks)]


def possible(wanted: Sequence[int], patches: int) -> list[int]:
    """As many as can merge: at most half of the tokens that a block is given, rounded down."""
    found, count = [], patches
    for r in wanted:
        found.append(min(r, count // 2))
        count -= found[-1]
    return found
