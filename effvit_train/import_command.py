"""`effvit audit RUN_DIR --import FILE.json`: what `effvit bench` measured on a device, onto the run's card."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from effvit_train.errors import UserError
from effvit_train.export.facts import PRECISIONS, PREFIX, sha256
from effvit_train.export.rows import BY_BENCH, KEY, Row, merged, row
from effvit_train.files import read_json

_SCHEMA = 1
_TEXT = 200  # characters of a name
_REMEDY = "give a file that `effvit bench` wrote"
_NEVER = {
    "latency_ratio": "PyTorch was not timed beside it",
    "throughput_ratio": "PyTorch was not timed beside it",
    "max_difference": "was compared when it was exported",
    "equal_predictions": "was compared when it was exported",
}


def import_figures(argv: Sequence[str]) -> None:
    """Put the figures of devices onto a run's card; all of the files, or none.

    Raises:
        UserError: not a finished run, not files of `effvit bench`, or of another model than the run's.
    """
    parser = argparse.ArgumentParser(
        prog="effvit audit",
        description="Put what effvit bench measured on a device onto the card of the run.",
    )
    parser.add_argument("run", metavar="RUN_DIR", type=Path)
    parser.add_argument("--import", dest="files", metavar="FILE.json", type=Path, nargs="+", required=True)
    options, others = parser.parse_known_args(list(argv))
    if others:
        raise UserError(
            "measures nothing: it takes no settings", key="--import", value=others[0],
            remedy=f"leave out {others[0]}, or audit without --import",
        )  # fmt: skip
    from effvit_train.card import Card
    from effvit_train.runs import RunDir

    run_dir = RunDir(options.run.expanduser().resolve())
    card = Card.read(run_dir.card)
    if not run_dir.weights.is_file():
        raise UserError(f"no weights at {run_dir.weights}", remedy="give the directory of a finished run")
    weights = sha256(run_dir.weights)
    rows = [_row(path, weights, options.run) for path in options.files]

    from rich.console import Console

    from effvit_train.compose import load, load_resumed
    from effvit_train.lock import RunLock
    from effvit_train.report.deployed import terminal_table
    from effvit_train.report.publish import publish

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    cfg, typed = load_resumed(run_dir, [])
    config = load(cfg, typed, say, stored=True)
    with RunLock(run_dir.path, say):
        card = Card.read(run_dir.card)
        provenance = {**card.provenance, KEY: merged(card.provenance.get(KEY), rows)}
        card = replace(card, provenance=provenance)
        card.write(run_dir.card)
        publish(run_dir, card, config, say)
    console.print(terminal_table(card))
    say(f"card: {run_dir.html}")


def _row(path: Path, weights: str, run: Path) -> Row:
    """The row of a file, checked: anybody may have written it."""
    try:
        found = read_json(path)
    except OSError:
        raise UserError("no such file", key="--import", value=path, remedy=_REMEDY) from None
    except ValueError:
        raise UserError("is not JSON", key="--import", value=path, remedy=_REMEDY) from None
    try:
        if found["schema"] != _SCHEMA or found["made_by"] != BY_BENCH:
            raise ValueError("schema")
        metadata, file, device = found["metadata"], found["file"], found["device"]
        theirs = metadata.get(PREFIX + "weights_sha256")
        if theirs is not None and theirs != weights:
            raise UserError(
                "measured the model of another run (its weights are not this run's)", key="--import", value=path,
                remedy=f"give a file made from an export of {run}",
            )  # fmt: skip
        if theirs is None:
            raise UserError(
                "does not tell what run the measured file was exported from", key="--import", value=path,
                remedy=f"bench a file that `effvit export {run}` wrote",
            )  # fmt: skip
        precision = metadata[PREFIX + "precision"]
        if precision not in PRECISIONS:
            raise ValueError("precision")
        facts = {
            "runtime": _text(found["runtime"]), "format": _text(file["format"]), "precision": precision,
            "file": _text(file["name"]), "sha256": _text(file["sha256"]), "size_mb": _number(file["size_mb"]),
            "throughput_batch": _whole(found["throughput_batch"]),
            "images": None if found["images"] is None else _whole(found["images"]),
            "device": _text(device["name"]), "threads": _whole(found["threads"]),
            "load_average": _optional(found["conditions"]["load_average"]),
            "machine": {_text(k): v if type(v) is int else _text(v) for k, v in device.items()},
            "versions": {_text(k): _text(v) for k, v in found["versions"].items()}, "when": _text(found["when"]),
            "made_by": BY_BENCH,
        }  # fmt: skip
        if (provider := found["provider"]) and provider != "CPUExecutionProvider":
            facts["runtime"] += f" ({_text(provider).removesuffix('ExecutionProvider')})"
        measured = {_text(name): _optional(value) for name, value in found["measures"].items()}
        missing = {_text(name): _text(reason) for name, reason in found["missing"].items()}
        return row(facts, measured, missing | _NEVER)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"is not a result of effvit bench that this version reads ({error})", key="--import", value=path,
            remedy=_REMEDY,
        ) from None  # fmt: skip


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is none")
    return value[:_TEXT]


def _whole(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError("a count is none")
    return value


def _number(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value < 0
    ):
        raise ValueError("a measure is no number")
    return float(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)
