"""What a study has found: `study.json`, and the trials that none beats."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from effvit_train.files import write_json
from effvit_train.search.composition import Composed, compose_privacy
from effvit_train.search.study import SharedStudy

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

SCHEMA = 1
NAME = "study.json"
_STATES = {
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}
_WIDEST = 10_000


def write_results(study: SharedStudy) -> dict[str, Any]:
    """Write `study.json`: every trial, the front, what was spent of privacy; returns its content."""
    trials = study.study.get_trials(deepcopy=False)
    keys = [objective.key for objective in study.definition.objectives]
    rows = [_row(study, trial, keys) for trial in trials]
    privacy = privacy_of(study)
    content = {
        "schema": SCHEMA,
        "study": study.definition.study,
        "objectives": [
            {"key": o.key, "better": "higher" if o.higher else "lower", "read_from": o.source}
            for o in study.definition.objectives
        ],
        "budgets": study.definition.sweep.budgets,
        "overrides": list(study.definition.fixed),
        "front": front(study),
        "privacy": None if privacy is None else privacy.to_json(),
        "trials": rows,
    }
    write_json(study.directory / NAME, content)
    return content


def front(study: SharedStudy) -> list[int]:
    """Numbers of the complete trials within the budgets that no other beats in all objectives."""
    return sorted(trial.number for trial in study.study.best_trials)


def privacy_of(study: SharedStudy) -> Composed | None:
    """What all trials have spent together."""
    return compose_privacy(study.run_dir(trial.number) for trial in study.study.get_trials(deepcopy=False))


def show_results(study: SharedStudy, content: dict[str, Any], console: Console) -> None:
    """Print the front, what became of the rest, and what to type next."""
    objectives, trials = content["objectives"], content["trials"]
    counts = {state: sum(trial["state"] == state for trial in trials) for state in _STATES.values()}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    console.print(f"{len(trials)} of {study.definition.sweep.trials} trials: {told}", highlight=False)
    chosen = [trials[number] for number in content["front"]]
    first = objectives[0]
    chosen.sort(key=lambda row: row["values"][first["key"]], reverse=first["better"] == "higher")
    if chosen:
        _print_front(study, chosen, objectives, console)
    elif counts["complete"]:
        console.print("no trial is within the budgets")
    lines = []
    if content["privacy"] is not None:
        lines.append(str(privacy_of(study)))
    validated = [o["key"] for o in objectives if o["read_from"] == "validation images"]
    if validated:
        lines.append(
            f"{', '.join(validated)}: on validation images, which chose; the test's are on the cards"
        )
    on_test = [o["key"] for o in objectives if o["read_from"] == "test images"]
    if on_test:
        lines.append(
            f"{', '.join(on_test)}: on test images, which now have chosen: optimistic for the models on the front"
        )
    directory = shlex.quote(os.path.relpath(study.directory))
    lines.append(f"all trials: {directory}/{NAME}")
    if counts["complete"]:
        axes = [objective["key"] for objective in objectives[:2]]
        flags = f" --x {axes[1]} --y {axes[0]}" if len(axes) == 2 else ""
        lines.append(f"next: effvit report {directory}{flags}   # cards and frontier of all trials")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_front(
    study: SharedStudy, chosen: list[dict[str, Any]], objectives: list[dict[str, Any]], console: Console
) -> None:
    table = Table.grid(padding=(0, 2))
    heads = ["trial", *(objective["key"] for objective in objectives), "overrides", "run"]
    for head in heads:
        justify = "left" if head in ("overrides", "run") else "right"
        table.add_column(justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_row(*(Text(head, "bold") for head in heads))
    for row in chosen:
        values = [f"{row['values'][objective['key']]:.6g}" for objective in objectives]
        words = " ".join(map(shlex.quote, row["overrides"]))
        run = os.path.relpath(study.run_dir(row["number"]))
        table.add_row(str(row["number"]), *values, Text(words), Text(run))
    wide = Console(file=console.file, highlight=False)
    wide.width = max(
        console.width, console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    )
    console.print("Pareto front:" if len(objectives) > 1 else "best:", highlight=False)
    wide.print(table)


def _row(study: SharedStudy, trial: FrozenTrial, keys: list[str]) -> dict[str, Any]:
    taken, told = trial.user_attrs.get("taken", {}), trial.user_attrs.get("told", {})
    complete = trial.state.name == "COMPLETE"
    return {
        "number": trial.number,
        "state": _STATES[trial.state.name],
        "values": dict(zip(keys, trial.values, strict=True)) if complete else None,
        "within_budgets": all(over <= 0 for over in trial.constraints.values()) if complete else None,
        "overrides": taken.get("overrides", []),
        "run_dir": str(trial.number),
        "worker": taken.get("worker"),
        "reason": told.get("reason"),
    }
