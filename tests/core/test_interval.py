from __future__ import annotations

import pytest

from effvit_train.errors import UserError
from effvit_train.interval import Interval


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0.5m", 30), (".5s", 0.5)]
)
def test_times(text, seconds):
    assert Interval.read(text, key="k") == Interval(seconds=seconds)


@pytest.mark.parametrize(("text", "epochs"), [("1epoch", 1), ("10epochs", 10), ("2 epochs", 2)])
def test_epochs(text, epochs):
    assert Interval.read(text, key="k") == Interval(epochs=epochs)


def test_none():
    assert Interval.read(None, key="k") == Interval()


@pytest.mark.parametrize(
    "text", ["", "5", "m", "-5m", "0s", "5w", "0epochs", "1.5epochs", "nanm", "infm", "1e3m"]
)
def test_anything_else_names_the_key_and_what_is_allowed(text):
    with pytest.raises(UserError, match=r"trainer.checkpoint_every=.*5m, 2h, 1d, or epochs such as 1epoch"):
        Interval.read(text, key="trainer.checkpoint_every")
