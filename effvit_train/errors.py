"""Errors told in one line, without a traceback: the user's to mend (exit code 2), or the machine's (1)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """The user's input is at fault. `str(error)` is the one line that the terminal shows.

    The line names the key, the value, what is wrong (with what is allowed) and the remedy.
    Give `key=None` for a fault that belongs to no configuration key (a file, an argument).
    """

    def __init__(
        self, problem: str, *, key: str | None = None, value: object = ..., remedy: str = ""
    ) -> None:
        self.key, self.value, self.problem, self.remedy = key, value, problem, remedy
        head = ""
        if key is not None:
            head = f"{key}: " if value is ... else f"{key}={_show(value)}: "
        line = f"{head}{problem}" + (f"; {remedy}" if remedy else "")
        super().__init__(" ".join(line.split()))

    def under(self, prefix: str) -> UserError:
        """The same error, of a key that stands below `prefix`."""
        key = None if self.key is None else f"{prefix}.{self.key}"
        return UserError(self.problem, key=key, value=self.value, remedy=self.remedy)


class MachineError(RuntimeError):
    """What the machine refused, such as room on a full disk. `str(error)` is the line; exit code 1."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`"did you mean 'x'?"` for the nearest allowed word, or `""` when none is near."""
    near = difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else ""


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `UserError` unless `value` is one of `allowed`."""
    if value not in allowed:
        hint = did_you_mean(value, allowed) or f"e.g. {key}={allowed[0]}"
        raise UserError(f"must be one of {', '.join(allowed)}", key=key, value=value, remedy=hint)


def kinds_of(
    key: str, value: Any, allowed: tuple[str, ...], *, what: str, one: str, example: str
) -> list[str]:
    """A list of distinct allowed words, of which one alone needs no brackets.

    Args:
        key: of the list.
        value: a word or a list of words.
        allowed: words.
        what: is done with them, for the message.
        one, example: of a list, for the remedy.

    Raises:
        UserError: another word, no word, or one twice.
    """
    kinds = value if isinstance(value, list) else [value]
    for kind in kinds:
        if kind not in allowed:
            hint = did_you_mean(str(kind), allowed) or f"e.g. '{key}=[{example}]'"
            raise UserError(f"must be of {', '.join(allowed)}", key=key, value=str(kind), remedy=hint)
    if not kinds:
        raise UserError(f"names nothing to {what}", key=key, value="[]", remedy=f"e.g. {key}=[{one}]")
    if len(set(kinds)) < len(kinds):
        raise UserError("names a kind twice", key=key, value=",".join(kinds), remedy="once is enough")
    return kinds


def between(key: str, value: float, low: float, high: float, *, example: str) -> None:
    """Raise `UserError` unless `low <= value < high`."""
    if not low <= value < high:
        raise UserError(
            f"must be in [{low:g}, {high:g})", key=key, value=value, remedy=f"e.g. {key}={example}"
        )


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise `UserError` when `value` is given and below `low`, or no number."""
    if value is not None and not value >= low:
        raise UserError(f"must be at least {low:g}", key=key, value=value, remedy=f"e.g. {key}={low:g}")


def _show(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
