"""`effvit advise`: what each technique does, which to add next, what to run next."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from effvit_train.budgets import full_key, parse_budgets


def advise(argv: Sequence[str]) -> None:
    """Advice from the runs at and below the directories named in `argv`.

    Raises:
        UserError: no finished runs, or no such measure.
    """
    parser = argparse.ArgumentParser(
        prog="effvit advise",
        description="From finished runs: what each technique does to each measure, which budgets are met, which "
        "technique to add next, and the command of the run that would tell most.",
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUNS", help="run directories, or any above them; default: runs"
    )
    parser.add_argument(
        "--budget", action="append", default=[], metavar="BOUND",
        help="e.g. 'cost/macs<=1.5M'; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--quality", default="quality/accuracy", metavar="MEASURE",
        help="the measure that pays for savings; default: quality/accuracy",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print an object instead")
    options = parser.parse_args(list(argv))
    budgets = parse_budgets(options.budget)
    quality = full_key(options.quality, key="--quality")
    from rich.console import Console

    from effvit_train.collect import collect
    from effvit_train.report.advice.advice import advise_on, to_json
    from effvit_train.report.advice.terminal import show

    found = collect(options.runs or [Path("runs")], say=lambda line: print(line, file=sys.stderr))
    advice = advise_on(found.entries, budgets, quality=quality)
    if options.json:
        print(json.dumps(to_json(advice), indent=2, ensure_ascii=False))
    else:
        show(advice, Console(highlight=False))
