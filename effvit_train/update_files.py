"""`update.json` and `update.html`: what an update's verdict rests on. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from effvit_train.config import UpdateConfig
from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json, write_text
from effvit_train.runs import RunDir

SCHEMA = 1
NAME, PAGE = "update.json", "update.html"
OLD, NEW = "old", "new"
SHIPPED, UPDATED = "shipped", "updated"
_MARKS = {"promote": "ok       ", "hold": "HOLD     ", "roll back": "ROLL BACK"}


def write_result(result: dict[str, Any], run_dir: RunDir) -> None:
    """Write both files, each atomically; `update.json` last."""
    from effvit_train.report.update import render

    write_text(run_dir.path / PAGE, render(result))
    write_json(run_dir.path / NAME, result)


def read_result(run_dir: RunDir) -> dict[str, Any]:
    """The content of `update.json`; `UserError` where there is none."""
    path = run_dir.path / NAME
    try:
        found = read_json(path)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise UserError(f"no verdict at {path}", remedy=f"effvit update --resume {run_dir.path}")
    return found


def held_before(settings: UpdateConfig, run_dir: RunDir, text: str) -> dict[str, Any]:
    """Write that an update is held before it is trained; `text` says why, in one line."""
    result: dict[str, Any] = {
        "schema": SCHEMA, "verdict": "hold", "trained": False, "reasons": [text],
        "findings": [{"verdict": "hold", "kind": "budget", "text": text}],
        "rule": {"tolerance": settings.tolerance, "level": settings.level, "confident": settings.confident},
        "compared": {}, "groups": {}, "groups_too_small": {}, "budgets": [], "models": {},
        "lineage": {"parent": {"run_dir": settings.after}},
    }  # fmt: skip
    write_result(result, run_dir)
    return result


def said(result: dict[str, Any]) -> Sequence[str]:
    """What the terminal shows: every finding, the gravest first, and then the verdict."""
    return [
        *(f"{_MARKS[finding['verdict']]}  {finding['text']}" for finding in result["findings"]),
        f"verdict: {result['verdict']}",
    ]
