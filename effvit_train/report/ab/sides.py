"""What is compared: side A and side B, each one run, or runs that differ in nothing but their seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effvit_train.arms import PRIVATE, Arm, arms, draw_of
from effvit_train.collect import Entry, collect
from effvit_train.errors import UserError

_SHOWN = 8  # arms in a message


@dataclass(frozen=True)
class Side:
    """One side.

    Attributes:
        name: A or B.
        label: of its settings, different from the other side's.
        entries: its runs, at least one, by seed.
        private: whether its noise comes from a secret, so that equal seeds are no pairs.
    """

    name: str
    label: str
    entries: tuple[Entry, ...]
    private: bool

    @property
    def seeds(self) -> list[Any]:
        """The seed of each run, with the order of its stream where one was drawn."""
        return [draw_of(entry.card) for entry in self.entries]

    def values(self, key: str) -> list[float] | None:
        """A measure of each run; None where a run lacks it."""
        found = [entry.card.measures.get(key) for entry in self.entries]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None


def choose(
    first: str, second: str | None, *, arm_a: str | None = None, arm_b: str | None = None,
    say: Callable[[str], None] | None = None,
) -> tuple[Side, Side]:  # fmt: skip
    """The two sides.

    Args:
        first: directories of runs, or above them, parted by commas.
        second: likewise; None where `first` holds both sides.
        arm_a, arm_b: which settings, by label or by words of it that no other label has.
        say: is told what was left out.

    Raises:
        UserError: a side holds no run or several settings, or a run stands on both sides.
    """
    found_a = arms(collect(_paths(first), say=say).entries)
    if second is not None:
        found_b = arms(collect(_paths(second), say=say).entries)
        a = _chosen(found_a, arm_a, first, "--a") if arm_a else _only(found_a, first, "--a")
        b = _chosen(found_b, arm_b, second, "--b") if arm_b else _only(found_b, second, "--b")
    elif arm_a and arm_b:
        a, b = _chosen(found_a, arm_a, first, "--a"), _chosen(found_a, arm_b, first, "--b")
    elif len(found_a) == 2:
        a, b = _two(found_a, arm_a, arm_b, first)
    else:
        raise UserError(
            f"{first} holds {_listed(found_a)}: which two?" if len(found_a) > 1
            else f"{first} holds one arm only, '{found_a[0].label}'",
            remedy="choose with --a ARM --b ARM" if len(found_a) > 1 else "give a second directory: effvit compare A B",
        )  # fmt: skip
    twice = {entry.run_dir.resolve() for entry in a.entries} & {
        entry.run_dir.resolve() for entry in b.entries
    }
    if twice:
        raise UserError(f"{min(twice)} stands on both sides", remedy="compare two different runs")
    label_a, label_b = _labels(a, b)
    return _side("A", label_a, a), _side("B", label_b, b)


def _paths(text: str) -> list[Path]:
    """Directories parted by commas; a directory whose name holds one is itself."""
    if Path(text).expanduser().is_dir():
        return [Path(text).expanduser()]
    return [Path(part.strip()).expanduser() for part in text.split(",") if part.strip()]


def _only(found: Sequence[Arm], where: str, option: str) -> Arm:
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{where} holds {_listed(found)}: a side is one of them",
        remedy=f"choose with {option} '{found[0].label}', or give its run directories, parted by commas",
    )


def _chosen(found: Sequence[Arm], text: str, where: str, option: str) -> Arm:
    """The arm with this label, or the only one whose label has all these words."""
    wanted = set(text.split())
    fitting = [arm for arm in found if arm.label == text] or [
        arm for arm in found if wanted <= _words(arm.label)
    ]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"fits {_listed(fitting)}" if fitting else f"is no arm of {where}"
    raise UserError(problem, key=option, value=text, remedy=f"it holds {_listed(found)}")


def _words(label: str) -> set[str]:
    """The words of a label, and the values of those that are `key=value`."""
    return {part for word in label.split() for part in (word, word.rpartition("=")[2])}


def _two(found: Sequence[Arm], arm_a: str | None, arm_b: str | None, where: str) -> tuple[Arm, Arm]:
    """Both arms of a directory that holds two, in the order in which they were begun, or as one is chosen."""
    if arm_a is None and arm_b is None:
        return found[0], found[1]
    chosen = _chosen(found, arm_a or arm_b or "", where, "--a" if arm_a else "--b")
    other = next(arm for arm in found if arm is not chosen)
    return (chosen, other) if arm_a else (other, chosen)


def _listed(found: Sequence[Arm]) -> str:
    names = ", ".join(f"'{arm.label}'" for arm in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{len(found)} arms ({names}{more})"


def _labels(a: Arm, b: Arm) -> tuple[str, str]:
    """What tells the sides from each other: their settings, else their seeds, else their directories."""
    if a.settings != b.settings:
        labels = {arm.settings: arm.label for arm in arms([*a.entries, *b.entries])}
        return labels[a.settings], labels[b.settings]
    name = f"{a.settings.model} {'+'.join(a.settings.techniques) or 'plain'}"
    one, other = (f"{name} {_seeds(arm)}" for arm in (a, b))
    if one != other:
        return one, other
    return f"{name} {a.entries[0].run_dir}", f"{name} {b.entries[0].run_dir}"


def _seeds(arm: Arm) -> str:
    seeds = [str(draw_of(entry.card)) for entry in arm.entries]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def _side(name: str, label: str, arm: Arm) -> Side:
    entries = sorted(arm.entries, key=lambda entry: str(draw_of(entry.card)).rjust(40))
    return Side(name, label, tuple(entries), PRIVATE in arm.settings.techniques)
