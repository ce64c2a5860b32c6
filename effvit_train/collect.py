"""Many cards at once: of the run directories that are named, and of those below the directories that are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.runs import RunDir, fingerprint_of, run_directories


@dataclass(frozen=True)
class Entry:
    """A finished run.

    Attributes:
        run_dir: as the user would type it.
        card: its card.
    """

    run_dir: Path
    card: Card

    @cached_property
    def data(self) -> str | None:
        """What tells the data and their split: of private runs too, where this machine knows it."""
        sealed = self.card.provenance.get("dataset")
        told = sealed.get("fingerprint") if isinstance(sealed, dict) else None
        return fingerprint_of(self.run_dir) or (str(told) if told else None)


@dataclass(frozen=True)
class Collected:
    """What was found.

    Attributes:
        entries: finished runs, each once, by time of their start.
        unfinished: directories of runs that have no card yet.
        damaged: why a card that was found cannot be read, one line each.
        trials: runs of a single batch (`trainer.fast_dev_run`): they have cards, and these say nothing.
    """

    entries: list[Entry]
    unfinished: list[Path]
    damaged: list[str]
    trials: list[Path]


def collect(paths: Iterable[Path], *, say: Callable[[str], None] | None = None) -> Collected:
    """The runs at and below `paths`.

    Args:
        paths: run directories, directories of sweeps, or any above them.
        say: is told in one line each what was left out.

    Raises:
        UserError: a path that is no directory, or no finished run at all.
    """
    named = [Path(path) for path in paths]
    for path in named:
        if not path.is_dir():
            raise UserError(f"{path} is no directory", remedy="give run directories, or one above them")
    found = {run.resolve(): run for path in named for run in run_directories(path)}
    entries: list[Entry] = []
    unfinished: list[Path] = []
    trials: list[Path] = []
    damaged: list[str] = []
    for run in found.values():
        files = RunDir(run)
        if not files.card.exists():
            unfinished.append(run)
            continue
        try:
            card = Card.read(files.card)
        except (UserError, OSError) as error:
            damaged.append(str(error))
            continue
        if card.run.get("fast_dev_run"):
            trials.append(run)
        else:
            entries.append(Entry(run, card))
    entries.sort(key=lambda entry: (str(entry.card.run.get("started", "")), str(entry.run_dir)))
    result = Collected(entries, unfinished, damaged, trials)
    if not entries:
        where = ", ".join(map(str, named))
        why = "; ".join(_left_out(result)) or "give directories of runs"
        raise UserError(f"no finished run at or below {where}", remedy=why)
    if say is not None:
        for line in _left_out(result):
            say(line)
    return result


def _left_out(found: Collected) -> list[str]:
    lines = [f"left out: {line}" for line in found.damaged]
    for runs, what in (
        (found.unfinished, "without a card yet (effvit runs tells why)"),
        (found.trials, "of a single batch (trainer.fast_dev_run)"),
    ):
        if runs:
            lines.append(f"left out: {len(runs)} run{'s' * (len(runs) > 1)} {what}")
    return lines
