from __future__ import annotations

import pytest

from effvit_train.errors import UserError, did_you_mean, seconds


def test_one_line_names_key_value_problem_and_remedy():
    error = UserError("must be\nat least 1", key="trainer.max_epochs", value=-3, remedy="e.g. 20")
    assert str(error) == "trainer.max_epochs=-3: must be at least 1; e.g. 20"


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (True, "true"), (0.5, "0.5"), ("x", "x")])
def test_values_are_shown_as_the_user_types_them(value, shown):
    assert str(UserError("no", key="k", value=value)) == f"k={shown}: no"


def test_did_you_mean_only_what_is_near():
    assert did_you_mean("temprature", ["temperature", "weight"]) == "did you mean 'temperature'?"
    assert did_you_mean("zebra", ["temperature", "weight"]) == ""


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90), ("5m", 300), ("2h", 7200), ("1d", 86400), ("0.5m", 30)]
)
def test_durations(text, value):
    assert seconds(text, key="k") == value


@pytest.mark.parametrize("text", ["", "5", "m", "-5m", "0s", "5w"])
def test_wrong_durations_name_the_key(text):
    with pytest.raises(UserError, match=r"trainer.checkpoint_every=.*5m, 2h"):
        seconds(text, key="trainer.checkpoint_every")
