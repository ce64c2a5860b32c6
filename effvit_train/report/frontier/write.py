"""Writes the frontier: `frontier.html`, `frontier.json` and `frontier.csv`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from effvit_train.budgets import Budget
from effvit_train.files import write_text
from effvit_train.report.frontier.export import to_csv, to_json
from effvit_train.report.frontier.page import render
from effvit_train.report.frontier.payload import payload
from effvit_train.report.frontier.privacy import composed
from effvit_train.report.frontier.study import Study

X = ("cost/latency_ms", "cost/macs", "cost/params")
Y = "quality/accuracy"


def write(study: Study, out: Path, *, x: str, y: Sequence[str], budgets: Sequence[Budget]) -> list[Path]:
    """Write the page and its numbers into `out`; returns their paths, the page first.

    Args:
        study: the runs.
        out: a directory that can be written.
        x: measure of the horizontal axis.
        y: measure of the vertical axis, then further objectives of the front.
        budgets: bounds; a run that misses one is shown and marked, and is not on the front.
    """
    privacy = composed(study)
    page = render(study, payload(study, x=x, y=y, budgets=budgets, privacy=privacy, out=out))
    paths = [out / f"frontier.{ending}" for ending in ("html", "json", "csv")]
    write_text(paths[0], page)
    numbers = to_json(study, x=x, y=y, budgets=budgets, privacy=privacy)
    # in one line: with indents, json takes its slow way
    write_text(paths[1], json.dumps(numbers, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(paths[2], to_csv(study, x=x, y=y, budgets=budgets))
    return paths


def default_x(study: Study) -> str:
    """The first of `X` that two runs have."""
    for key in X:
        if sum(found is not None for found in study.column(key)) > 1:
            return key
    return X[0]
