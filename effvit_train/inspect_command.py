"""`effvit inspect`: what is in a data set, and whether it is enough, before anything is trained on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from effvit_train.errors import UserError
from effvit_train.stock.learning import Fit, answer, fit, read_accuracy

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from effvit_train.config import Config
    from effvit_train.stock.survey import Surveyed
    from effvit_train.stock.trainings import Trained

FRACTIONS = "0.1,0.3,1"
_AHEAD = (2, 10)  # times the data that are forecast


@dataclass(frozen=True)
class Options:
    """What was typed beside the overrides.

    Attributes:
        as_json: print one JSON object.
        pairs: where to write pictures of near-duplicates; None = nowhere.
        fractions: of the learning curve, ascending; empty = none is asked for.
        accuracies: that are asked for.
    """

    as_json: bool
    pairs: Path | None
    fractions: tuple[float, ...]
    accuracies: tuple[float, ...]


def parse(argv: Sequence[str]) -> tuple[Options, list[str]]:
    """Part options from overrides.

    Raises:
        UserError: a fraction or an accuracy that cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="effvit inspect", allow_abbrev=False,
        usage="effvit inspect [options] [group=option ...] [key=value ...]",
        description="Take stock of a data set: counts and balance, sizes, groups, duplicates within and across splits, "
        "files that cannot be read, how fine a difference the test images show, and on request a learning curve.",
        epilog="examples: effvit inspect dataset=image_folder dataset.root=DIR dataset.split_group=sender_id; "
        "effvit inspect --learning-curve --accuracy 98%%",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE.png", help="write near-duplicates side by side, to look at"
    )
    parser.add_argument(
        "--learning-curve", action="store_true",
        help="train on shares of the training images, with the overrides as for training; runs are kept in runs/inspect",
    )  # fmt: skip
    parser.add_argument("--fractions", metavar="F,F,...", help=f"the shares (default {FRACTIONS})")
    parser.add_argument(
        "--accuracy", action="append", default=[], metavar="A",
        help="are the data enough for it? (answered by --learning-curve) may be given more than once",
    )  # fmt: skip
    options, overrides = parser.parse_known_args(list(argv))
    if {"-m", "--multirun"} & set(overrides):
        raise UserError("effvit inspect takes one data set at a time", remedy="leave out -m")
    curve = options.learning_curve or options.fractions is not None
    accuracies = tuple(read_accuracy(text) for text in options.accuracy)
    fractions = _fractions(options.fractions or FRACTIONS) if curve else ()
    return Options(options.json, options.pairs, fractions, accuracies), overrides


def inspect(options: Options, cfg: DictConfig, overrides: list[str]) -> None:
    """Take stock, and print it.

    Args:
        options: from `parse`.
        cfg: composed.
        overrides: that were typed.

    Raises:
        UserError: the set cannot be used as configured.
    """
    from effvit_train.compose import load
    from effvit_train.stock.sheet import write_sheet
    from effvit_train.stock.show import show
    from effvit_train.stock.survey import survey

    aside = Console(stderr=True) if options.as_json else Console()
    console = Console(highlight=False)

    def say(line: str) -> None:
        aside.print(line, highlight=False, markup=False, soft_wrap=True)

    config = load(cfg, overrides, say)
    _check(config, options)
    surveyed = survey(config, say)
    if not options.as_json:
        show(surveyed.stock, console, private=config.privacy.on)
    if options.pairs is not None:
        shown = write_sheet(options.pairs, surveyed)
        say(f"\n{shown} pairs: {options.pairs}" if shown else "\nno near-duplicates: nothing to look at")
    trained = _train(config, options, surveyed, overrides, aside) if options.fractions else []
    told = surveyed.stock.to_json() | _evidence(surveyed, options)
    if trained:
        told["learning_curve"] = _curve(trained, options, None if options.as_json else console)
    elif not options.as_json:
        _ask_for_curve(told, options, console)
    if options.as_json:
        told["covered_by_privacy"] = False if config.privacy.on else None
        print(json.dumps(told, indent=2, allow_nan=False))


def _fractions(text: str) -> tuple[float, ...]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0 < values[0] <= values[-1] <= 1:
        raise UserError(
            "must be numbers in (0, 1], parted by commas",
            key="--fractions",
            value=text,
            remedy=f"e.g. {FRACTIONS}",
        )
    return tuple(values)


def _check(config: Config, options: Options) -> None:
    if options.pairs is not None:
        from effvit_train.runs import ensure_writable

        if options.pairs.suffix.lower() != ".png":
            raise UserError(
                "must be a .png", key="--pairs", value=options.pairs, remedy="e.g. --pairs pairs.png"
            )
        ensure_writable(options.pairs.parent, key="--pairs")
    if not options.fractions:
        return
    if config.privacy.on:
        raise UserError(
            "the trainings of a learning curve would spend the privacy budget once each, on the same images",
            key="--learning-curve", remedy="privacy=none where the images may be looked at, or leave it out",
        )  # fmt: skip
    if config.trainer.fast_dev_run:
        raise UserError(
            "a single batch gives no learning curve",
            key="trainer.fast_dev_run",
            value=True,
            remedy="leave it out",
        )


def _evidence(surveyed: Surveyed, options: Options) -> dict[str, Any]:
    """Whether the test images could show the accuracies that are asked for."""
    from effvit_train.stock.resolution import images_to_prove

    images = surveyed.stock.test_images
    return {
        "asked": [
            {"accuracy": accuracy, "test_images": images, "test_images_needed": images_to_prove(accuracy)}
            for accuracy in options.accuracies
        ]
    }


def _ask_for_curve(told: dict[str, Any], options: Options, console: Console) -> None:
    for asked in told["asked"]:
        needed, images = asked["test_images_needed"], asked["test_images"]
        enough = "are enough" if images >= needed else "are too few"
        console.print(
            f"\nTo show an accuracy of {asked['accuracy']:.4g} with 95 % confidence takes {needed:,} test images at "
            f"least, all of them right: these {images:,} {enough}.",
            soft_wrap=True,
        )
    if options.accuracies:
        console.print("Whether the training images are enough, --learning-curve tells.")


def _train(
    config: Config, options: Options, surveyed: Surveyed, overrides: list[str], console: Console
) -> list[Trained]:
    from effvit_train.signals import Interrupted, Stop
    from effvit_train.stock.trainings import train_curve

    stop = Stop()
    try:
        with stop:
            return train_curve(config, overrides, options.fractions, surveyed.stock.info, stop, console)
    except Interrupted:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)


def _curve(trained: list[Trained], options: Options, console: Console | None) -> dict[str, Any]:
    """The curve for `--json`; printed too where there is a console."""
    points = [one.point for one in trained]
    fitted: Fit | None = fit(points) if len({point.images for point in points}) > 1 else None
    answers = [] if fitted is None else [answer(points, fitted, accuracy) for accuracy in options.accuracies]
    if console is not None:
        from effvit_train.stock.show import show_curve

        show_curve([(one.fraction, one.epochs, one.point) for one in trained], fitted, answers, console)
    return {
        "points": [one.to_json() for one in trained],
        "law": None if fitted is None else {**asdict(fitted.law), "b_interval": list(fitted.exponent)},
        "extrapolated": [] if fitted is None else [asdict(fitted.forecast(times)) for times in _AHEAD],
        "answers": [asdict(one) for one in answers],
    }
