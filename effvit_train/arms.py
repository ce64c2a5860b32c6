"""Runs that differ in nothing but their seed are one arm: what its mean says, a single run does not.

The order of a stream's tasks (`dataset.stream_order`) is a draw like the seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from effvit_train.card import Card
from effvit_train.collect import Entry

PRIVATE = "dp_sgd"
# Groups that change neither what is trained nor how; then single overrides that do not, or that the other fields of
# `Settings` tell.
_WHOLE = ("seed", "run_dir", "name", "resume", "cache_dir", "logger", "audit", "hydra", "sweep")
_ELSEWHERE = (
    "model",
    "compress",
    "privacy",
    "dataset.root",
    "dataset.num_workers",
    "dataset.stream_order",
    "trainer.max_epochs",
    "trainer.num_threads",
    "trainer.progress_bar",
    "trainer.checkpoint_every",
    "trainer.log_every_n_steps",
    "trainer.accelerator",
    "trainer.check_val_every_n_epoch",
    "privacy.max_physical_batch",
    "privacy.secret",
)


@dataclass(frozen=True)
class Settings:
    """What was trained, but for the seed.

    Attributes:
        data: what tells the data and their split.
        model: as the user named it.
        epochs: passes over the training images.
        techniques: sorted: those of `compress`, and `dp_sgd`.
        overrides: sorted: what else the user typed that shapes the training.
    """

    data: str
    model: str
    epochs: int | None
    techniques: tuple[str, ...]
    overrides: tuple[str, ...]

    def without(self, technique: str) -> Settings:
        """The same without a technique and what was set for it."""
        group = "privacy" if technique == PRIVATE else f"compress.{technique}"
        return replace(
            self,
            techniques=tuple(name for name in self.techniques if name != technique),
            overrides=tuple(item for item in self.overrides if not item.startswith(f"{group}.")),
        )


@dataclass(frozen=True)
class Arm:
    """Runs with the same settings, by seed.

    Attributes:
        settings: of all of them.
        entries: at least one.
        label: short, and different from that of every other arm made with it.
    """

    settings: Settings
    entries: tuple[Entry, ...]
    label: str

    def values(self, key: str) -> list[float]:
        """A measure of the runs that have it."""
        found = (entry.card.measures.get(key) for entry in self.entries)
        return [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        """Mean over the runs that have it; None where none has."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def sd(self, key: str) -> float | None:
        """Standard deviation over the runs (n - 1); None with fewer than two."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None


def settings_of(entry: Entry) -> Settings:
    """What a run was trained with."""
    run = entry.card.run
    techniques = [str(name) for name in run.get("compress") or []]
    if run.get("privacy") not in (None, "", "none"):
        techniques.append(PRIVATE)
    epochs = run.get("epochs")
    kept = {item.lstrip("+") for item in run.get("overrides") or [] if _shapes(str(item))}
    return Settings(
        entry.data or str(run.get("dataset", "")),
        str(run.get("model", "")),
        epochs if isinstance(epochs, int) else None,
        tuple(sorted(techniques)),
        tuple(sorted(kept)),
    )


def draw_of(card: Card) -> Any:
    """Which draw of chance a run is: its seed, and with it the order of its stream where one was drawn."""
    seed = card.run.get("seed")
    overrides = [str(item).lstrip("+").partition("=") for item in card.run.get("overrides") or []]
    order = [value for key, _, value in overrides if key == "dataset.stream_order" and value != "null"]
    return f"{seed} (order {order[-1]})" if order else seed


def arms(entries: Iterable[Entry]) -> list[Arm]:
    """Group runs into arms, in the order of each arm's first run.

    Of several runs of one arm with the same seed the last counts, as one repeats the other; private runs all do,
    as their noise does not come from the seed.
    """
    groups: dict[Settings, dict[Any, Entry]] = {}
    for number, entry in enumerate(entries):
        settings = settings_of(entry)
        twin = number if PRIVATE in settings.techniques else draw_of(entry.card)
        groups.setdefault(settings, {})[twin] = entry
    labels = _labels(list(groups))
    return [
        Arm(settings, tuple(runs.values()), label)
        for (settings, runs), label in zip(groups.items(), labels, strict=True)
    ]


def _labels(settings: Sequence[Settings]) -> list[str]:
    """Model and techniques of each, and of the rest what is not the same in all."""
    common = set.intersection(*(set(one.overrides) for one in settings)) if len(settings) > 1 else set()
    several_epochs = len({one.epochs for one in settings}) > 1
    several_data = len({one.data for one in settings}) > 1
    found: list[str] = []
    for one in settings:
        parts = [one.model, "+".join(one.techniques) or "plain"]
        parts += [_short(item) for item in one.overrides if item not in common]
        parts += [f"{one.epochs} epochs"] if several_epochs else []
        parts += [f"data {one.data.rpartition(':')[2][:6]}"] if several_data else []
        label = " ".join(parts)
        found.append(label if label not in found else f"{label} #{len(found) + 1}")
    return found


def _short(override: str) -> str:
    key, sign, value = override.partition("=")
    words = key.split(".")
    return f"{'.'.join(words[-2:])}{sign}{value}"


def _shapes(override: str) -> bool:
    """Whether an override says more of the training than the fields of `Settings` do."""
    key = override.lstrip("+~").partition("=")[0].partition("@")[0]
    if key.partition(".")[0].partition("/")[0] in _WHOLE:
        return False
    return key not in _ELSEWHERE
