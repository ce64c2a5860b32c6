"""`effvit check`: a release gate. Every budget is met by every run, or the exit code is 1."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from effvit_train.budgets import Budget, Verdict, judge, parse_budgets
from effvit_train.card import Card
from effvit_train.collect import Collected, Entry, collect
from effvit_train.errors import UserError, first_line
from effvit_train.proportions import wilson
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import interval as audited_interval
from effvit_train.report.inputs import test_count
from effvit_train.report.stream_facts import AXIS, stream_of
from effvit_train.report.stream_intervals import stream_interval

# Shares of the test images, whose intervals a card does not hold.
_OF_TEST_IMAGES = ("quality/accuracy", "quality/top5")
# What measures that an audit of a finished run cannot take need.
_NEEDED = {
    "privacy/epsilon": "train with privacy=dp_sgd",
    "privacy/delta": "train with privacy=dp_sgd",
    "privacy/epsilon_lower_bound": "train with audit.canaries=1000",
    "cost/energy_j": "effvit audit {run} on a machine with an energy counter",
    "cost/train_seconds": "train the model (effvit train) rather than cutting or converting it",
    "quality/top5": "leave this budget out: with five classes or fewer all are among the top five",
    "approximation/attention_error": "leave this budget out: only models with replaced attention have it",
    "approximation/output_error": "leave this budget out: only models with replaced parts have it",
}


@dataclass(frozen=True)
class Line:
    """A budget, a run, and whether the gate lets it through.

    Attributes:
        verdict: of the value alone.
        interval: 95 % interval of the value; None where none is known.
        confident: whether the interval must be within the budget too.
        remedy: how to measure what was not measured; empty where it was.
    """

    verdict: Verdict
    interval: tuple[float, float] | None
    confident: bool
    remedy: str

    @property
    def passed(self) -> bool:
        """Whether the budget is met; where `confident`, by the worse end of the interval too."""
        if not self.verdict.met or not self.confident or self.interval is None:
            return self.verdict.met
        low, high = self.interval
        return self.verdict.budget.met(high if self.verdict.budget.sign in ("<", "<=") else low)

    @property
    def value(self) -> str:
        """The value with its unit, in as many digits as tell it from the limit."""
        budget, value = self.verdict.budget, self.verdict.value
        written = fmt.value(budget.key, value)
        if value is None or value == budget.limit or written != fmt.value(budget.key, budget.limit):
            return written
        return f"{value:.10g}"

    @property
    def limit(self) -> str:
        """The bound with its sign and unit."""
        return f"{self.verdict.budget.sign} {fmt.value(self.verdict.budget.key, self.verdict.budget.limit)}"

    @property
    def note(self) -> str:
        """What stands beside the number: its interval, or why there is none."""
        if self.verdict.value is None:
            return f"not measured: {self.verdict.reason}; {self.remedy}"
        if self.interval is None:
            return "no interval is known: the value alone counts" if self.confident else ""
        key = self.verdict.budget.key
        ends = " to ".join(fmt.value(key, end) for end in self.interval)
        if self.verdict.met and not self.passed:
            return f"95 % interval {ends}: met, but not surely"
        return f"95 % interval {ends}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        budget = self.verdict.budget
        return {
            "budget": budget.text, "key": budget.key, "sign": budget.sign, "limit": budget.limit,
            "value": self.verdict.value, "interval": None if self.interval is None else list(self.interval),
            "passed": self.passed, "reason": self.verdict.reason or None, "remedy": self.remedy or None,
        }  # fmt: skip


def check(argv: Sequence[str]) -> None:
    """Hold runs against budgets; exit 0 when all are met, 1 when one is not.

    Raises:
        UserError: no such run, no such budget, or none at all.
    """
    options = _parser().parse_args(list(argv))
    budgets = budgets_of(options)
    if not budgets:
        raise UserError("no budget is given", remedy="e.g. --budget 'cost/latency_ms<=5', or --file FILE")
    console = Console(highlight=False)
    found = collect(options.runs)
    gates = [(entry, lines(entry, budgets, confident=options.confident)) for entry in found.entries]
    unread = _unread(found)
    passed = not unread and all(line.passed for _, of_run in gates for line in of_run)
    if options.json:
        print(json.dumps(_to_json(gates, unread, passed), indent=2, allow_nan=False))
    else:
        _print(console, gates, unread)
    sys.exit(0 if passed else 1)


def lines(entry: Entry, budgets: Iterable[Budget], *, confident: bool) -> list[Line]:
    """Each budget against a run, in their order."""
    return [
        Line(
            verdict,
            _interval(entry.card, verdict),
            confident,
            "" if verdict.value is not None else _remedy(entry, verdict.budget.key),
        )
        for verdict in judge(entry.card, budgets)
    ]


def read_budgets(path: Path) -> list[Budget]:
    """The budgets of a file: one a line, `#` begins a comment; or YAML, a list of them or a mapping.

    A mapping has the measures for keys, and `<=5` or the like for values.

    Raises:
        UserError: there is no such file, or it holds something else.
    """

    def wrong(problem: str) -> UserError:
        remedy = "one budget a line, as cost/latency_ms<=5, or a YAML list of them"
        return UserError(problem, key="--file", value=path, remedy=remedy)

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise wrong(f"cannot be read ({getattr(error, 'strerror', None) or 'no UTF-8 text'})") from None
    if path.suffix.lower() in (".yaml", ".yml"):
        texts = _from_yaml(text, wrong)
    else:
        texts = [line.partition("#")[0].strip() for line in text.splitlines()]
    budgets = parse_budgets([line for line in texts if line], key="--file")
    if not budgets:
        raise wrong("holds no budget")
    return budgets


def _from_yaml(text: str, wrong: Any) -> list[str]:
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise wrong(f"is not YAML ({first_line(error)})") from None
    if isinstance(content, dict) and list(content) == ["budgets"]:
        content = content["budgets"]
    if isinstance(content, dict):
        content = [f"{key}{bound}" for key, bound in content.items()]
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise wrong("is neither a list of budgets nor a mapping of measures to bounds")
    return content


def _interval(card: Card, verdict: Verdict) -> tuple[float, float] | None:
    if verdict.value is None:
        return None
    tested = test_count(card)
    if verdict.budget.key in _OF_TEST_IMAGES and tested:
        return wilson(round(verdict.value * tested), tested)
    of = stream_interval if verdict.budget.key.startswith(AXIS) else audited_interval
    return of(card, verdict.budget.key)


def _remedy(entry: Entry, key: str) -> str:
    if key.startswith(AXIS):
        if stream_of(entry.card) is None:
            return "train with dataset.stream=class, domain or data"
        return "leave this budget out: this stream cannot have it"
    run = entry.run_dir
    return _NEEDED.get(key, "effvit audit {run} audit=full").format(run=shlex.quote(str(run)))


def budgets_of(options: argparse.Namespace) -> list[Budget]:
    """What `--budget` and `--file` ask for; raises `UserError` for what cannot be read."""
    return parse_budgets(options.budget) + ([] if options.file is None else read_budgets(options.file))


def add_budget_options(parser: argparse.ArgumentParser, *, whose: str = "a measure") -> None:
    """`--budget` and `--file`, as `budgets_of` reads them; `whose` says what is held against them."""
    parser.add_argument(
        "--budget", action="append", default=[], metavar="BUDGET",
        help=f"{whose}, one of <= >= < >, and a number, as 'cost/latency_ms<=5'; may be given more than once",
    )  # fmt: skip
    parser.add_argument(
        "--file", type=Path, help="budgets, one a line; or .yaml: a list, or measures with bounds"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effvit check", allow_abbrev=False,
        description="Hold finished runs against budgets: a line for each, exit code 0 when all are met and 1 when one is "
        "not. What was not measured is not met.",
        epilog="example: effvit check runs/x/y --budget 'quality/accuracy>=98%%' --budget 'cost/latency_ms<=5' --confident",
    )  # fmt: skip
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run directories, or some above them"
    )
    add_budget_options(parser)
    parser.add_argument(
        "--confident", action="store_true",
        help="where a measure has a 95%% interval, its worse end must be within the budget too",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser


def _unread(found: Collected) -> list[str]:
    """Runs that a gate must not pass over: those that tell nothing."""
    return [
        *found.damaged,
        *(f"{run} has no card yet: go on with it (effvit runs tells how)" for run in found.unfinished),
        *(
            f"{run} is a run of a single batch (trainer.fast_dev_run): it says nothing"
            for run in found.trials
        ),
    ]


def _to_json(gates: list[tuple[Entry, list[Line]]], unread: list[str], passed: bool) -> dict[str, Any]:
    return {
        "passed": passed,
        "runs": [
            {
                "run_dir": str(entry.run_dir),
                "passed": all(line.passed for line in of_run),
                "budgets": [line.to_json() for line in of_run],
            }
            for entry, of_run in gates
        ],
        "not_read": unread,
    }


def _print(console: Console, gates: list[tuple[Entry, list[Line]]], unread: list[str]) -> None:
    """A line for each budget; a log of CI has no width, so nothing is cut or broken."""
    everything = [line for _, of_run in gates for line in of_run]
    key = max(len(line.verdict.budget.key) for line in everything)
    value = max(len(line.value) for line in everything)
    limit = max(len(line.limit) for line in everything)
    for entry, of_run in gates:
        console.print(Text(str(entry.run_dir), "bold"), soft_wrap=True)
        for line in of_run:
            mark = Text("pass", "green") if line.passed else Text("FAIL", "bold red")
            row = f"  {line.verdict.budget.key:{key}}  {line.value:>{value}}  {line.limit:{limit}}  "
            told = Text.assemble(mark, row, (line.note, "dim"))
            told.rstrip()
            console.print(told, soft_wrap=True)
    for why in unread:
        console.print(Text.assemble(("FAIL", "bold red"), f"  {why}"), soft_wrap=True)
    failed = sum(not line.passed for line in everything) + len(unread)
    total = len(everything) + len(unread)
    console.print(f"{total - failed} of {total} met" if failed else f"all {total} met")
