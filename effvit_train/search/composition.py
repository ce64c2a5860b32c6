"""What all trials of a search have spent together: epsilons and deltas add up (basic composition).

Whoever chooses among trials has looked at all of them: those that failed or were stopped count too
(Dwork & Roth 2014, theorem 3.16; Papernot & Steinke 2022 on what a search costs). Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.privacy.config import PrivacyConfig
from effvit_train.runs import RunDir


@dataclass(frozen=True)
class Composed:
    """The sum over trials.

    Attributes:
        trials: how many trained with privacy.
        epsilon, delta: upper bounds for all together; None where one is not known.
        unknown: why not, one line for each such trial.
    """

    trials: int
    epsilon: float | None
    delta: float | None
    unknown: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The content of `privacy` in `study.json`."""
        return {
            "private_trials": self.trials, "epsilon": self.epsilon, "delta": self.delta,
            "composition": "sum over all trials that trained", "unknown": list(self.unknown),
        }  # fmt: skip

    def __str__(self) -> str:
        count = f"all {self.trials} private trials together"
        if self.epsilon is None or self.delta is None:
            return f"privacy: no bound for {count}: {'; '.join(self.unknown)}"
        return f"privacy: {count} spent epsilon <= {self.epsilon:.4g} at delta <= {self.delta:.3g} (sums)"


def compose_privacy(run_dirs: Iterable[Path]) -> Composed | None:
    """Add up what the runs in these directories have spent; None where none is private.

    A finished run says it on its card. One that was stopped may have spent at most what its noise was chosen
    for (`privacy.epsilon`), or `privacy.max_epsilon`. Runs without privacy beside private ones leave no bound.
    """
    settings = {path: _settings(path) for path in run_dirs if RunDir(path).state.exists()}
    private = {path: found for path, found in settings.items() if _mechanism(found) != "none"}
    if not private:
        return None
    unknown = []
    open_ = len(settings) - len(private)
    if open_:
        unknown.append(f"{open_} trained without privacy")
    cards = {path: _card(path) for path in private}
    epsilons: list[float] = []
    deltas: list[float] = []
    for path, found in private.items():
        spent = _spent(found, cards[path], [(private[other], cards[other]) for other in private])
        if spent is None:
            unknown.append(f"trial {path.name} did not end, and does not tell what it has spent")
        else:
            epsilons.append(spent[0])
            deltas.append(spent[1])
    if unknown:
        return Composed(len(private), None, None, tuple(unknown))
    return Composed(len(private), sum(epsilons), min(1.0, sum(deltas)), ())


def _spent(
    settings: Mapping[str, Any], card: Card | None, all_: list[tuple[Mapping[str, Any], Card | None]]
) -> tuple[float, float] | None:
    if card is not None:
        epsilon, delta = card.measures.get("privacy/epsilon"), card.measures.get("privacy/delta")
        return None if epsilon is None or delta is None else (epsilon, delta)
    privacy = settings.get("privacy") or {}
    try:
        config = PrivacyConfig(**privacy)
    except TypeError:
        return None
    limits = [limit for limit in (config.target, config.max_epsilon) if limit is not None]
    # delta=auto is a function of the training images, which trials of the same data share
    told = [
        other.measures.get("privacy/delta")
        for found, other in all_
        if other is not None
        and found.get("dataset") == settings.get("dataset")
        and (found.get("privacy") or {}).get("delta") == config.delta
        and (found.get("audit") or {}).get("canaries") == (settings.get("audit") or {}).get("canaries")
    ]
    delta = (
        next((value for value in told if value is not None), None) if config.delta == "auto" else config.delta
    )
    return (min(limits), float(delta)) if limits and delta is not None else None


def _mechanism(settings: Mapping[str, Any]) -> str:
    return str((settings.get("privacy") or {}).get("mechanism", "none"))


def _settings(path: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        found = OmegaConf.to_container(OmegaConf.load(RunDir(path).config), resolve=False)
    except (OSError, YAMLError, OmegaConfBaseException):
        return {"privacy": {"mechanism": "unknown"}}  # whatever it was: no bound can be told
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _card(path: Path) -> Card | None:
    try:
        return Card.read(RunDir(path).card)
    except (UserError, OSError):
        return None
