"""The card: what a model is worth and what it costs, one number per key, measured or null.

`measures.MEASURES` is the one table of keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json
from effvit_train.measures import MEASURES, Measure

__all__ = ["MEASURES", "Card", "Measure", "Measured"]

SCHEMA = 1


@dataclass
class Measured:
    """Numbers taken, and the reasons for those that could not be."""

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def merge(self, other: Measured) -> None:
        """Take over everything in `other`."""
        self.values.update(other.values)
        self.missing.update(other.missing)


@dataclass
class Card:
    """`card.json`. See DESIGN in docs for what `run`, `model` and `provenance` hold."""

    run: dict[str, Any]
    model: dict[str, Any]
    measures: dict[str, float | None]
    missing: dict[str, str]
    provenance: dict[str, Any]

    @classmethod
    def of(
        cls, *, run: dict[str, Any], model: dict[str, Any], measured: Measured, provenance: dict[str, Any]
    ) -> Card:
        """Build a card with a number or a reason for every key of `MEASURES`."""
        measures: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for key in {**MEASURES, **measured.values}:
            value = measured.values.get(key)
            if value is not None and math.isfinite(value):
                measures[key] = value
            else:
                measures[key] = None
                missing[key] = measured.missing.get(
                    key, "not measured" if value is None else f"not a finite number: {value}"
                )
        return cls(run, model, measures, missing, provenance)

    def to_json(self) -> dict[str, Any]:
        """The content of `card.json`."""
        return {
            "schema": SCHEMA, "run": self.run, "model": self.model, "measures": self.measures,
            "missing": self.missing, "provenance": self.provenance,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Card:
        """Check and take over the content of a `card.json`; raises `ValueError` when it is not one."""
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        sections = ("run", "model", "measures", "missing", "provenance")
        absent = [name for name in sections if not isinstance(value.get(name), dict)]
        if absent:
            raise ValueError(f"not a card: no {', '.join(absent)}")
        unexplained = [k for k, v in value["measures"].items() if v is None and k not in value["missing"]]
        if unexplained:
            raise ValueError(f"null without a reason: {', '.join(unexplained)}")
        return cls(**{name: dict(value[name]) for name in sections})

    def write(self, path: Path) -> None:
        """Write `card.json` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a `card.json`; `UserError` when it is missing or is not a card."""
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            raise UserError(f"no card at {path}", remedy="give a directory of a finished run") from None
        except ValueError as error:
            raise UserError(
                f"{path} is not a card of effvit_train ({error})", remedy="give another run"
            ) from None
