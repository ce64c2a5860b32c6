"""The front against its definition, pair by pair."""

import random

import pytest

from effvit_train.report.frontier.pareto import front

LATENCY, ACCURACY, EPSILON = "cost/latency_ms", "quality/accuracy", "privacy/epsilon"


def dominated(row, rows, lower):
    """Some other row is at least as good everywhere and better somewhere."""
    for other in rows:
        if None in other:
            continue
        at_least = all((o <= r) if low else (o >= r) for o, r, low in zip(other, row, lower, strict=True))
        better = any((o < r) if low else (o > r) for o, r, low in zip(other, row, lower, strict=True))
        if at_least and better:
            return True
    return False


def test_by_hand():
    # (ms, accuracy): the second is slower and worse than the first; the last two are equal; one has no latency
    rows = [(1.0, 0.9), (2.0, 0.8), (2.0, 0.95), (2.0, 0.95), (None, 0.99), (0.5, 0.1)]
    assert front(rows, [LATENCY, ACCURACY]) == [True, False, True, True, False, True]
    assert front([], [LATENCY, ACCURACY]) == []
    assert front([(None, 1.0)], [LATENCY, ACCURACY]) == [False]


@pytest.mark.parametrize("keys", [(LATENCY, ACCURACY), (ACCURACY, LATENCY), (LATENCY, ACCURACY, EPSILON)])
def test_against_the_definition(keys):
    draw = random.Random(0)
    lower = [key != ACCURACY for key in keys]
    for _ in range(20):
        # few values: many ties
        rows = [tuple(draw.choice((None, 1, 2, 3, 4, 5, 6)) for _ in keys) for _ in range(60)]
        wanted = [None not in row and not dominated(row, rows, lower) for row in rows]
        assert front(rows, keys) == wanted
        assert any(wanted)
