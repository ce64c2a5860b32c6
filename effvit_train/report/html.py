"""`card.html`: the card to look at. One file, no network, no script."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from effvit_train.files import write_text
from effvit_train.report import (
    audited,
    chart360,
    continual,
    deployed,
    pruning,
    resolution,
    sections,
    tables,
    teacher,
    tokens,
    words,
)
from effvit_train.report.baseline import Baseline, find_baseline
from effvit_train.report.charts import escape
from effvit_train.report.compare import Comparison
from effvit_train.report.inputs import read_run
from effvit_train.runs import RunDir

# Nothing may be fetched and nothing may run, whatever a class name tries.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_html(run_dir: Path, *, baseline: Baseline | None = None) -> Path:
    """Write `card.html` of a run from the files of its directory, atomically; returns its path.

    Args:
        run_dir: a run directory with a `card.json`; other files may be missing.
        baseline: the run to compare with; None looks for it.

    Raises:
        UserError: there is no readable card.
    """
    files = RunDir(Path(run_dir))
    write_text(files.html, render(files.path, baseline=baseline))
    return files.html


def render(run_dir: Path, *, baseline: Baseline | None = None) -> str:
    """The page as text."""
    data = read_run(run_dir)
    baseline = baseline or find_baseline(run_dir, data.card)
    comparison = Comparison(data.card, baseline, Path(run_dir))
    compared, chart = comparison.baseline.card is not None, chart360.section(comparison)
    body = "\n".join(
        part
        for part in (
            sections.header(data, comparison),
            sections.tiles(data, comparison),
            chart if compared else "",
            sections.curves(data, comparison),
            continual.section(data),
            sections.mistakes(data),
            *audited.sections(data),
            "" if compared else chart,  # a list then: pictures first
            tables.measures(data, comparison),
            deployed.section(data),
            resolution.section(data),
            pruning.section(data),
            tokens.section(data),
            teacher.section(data),
            tables.provenance(data, comparison),
            tables.commands(data, comparison),
        )
        if part
    )
    return page(words.title(data.card), body)


def page(title: str, body: str, *, more_style: str = "") -> str:
    """A whole page around a body: one style sheet (and more rules after it), nothing fetched, nothing run."""
    style = (
        resources.files("effvit_train.report").joinpath("card.css").read_text(encoding="utf-8") + more_style
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
