"""Arms as points that differ by levers: a technique with its settings, or a setting of the model or recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effvit_train.arms import PRIVATE, Arm, draw_of
from effvit_train.collect import Entry
from effvit_train.measures import MEASURES
from effvit_train.report import format as fmt
from effvit_train.report.advice.estimate import Estimate, Sample, difference, mean
from effvit_train.report.inputs import as_dict
from effvit_train.report.stream_facts import AXIS, groups_differ

# Counted from the architecture: equal values do not vary, and one run tells them.
COUNTED = (
    "cost/params", "cost/macs", "cost/flops", "cost/size_mb", "cost/eer", "complexity/attention_share",
    "complexity/flops_exponent", "complexity/mixing_exponent", "complexity/intensity",
)  # fmt: skip
# Amounts, of which a technique takes a share: compared by the logarithm of their ratio.
_AMOUNTS = ("parameters", "MACs/image", "FLOPs/image", "ms", "images/s", "MB", "J/image", "s", "ratio")


@dataclass(frozen=True, order=True)
class Lever:
    """What one arm has and another has not.

    Attributes:
        technique: of `compress`, or `dp_sgd`; empty for a setting.
        settings: the technique's overrides, or the one override that it is.
    """

    technique: str
    settings: tuple[str, ...] = ()

    @property
    def slot(self) -> str:
        """What an arm can have one of: the technique, or the key of the setting."""
        return self.technique or self.settings[0].partition("=")[0]

    @property
    def label(self) -> str:
        """Short: `prune target.macs=0.5`, `args.embed_dim=32`."""
        if not self.technique:
            return _short(self.settings[0], 1)
        depth = 1 if self.technique == PRIVATE else 2
        return " ".join([self.technique, *(_short(item, depth) for item in self.settings)])


Levers = frozenset[Lever]


@dataclass(frozen=True)
class Point:
    """An arm.

    Attributes:
        arm: its runs.
        base: data, model in words, epochs: points are compared within one base.
        levers: what it has.
    """

    arm: Arm
    base: tuple[str, str, int | None]
    levers: Levers

    def samples(self, key: str) -> list[Sample]:
        """(seed, value) of the runs that have the measure; logarithms of amounts."""
        found: list[Sample] = []
        for entry in self.arm.entries:
            number = entry.card.measures.get(key)
            if number is None or (is_amount(key) and number <= 0):
                continue
            found.append((draw_of(entry.card), math.log(number) if is_amount(key) else number))
        return found

    def mean(self, key: str) -> Estimate | None:
        """Mean over its runs, on the scale of `samples`."""
        found = self.samples(key)
        return mean(found, exact=key in COUNTED) if found else None

    @property
    def label(self) -> str:
        """`vit_micro`, `vit_micro + distill + prune target.macs=0.5`."""
        return name_of(self.base, self.levers)


@dataclass(frozen=True)
class Pair:
    """Two points that differ in one lever only."""

    lever: Lever
    without: Point
    having: Point

    def difference(self, key: str) -> Estimate | None:
        """What the lever does to a measure here; None where a side lacks it or was timed under other conditions.

        None too where the measure is of a stream and the sides learnt from different ones.
        """
        sides = [[entry.card for entry in point.arm.entries] for point in (self.without, self.having)]
        if key.startswith(AXIS) and groups_differ(*sides):
            return None
        before, after = self.without.samples(key), self.having.samples(key)
        if not before or not after or (key in fmt.TIMED and not self.same_conditions):
            return None
        return difference(before, after, exact=key in COUNTED)

    @property
    def same_conditions(self) -> bool:
        """Whether all runs of both sides were timed on the same processor in the same way."""
        entries = (*self.without.arm.entries, *self.having.arm.entries)
        return len({_conditions(entry) for entry in entries}) == 1


def is_amount(key: str) -> bool:
    """Whether a measure is compared by ratios."""
    return key in MEASURES and MEASURES[key].unit in _AMOUNTS


def points_of(arms: Iterable[Arm]) -> list[Point]:
    """Each arm with its levers."""
    listed = list(arms)
    lengths: dict[str, set[int | None]] = {}
    for arm in listed:
        lengths.setdefault(arm.settings.model, set()).add(arm.settings.epochs)
    found = []
    for arm in listed:
        told = arm.settings
        model = told.model if len(lengths[told.model]) == 1 else f"{told.model} ({told.epochs} epochs)"
        levers = {_technique(name, told.overrides) for name in told.techniques}
        prefixes = tuple(_prefix(lever.technique) for lever in levers)
        levers |= {Lever("", (item,)) for item in told.overrides if not item.startswith(prefixes or ("\0",))}
        found.append(Point(arm, (told.data, model, told.epochs), frozenset(levers)))
    return found


def pairs_of(points: Sequence[Point]) -> list[Pair]:
    """All matched pairs, in the order of the points that have the lever."""
    by_place = {(point.base, point.levers): point for point in points}
    found = []
    for point in points:
        for lever in sorted(point.levers):
            other = by_place.get((point.base, point.levers - {lever}))
            if other is not None:
                found.append(Pair(lever, other, point))
    return found


def composes(levers: Iterable[Lever]) -> bool:
    """Whether a run may have them all: what privacy refuses (docs/privacy.md) is not advised."""
    by_technique = {lever.technique: lever for lever in levers}
    if PRIVATE not in by_technique:
        return True
    distilled, pruned = by_technique.get("distill"), by_technique.get("prune")
    taught = distilled is None or any("distill.teacher=" in item for item in distilled.settings)
    unseeing = any(f"importance={name}" in item for name in ("magnitude", "random")
                   for item in (pruned.settings if pruned else ()))  # fmt: skip
    return taught and (pruned is None or unseeing)


def name_of(base: tuple[str, str, int | None], levers: Iterable[Lever]) -> str:
    """The model and its levers, techniques last."""
    ordered = sorted(levers, key=lambda lever: (bool(lever.technique), lever))
    return " + ".join([base[1], *(lever.label for lever in ordered)])


def _technique(name: str, overrides: Iterable[str]) -> Lever:
    return Lever(name, tuple(sorted(item for item in overrides if item.startswith(_prefix(name)))))


def _prefix(technique: str) -> str:
    return "privacy." if technique == PRIVATE else f"compress.{technique}."


def _short(override: str, skipped: int) -> str:
    key, sign, value = override.partition("=")
    words = key.split(".")
    return f"{'.'.join(words[min(skipped, len(words) - 1) :])}{sign}{value}"


def _conditions(entry: Entry) -> tuple[object, ...]:
    card = entry.card
    machine = as_dict(card.provenance.get("machine"))
    stated = as_dict(card.provenance.get("cost_conditions"))
    wanted = ("device", "processor", "threads", "precision", "throughput_batch")
    return (machine.get("processor"), *(stated.get(name) for name in wanted))
