"""`effvit report`: the frontier of many runs, a summary for those who decide, or cards again."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from effvit_train.errors import UserError
from effvit_train.runs import RunDir, ensure_writable

LANGUAGES = ("en", "ja", "both")
_EPILOG = """
One run directory: its card.html again. Several, or a directory of runs: frontier.html, frontier.json and frontier.csv.

  effvit report runs --x cost/latency_ms --y quality/accuracy --budget 'privacy/epsilon<=8'
  effvit report runs/a runs/b runs/c --y accuracy --y robustness/pgd_accuracy    # three objectives
  effvit report runs --summary --budget 'cost/latency_ms<=5'                     # one printed page for those who decide
  effvit report --cards runs                                                     # every card.html again
"""


def report(argv: Sequence[str]) -> None:
    """Write what `argv` asks for.

    Raises:
        UserError: no such runs, measure, budget or language; options that do not go together; no place to write.
    """
    options = _parser().parse_args(list(argv))
    asked = options.x or options.y or options.budget or options.wandb or options.wandb_project
    if options.language and not options.summary:
        raise UserError("only --summary has languages", key="--language", remedy="add --summary")
    if options.language and options.language not in LANGUAGES:
        raise UserError(
            f"must be one of {', '.join(LANGUAGES)}",
            key="--language",
            value=options.language,
            remedy="e.g. --language ja",
        )
    if options.cards and (asked or options.summary):
        raise UserError(
            "renders cards, which have no such options",
            key="--cards",
            remedy="leave out --cards or the others",
        )
    if options.summary and (options.wandb or options.wandb_project):
        raise UserError("goes with the frontier page", key="--wandb", remedy="leave out --summary or --wandb")
    one_card = len(options.runs) == 1 and RunDir(options.runs[0]).card.exists()
    if options.cards or (one_card and not asked and not options.summary):
        _cards(options.runs, options.out)
        return

    from effvit_train.budgets import full_key, parse_budgets
    from effvit_train.collect import collect
    from effvit_train.report.frontier.study import several_streams, study
    from effvit_train.report.frontier.write import Y, default_x
    from effvit_train.report.stream_facts import AXIS

    x = full_key(options.x, key="--x") if options.x else None
    y = [full_key(name, key="--y") for name in options.y] or [Y]
    budgets = parse_budgets(options.budget)
    runs = study(collect(options.runs, say=print))
    x = x or default_x(runs)
    if x in y or len(set(y)) < len(y):
        raise UserError(
            "is an objective twice", key="--y", value=x if x in y else y[0], remedy="another measure"
        )
    out = options.out or _common(options.runs)
    ensure_writable(out, key="--out")
    keys = [x, *y, *(budget.key for budget in budgets)]
    if any(key.startswith(AXIS) for key in keys) and (streams := several_streams(runs)):
        print(
            f"warning: the runs learnt from different streams ({streams}): continual/* is of other tasks in each"
        )
    if options.summary:
        from effvit_train.report.summary.write import write as write_summary

        print(
            f"summary: {write_summary(runs, out, x=x, y=y[0], budgets=budgets, language=options.language or 'both')}"
        )
        return
    from effvit_train.report.frontier.write import write

    page, *beside = write(runs, out, x=x, y=y, budgets=budgets)
    print(
        f"{len(runs.entries)} runs, {len(runs.arms)} arms\nfrontier: {page}\nbeside it: {', '.join(p.name for p in beside)}"
    )
    if options.wandb or options.wandb_project:
        from effvit_train.report.frontier.tracked import log

        log(runs, out, x=x, y=y, budgets=budgets, project=options.wandb_project, say=print)
        print(f"W&B: {out / 'wandb'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effvit report", description="Many runs on one page: what is to be had for what, over all measures.",
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="run directories, or directories of them"
    )
    parser.add_argument("--x", metavar="MEASURE", help="across (default: cost/latency_ms)")
    parser.add_argument(
        "--y", metavar="MEASURE", action="append", default=[],
        help="up (default: quality/accuracy); more of them are further objectives of the front",
    )  # fmt: skip
    parser.add_argument(
        "--budget",
        metavar="BOUND",
        action="append",
        default=[],
        help="e.g. 'privacy/epsilon<=8'; several are all to be met",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="default: the runs' common directory")
    parser.add_argument(
        "--summary", action="store_true", help="summary.html instead: one page in plain words, to print"
    )
    parser.add_argument("--language", metavar="LANGUAGE", help="of the summary: en, ja or both (default)")
    parser.add_argument("--cards", action="store_true", help="the card.html of every run again instead")
    parser.add_argument(
        "--wandb", action="store_true", help="log table and chart to W&B too (offline unless logged in)"
    )
    parser.add_argument("--wandb-project", metavar="NAME", help="the same, in this project")
    return parser


def _common(paths: Sequence[Path]) -> Path:
    """The directory that all of them lie in; a single one itself."""
    try:
        common = Path(os.path.commonpath([path.resolve() for path in paths]))
    except ValueError:  # on several drives
        return Path()
    inside = Path.cwd()
    return common.relative_to(inside) if common.is_relative_to(inside) else common


def _cards(paths: Sequence[Path], out: Path | None) -> None:
    from rich.console import Console

    from effvit_train.card import Card
    from effvit_train.files import write_text
    from effvit_train.report.baseline import find_baseline
    from effvit_train.report.html import render
    from effvit_train.report.terminal import card_table
    from effvit_train.runs import run_directories

    console = Console()
    runs: list[Path] = []
    for path in paths:
        below = [run for run in run_directories(path) if RunDir(run).card.exists()]
        runs += below or [path]  # reading its card tells what is wrong
    for run, card in [(run, Card.read(RunDir(run).card)) for run in runs]:
        baseline = find_baseline(run, card)
        page = RunDir(run).html if out is None else out / f"{card.run['name']}-{card.run['id']}.html"
        ensure_writable(page.parent, key="--out" if out is not None else "RUN_DIR")
        write_text(page, render(run, baseline=baseline))
        console.print(card_table(card, baseline))
        console.print(f"card: {page}", highlight=False, soft_wrap=True)
