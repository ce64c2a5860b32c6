"""When cuts are made, and how much is left after each."""

from __future__ import annotations


def positions(start: float, end: float, cuts: int, *, one_shot: bool) -> list[float]:
    """When each cut is made, evenly from the first to the last, in the unit of `start` and `end`."""
    if one_shot or cuts == 1 or end <= start:
        return [start]
    return [start + (end - start) * k / (cuts - 1) for k in range(cuts)]


def left(target: float, done: int, cuts: int, *, schedule: str) -> float:
    """The fraction that may be left after `done` of `cuts` cuts, when `target` is to be left in the end.

    Linear, or cubic in the progress t = done / cuts: `target + (1 - target) (1 - t)^3` (Zhu & Gupta 2017,
    eq. 1).
    """
    rest = 1 - done / cuts
    return target + (1 - target) * (rest**3 if schedule == "cubic" else rest)
