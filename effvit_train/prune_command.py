"""`effvit prune`: cut a finished model once, with what its remaining units can make up for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from effvit_train.compress.prune.config import CRITERIA, PruneConfig, TargetConfig
from effvit_train.compress.prune.plan import record_of
from effvit_train.compress.prune.preview import plan_table
from effvit_train.compress.prune.pruner import Decision, Pruner, batches
from effvit_train.derived import check_out, train_further, write_derived
from effvit_train.errors import UserError, did_you_mean
from effvit_train.finished import Finished, open_finished
from effvit_train.keys import stream_key
from effvit_train.models.quantised import refuse_cutting
from effvit_train.module import VisionModule
from effvit_train.runs import RunDir, ensure_writable

MADE_BY = "effvit prune"
_TARGETS = ("macs", "params", "latency_ms")


def prune(argv: Sequence[str]) -> None:
    """`effvit prune RUN_DIR --target macs=0.5 ... [options]`.

    Raises:
        UserError: bad arguments, not a finished run, or a target that cannot be met.
    """
    options = _parser().parse_args(list(argv))
    settings = _settings(options)
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    source = Path(options.run)
    target = Path(options.out) if options.out else _default_out(source, settings)
    if not options.dry_run:
        check_out(target)
    run = open_finished(
        source, say, overrides=[f"dataset.root={options.data_root}"] if options.data_root else []
    )
    if run.config.privacy.on and settings.reads_data:
        raise UserError(
            "was trained with differential privacy, which looking at its training images again would undo",
            key="RUN_DIR", value=source, remedy="--importance magnitude --compensate none",
        )  # fmt: skip
    refuse_cutting(run.model, "RUN_DIR", source)
    module = run.module()
    pruner = Pruner(settings, run.record)
    pruner.check()
    if not pruner.ready:
        pruner.measure(run.model, say)
        pruner.check()
    seed = stream_key("prune", run.config.seed, 1)
    decision = pruner.decide(run.model, batches(settings, module, run.data), 1, 1, seed=seed)
    console.print(plan_table(pruner, decision))
    assert decision is not None  # the table has refused that
    if options.dry_run:
        return
    ensure_writable(target, key="--out")
    module.cut(decision.operations, record_of(decision.plan, step=0))
    _write(run, module, pruner, decision, RunDir(target.resolve()), console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="effvit prune",
        description="Cut the model of a finished run once, without training: the result is a run directory of its own.",
        epilog="to train it further: effvit train model.weights=DIR model=... dataset=... (as the run was started)",
    )
    parser.add_argument("run", metavar="RUN_DIR")
    parser.add_argument(
        "--target", nargs="+", required=True, metavar="COST=VALUE",
        help="macs=0.5, params=0.5 (fractions of the model as it is), latency_ms=5; several are all met",
    )  # fmt: skip
    parser.add_argument(
        "--kinds", default="heads,mlp", help="of heads,head_width,mlp,embed,blocks (default heads,mlp)"
    )
    parser.add_argument("--importance", default="hessian", help=", ".join(CRITERIA))
    parser.add_argument("--allot", default="isomorphic", help="isomorphic, global, uniform")
    parser.add_argument(
        "--compensate", default="least_squares",
        help="least_squares (default), mean or none: what the units that stay make up for",
    )  # fmt: skip
    parser.add_argument("--round-to", type=int, default=8, help="widths end at multiples of it (default 8)")
    parser.add_argument(
        "--calibration", type=int, default=1024, help="training images to look at (default 1024)"
    )
    parser.add_argument("--data-root", help="where the run's data are now, if they have moved")
    parser.add_argument("--out", help="the new run directory; default: beside RUN_DIR")
    parser.add_argument("--dry-run", action="store_true", help="show what would be cut, and write nothing")
    return parser


def _settings(options: argparse.Namespace) -> PruneConfig:
    target: dict[str, float] = {}
    for item in options.target:
        name, _, value = item.partition("=")
        if name not in _TARGETS:
            hint = did_you_mean(name, _TARGETS) or "e.g. --target macs=0.5"
            raise UserError(f"must be of {', '.join(_TARGETS)}", key="--target", value=item, remedy=hint)
        try:
            target[name] = float(value)
        except ValueError:
            raise UserError(
                "must be a number", key=f"--target {name}", value=value or "nothing",
                remedy=f"e.g. --target {name}=0.5",
            ) from None  # fmt: skip
    settings = PruneConfig(
        target=TargetConfig(**target), kinds=options.kinds.split(","), importance=options.importance,
        allot=options.allot, compensate=options.compensate, round_to=options.round_to,
        calibration=options.calibration, schedule="one_shot",
    )  # fmt: skip
    try:
        settings.validate()
    except UserError as error:
        key = (error.key or "").removeprefix("compress.prune.")
        flag = f"--target {key.removeprefix('target.')}" if key.startswith("target.") else f"--{key}"
        raise UserError(
            error.problem, key=flag.replace("_", "-"), value=error.value, remedy="see effvit prune --help"
        ) from None
    return settings


def _default_out(source: Path, settings: PruneConfig) -> Path:
    words = "-".join(f"{name}{value:g}" for name, value in settings.targets.items())
    source = source.expanduser().resolve()
    return source.with_name(f"{source.name}-pruned-{words}")


def _write(
    run: Finished, module: VisionModule, pruner: Pruner, decision: Decision, out: RunDir, console: Console
) -> None:
    after = pruner.costs_after(decision.structure, decision.plan)
    pruning = pruner.facts() | {
        "made_by": MADE_BY, "of": str(run.run_dir.path),
        "cuts": [{**after, "blocks": list(decision.plan.blocks), "widths": dict(decision.plan.widths)}],
    }  # fmt: skip
    write_derived(
        run,
        module,
        out,
        made_by=MADE_BY,
        techniques=["prune"],
        provenance={"pruning": pruning},
        console=console,
    )
    console.print(
        f"next: {train_further(out, run.overrides)}   # train what was cut",
        highlight=False, soft_wrap=True, markup=False,
    )  # fmt: skip
