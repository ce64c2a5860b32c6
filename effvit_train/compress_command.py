"""`effvit compress`: what a technique makes of a finished run's model, without training it."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effvit_train.errors import UserError
from effvit_train.moment import Moment

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from effvit_train.config import Config
    from effvit_train.finished import Finished
    from effvit_train.parts import PlannedChange

MADE_BY = "effvit compress"
_ALLOWED = ("compress", "audit", "dataset.root", "dataset.num_workers", "trainer.num_threads")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and overrides of the configuration."""
    parser = argparse.ArgumentParser(
        prog="effvit compress",
        usage="effvit compress RUN_DIR compress=NAME [compress.NAME.KEY=VALUE ...] [--out DIR]",
        description="Change the model of a finished run as a technique does, without training: the result is a run "
        "directory of its own, with a card.",
        epilog="examples:  effvit compress runs/x/y compress=merge_tokens compress.merge_tokens.r=4   "
        "effvit compress runs/x/y 'compress=[lowrank,quantize]' compress.lowrank.energy=0.9",
    )
    parser.add_argument("run", metavar="RUN_DIR")
    parser.add_argument("--out", help="the new run directory; default: beside RUN_DIR")
    return parser.parse_known_args(list(argv))


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `UserError` for what is neither a technique nor how to measure it."""
    from effvit_train.compose import parse_overrides, typed_keys

    for item in overrides:
        if item.startswith("-") or "=" not in item:
            raise UserError(f"{item!r} is no override", remedy="see effvit compress --help")
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if not any(key == name or key.startswith(f"{name}.") for name in _ALLOWED) or key == "audit.canaries":
            raise UserError(
                "is as the run was trained", key=key, value=override.value(),
                remedy=f"effvit compress takes {', '.join(_ALLOWED)}; for anything else train: model.weights=RUN_DIR",
            )  # fmt: skip
    if "compress" not in typed_keys(overrides):
        raise UserError(
            "no technique is named", key="compress", remedy="e.g. effvit compress RUN_DIR compress=quantize"
        )


def compress(options: argparse.Namespace, cfg: DictConfig, overrides: list[str]) -> None:
    """Carry out the techniques of a composed configuration on a finished run.

    Raises:
        UserError: it is not a finished run, or a technique cannot be had without training, or not for this model.
    """
    import torch
    from rich.console import Console

    from effvit_train.compose import load
    from effvit_train.derived import check_out, train_further, write_derived
    from effvit_train.finished import open_finished
    from effvit_train.models.quantised import is_quantised
    from effvit_train.runs import RunDir, ensure_writable

    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    wanted = load(cfg, overrides, say)
    names = [name for name in wanted.compress if name != "none"]
    if not names:
        raise UserError("changes nothing", key="compress", value="none", remedy="name a technique")
    source = Path(options.run).expanduser()
    beside = source.resolve()
    out = Path(options.out) if options.out else beside.with_name(f"{beside.name}-{'-'.join(names)}")
    check_out(out)
    if wanted.trainer.num_threads is not None:
        torch.set_num_threads(wanted.trainer.num_threads)
    run = open_finished(source, say, overrides=[item for item in overrides if item.startswith("dataset.")])
    changes = planned(run, wanted, say)
    module = run.module()
    provenance: dict[str, Any] = {}
    for change in changes:
        decided = change.decide(module, run.data, 0)
        if decided is None:
            say(f"{change.name}: nothing to change")
            continue
        module.cut(decided.operations, decided.entry)
        provenance[change.name] = {**decided.facts, "made_by": MADE_BY, "of": str(run.run_dir.path)}
        say(f"{change.name}: {decided.words or 'the model is changed'}")
    if not provenance:
        raise UserError(
            "leaves the model as it is", key="compress", value=",".join(names), remedy="ask for more"
        )
    ensure_writable(out, key="--out")
    target = RunDir(out.resolve())
    if any(item.startswith("audit") for item in overrides):
        run.config.audit = wanted.audit
    write_derived(
        run, module, target, made_by=MADE_BY, techniques=names, provenance=provenance, console=console
    )
    if not is_quantised(module.model):
        say(f"next: {train_further(target, run.overrides)}   # train what was changed")


def planned(run: Finished, wanted: Config, say: Any) -> list[PlannedChange]:
    """The changes that the configured techniques make of a run's model, in order.

    Raises:
        UserError: a technique needs a training, or refuses the run or its model.
    """
    from effvit_train.keys import AugmentStream
    from effvit_train.parts import Context, check_composition
    from effvit_train.techniques import all_parts, techniques

    config = run.config
    config.compress = wanted.compress
    config.recipe = dataclasses.replace(config.recipe, tune="all")  # nothing is trained
    typed = {"compress", *(f"compress.{name}" for name in config.compress)}
    if config.privacy.on:
        typed.add("privacy")
    check_composition(config, all_parts(), typed, say)

    def no_training(*_: Any) -> Any:
        raise UserError(
            "needs a training",
            key="compress",
            value=",".join(config.compress),
            remedy="train: model.weights=RUN_DIR",
        )

    context = Context(
        config, run.data.info, run.data.indices("train"), run.data.indices("train")[:0], AugmentStream(config.seed),
        "cpu", run.model, run.record, no_training, no_training, lambda processes: 1, say,
    )  # fmt: skip
    changes: list[PlannedChange] = []
    for name, technique in techniques().items():
        if not technique.PART.active(config):
            continue
        if name == "prune":
            raise UserError(
                "has a command of its own", key="compress", value="prune",
                remedy="effvit prune RUN_DIR --target macs=0.5",
            )  # fmt: skip
        if name not in config.compress:
            continue  # of the run: it has done its work
        attached = technique.attach(config, context).changes
        if not attached:
            raise UserError(
                "changes nothing without a training", key="compress", value=name,
                remedy=f"train: compress={name} model.weights=RUN_DIR",
            )  # fmt: skip
        for change in attached:
            if change.trains:
                raise UserError(
                    "is a way of training, and nothing is trained here", key=change.trains, value=True,
                    remedy=f"leave it out, or train: compress={name} {change.trains}=true model.weights=RUN_DIR",
                )  # fmt: skip
        changes += attached
    return sorted(changes, key=lambda change: _order(change.moment))


def _order(moment: Moment) -> float:
    return moment.value if moment.unit == "fraction" else 0.5
