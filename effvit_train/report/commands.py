"""Commands to copy: the one that repeats a run, and the ones worth trying next."""

from __future__ import annotations

import shlex

from effvit_train.card import Card
from effvit_train.report.baseline import Baseline
from effvit_train.report.inputs import as_dict, as_list, is_private
from effvit_train.runs import program

SEEDS = "seed=1,2,3"
_OF_THIS_RUN_ONLY = ("run_dir", "resume", "hydra")


def repeat_command(card: Card) -> str:
    """The command line that trains the same run again, in a directory of its own."""
    parent = _parent(card)
    if parent is not None:
        return _line("effvit update", [parent, *_kept(card)])
    return _line(program(), _kept(card))


def seeds_command(card: Card) -> str:
    """The command line that trains the run's settings with three seeds."""
    return _line(f"{program()} -m", [*_kept(card, without=("seed",)), SEEDS])


def next_commands(card: Card, baseline: Baseline) -> list[tuple[str, str]]:
    """The next commands worth trying, best first: (command, why)."""
    if card.run.get("fast_dev_run"):
        overrides = _kept(card, without=("trainer.fast_dev_run",))
        return [(_line(program(), overrides), "the real run: this one saw a single batch")]
    run_dir = str(card.run.get("run_dir") or "")
    if card.run.get("status", "done") not in ("done", "running") and run_dir:
        why = f"the run is {card.run['status']}: this continues it from its last checkpoint"
        return [(_line(program(), [f"resume={run_dir}"]), why)]

    if _parent(card) is not None:  # an update is judged against the model that it started from
        return []
    plain = _kept(card, without=("compress",))
    active = as_list(card.run.get("compress"))
    if is_private(card) and baseline.card is None:
        open_ = [*_kept(card, without=("compress", "privacy")), "privacy=none"]
        return [(_line(program(), open_), "the same run without privacy: the baseline to judge this one by")]
    if is_private(card):
        return [(_line("effvit report", [run_dir, str(baseline.run_dir)]), "both runs on one page")]
    stream = as_dict(card.provenance.get("continual"))
    if stream and not active:  # not distillation: a teacher that is trained first would see tasks to come
        if "joint" in as_list(stream.get("strategies")):
            return []
        return [
            (
                _line(program(), [*_kept(card, without=("continual",)), "continual=joint"]),
                "the same stream with all earlier data kept: the upper bound",
            )
        ]
    if not active:
        return [
            (
                _line(program(), [*plain, "compress=distill"]),
                "the same model taught by a larger one, trained first and kept for later runs",
            ),
            _seeds(["compress=none,distill"], plain, "how far both differ from one seed to the next"),
        ]
    if baseline.card is None:
        return [
            (
                _line(program(), [*plain, "compress=none"]),
                "the same run without compression: the baseline to judge this one by",
            )
        ]
    found = []
    settings = [item for item in _kept(card) if _key(item).startswith("compress.")]
    if len(active) == 1 and not settings:
        found.append(
            _seeds([f"compress=none,{active[0]}"], plain, "whether the difference outlives the seed")
        )
    else:  # settings of a technique are refused where it is off: two sweeps
        why = "whether the difference outlives the seed: this run's side, then the baseline's"
        own = [item for item in _kept(card, without=("seed",)) if item not in plain]
        found.append(_seeds(own, plain, why))
        found.append(_seeds(["compress=none"], plain, "the baseline's side"))
    other = str(baseline.card.run.get("run_dir") or baseline.run_dir or "")
    if run_dir and other:
        found.append((_line("effvit report", [run_dir, other]), "both runs on one page"))
    return found


def _parent(card: Card) -> str | None:
    """The run that an update started from; None for any other run."""
    lineage = card.provenance.get("lineage")
    parent = lineage.get("parent") if isinstance(lineage, dict) else None
    return str(parent.get("run_dir")) if isinstance(parent, dict) else None


def _seeds(compress: list[str], plain: list[str], why: str) -> tuple[str, str]:
    kept = [item for item in plain if _key(item) != "seed"]
    return _line(f"{program()} -m", [*kept, *compress, SEEDS]), why


def _kept(card: Card, *, without: tuple[str, ...] = ()) -> list[str]:
    """The user's overrides less those of `without` (with everything below them) and of one run only."""
    dropped = (*without, *_OF_THIS_RUN_ONLY)

    def stays(override: str) -> bool:
        key = _key(override)
        return not any(key == name or key.startswith((name + ".", name + "/")) for name in dropped)

    return [item for item in as_list(card.run.get("overrides")) if stays(item)]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def _line(command: str, arguments: list[str]) -> str:
    return " ".join([command, *(shlex.quote(argument) for argument in arguments)])
