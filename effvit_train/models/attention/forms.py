"""What `model.attention` may look like: one kind, a list, or blocks and their kinds. Needs no torch."""

from __future__ import annotations

import re
from typing import Any

from effvit_train.errors import UserError, did_you_mean
from effvit_train.models.attention.kinds import EXACT, KINDS

KEY = "model.attention"
ARGS = "model.attention_args"
_EXAMPLE = f"e.g. {KEY}=window, '{KEY}=[linear,linear,exact]' or '{KEY}={{0-5: linear}}'"
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")

Entry = dict[str, Any]  # {"kind": ..., settings}


def check(value: Any) -> None:
    """Raise `UserError` for what cannot be, whatever the model."""
    if isinstance(value, list):
        if not value:
            raise UserError("names no block", key=KEY, value="[]", remedy=_EXAMPLE)
        for item in value:
            _entry(item)
    elif isinstance(value, dict) and "kind" not in value:
        _ranges(value)
    else:
        _entry(value)


def expand(value: Any, depth: int) -> list[Entry]:
    """An entry for each of `depth` blocks.

    A word or an entry is for all blocks, a list has one for each, a mapping names blocks (`3`, `0-5`) of which the
    others stay exact.

    Raises:
        UserError: it is of another form, or does not fit the blocks.
    """
    check(value)
    if isinstance(value, list):
        if len(value) != depth:
            raise UserError(
                f"names {len(value)} blocks, the model has {depth}", key=KEY, value=shown(value),
                remedy=f"one for each, or blocks by number: '{KEY}={{0-{max(depth // 2 - 1, 0)}: linear}}'",
            )  # fmt: skip
        return [_entry(item) for item in value]
    if isinstance(value, dict) and "kind" not in value:
        entries: list[Entry] = [{"kind": EXACT} for _ in range(depth)]
        for name, first, last, entry in _ranges(value):
            if last >= depth:
                raise UserError(
                    f"the model has blocks 0 to {depth - 1}",
                    key=KEY,
                    value=name,
                    remedy=f"at most {depth - 1}",
                )
            for block in range(first, last + 1):
                entries[block] = dict(entry)
        return entries
    return [_entry(value) for _ in range(depth)]


def _ranges(value: dict[Any, Any]) -> list[tuple[str, int, int, Entry]]:
    found: list[tuple[str, int, int, Entry]] = []
    taken: dict[int, str] = {}
    for key, item in value.items():
        match = _RANGE.fullmatch(str(key).replace(" ", ""))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last > 10_000:
            raise UserError(
                "must name blocks, counted from 0, by a number or a range", key=KEY, value=key,
                remedy=f"e.g. '{KEY}={{0-5: linear, 6: window}}'",
            )  # fmt: skip
        for block in range(first, last + 1):
            if block in taken:
                raise UserError(
                    f"names block {block} twice",
                    key=KEY,
                    value=f"{taken[block]}, {key}",
                    remedy="once is enough",
                )
            taken[block] = str(key)
        found.append((str(key), first, last, _entry(item)))
    if not found:
        raise UserError("names no block", key=KEY, value="{}", remedy=_EXAMPLE)
    return found


def _entry(value: Any) -> Entry:
    """An entry of one block: a kind, or a kind with settings of its own; null is exact."""
    if value is None:
        return {"kind": EXACT}
    entry = dict(value) if isinstance(value, dict) else {"kind": value}
    kind, words = entry.get("kind"), (EXACT, *KINDS)
    if kind not in words:
        hint = did_you_mean(str(kind), words) if isinstance(kind, str) else _EXAMPLE
        raise UserError(
            f"must be one of {', '.join(words)}",
            key=KEY,
            value=shown(kind),
            remedy=hint or f"e.g. {KEY}=window",
        )
    return {str(name): setting for name, setting in entry.items()}


def shown(value: Any) -> Any:
    """A value as it would be typed."""
    if isinstance(value, list):
        return f"[{','.join(str(shown(item)) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    return "null" if value is None else value
