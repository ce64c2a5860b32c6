"""Checks of the kinds' settings."""

from __future__ import annotations

from typing import Any

from effvit_train.errors import UserError
from effvit_train.models.attention.forms import ARGS


def count(name: str, value: Any, most: int | None = None, *, what: str = "") -> int:
    """`value` if it is a whole number from 1 to `most` (`what` says of what)."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < 1
        or (most is not None and value > most)
    ):
        limit = "of at least 1" if most is None else f"from 1 to {most}{what}"
        raise UserError(
            f"must be a whole number {limit}", key=f"{ARGS}.{name}", value=value, remedy=f"e.g. {ARGS}.{name}={most or 4}"
        )  # fmt: skip
    return value


def switch(name: str, value: Any) -> bool:
    """`value` if it is true or false."""
    if not isinstance(value, bool):
        raise UserError(
            "must be true or false", key=f"{ARGS}.{name}", value=value, remedy=f"e.g. {ARGS}.{name}=true"
        )
    return value
