"""The epsilon of a search: composed over all private trainings on the same data (contract C7).

Whoever chooses among trials has spent what all of them spent together, those that failed included. Two bounds, of
which the smaller one holds:

- basic composition: the sums of the trials' epsilons and deltas (Dwork & Roth 2014, theorem 3.16);
- Rényi differential privacy of all steps together, at the sum of the deltas: Poisson-subsampled Gaussian mechanism at
  whole orders (Mironov, Talwar & Zhang 2019, section 3.3), converted as in Balle et al. 2020, theorem 21. Written out
  here because Opacus, which does the same at more orders, takes seconds to import. What a trial inherited from
  private teachers and starting weights is added to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effvit_train.card import Card
from effvit_train.collect import Entry
from effvit_train.errors import UserError
from effvit_train.files import read_json
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import count, number
from effvit_train.report.frontier.study import Study, data_name
from effvit_train.report.inputs import as_dict, as_dicts, is_private
from effvit_train.runs import RunDir, fingerprint_of

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512)
_LEDGER = "privacy.json"  # which steps a private run has made, written before they are made
_ROUNDING = 1e-9

Phase = tuple[float, float, int]  # noise multiplier, sample rate, steps


@dataclass(frozen=True)
class Trial:
    """A private training.

    Attributes:
        epsilon, delta: of its card; None where it has no card.
        history: its own steps; None where they are not known.
        inherited_epsilon, inherited_delta: of its teachers and starting weights.
    """

    epsilon: float | None
    delta: float | None
    history: tuple[Phase, ...] | None
    inherited_epsilon: float = 0.0
    inherited_delta: float = 0.0


@dataclass(frozen=True)
class Composed:
    """What the private trainings on some data have spent together.

    Attributes:
        names: of the data sets; several where the same data go under several.
        places: in `Study.sets`.
        trials: finished private trainings.
        unfinished: private trainings without a card, whose steps are counted too.
        unknown: private trainings of which nothing tells what they spent.
        open_runs: runs on the same data without differential privacy.
        epsilon, delta: what all private trainings have spent; epsilon None where nothing bounds it.
        basic: sum of the epsilons.
        method: `own` (one trial) | `rdp` | `basic` | `none`.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    trials: int
    unfinished: int
    unknown: int
    open_runs: int
    epsilon: float | None
    delta: float
    basic: float | None
    method: str

    def sentences(self) -> list[str]:
        """The same in words."""
        data = " and ".join(self.names)
        found = []
        if self.method == "own":
            found.append(
                f"One private training on {data}: ε ≤ {fmt.significant(self.epsilon or 0)} at δ = "
                f"{fmt.significant(self.delta)}."
            )
        elif self.epsilon is None:
            found.append(
                f"What the {self.trials + self.unfinished + self.unknown} private trainings on {data} have spent together "
                "is not bounded: for one of them nothing tells."
            )
        else:
            how = (
                "by the RDP accountant over all their steps (Mironov et al. 2019)"
                if self.method == "rdp"
                else "by the sum of their ε (basic composition)"
            )
            plain = (
                f" The plain sum of their ε would be {fmt.significant(self.basic)}."
                if self.method == "rdp" and self.basic is not None
                else ""
            )
            found.append(
                f"The {self.trials + self.unfinished} private trainings on {data} have together spent ε ≤ "
                f"{fmt.significant(self.epsilon)} at δ = {fmt.significant(self.delta)}, {how}.{plain} Whoever chooses among "
                "them has spent this, not only the ε of the run that is chosen."
            )
        if self.unfinished:
            found.append(
                f"Among them {self.unfinished} without a card, counted by the steps that they may have made."
            )
        if self.unknown:
            found.append(f"Nothing tells what {self.unknown} more spent: the bound leaves them out.")
        if self.open_runs:
            were = "run on the same data was" if self.open_runs == 1 else "runs on the same data were"
            found.append(
                f"{self.open_runs} {were} trained without differential privacy: no bound holds for what they publish."
            )
        found.append("Runs elsewhere, and those that were deleted, are not known here and count too.")
        return found


def composed(study: Study) -> list[Composed]:
    """What was spent on each group of data that has a private training.

    Runs count as on the same data if the fingerprint of the data or the name of the data set is the same: another
    split of the same images shows a training the same people, and too much is counted rather than too little.
    """
    found = []
    unfinished = [
        (path, fingerprint_of(path)) for path in study.found.unfinished if (path / _LEDGER).exists()
    ]
    of_one_batch = _cards(study.found.trials)
    for places in _same_data(study):
        entries = [e for e, place in zip(study.entries, study.set_of, strict=True) if place in places]
        names = tuple(dict.fromkeys(study.sets[place].name for place in places))
        prints = {study.sets[place].fingerprint for place in places} - {None}
        private = [entry for entry in entries if is_private(entry.card)]
        short = [c for c in of_one_batch if is_private(c) and data_name(c) in names]
        if not private:
            continue
        begun = [path for path, told in unfinished if told in prints]
        trials = [_trial(card) for card in _trainings(private)] + [_trial(card) for card in short]
        found.append(_compose(
            trials, [Trial(None, None, _ledger(path)) for path in begun], names, tuple(places),
            len(entries) - len(private),
        ))  # fmt: skip
    return found


def rdp_epsilon(history: Iterable[Phase], delta: float) -> float:
    """Upper bound of epsilon at `delta` for all steps of `history`; infinite where there is none.

    Args:
        history: (noise multiplier, sample rate, steps).
        delta: in (0, 1).
    """
    merged: dict[tuple[float, float], int] = {}
    for sigma, rate, steps in history:
        merged[sigma, rate] = merged.get((sigma, rate), 0) + steps
    best = math.inf
    for order in ORDERS:
        spent = sum(steps * _rdp(sigma, rate, order) for (sigma, rate), steps in merged.items())
        bound = spent + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)
        best = min(best, bound)
    return max(0.0, best)


def _rdp(sigma: float, rate: float, order: int) -> float:
    """Rényi divergence of one step at a whole order."""
    if rate >= 1:
        return order / (2 * sigma**2)
    terms = [
        math.lgamma(order + 1) - math.lgamma(k + 1) - math.lgamma(order - k + 1)
        + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * sigma**2)
        for k in range(order + 1)
    ]  # fmt: skip
    most = max(terms)
    return (most + math.log(sum(math.exp(term - most) for term in terms))) / (order - 1)


def _compose(
    trials: Sequence[Trial],
    begun: Sequence[Trial],
    names: tuple[str, ...],
    places: tuple[int, ...],
    open_runs: int,
) -> Composed:
    known = [trial for trial in trials if trial.epsilon is not None and trial.delta is not None]
    delta = sum(trial.delta or 0.0 for trial in known)
    counted = [trial for trial in begun if trial.history is not None]
    unknown = len(trials) - len(known) + len(begun) - len(counted)
    steps = [phase for trial in [*known, *counted] for phase in trial.history or ()]
    own_delta = delta - sum(trial.inherited_delta for trial in known)
    basic = None if counted or not known else sum(trial.epsilon or 0.0 for trial in known)
    rdp = math.inf
    if all(trial.history is not None for trial in known) and 0 < own_delta < 1:
        rdp = rdp_epsilon(steps, own_delta) + sum(trial.inherited_epsilon for trial in known)
    epsilon, method = min((math.inf if basic is None else basic, "basic"), (rdp, "rdp"))
    if len(known) == 1 and not counted and basic is not None:
        epsilon, method = basic, "own"
    bounded = math.isfinite(epsilon)
    return Composed(
        names, places, len(known), len(counted), unknown, open_runs, epsilon if bounded else None, delta, basic,
        method if bounded else "none",
    )  # fmt: skip


def _same_data(study: Study) -> list[list[int]]:
    """Places of data sets, those of one name together (those of one fingerprint are one data set already)."""
    groups: dict[str, list[int]] = {}
    for place, one in enumerate(study.sets):
        groups.setdefault(one.name, []).append(place)
    return list(groups.values())


def _trainings(entries: Sequence[Entry]) -> list[Card]:
    """Their cards without those of `effvit prune`: a model cut by its weights alone costs nothing more."""
    cards = [entry.card for entry in entries if not entry.card.run.get("made_by")]
    for entry in entries:
        if entry.card.run.get("made_by") and not any(_one_training(entry.card, card) for card in cards):
            cards.append(entry.card)
    return cards


def _one_training(card: Card, other: Card) -> bool:
    return all(card.provenance.get(key) == other.provenance.get(key) for key in ("dataset", "privacy"))


def _trial(card: Card) -> Trial:
    epsilon, delta = number(card.measures.get("privacy/epsilon")), number(card.measures.get("privacy/delta"))
    told = as_dict(card.provenance.get("privacy"))
    own, own_delta = number(told.get("epsilon")), number(told.get("delta"))
    if epsilon is None or delta is None:
        return Trial(None, None, None)
    if own is None or own_delta is None or own > epsilon + _ROUNDING:
        return Trial(epsilon, delta, None)
    more, more_delta = epsilon - own, delta - own_delta
    if more < _ROUNDING:
        more, more_delta = 0.0, 0.0
    phases = as_dicts(told.get("phases")) or [told]
    return Trial(epsilon, delta, _history(phases), more, max(0.0, more_delta))


def _history(phases: Sequence[dict[str, Any]]) -> tuple[Phase, ...] | None:
    found: list[Phase] = []
    for phase in phases:
        sigma, rate = number(phase.get("noise_multiplier")), number(phase.get("sample_rate"))
        steps = count(phase.get("steps"))
        if sigma is None or rate is None or steps is None or sigma <= 0 or not 0 < rate <= 1:
            return None
        found.append((sigma, rate, steps))
    return tuple(found)


def _ledger(path: Path) -> tuple[Phase, ...] | None:
    """The steps that a run without a card may have made."""
    try:
        phases = as_dicts(as_dict(read_json(path / _LEDGER)).get("phases"))
    except (OSError, ValueError):
        return None
    for phase in phases:
        first, last = count(phase.get("first")), count(phase.get("last"))
        phase["steps"] = None if first is None or last is None else last - first
    return _history(phases)


def _cards(paths: Sequence[Path]) -> list[Card]:
    found = []
    for path in paths:
        try:
            found.append(Card.read(RunDir(path).card))
        except (UserError, OSError):
            continue
    return found
