"""A run directory of its own for a model that was made from a finished run's, without training."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.export.rows import KEY as RUNTIMES
from effvit_train.finished import Finished
from effvit_train.measuring import quality_and_cost
from effvit_train.models.factory import count_parameters, save_model
from effvit_train.module import VisionModule
from effvit_train.predictions import Predictions, predict
from effvit_train.report.baseline import find_baseline
from effvit_train.report.html import write_html
from effvit_train.report.terminal import card_table
from effvit_train.runs import RunDir, RunState, machine, program, versions, write_config
from effvit_train.seen import of_run, to_text


def check_out(path: Path) -> None:
    """Raise `UserError` where something lies already."""
    if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise UserError("exists already", key="--out", value=path, remedy="give another directory")


def write_derived(
    run: Finished,
    module: VisionModule,
    out: RunDir,
    *,
    made_by: str,
    techniques: Sequence[str],
    provenance: dict[str, Any],
    console: Console,
) -> Card:
    """Measure what became of a run's model, and write its directory and card.

    Args:
        run: the run that it was made from.
        module: holds the changed model and its record.
        out: where to.
        made_by: the command, for the card and for a later resume, which it refuses.
        techniques: that changed it.
        provenance: their entries of the card.
        console: is shown the card.
    """
    before = run.card
    logits, labels, index = predict(module.model, module.normalise, run.data.eval_dataloader("test"))
    predictions = Predictions()
    predictions.logits, predictions.labels, predictions.index = logits, labels, index
    seen = of_run(run.run_dir.path) or []
    save_model(module.model, module.record, out.path, metadata={"seen": to_text(seen)})
    predictions.write(out.predictions)
    measured, conditions = quality_and_cost(
        logits, labels, module.record, run.config.audit, out.weights, device="cpu", say=console.print
    )
    # what the training cost, in time and in privacy: nothing has been trained since
    for key in ("cost/train_seconds", "privacy/epsilon", "privacy/delta"):
        value, reason = before.measures.get(key), before.missing.get(key)
        if value is not None:
            measured.values[key] = value
            measured.missing.pop(key, None)
        elif reason is not None:
            measured.missing[key] = reason
    state = dataclasses.replace(
        RunState.new(), status="done", name=str(before.run["name"]), model=str(before.run["model"]),
        epochs=int(before.run["epochs"]), data=run.data.info.fingerprint, made_by=made_by,
        precision="32-true", slurm_job=None,
    )  # fmt: skip
    card = Card.of(
        run={
            **before.run,
            "id": state.id, "run_dir": str(out.path), "started": state.started, "status": "done",
            "compress": sorted({*before.run.get("compress", []), *techniques}), "resumes": 0,
            "device": "cpu", "threads": torch.get_num_threads(), "processes": 1,
        },
        model={**before.model, "params": count_parameters(module.model)},
        measured=measured,
        provenance={
            **_of_any(before.provenance), **provenance, "seen": seen, "cost_conditions": conditions,
            "versions": versions(), "machine": machine(), "changes": [],
        },
    )  # fmt: skip
    write_config(out, copy.deepcopy(run.config), run.overrides)
    card.write(out.card)
    baseline = find_baseline(out.path, card)
    write_html(out.path, baseline=baseline)
    state.write(out.state)
    console.print(card_table(card, baseline))
    console.print(f"card: {os.path.relpath(out.html)}", highlight=False, soft_wrap=True)
    return card


def _of_any(provenance: dict[str, Any]) -> dict[str, Any]:
    """What is told of data and training; not what was measured of the model as it was."""
    return {key: value for key, value in provenance.items() if key not in (RUNTIMES, "audit", "resolution")}


def train_further(out: RunDir, overrides: Sequence[str]) -> str:
    """The command that trains on from there, as the run was started."""
    dropped = ("model.weights", "model.pretrained", "run_dir", "compress", "resume")
    kept = [item for item in overrides if not item.lstrip("+").partition("=")[0].startswith(dropped)]
    return f"{program()} model.weights={out.path} {' '.join(kept)}".rstrip()
