"""What `provenance.audit` holds, read with care: the one place that knows where the audit leaves its facts.

Facts come from files that may be of another version, or edited: whatever is not what it should be is left out.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any

from effvit_train.card import Card
from effvit_train.report.inputs import as_dict, as_dicts

# Part of the audit -> where its facts may lie below `provenance.audit`, and the measure whose reason is its reason.
# Part -> a key that it fills.
PARTS: dict[str, str] = {
    "calibration": "calibration/ece",
    "ood": "calibration/ood_auroc",
    "corruptions": "robustness/corruption_accuracy",
    "adversarial": "robustness/autoattack_accuracy",
    "fairness": "fairness/worst_group_accuracy",
    "transparency": "transparency/insertion_auc",
    "complexity": "complexity/flops_exponent",
    "spectral": "spectral/log_norm_bound",
    "approximation": "approximation/rank_share",
}
# Intervals that are not under `intervals`, by part and the way to them.
_INTERVALS = {
    "robustness/corruption_accuracy": ("corruptions", ("interval",)),
    "robustness/corruption_drop": ("corruptions", ("drop_interval",)),
    "robustness/pgd_accuracy": ("adversarial", ("pgd", "interval")),
    "robustness/autoattack_accuracy": ("adversarial", ("autoattack", "interval")),
}
_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_PICTURE = 200_000  # characters; those of the audit have at most 96 pixels a side


@dataclass(frozen=True)
class Part:
    """A part of the audit: its facts, or why it has none, or neither where it was never meant to run."""

    facts: dict[str, Any]
    reason: str


def part(card: Card, name: str) -> Part:
    """The part `name` of `PARTS`."""
    found = as_dict(card.provenance.get("audit")).get(name)
    if isinstance(found, str) and found:
        return Part({}, found)
    if not isinstance(found, dict):
        return Part({}, "")
    told = next((text for k in ("reason", "missing") if isinstance(text := found.get(k), str) and text), "")
    if {k for k in found if k not in ("reason", "missing", "images")}:
        return Part(found, "")
    return Part({}, told or card.missing.get(PARTS[name], "") or "it left no facts")


def interval(card: Card, key: str) -> tuple[float, float] | None:
    """The 95 % interval of a measure that the audit gives; None where it gives none."""
    attack = as_dict(as_dict(card.provenance.get("membership")).get("attack"))
    for facts in (attack, *(part(card, name).facts for name in PARTS)):
        if (found := pair(as_dict(facts.get("intervals")).get(key))) is not None:
            return found
    if key == "fairness/worst_group_accuracy":
        facts = part(card, "fairness").facts
        worst = [row for row in as_dicts(facts.get("groups")) if row.get("group") == facts.get("worst_group")]
        return pair(worst[0].get("interval")) if worst else None
    if key in _INTERVALS:
        name, way = _INTERVALS[key]
        found_at: Any = part(card, name).facts
        for step in way:
            found_at = as_dict(found_at).get(step)
        return pair(found_at)
    return None


def without_pictures(provenance: dict[str, Any]) -> dict[str, Any]:
    """The provenance without the audit's example images: they are large, and the user's own."""
    audit = provenance.get("audit")
    if not isinstance(audit, dict):
        return provenance
    kept = {
        name: {k: v for k, v in facts.items() if k != "examples"} if isinstance(facts, dict) else facts
        for name, facts in audit.items()
    }
    return {**provenance, "audit": kept}


def number(value: Any) -> float | None:
    """A finite number as it is; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer that no float holds
        return None


def share(value: Any) -> float | None:
    """A number in 0..1; None for anything else."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def count(value: Any) -> int | None:
    """A whole number of things; None for anything else."""
    found = number(value)
    return int(found) if found is not None and found >= 0 and found == int(found) else None


def word(value: Any) -> str:
    """Text as it is; empty for anything else."""
    return value if isinstance(value, str) else ""


def words(value: Any) -> list[str]:
    """The texts of a list; empty for anything else."""
    return [item for item in value if isinstance(item, str) and item] if isinstance(value, list) else []


def pair(value: Any) -> tuple[float, float] | None:
    """Two ascending numbers; None for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return (low, high) if low is not None and high is not None and low <= high else None


def numbers(value: Any) -> list[float]:
    """A list of finite numbers; empty for anything else, or if one of them is none."""
    found = [number(item) for item in value] if isinstance(value, (list, tuple)) else []
    return [] if None in found else [item for item in found if item is not None]


def picture(value: Any) -> str | None:
    """A PNG in base64, as it may stand in a `data:` address; None for anything else."""
    if not isinstance(value, str) or len(value) > _MAX_PICTURE:
        return None
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return base64.b64encode(content).decode() if content.startswith(_PNG) else None
