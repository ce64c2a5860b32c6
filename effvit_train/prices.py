"""What a million images cost, from a price list that the user gives. Needs no torch.

The list is a YAML file:

    currency: EUR          # shown beside every amount
    per_kwh: 0.25          # of electricity; leave it out where the price of the machine holds it
    machines:              # the first one that matches counts
      - match: AMD EPYC    # part of the processor's or GPU's name on the card, upper or lower case
        per_hour: 0.12     # of the whole machine
      - match: H100
        per_hour: 2.50

`per_hour: 0.12` instead of `machines` is the price of whatever machine the runs were measured on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effvit_train.card import Card
from effvit_train.errors import UserError, did_you_mean, first_line

KEY = "--prices"
EXAMPLE = "e.g. the two lines `currency: EUR` and `per_hour: 0.12`"
MILLION = 1_000_000
_KEYS = ("currency", "per_hour", "per_kwh", "machines")
_MACHINE_KEYS = ("match", "per_hour")
_JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Prices:
    """A price list.

    Attributes:
        currency: as it is written beside amounts.
        machines: (part of a processor's name, price of an hour), in order; "" is part of every name.
        per_kwh: price of electricity; None where none is given.
    """

    currency: str
    machines: tuple[tuple[str, float], ...]
    per_kwh: float | None

    def per_hour(self, processor: str) -> float | None:
        """The price of an hour of the machine with this processor or GPU; None where the list has none."""
        found = (price for part, price in self.machines if part.lower() in processor.lower())
        return next(found, None)


@dataclass(frozen=True)
class Estimate:
    """What a million images cost on one run's machine.

    Attributes:
        total: sum of the parts that the list prices; None where one of them is not known.
        machine: for the time; None where it is not priced or not known.
        energy: for the electricity; likewise.
        reason: why there is no total, or empty.
        notes: what the reader must know of it.
    """

    total: float | None
    machine: float | None
    energy: float | None
    reason: str
    notes: tuple[str, ...] = ()


def read_prices(path: Path) -> Prices:
    """Read a price list.

    Raises:
        UserError: there is no such file, it is not a list of prices, or a key or value in it is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or first_line(error)})"
        raise UserError(problem, key=KEY, value=path, remedy="give a YAML file") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        problem = f"is not YAML ({first_line(error)})"
        raise UserError(problem, key=KEY, value=path, remedy=EXAMPLE) from None
    if not isinstance(content, dict) or not content:
        raise UserError("holds no prices", key=KEY, value=path, remedy=EXAMPLE)
    _known(content, _KEYS, "")
    if "per_hour" in content and "machines" in content:
        raise UserError(
            "has `per_hour` beside `machines`: of which machine is it?",
            key=KEY,
            value=path,
            remedy="leave one out",
        )
    machines = _machines(content.get("machines"))
    if "per_hour" in content:
        machines = (("", _price(content["per_hour"], "per_hour")),)
    per_kwh = _price(content["per_kwh"], "per_kwh") if "per_kwh" in content else None
    if not machines and per_kwh is None:
        raise UserError("holds no price", key=KEY, value=path, remedy=EXAMPLE)
    return Prices(str(content.get("currency", "")).strip(), machines, per_kwh)


def cost_per_million(card: Card, prices: Prices) -> Estimate:
    """The price of a million images at the throughput and energy that the card tells."""
    conditions = card.provenance.get("cost_conditions")
    conditions = conditions if isinstance(conditions, Mapping) else {}
    measured_on = card.provenance.get("machine")
    measured_on = measured_on if isinstance(measured_on, Mapping) else {}
    processor = str(conditions.get("processor") or measured_on.get("processor") or "")
    reasons: list[str] = []
    notes: list[str] = []
    machine = energy = None
    if prices.machines:
        per_hour = prices.per_hour(processor)
        throughput = card.measures.get("cost/throughput")
        if throughput is None or throughput <= 0:
            reasons.append(f"throughput: {card.missing.get('cost/throughput', 'not measured')}")
        elif per_hour is None:
            reasons.append(f"the price list has no machine like '{processor or 'unknown'}'")
        else:
            machine = MILLION / throughput / 3600 * per_hour
            notes += _idle_cores(conditions, measured_on)
    if prices.per_kwh is not None:
        joules = card.measures.get("cost/energy_j")
        if joules is None:
            reasons.append(f"energy: {card.missing.get('cost/energy_j', 'not measured')}")
        else:
            energy = MILLION * joules / _JOULES_PER_KWH * prices.per_kwh
    total = None if reasons else sum(part for part in (machine, energy) if part is not None)
    return Estimate(total, machine, energy, "; ".join(reasons), tuple(notes))


def _idle_cores(conditions: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    threads, cores = conditions.get("threads"), machine.get("cores")
    if conditions.get("device") == "cuda" or not isinstance(threads, int) or not isinstance(cores, int):
        return []
    if threads >= cores:
        return []
    return [f"measured with {threads} of {cores} cores: a whole machine may do more images for its price"]


def _machines(value: Any) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise UserError(
            "must be a list", key="machines", value=value, remedy="begin each machine with `- match:`"
        )
    found = []
    for entry in value:
        if not isinstance(entry, dict) or not entry:
            raise UserError(
                "must hold match and per_hour",
                key="machines",
                value=entry,
                remedy="e.g. match: H100, per_hour: 2.5",
            )
        _known(entry, _MACHINE_KEYS, "machines.")
        lacks = [key for key in _MACHINE_KEYS if entry.get(key) in (None, "")]
        if lacks:
            raise UserError(
                f"has no {lacks[0]}", key="machines", value=dict(entry), remedy=f"add {lacks[0]}: ..."
            )
        found.append((str(entry["match"]), _price(entry["per_hour"], "machines.per_hour")))
    return tuple(found)


def _known(content: Mapping[Any, Any], allowed: tuple[str, ...], prefix: str) -> None:
    for key in content:
        if key not in allowed:
            remedy = did_you_mean(str(key), allowed) or f"a price list has {', '.join(allowed)}"
            raise UserError("is no key of a price list", key=f"{prefix}{key}", remedy=remedy)


def _price(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise UserError("must be a number, 0 or more", key=key, value=value, remedy=f"e.g. {key}: 0.12")
    return float(value)
