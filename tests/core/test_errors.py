from __future__ import annotations

import pytest

from effvit_train.errors import UserError, did_you_mean


def test_one_line_names_key_value_problem_and_remedy():
    error = UserError("must be\nat least 1", key="trainer.max_epochs", value=-3, remedy="e.g. 20")
    assert str(error) == "trainer.max_epochs=-3: must be at least 1; e.g. 20"


@pytest.mark.parametrize(("value", "shown"), [(None, "null"), (True, "true"), (0.5, "0.5"), ("x", "x")])
def test_values_are_shown_as_the_user_types_them(value, shown):
    assert str(UserError("no", key="k", value=value)) == f"k={shown}: no"


def test_did_you_mean_only_what_is_near():
    assert did_you_mean("temprature", ["temperature", "weight"]) == "did you mean 'temperature'?"
    assert did_you_mean("zebra", ["temperature", "weight"]) == ""
