"""Many runs, sorted: which data they are of, and which of them are one arm."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from effvit_train.arms import Arm, arms, settings_of
from effvit_train.card import MEASURES, Card
from effvit_train.collect import Collected, Entry
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import number
from effvit_train.report.inputs import as_dict
from effvit_train.report.stream_facts import groups_differ

Column = list[float | None]

SEALED = "sealed:"  # how a private card's fingerprint begins, which only its owner can compare


@dataclass(frozen=True)
class DataSet:
    """Data and their split: runs on different ones are never compared.

    Attributes:
        label: for people.
        name: of the data set.
        fingerprint: None where only the name is known.
        by_name: how many of its runs were recognised by the name alone.
    """

    label: str
    name: str
    fingerprint: str | None
    by_name: int


@dataclass(frozen=True)
class Study:
    """What a report of many runs stands on.

    Attributes:
        entries: finished runs.
        sets: data sets, the one with most runs first.
        set_of: of each entry, its place in `sets`.
        arms: by data set, in the order of `sets`.
        set_of_arm: of each arm, its place in `sets`.
        arm_of: of each entry, its place in `arms`; several entries of one seed are one arm all the same, though
            only the last counts in it.
        rows: of each arm, the places of its runs in `entries`.
        found: what the entries were found with.
    """

    entries: tuple[Entry, ...]
    sets: tuple[DataSet, ...]
    set_of: tuple[int, ...]
    arms: tuple[Arm, ...]
    set_of_arm: tuple[int, ...]
    arm_of: tuple[int, ...]
    rows: tuple[tuple[int, ...], ...]
    found: Collected

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Measures that at least one run has, in the order of `MEASURES`: a value per entry."""
        known = {
            key for entry in self.entries for key, found in entry.card.measures.items() if found is not None
        }
        order = [key for key in MEASURES if key in known] + sorted(known - set(MEASURES))
        taken = {key: [value(entry.card, key) for entry in self.entries] for key in order}
        return {key: column for key, column in taken.items() if any(found is not None for found in column)}

    def column(self, key: str) -> Column:
        """A value per entry; None where it was not taken."""
        return self.columns.get(key) or [None] * len(self.entries)

    def means(self, key: str) -> Column:
        """Per arm, the mean over its runs that have the measure."""
        return [math.fsum(taken) / len(taken) if taken else None for taken in self._of_arms(key)]

    def sds(self, key: str) -> Column:
        """Per arm, the standard deviation (n - 1) over its runs that have the measure; None with fewer than two."""
        return [_sd(taken) for taken in self._of_arms(key)]

    def _of_arms(self, key: str) -> list[list[float]]:
        column = self.column(key)
        return [[found for row in rows if (found := column[row]) is not None] for rows in self.rows]


def study(found: Collected) -> Study:
    """Sort runs by data set and arm."""
    entries = tuple(found.entries)
    keys = _data_keys(entries)
    counts = Counter(keys)
    order = sorted(counts, key=lambda key: -counts[key])  # stable: by first run among equals
    places = {key: place for place, key in enumerate(order)}
    set_of = tuple(places[key] for key in keys)
    sets = tuple(_data_set(key, [e for e, k in zip(entries, keys, strict=True) if k == key]) for key in order)
    every: list[Arm] = []
    set_of_arm: list[int] = []
    for place in range(len(sets)):
        own = arms(entry for entry, where in zip(entries, set_of, strict=True) if where == place)
        every += own
        set_of_arm += [place] * len(own)
    by_settings = {
        (place, arm.settings): n for n, (place, arm) in enumerate(zip(set_of_arm, every, strict=True))
    }
    arm_of = tuple(
        by_settings[place, settings_of(entry)] for place, entry in zip(set_of, entries, strict=True)
    )
    place_of = {id(entry): place for place, entry in enumerate(entries)}
    rows = tuple(tuple(place_of[id(entry)] for entry in arm.entries) for arm in every)
    return Study(entries, _told_apart(sets), set_of, tuple(every), tuple(set_of_arm), arm_of, rows, found)


def several_streams(study: Study) -> str:
    """In what the streams of arms on the same data differ, of the first two that do; empty where none do."""
    first: dict[int, list[Card]] = {}
    for arm, place in zip(study.arms, study.set_of_arm, strict=True):
        cards = [entry.card for entry in arm.entries]
        if found := groups_differ(first.setdefault(place, cards), cards):
            return found
    return ""


def value(card: Card, key: str) -> float | None:
    """A measure of a card; None where it was not taken or is no finite number."""
    return number(card.measures.get(key))


def reason(card: Card, key: str) -> str:
    """Why a card has no number for a measure."""
    return str(card.missing.get(key) or "the card does not have it")


def seed(card: Card) -> int | str | None:
    """The seed of a run."""
    found = card.run.get("seed")
    return found if found is None or isinstance(found, int) else str(found)


def data_name(card: Card) -> str:
    """The name of the data set."""
    return str(as_dict(card.provenance.get("dataset")).get("name") or card.run.get("dataset") or "?")


def label_of(key: str) -> str:
    """`Latency [ms]`; `Parameters`, whose unit says no more."""
    measure = fmt.measure_of(key)
    unit = {"fraction": "%", "ratio": "", "parameters": "", "MACs/image": "", "FLOPs/image": ""}.get(
        measure.unit, measure.unit
    )
    return f"{measure.label} [{unit}]" if unit else measure.label


def _sd(taken: Sequence[float]) -> float | None:
    if len(taken) < 2:
        return None
    if min(taken) == max(taken):  # and not what rounding leaves of it
        return 0.0
    mean = math.fsum(taken) / len(taken)
    return math.sqrt(math.fsum((found - mean) ** 2 for found in taken) / (len(taken) - 1))


def _data_keys(entries: Sequence[Entry]) -> list[tuple[str, str | None]]:
    """(name, fingerprint) of each entry; a sealed fingerprint stands for the only one of that name, if there is one."""
    own = [
        (data_name(entry.card), None if entry.data is None or entry.data.startswith(SEALED) else entry.data)
        for entry in entries
    ]
    # a folder may have been renamed: the fingerprint tells, under its first name
    first: dict[str, str] = {}
    of_name: dict[str, set[str]] = {}
    for name, told in own:
        if told is not None:
            first.setdefault(told, name)
            of_name.setdefault(name, set()).add(told)
    keys: list[tuple[str, str | None]] = []
    for name, told in own:
        if told is None and len(of_name.get(name, ())) == 1:
            (told,) = of_name[name]
        keys.append((first[told], told) if told is not None else (name, None))
    return keys


def _data_set(key: tuple[str, str | None], entries: list[Entry]) -> DataSet:
    name, told = key
    by_name = sum(entry.data is None or entry.data.startswith(SEALED) for entry in entries)
    return DataSet(name, name, told, by_name)


def _told_apart(sets: Sequence[DataSet]) -> tuple[DataSet, ...]:
    """Labels that differ: with the beginning of the fingerprint where two data sets have one name."""
    twice = Counter(one.name for one in sets)

    def label(one: DataSet) -> str:
        if twice[one.name] == 1:
            return one.name
        return f"{one.name} ({one.fingerprint[:6] if one.fingerprint else 'fingerprint not known'})"

    return tuple(DataSet(label(one), one.name, one.fingerprint, one.by_name) for one in sets)
