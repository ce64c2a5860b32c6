"""The frontier as a W&B table and chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from effvit_train.arms import settings_of
from effvit_train.budgets import Budget
from effvit_train.config import LoggerConfig
from effvit_train.report import tracking
from effvit_train.report.frontier.export import fronts
from effvit_train.report.frontier.study import Study, label_of, seed
from effvit_train.runs import RunState


def log(
    study: Study, out: Path, *, x: str, y: Sequence[str], budgets: Sequence[Budget], project: str | None,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Log one W&B run with the table of all runs and a scatter plot of `y` against `x`, offline unless logged in.

    Args:
        study, x, y, budgets: as in `write.write`.
        out: the run's files go into its directory `wandb`.
        project: W&B project; None takes that of the trainings.
        say: is told in one line why it logs offline.
    """
    import wandb

    config = LoggerConfig() if project is None else LoggerConfig(project=project)
    run_id = RunState.new().id
    settings = {
        "x": x,
        "y": list(y),
        "budgets": [budget.text for budget in budgets],
        "runs": len(study.entries),
    }
    tracker = tracking.start(
        config, run_dir=out, run_id=run_id, name="frontier", settings=settings, resumed=False, say=say
    )
    names, rows = columns(study, x=x, y=y, budgets=budgets)
    frontier = wandb.Table(columns=names, data=rows)
    # a scatter plot takes no nulls
    places = [names.index(x), names.index(y[0])]
    drawn = [
        [row[place] for place in places] for row in rows if all(row[place] is not None for place in places)
    ]
    points = wandb.Table(columns=[x, y[0]], data=drawn)
    title = f"{label_of(y[0])} against {label_of(x)}"
    tracker.media(
        {"frontier/runs": frontier, "frontier/chart": wandb.plot.scatter(points, x, y[0], title=title)}
    )
    tracker.finish()


def columns(
    study: Study, *, x: str, y: Sequence[str], budgets: Sequence[Budget]
) -> tuple[list[str | int], list[list[Any]]]:
    """Names of the columns, and a row per run; what was not measured is None."""
    keys = list(dict.fromkeys([*study.columns, x, *y]))
    on_front, meets = fronts(study, [x, *y], budgets)
    names: list[str | int] = [
        "run_dir",
        "data",
        "model",
        "techniques",
        "arm",
        "seed",
        "meets_budgets",
        "on_front",
        *keys,
    ]
    rows = []
    for place, entry in enumerate(study.entries):
        settings = settings_of(entry)
        rows.append([
            str(entry.run_dir), study.sets[study.set_of[place]].label, settings.model,
            "+".join(settings.techniques), study.arms[study.arm_of[place]].label, seed(entry.card),
            meets[place], on_front[place], *(study.column(key)[place] for key in keys),
        ])  # fmt: skip
    return names, rows
