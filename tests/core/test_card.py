from __future__ import annotations

import json

import pytest

from effvit_train.card import MEASURES, Card, Measured
from effvit_train.errors import UserError


def _card(**values: float) -> Card:
    measured = Measured(values={k.replace("__", "/"): v for k, v in values.items()})
    return Card.of(run={}, model={}, measured=measured, provenance={})


def test_every_key_has_a_number_or_a_reason():
    card = _card(quality__accuracy=0.5)
    assert card.measures["quality/accuracy"] == 0.5
    assert set(card.measures) == set(MEASURES)
    assert all((card.measures[key] is None) == (key in card.missing) for key in MEASURES)


def test_what_is_not_finite_is_null_with_the_reason():
    card = _card(quality__nll=float("inf"))
    assert card.measures["quality/nll"] is None
    assert card.missing["quality/nll"] == "not a finite number: inf"


def test_round_trip(tmp_path):
    card = _card(quality__accuracy=0.25)
    card.write(tmp_path / "card.json")
    assert Card.read(tmp_path / "card.json") == card
    assert json.loads((tmp_path / "card.json").read_text())["schema"] == 1


@pytest.mark.parametrize(
    "content",
    ["not json", "[]", '{"schema": 2}', '{"schema": 1, "run": {}}',
     '{"schema":1,"run":{},"model":{},"measures":{"a/b":null},"missing":{},"provenance":{}}'],
)  # fmt: skip
def test_what_is_no_card_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(UserError, match="is not a card"):
        Card.read(tmp_path / "card.json")


def test_a_missing_card_is_named(tmp_path):
    with pytest.raises(UserError, match="no card at"):
        Card.read(tmp_path / "card.json")
