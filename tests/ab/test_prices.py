"""Price lists, and a million images by hand."""

from __future__ import annotations

import pytest
from made import make_run

from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.prices import cost_per_million, read_prices

LIST = "currency: EUR\nper_kwh: 0.36\nmachines:\n- {match: h100, per_hour: 2.5}\n- {match: EPYC, per_hour: 0.18}\n"


def prices(tmp_path, text):
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    return read_prices(path)


def card(tmp_path, *, processor="AMD EPYC 7763", **values):
    return Card.read(make_run(tmp_path / "run", processor=processor, values=values) / "card.json")


def test_a_million_images_by_hand(tmp_path):
    measured = card(tmp_path, **{"cost/throughput": 500.0, "cost/energy_j": 0.05})
    found = cost_per_million(measured, prices(tmp_path, LIST))
    assert found.machine == pytest.approx(0.1)  # 2,000 s at 0.18 an hour
    assert found.energy == pytest.approx(0.005)  # 50 kJ = 1/72 kWh at 0.36
    assert found.total == pytest.approx(0.105)
    assert found.reason == ""


def test_one_price_is_of_whatever_machine(tmp_path):
    measured = card(tmp_path, processor="anything", **{"cost/throughput": 1000.0})
    assert cost_per_million(measured, prices(tmp_path, "per_hour: 3.6")).total == pytest.approx(1.0)


def test_what_is_not_measured_or_priced_is_null_with_the_reason(tmp_path):
    measured = card(tmp_path, processor="M4", **{"cost/throughput": 1000.0})
    found = cost_per_million(measured, prices(tmp_path, LIST))
    assert (found.total, found.machine, found.energy) == (None, None, None)
    assert found.reason == "the price list has no machine like 'M4'; energy: no counter <here>"
    alone = cost_per_million(measured, prices(tmp_path, "per_hour: 1\nper_kwh: 1"))
    assert alone.total is None
    assert alone.machine == pytest.approx(1000 / 3600)
    slow = card(tmp_path / "2")
    assert cost_per_million(slow, prices(tmp_path, "per_hour: 1")).reason == "throughput: not measured"


def test_idle_cores_are_told(tmp_path):
    measured = card(tmp_path, **{"cost/throughput": 1000.0})
    measured.provenance["machine"]["cores"] = 8
    measured.provenance["cost_conditions"] = {"threads": 2, "device": "cpu"}
    (note,) = cost_per_million(measured, prices(tmp_path, "per_hour: 1")).notes
    assert note.startswith("measured with 2 of 8 cores")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("per_hours: 1", "per_hours: is no key of a price list; did you mean 'per_hour'?"),
        ("per_hour: -1", "per_hour=-1: must be a number, 0 or more"),
        ("per_hour: free", "per_hour=free: must be a number"),
        ("currency: EUR", "holds no price"),
        ("", "holds no prices"),
        ("a: [", "is not YAML"),
        ("- 1", "holds no prices"),
        ("per_hour: 1\nmachines: []", "of which machine"),
        ("machines: 3", "machines=3: must be a list"),
        ("machines: [{match: x}]", "has no per_hour"),
        ("machines: [{match: x, per_hour: 1, name: y}]", "machines.name: is no key"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path, text, says):
    with pytest.raises(UserError) as caught:
        prices(tmp_path, text)
    assert says in str(caught.value)


def test_no_list(tmp_path):
    with pytest.raises(UserError, match=r"--prices=.*cannot be read \(No such file"):
        read_prices(tmp_path / "none.yaml")
