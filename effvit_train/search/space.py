"""What is searched: dimensions, conditions between them, and the overrides that a trial is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep

from effvit_train.errors import UserError, did_you_mean

_WORDS = ("choices", "low", "high", "log", "step", "int", "when")
_DIGITS = 4  # significant, of a real number in an override: readable, and finer than any result


class Suggests(Protocol):
    """What `optuna.Trial` offers."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """One of `choices`."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """A number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """A whole number in [low, high]."""


@dataclass(frozen=True)
class Dimension:
    """One key that is searched.

    Attributes:
        key: as in an override, such as `recipe.lr`.
        choices: as texts of overrides; empty for a range.
        low, high: ends of a range, both included.
        log: the logarithm is drawn uniformly.
        step: distance between two values; None = any.
        whole: whole numbers only.
        when: (key, values): counts only where that key has one of these values, or holds it in a list.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    step: float | None = None
    whole: bool = False
    when: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def suggest(self, trial: Suggests) -> str:
        """Draw a value, as the text of an override."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, list(self.choices)))
        if self.whole:
            step = int(self.step or 1)
            return str(trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log))
        value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return f"{value:.{_DIGITS}g}"

    def counts(self, values: Mapping[str, str]) -> bool:
        """Whether the conditions hold, given other keys' values."""
        return all(key in values and _is(values[key], wanted) for key, wanted in self.when)

    def examples(self) -> list[str]:
        """Values to try whether the key exists: every choice, or the lower end."""
        if self.choices:
            return list(self.choices)
        return [str(int(self.low)) if self.whole else f"{self.low:.{_DIGITS}g}"]


@dataclass(frozen=True)
class Space:
    """Dimensions, those that others depend on first.

    Attributes:
        dimensions: in the order in which they are drawn.
        fixed: values of keys that the user has typed.
    """

    dimensions: tuple[Dimension, ...]
    fixed: Mapping[str, str]

    def suggest(self, trial: Suggests) -> list[str]:
        """Draw a trial: the overrides that make it."""
        values: dict[str, str] = {}
        for dimension in self.dimensions:
            if dimension.counts({**self.fixed, **values}):
                values[dimension.key] = dimension.suggest(trial)
        return [f"{key}={value}" for key, value in values.items()]

    def probes(self) -> list[list[str]]:
        """Lists of overrides that together type every key and every choice once, conditions met."""
        found = []
        by_key = {dimension.key: dimension for dimension in self.dimensions}

        def parents(dimension: Dimension) -> dict[str, str]:
            values: dict[str, str] = {}
            for key, wanted in dimension.when:
                if key in by_key:
                    values |= parents(by_key[key])
                    values[key] = next(text for text in by_key[key].choices if _is(text, wanted))
            return values

        for dimension in self.dimensions:
            for value in dimension.examples():
                values = {**parents(dimension), dimension.key: value}
                found.append([f"{key}={text}" for key, text in values.items()])
        return found


def make_space(entries: Mapping[str, Any], fixed: Mapping[str, str]) -> Space:
    """Read `sweep.space`.

    Args:
        entries: key -> `{choices}` or `{low, high, log, step, int}`, with `when` where it is conditional.
        fixed: values of keys that were typed; a key that is fixed cannot be searched too.

    Raises:
        UserError: nothing to search, or an entry that cannot be.
    """
    if not entries:
        raise UserError(
            "there is nothing to search", key="sweep.space", value="{}",
            remedy="e.g. 'recipe.lr=tag(log,interval(1e-4,1e-2))' compress=none,prune",
        )  # fmt: skip
    found = {key: _dimension(key, value) for key, value in entries.items()}
    for dimension in found.values():
        for parent, wanted in dimension.when:
            _check_condition(dimension, parent, wanted, found, fixed)
    return Space(tuple(_in_order(found)), dict(fixed))


def overridden(
    entries: Mapping[str, Any], typed: Mapping[str, Any], fixed: Mapping[str, str]
) -> dict[str, Any]:
    """The space with what the command line says: typed keys take the place of the file's.

    What depended on a value that can no longer be is left out.

    Args:
        entries: of the file.
        typed: entries that were typed.
        fixed: values that were typed.
    """
    possible = {key: [value] for key, value in fixed.items()}
    possible |= {
        key: list(map(text_of, entry["choices"])) for key, entry in typed.items() if "choices" in entry
    }
    kept = {}
    for key, entry in entries.items():
        when = entry.get("when") if isinstance(entry, Mapping) else None
        conditions = _conditions(f"sweep.space.{key}", when)
        met = all(any(_is(v, wanted) for v in possible.get(parent, wanted)) for parent, wanted in conditions)
        if key not in fixed and met:
            kept[key] = entry
    return {**kept, **typed}


def entry_of(override: Override) -> dict[str, Any]:
    """The entry of the space for a typed sweep: `a,b`, `choice(..)`, `range(..)`, `interval(..)`, with tags.

    Raises:
        UserError: a glob, whose values only Hydra knows.
    """
    value = override.value()
    if isinstance(value, IntervalSweep):
        if value.start is None or value.end is None:
            raise UserError("needs both ends", key=override.key_or_group, remedy="e.g. interval(0,1)")
        # int(interval(1,8)) makes the ends whole, tag(int,...) says so
        whole = "int" in value.tags or all(isinstance(end, int) for end in (value.start, value.end))
        kind: Callable[[float], float] = int if whole else float
        entry: dict[str, Any] = {"low": kind(value.start), "high": kind(value.end), "int": whole}
        return entry | ({"log": True} if "log" in value.tags else {})
    if not override.is_choice_sweep() and not isinstance(value, RangeSweep):
        raise UserError(
            "cannot be searched", key=override.key_or_group, value=override.get_value_element_as_str(),
            remedy="name the choices: a,b,c",
        )  # fmt: skip
    return {"choices": list(override.sweep_string_iterator())}


def text_of(value: object) -> str:
    """A value as it stands in an override."""
    if isinstance(value, list):
        return f"[{','.join(map(text_of, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{text_of(inner)}" for key, inner in value.items()) + "}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _dimension(key: str, entry: Any) -> Dimension:
    name = f"sweep.space.{key}"
    if not isinstance(entry, Mapping):
        raise UserError(
            "must be {choices: [...]} or {low: ..., high: ...}", key=name, value=text_of(entry),
            remedy=f"a fixed value is typed as {key}={text_of(entry)}",
        )  # fmt: skip
    for word in entry:
        if word not in _WORDS:
            hint = did_you_mean(str(word), _WORDS) or f"allowed: {', '.join(_WORDS)}"
            raise UserError("unknown key", key=f"{name}.{word}", remedy=hint)
    when = _conditions(name, entry.get("when"))
    if "choices" in entry:
        choices = entry["choices"]
        if len(entry) > 1 + ("when" in entry):
            raise UserError("has choices and a range", key=name, remedy="leave one of them out")
        if not isinstance(choices, list) or not choices:
            raise UserError(
                "must be a list", key=f"{name}.choices", value=text_of(choices), remedy="e.g. [16,32]"
            )
        texts = tuple(text_of(choice) for choice in choices)
        if len(set(texts)) < len(texts):
            raise UserError("names a choice twice", key=f"{name}.choices", value=text_of(choices))
        return Dimension(key, texts, when=when)
    return _range(key, name, entry, when)


def _range(key: str, name: str, entry: Mapping[str, Any], when: tuple[Any, ...]) -> Dimension:
    low, high, step, log = entry.get("low"), entry.get("high"), entry.get("step"), entry.get("log", False)
    for word, value in (("low", low), ("high", high), ("step", step)):
        missing = value is None and word != "step"
        if missing or not (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
            raise UserError(
                "must be a number", key=f"{name}.{word}", value=value, remedy="e.g. {low: 1e-4, high: 1e-2}"
            )
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    for word in ("log", "int"):
        if not isinstance(entry.get(word, False), bool):
            raise UserError("must be true or false", key=f"{name}.{word}", value=entry[word])
    whole = entry.get("int", all(isinstance(value, int) for value in (low, high, step or 1)))
    problem, remedy = "", ""
    if low >= high:
        problem, remedy = f"low ({low:g}) must be below high ({high:g})", "swap them"
    elif log and low <= 0:
        problem, remedy = f"a logarithm needs low above 0, not {low:g}", "raise low, or leave out log"
    elif step is not None and (step <= 0 or log):
        problem, remedy = "step must be positive, and does not go with log", "leave out one of them"
    elif whole and any(value is not None and value != int(value) for value in (low, high, step)):
        problem, remedy = "int needs whole numbers", "round low, high and step"
    if problem:
        raise UserError(problem, key=name, remedy=remedy)
    return Dimension(key, (), low, high, log, step, whole, when)


def _conditions(name: str, when: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
    if when is None:
        return ()
    if not isinstance(when, Mapping) or not when:
        raise UserError(
            "must be a mapping",
            key=f"{name}.when",
            value=text_of(when),
            remedy="e.g. when: {compress: prune}",
        )
    return tuple(
        (str(key), tuple(map(text_of, value if isinstance(value, list) else [value])))
        for key, value in when.items()
    )


def _check_condition(
    dimension: Dimension, parent: str, wanted: tuple[str, ...], found: Mapping[str, Dimension],
    fixed: Mapping[str, str],
) -> None:  # fmt: skip
    name = f"sweep.space.{dimension.key}.when.{parent}"
    if parent in fixed:
        return
    if parent not in found:
        raise UserError(
            "is neither searched nor typed", key=name, remedy=f"search it, or type {parent}={wanted[0]}"
        )
    choices = found[parent].choices
    if not choices:
        raise UserError("a range cannot be a condition", key=name, remedy="give it choices")
    if not any(_is(choice, wanted) for choice in choices):
        raise UserError(
            f"is never met: {parent} is one of {' '.join(choices)}", key=name, value=",".join(wanted),
            remedy="leave the entry out, or add the choice",
        )  # fmt: skip


def _in_order(found: Mapping[str, Dimension]) -> list[Dimension]:
    """Parents first; otherwise as written."""
    waiting, ordered = list(found.values()), []
    while waiting:
        left = {dimension.key for dimension in waiting}
        ready = [dimension for dimension in waiting if not left & {key for key, _ in dimension.when}]
        if not ready:
            raise UserError("conditions go in a circle", key="sweep.space", value=",".join(sorted(left)))
        ordered += ready
        waiting = [dimension for dimension in waiting if dimension not in ready]
    return ordered


def _is(text: str, wanted: tuple[str, ...]) -> bool:
    """Whether a value is one of those wanted, or a list that holds one."""
    words = [word.strip() for word in text[1:-1].split(",")] if text[:1] == "[" else []
    return text in wanted or any(word in wanted for word in words)
