"""Which run to compare with: the same model, on the same data, as long, without compression and privacy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.report.inputs import added, as_list, fingerprint, read_record
from effvit_train.report.stream_facts import differ
from effvit_train.runs import fingerprint_of

MAX_CARDS = 300
MAX_DIRECTORIES = 20_000
DEPTH = 3  # runs/<name>/<sweep>/<job>
_INSIDE_A_RUN = {"checkpoints", "wandb", "__pycache__"}
# Overrides that do not change what a baseline is trained on, or how.
_INDIFFERENT = (
    "compress",
    "privacy",
    "seed",
    "run_dir",
    "name",
    "logger",
    "audit",
    "hydra",
    "cache_dir",
    "resume",
)


@dataclass(frozen=True)
class Baseline:
    """The run to compare with, or why there is none.

    Attributes:
        run_dir, card: the baseline; both None when there is none.
        reason: why there is none; with a baseline, in what it differs beyond compression (or empty).
    """

    run_dir: Path | None
    card: Card | None
    reason: str


def find_baseline(run_dir: Path, card: Card) -> Baseline:
    """The plain run of the same model, data and epochs that is nearest to this one.

    Looks below the nearest ancestor called `runs`, else beside the run. Among several: the same
    recipe, then the same seed, then the newest. A run that is itself plain has none.
    """
    if not added(card):
        return _none(
            "this run is itself uncompressed: it is the baseline for compressed runs of the same model"
        )
    run_dir = Path(run_dir).resolve()
    record, data = read_record(run_dir), fingerprint_of(run_dir) or fingerprint(card)
    if record is None:
        return _none("model.json cannot be read, so that the same model cannot be recognised")
    if data is None:
        return _none("the card does not name the data by its fingerprint")
    root = search_root(run_dir)
    candidates, near = [], ""
    for other, stamp in _newest_first(root, run_dir):
        try:
            found = Card.read(other / "card.json")
        except (UserError, OSError):
            continue
        if added(found):
            continue
        if not _same_model(record, read_record(other)):
            continue
        problem = _differs(card, found, data)
        if problem:
            near = near or problem
            continue
        candidates.append((_recipe(found) == _recipe(card), _seed(found) == _seed(card), stamp, other, found))
    if not candidates:
        close = f"; the nearest one {near}" if near else ""
        return _none(f"no uncompressed run of this model, data and number of epochs among the runs{close}")
    *_, chosen, chosen_card = max(candidates, key=lambda entry: entry[:3])
    return Baseline(chosen, chosen_card, _caveat(card, chosen_card))


def search_root(run_dir: Path) -> Path:
    """The nearest ancestor called `runs`, else the parent."""
    return next((parent for parent in run_dir.parents if parent.name == "runs"), run_dir.parent)


def _newest_first(root: Path, run_dir: Path) -> list[tuple[Path, float]]:
    """Runs below `root` other than `run_dir`: those beside it first, then the newest."""
    found = []
    for path in _runs_below(root):
        try:
            stamp = (path / "card.json").stat().st_mtime
        except OSError:
            continue
        if path != run_dir:
            found.append((path, stamp))
    found.sort(key=lambda entry: (entry[0].parent != run_dir.parent, -entry[1]))
    return found[:MAX_CARDS]


def _runs_below(root: Path) -> Iterator[Path]:
    """Directories with a card at most `DEPTH` levels below `root`; never inside a run."""
    level, seen = [root], 0
    for _ in range(DEPTH):
        deeper: list[Path] = []
        for directory in level:
            try:
                entries = [e for e in os.scandir(directory) if e.is_dir(follow_symlinks=False)]
            except OSError:
                continue
            for entry in entries:
                seen += 1
                if seen > MAX_DIRECTORIES:
                    return
                if entry.name in _INSIDE_A_RUN or entry.name.startswith("."):
                    continue
                path = Path(entry.path)
                if (path / "card.json").is_file():
                    yield path
                else:
                    deeper.append(path)
        level = deeper


def _same_model(mine: ArchitectureRecord, other: ArchitectureRecord | None) -> bool:
    """The same network, before any cut was made."""
    return (
        other is not None
        and not other.cuts
        and (mine.name, mine.kwargs, mine.input_shape) == (other.name, other.kwargs, other.input_shape)
        and len(mine.classes) == len(other.classes)
    )


def _differs(card: Card, other: Card, data: str) -> str:
    """Why `other` is not comparable, or an empty string."""
    if bool(other.run.get("fast_dev_run")) != bool(card.run.get("fast_dev_run")):
        return "saw one batch only" if other.run.get("fast_dev_run") else "was trained in full"
    if fingerprint(other) != data:
        return "has other data or another split"
    if streams := differ(other, card):
        return f"learnt from another stream: {streams}"
    if other.run.get("epochs") != card.run.get("epochs"):
        return f"has {other.run.get('epochs')} epochs, not {card.run.get('epochs')}"
    return ""


def _caveat(card: Card, other: Card) -> str:
    notes = []
    if _seed(other) != _seed(card):
        notes.append(f"seed {_seed(other)} instead of {_seed(card)}")
    mine, theirs = _recipe(card), _recipe(other)
    if mine != theirs:
        extra = sorted(theirs - mine) or [f"without {item}" for item in sorted(mine - theirs)]
        notes.append(", ".join(extra))
    return "it also differs in: " + "; ".join(notes) if notes else ""


def _recipe(card: Card) -> frozenset[str]:
    """The overrides that shape the training, apart from compression and seed."""
    kept = set()
    for override in as_list(card.run.get("overrides")):
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0].partition("/")[0].partition("@")[0] not in _INDIFFERENT:
            kept.add(override)
    return frozenset(kept)


def _seed(card: Card) -> object:
    return card.run.get("seed")


def _none(reason: str) -> Baseline:
    return Baseline(None, None, reason)
