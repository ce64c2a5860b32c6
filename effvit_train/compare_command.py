"""`effvit compare`: two models, or two settings over several seeds, on the same test images."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effvit_train.errors import UserError

if TYPE_CHECKING:
    from effvit_train.report.ab.pictures import Shown
    from effvit_train.report.ab.sides import Side

IMAGES = 12
_EPILOG = """\
A side is one run, or runs that differ in their seed only: a run directory, a directory above several, or several
parted by commas. One run a side gives a verdict on these two models; three seeds a side or more one on settings.

  effvit compare runs/plain runs/distilled
  effvit compare runs/a/0,runs/a/1,runs/a/2 runs/b             three seeds each
  effvit compare runs/sweep                                    a sweep that holds two arms
  effvit compare runs/sweep --a plain --b prune                two of several
  effvit compare runs/a runs/b --prices prices.yaml --group sender_id

A price list is a YAML file with what you pay; other keys are refused:
  currency: EUR          # shown beside every amount
  per_kwh: 0.25          # of electricity; leave it out where the price of the machine holds it
  machines:              # the first one that matches counts
    - match: AMD EPYC    # part of the processor's or GPU's name on the card
      per_hour: 0.12     # of the whole machine
or, for whatever machine the runs were measured on, the two lines
  currency: EUR
  per_hour: 0.12

docs/compare.md explains the statistics."""


def compare(argv: Sequence[str]) -> None:
    """Compare two sides, print a table and one sentence, and write a page.

    Raises:
        UserError: an argument is wrong, or a side is not one run or runs that differ in their seed only.
    """
    options = _parser().parse_args(list(argv))
    _check(options)
    from rich.console import Console

    from effvit_train.files import write_text
    from effvit_train.prices import read_prices
    from effvit_train.report.ab import page, terminal, told
    from effvit_train.report.ab.outcome import compare_sides
    from effvit_train.report.ab.sides import choose
    from effvit_train.runs import ensure_writable

    console = Console(stderr=options.json, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    prices = read_prices(options.prices) if options.prices else None
    a, b = choose(options.first, options.second, arm_a=options.a, arm_b=options.b, say=say)
    out = None if options.json and options.out is None else options.out or Path()
    if out is not None:
        ensure_writable(out, key="--out")
    data = _data(a, options, say)
    outcome = compare_sides(
        a, b, level=options.level, groups=data.groups, no_groups=data.no_groups, prices=prices
    )
    if options.json:
        print(json.dumps(told.to_json(outcome), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        console.print(terminal.table(outcome))
    if out is not None:
        path = out / f"compare-{_slug(a)}-{_slug(b)}.html"
        write_text(path, page.render(outcome, data, shown=options.images))
        say(f"page: {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effvit compare", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Two models, or two settings over several seeds, on the same test images.",
    )  # fmt: skip
    parser.add_argument("first", metavar="A", help="run directories of side A, or of both sides")
    parser.add_argument("second", metavar="B", nargs="?", help="run directories of side B")
    parser.add_argument(
        "--a", metavar="ARM", help="which settings are side A, where a directory holds several"
    )
    parser.add_argument("--b", metavar="ARM", help="which are side B")
    parser.add_argument("--level", type=float, default=0.05, help="of every test (default: 0.05)")
    parser.add_argument(
        "--prices", type=Path, metavar="FILE", help="price list, for the cost of a million images"
    )
    parser.add_argument(
        "--group", action="append", default=[], metavar="COLUMN",
        help="compare the groups of this column of labels.csv too (default: those with few values)",
    )  # fmt: skip
    parser.add_argument("--root", type=Path, metavar="DIR", help="where the data set is now, if it has moved")
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        metavar="N",
        help=f"flipped images shown of a kind (default: {IMAGES})",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the page goes (default: here)")
    parser.add_argument(
        "--json", action="store_true", help="print everything as JSON; a page only with --out"
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if not 0 < options.level < 0.5:
        raise UserError(
            "must be above 0 and below 0.5", key="--level", value=options.level, remedy="e.g. --level 0.05"
        )
    if options.images < 0:
        raise UserError(
            "must be 0 or more", key="--images", value=options.images, remedy=f"e.g. --images {IMAGES}"
        )
    if options.root is not None and not options.root.is_dir():
        raise UserError(
            "is no directory", key="--root", value=options.root, remedy="where the data set is now"
        )


def _data(a: Side, options: argparse.Namespace, say: Callable[[str], None]) -> Shown:
    """The groups and pictures of the test images, where the data can be read or the user insists."""
    from effvit_train.report.ab.pictures import Shown, wanted

    pictures = options.images if not options.json or options.out is not None else 0
    if not wanted(a, pictures=pictures > 0, columns=options.group):
        return Shown()
    from effvit_train.report.ab.open_data import open_test_set

    try:
        return open_test_set(a.entries[0], root=options.root, columns=options.group, say=say)
    except UserError as error:
        if options.root is not None or options.group:
            raise
        reason = f"the data set cannot be read ({error}); if it has moved, give --root DIR"
        return Shown(no_groups=reason, no_pictures=reason)


def _slug(side: Side) -> str:
    """The run's id, or the label of several."""
    name = str(side.entries[0].card.run.get("id") or "") if len(side.entries) == 1 else side.label
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_")[:60] or side.name
