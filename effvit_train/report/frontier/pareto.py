"""What nothing else beats: the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from effvit_train.report import format as fmt


def front(rows: Sequence[Sequence[float | None]], keys: Sequence[str]) -> list[bool]:
    """Which rows no other row dominates.

    A row dominates another if it is at least as good in every measure and better in one; which way is better, the
    table of measures says. Equal rows do not dominate each other. A row without one of the measures is not on the
    front and dominates none.

    Args:
        rows: N rows of one value per key.
        keys: of the measures.
    """
    whole = [number for number, row in enumerate(rows) if None not in row]
    found = [False] * len(rows)
    if not whole:
        return found
    signs = np.array([1.0 if fmt.measure_of(key).better == "lower" else -1.0 for key in keys])
    burden = np.array([rows[number] for number in whole], dtype=float) * signs
    for place, number in enumerate(whole):
        no_worse = (burden <= burden[place]).all(1)
        found[number] = not (no_worse & (burden < burden[place]).any(1)).any()
    return found
