"""The command line: `python train.py ...` and `effvit train|inspect|cache|cost|prune|export|report|runs ...`.

Imports late: `--help` and a wrong override answer before torch is loaded.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from effvit_train.errors import MachineError, UserError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from effvit_train.config import Config
    from effvit_train.runs import RunDir

COMMANDS = {
    "train": "train a model and write its card (the same as python train.py)",
    "cache": "let a teacher judge the training images ahead of the runs that learn from it",
    "inspect": "take stock of a data set before training on it [--json] [--learning-curve]",
    "cost": "what any model would cost on this machine, without training it [--json]",
    "prune": "cut the model of a finished run, without training it [--target macs=0.5]",
    "compress": "change the model of a finished run as a technique does, without training it [compress=NAME]",
    "audit": "measure a finished run again, on all axes [audit=full | --import FILE.json of effvit bench]",
    "export": "the model of a finished run as one file, checked and timed [--format onnx --int8 dynamic]",
    "bench": "time an exported file on a device without PyTorch; needs numpy and onnxruntime [--batch 1,16]",
    "report": "many runs on one page: Pareto front, table, 360 charts; or a card again [--summary] [--cards]",
    "compare": "two models, or two settings over seeds, on the same test images [A B --prices FILE]",
    "advise": "from finished runs: what each technique does, which to add next, what to try [--budget ...]",
    "check": "hold finished runs against budgets: exit 0 or 1, for CI [--budget 'cost/latency_ms<=5']",
    "runs": "the runs below a directory: status, epochs, accuracy, age, how to resume [--json]",
    "update": "train a shipped model on new data, and say: promote, hold or roll back [RUN_DIR dataset=NEW]",
    "sweep": "the jobs of a sweep: status DIR [--json], or retry DIR: those that are not done",
}
# Commands that take their own arguments: module and function.
ACTIONS = {
    "compare": "compare_command:compare",
    "advise": "advise_command:advise",
    "bench": "bench_command:bench",
    "check": "check_command:check",
    "export": "export_command:export",
    "prune": "prune_command:prune",
    "report": "report_command:report",
    "runs": "runs_command:runs",
    "sweep": "sweep_command:sweep",
}
# For commands that compose a configuration and make no run.
_WITHOUT_A_RUN = ("hydra.mode=RUN", "hydra.run.dir=.", "hydra.output_subdir=null")
EXAMPLES = (
    ("python train.py", "a small ViT on the digits, to a card, in about two minutes"),
    ("python train.py model=vit_s compress=distill", "ViT-S, taught by a convnet that is trained first"),
    ("python train.py -m compress=none,distill seed=1,2,3", "six runs"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script `effvit`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_help())
        sys.exit(0)
    if command == "--version":
        from effvit_train import __version__

        print(__version__)
        sys.exit(0)
    if command in ("-sc", "--shell_completion"):
        # Hydra completes `program key=`; ours has the subcommand in between
        os.environ["COMP_LINE"] = os.environ.get("COMP_LINE", "").replace("effvit train ", "effvit ", 1)
        train(arguments)
        return
    if "=" in command:  # how Lightning starts the other processes of `effvit train trainer=ddp`
        train(arguments)
        return
    actions = {
        "train": train,
        "cache": cache,
        "cost": cost,
        "inspect": inspect,
        "compress": compress,
        "audit": audit,
        "update": update,
    }
    if command in ACTIONS:
        _guarded(lambda: _load_action(ACTIONS[command])(arguments[1:]), [])
        return
    if command not in actions:
        hint = did_you_mean(command, COMMANDS) or "see effvit --help"
        _fail(UserError(f"unknown command '{command}' (there are {', '.join(COMMANDS)})", remedy=hint))
    actions[command](arguments[1:])


def _load_action(place: str) -> Callable[[Sequence[str]], None]:
    module, _, name = place.partition(":")
    action: Callable[[Sequence[str]], None] = getattr(importlib.import_module(f"effvit_train.{module}"), name)
    return action


def train(argv: Sequence[str] | None = None) -> None:
    """`effvit train [overrides]`, `python train.py [overrides]`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "-h" in arguments or "--help" in arguments:
        print(_train_help())
        sys.exit(0)
    if any(argument.lstrip("+~").startswith(("sweep", "resume=")) for argument in arguments):
        from effvit_train.search.command import is_search, search

        if is_search(arguments):
            _guarded(lambda: search(arguments), arguments)
            return
    arguments = _as_sweep(arguments)
    _with_hydra(_task, _redirect_run_dir(_redirect_resume(_redirect_queued_again(arguments))))
    if _swept(arguments):
        from effvit_train.sweep.launchers import SweepLauncher

        if SweepLauncher.exit_code:
            sys.exit(SweepLauncher.exit_code)


def cache(argv: Sequence[str]) -> None:
    """`effvit cache [overrides]`: builds the cache of the teacher that `effvit train` would learn from."""
    if {"-h", "--help"} & set(argv):
        print(
            "usage: effvit cache compress=distill compress.distill.cache.epochs=N [group=option ...] [key=value ...]\n\n"
            "Lets the teacher judge N views of each training image and keeps what it says: the same overrides as for\n"
            "training. A build that was interrupted goes on. Example:\n"
            "  effvit cache model=vit_s compress=distill compress.distill.cache.epochs=10"
        )
        sys.exit(0)
    if _swept(argv):
        _fail(UserError("effvit cache builds one cache at a time", remedy="leave out -m"))

    def task(cfg: DictConfig, overrides: list[str]) -> None:
        config = _load(cfg, overrides)
        from effvit_train.cache_command import build_cache
        from effvit_train.signals import Interrupted, Stop

        stop = Stop()
        try:
            with stop:
                build_cache(config, stop)
        except Interrupted:
            print("\ninterrupted; the same command goes on")
            sys.exit(130)

    _with_hydra(task, [*argv, *_WITHOUT_A_RUN])


def inspect(argv: Sequence[str]) -> None:
    """`effvit inspect [options] [overrides]`: takes stock of the data set that they name."""
    from effvit_train import inspect_command

    def action() -> None:
        options, overrides = inspect_command.parse(argv)
        arguments = [*overrides, *_WITHOUT_A_RUN]
        _with_hydra(lambda cfg, typed: inspect_command.inspect(options, cfg, typed), arguments)

    _guarded(action, [])


def compress(argv: Sequence[str]) -> None:
    """`effvit compress RUN_DIR compress=NAME [overrides]`: changes a finished run's model without training it."""
    from effvit_train import compress_command

    def action() -> None:
        options, overrides = compress_command.parse(argv)
        compress_command.check_overrides(overrides)
        arguments = [*overrides, *_WITHOUT_A_RUN]
        _with_hydra(lambda cfg, typed: compress_command.compress(options, cfg, overrides), arguments)

    _guarded(action, [])


def update(argv: Sequence[str]) -> None:
    """`effvit update RUN_DIR dataset=NAME [overrides]`: trains a shipped model on new data, and gives a verdict."""
    from effvit_train import update_command

    def action() -> None:
        options, overrides = update_command.parse(argv)
        if options.resume is not None:
            update_command.exit_with(update_command.go_on(options, overrides, train))
            return
        if options.run_dir is not None:
            overrides = [*overrides, f"run_dir={json.dumps(options.run_dir)}"]
        update_command.check_overrides(overrides)
        prepared: list[RunDir] = []
        _with_hydra(
            lambda cfg, typed: prepared.append(update_command.prepare(options, cfg, overrides)),
            [*overrides, *_WITHOUT_A_RUN],
        )
        update_command.exit_with(update_command.carry_out(prepared[0], train))

    _guarded(action, [])


def cost(argv: Sequence[str]) -> None:
    """`effvit cost [--json] [overrides]`: prints the card's `cost/*` measures of an untrained model."""
    if {"-h", "--help"} & set(argv):
        print(
            "usage: effvit cost [--json] [group=option ...] [key=value ...]\n\n"
            "What a model costs on this machine, without training it. A timm model by name, and no data set: at its own\n"
            "image size. Examples:\n"
            "  effvit cost model.name=vit_small_patch16_224\n"
            "  effvit cost model=vit_s dataset=cifar10\n"
            "  effvit cost model=swin_t dataset=synthetic dataset.image_size=224 dataset.num_classes=1000 dataset.channels=3"
        )
        sys.exit(0)
    if _swept(argv):
        _fail(UserError("effvit cost takes one model at a time", remedy="leave out -m"))
    as_json = "--json" in argv

    def task(cfg: DictConfig, overrides: list[str]) -> None:
        from effvit_train.compose import typed_keys
        from effvit_train.cost_command import print_cost

        typed = typed_keys(overrides)
        native = "model.name" in typed and not any(key.startswith("dataset") for key in typed)
        print_cost(_load(cfg, overrides), as_json=as_json, native=native)

    arguments = [argument for argument in argv if argument != "--json"]
    _with_hydra(task, [*arguments, *_WITHOUT_A_RUN])


def audit(argv: Sequence[str]) -> None:
    """`effvit audit RUN_DIR [audit=full] [audit.KEY=VALUE ...]`: measures a finished run again."""
    arguments = [argument for argument in argv if argument not in ("-h", "--help")]
    if len(arguments) < len(argv) or not arguments or "=" in arguments[0]:
        print(
            "usage: effvit audit RUN_DIR [audit=quick|full] [audit.KEY=VALUE ...] [dataset.root=DIR]\n"
            "       effvit audit RUN_DIR --import FILE.json ...\n\n"
            "Measures a finished run again and writes its card. An audit that was interrupted goes on. Examples:\n"
            "  effvit audit runs/x/y audit=full\n"
            "  effvit audit runs/x/y 'audit.parts=[corruptions]' audit.corrupted_images=null   # on all test images\n"
            "  effvit audit runs/x/y 'audit.groups=[sender_id]' audit.ood=digits 'audit.ensemble=[runs/x/z]'\n"
            "  effvit audit runs/x/y --import model.onnx.bench.json   # what effvit bench measured on a device"
        )
        sys.exit(0 if len(arguments) < len(argv) else 2)
    if any(argument.partition("=")[0] == "--import" for argument in arguments):
        from effvit_train.import_command import import_figures

        _guarded(lambda: import_figures(arguments), [])
        return

    def action() -> None:
        from effvit_train.audit_command import audit_run
        from effvit_train.signals import Interrupted, Stop

        try:
            audit_run(Path(arguments[0]), arguments[1:], Stop())
        except Interrupted:
            print("\ninterrupted; the same command goes on")
            sys.exit(130)

    _guarded(action, [])


def _task(cfg: DictConfig, overrides: list[str]) -> None:
    from hydra.core.hydra_config import HydraConfig

    from effvit_train.runs import RunDir, discard

    if cfg.resume is not None:
        resumed = RunDir(Path(cfg.resume).expanduser().resolve())
        try:
            _resume(resumed, overrides)
        except Exception as error:
            if not _changes(overrides):  # or the fault may be in what was typed, and not the run's
                _keep_error(resumed, error)
            raise
        return
    run_dir = RunDir(Path(HydraConfig.get().runtime.output_dir))
    try:
        config = _load(cfg, overrides)
        if any(getattr(technique, "dry_run", False) for technique in config.compress.values()):
            from effvit_train.preview_command import show_previews

            show_previews(config)
            discard(run_dir.path)
        else:
            _run(config, overrides, run_dir)
            discard(run_dir.path)  # another than the first process has nothing in a directory of its own
    except BaseException:
        discard(run_dir.path)
        raise


def _resume(run_dir: RunDir, overrides: list[str]) -> None:
    from effvit_train.compose import load_resumed, typed_keys
    from effvit_train.runs import RunState

    cfg, first = load_resumed(run_dir, overrides)
    config = _load(cfg, first, stored=True)
    wanted = 1 if config.trainer.fast_dev_run else config.trainer.max_epochs
    state = RunState.read(run_dir.state) if run_dir.state.exists() else None
    if state is not None and state.made_by is not None:
        raise UserError(
            f"was made by {state.made_by}, without training: there is nothing to go on with", key="resume",
            value=run_dir.path, remedy=f"start a run from it with model.weights={run_dir.path}",
        )  # fmt: skip
    if state is not None and state.status == "done" and state.epochs >= wanted:
        if state.epochs > wanted and "trainer.max_epochs" in typed_keys(overrides):
            raise UserError(
                f"{state.epochs} epochs are trained already", key="trainer.max_epochs", value=wanted,
                remedy=f"at least {state.epochs}",
            )  # fmt: skip
        print(f"{run_dir.path} is finished ({state.epochs} epochs): nothing to do\ncard: {run_dir.html}")
        return
    _run(config, [*first, *_changes(overrides)], run_dir, resumed=True)


def _changes(overrides: list[str]) -> list[str]:
    """What the command line of a resume changes of the run."""
    return [item for item in overrides if not item.lstrip("+").startswith(("resume=", "hydra", "run_dir="))]


def _keep_error(run_dir: RunDir, error: Exception) -> None:
    """Nobody reads what a job of a sweep prints: the one line stays in state.json, for `effvit sweep status`."""
    import contextlib

    from effvit_train import lock
    from effvit_train.compose import explain
    from effvit_train.errors import first_line
    from effvit_train.runs import QUEUED, RunState

    if lock.holder(run_dir.path) is not None:  # another process runs it: nothing has failed but this one
        return
    with contextlib.suppress(UserError, OSError):
        state = RunState.read(run_dir.state)
        if state.status == "done":
            return
        state.status = "failed" if state.status == QUEUED else state.status
        state.error = str(explain(error, []) or first_line(error))
        state.write(run_dir.state)


def _run(config: Config, overrides: list[str], run_dir: RunDir, *, resumed: bool = False) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from effvit_train.runs import ensure_writable, resume_command

    if (
        HydraConfig.get().mode == RunMode.MULTIRUN
        and config.trainer.devices != 1
        and "LOCAL_RANK" not in os.environ
    ):
        raise UserError(
            "several processes cannot be started from a sweep in this process", key="trainer.devices",
            value=config.trainer.devices, remedy="add hydra/launcher=parallel or slurm, or use one device per job",
        )  # fmt: skip
    ensure_writable(run_dir.path)
    from effvit_train import slurm
    from effvit_train.signals import Interrupted, Stop

    stop = Stop()
    stop.defer(True)  # importing takes seconds, and half an import cannot be taken up again
    try:
        with stop:
            from effvit_train.compose import model_label
            from effvit_train.job import Job, is_first_process, run_job

            stop.defer(False)
            stop.check()
            model = model_label(config, overrides)
            card = run_job(Job(config, run_dir, config.name, model, overrides, resumed=resumed, stop=stop))
            if card is not None and config.update.after is not None:
                from effvit_train.update_command import conclude

                conclude(config, run_dir)
    except Interrupted as stopped:
        if not is_first_process():
            sys.exit(0)  # the first process has the word; whoever started us would take 130 for a crash
        begun = run_dir.state.exists()
        if HydraConfig.get().mode != RunMode.MULTIRUN and slurm.queue_again(stopped.signum):
            print("\ninterrupted; the job is queued again and will go on", flush=True)
            sys.exit(0)
        how = f"to go on: {resume_command(run_dir.path)}" if begun else "nothing had begun"
        print(f"\ninterrupted; {how}")
        sys.exit(130)


def _load(cfg: DictConfig, overrides: list[str], *, stored: bool = False) -> Config:
    from effvit_train.compose import load, refuse_set

    refuse_set()
    return load(cfg, overrides, print, stored=stored)


def _with_hydra(task: Callable[[DictConfig, list[str]], None], arguments: list[str]) -> None:
    """Compose with Hydra, run `task` once per job; every user's mistake ends in one line, exit 2."""
    from effvit_train.compose import conf_dir, register, settings_of_swept_groups

    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    script = sys.argv[0]

    def run() -> None:
        import hydra
        from hydra.core.hydra_config import HydraConfig

        register()
        typed = arguments
        if _swept(arguments):
            if {"--cfg", "-c"} & set(arguments):
                raise UserError("--cfg shows the configuration of one run", remedy="leave out -m")
            typed = settings_of_swept_groups(arguments)

        def job(cfg: DictConfig) -> None:
            overrides = list(HydraConfig.get().overrides.task)
            try:
                task(cfg, overrides)
            except Exception as error:
                if full_error:
                    raise
                # Hydra would print a line of its own before ours, and exit 1
                _fail(error, overrides)

        job.__module__ = __name__
        sys.argv = [script, *typed]
        # Hydra formats errors itself unless it is told to raise them
        os.environ["HYDRA_FULL_ERROR"] = "1"
        hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()

    try:
        run()
    except Exception as error:
        if full_error:
            raise
        if isinstance(error, OSError) and error.strerror:  # outside the job, Hydra only makes directories
            problem = f"cannot be written ({error.strerror})"
            error = UserError(problem, key="run_dir", value=error.filename, remedy="e.g. run_dir=runs/mine")
        _fail(error, [argument for argument in arguments if "=" in argument])
    finally:
        if not full_error:
            os.environ.pop("HYDRA_FULL_ERROR", None)


def _guarded(action: Callable[[], None], overrides: list[str]) -> None:
    try:
        action()
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        _fail(error, overrides)


def _fail(error: Exception, overrides: Sequence[str] = ()) -> None:
    """Print the one line and exit 2; an error that is not the user's keeps its traceback, exit 1."""
    if isinstance(error, MachineError):
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    ours = _explained(error, list(overrides))
    if ours is None:
        import traceback

        traceback.print_exception(error)
        print("this is a bug in effvit_train, not in your input", file=sys.stderr)
        sys.exit(1)
    print(f"error: {ours}", file=sys.stderr)
    sys.exit(2)


def _explained(error: Exception, overrides: list[str]) -> UserError | None:
    if isinstance(error, UserError):
        return error
    try:
        from effvit_train.compose import explain
    except ImportError:  # `effvit bench` runs where there is no Hydra
        return None
    return explain(error, overrides)


def _swept(arguments: Sequence[str]) -> bool:
    return "-m" in arguments or "--multirun" in arguments


def _as_sweep(arguments: list[str]) -> list[str]:
    """An experiment that is a set of runs is a sweep, with or without -m."""
    if {"-m", "--multirun", "--cfg", "--info", "-c", "-i", "-sc", "--shell_completion"} & set(arguments):
        return arguments
    from effvit_train.compose import is_set

    return ["--multirun", *arguments] if is_set(arguments) else arguments


def _redirect_queued_again(arguments: list[str]) -> list[str]:
    """A Slurm job that was queued again runs the same command: it goes on with the run that it began."""
    from effvit_train import slurm

    if _swept(arguments) or any(item.startswith("resume=") for item in arguments):
        return arguments
    run = slurm.run_to_continue(arguments)
    return arguments if run is None else [f"resume={run.resolve()}"]


def _redirect_resume(arguments: list[str]) -> list[str]:
    """A resumed run writes into its own directory: Hydra must not make another."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "resume" and value not in ("", "null"):
            path = Path(value.strip("'\"")).expanduser()
            if _swept(arguments):
                _fail(
                    UserError("cannot be part of a sweep", key="resume", value=value, remedy="leave out -m")
                )
            if not path.is_dir():
                _fail(UserError("is no directory", key="resume", value=value, remedy="give a run directory"))
            return [
                *arguments,
                f"hydra.run.dir={json.dumps(str(path.resolve()))}",
                "hydra.output_subdir=null",
            ]
    return arguments


def _redirect_run_dir(arguments: list[str]) -> list[str]:
    """With -m, `run_dir=DIR` is the directory of the whole sweep; its jobs are numbered below it."""
    given = [argument for argument in arguments if argument.startswith("run_dir=")]
    if not given:
        return arguments
    sweep = _swept(arguments)
    path = Path(given[-1][8:].strip("'\"")).expanduser()
    if any(path.glob("*/state.json" if sweep else "state.json")) and _starts_the_run():
        go_on = f"effvit sweep retry {path}" if sweep else f"resume={path}"
        remedy = f"go on with {go_on}, or give another directory"
        _fail(UserError("holds a run already", key="run_dir", value=path, remedy=remedy))
    if not sweep:
        return arguments
    return [
        *(argument for argument in arguments if argument not in given),
        f"hydra.sweep.dir={given[-1][8:]}",
    ]


def _starts_the_run() -> bool:
    """Whether no process before us, of the same run, has made its directory."""
    return "LOCAL_RANK" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0"


def _help() -> str:
    lines = ["effvit: train a vision transformer to a budget; see every trade-off on one card", ""]
    lines += [f"  effvit {name:8} {what}" for name, what in COMMANDS.items()]
    lines += ["", "`effvit train --help` lists the configuration groups."]
    return "\n".join(lines)


def _train_help() -> str:
    from effvit_train.compose import GROUPS, group_options
    from effvit_train.runs import program as program_name

    program = program_name()
    lines = [
        f"usage: {program} [group=option ...] [key=value ...]",
        "",
        "groups (first: what to choose from):",
    ]
    lines += [
        f"  {group:11} {', '.join(group_options(group)) or '(yours: --config-dir DIR)'}" for group in GROUPS
    ]
    lines += [
        "",
        "  compress takes one or several: compress=distill, 'compress=[distill,...]'",
        "",
        "examples:",
    ]
    lines += [f"  {command.replace('python train.py', program):52} {what}" for command, what in EXAMPLES]
    lines += [
        "",
        "  --cfg job          print the configuration instead of running",
        "  -m                 sweep: every combination of comma-separated values",
        "  sweep=pareto       search for the best trade-offs (docs/search.md)",
        "  --config-dir DIR   add your own configurations",
        "  resume=RUN_DIR     go on with an interrupted run",
        f'  completion         eval "$({program} -sc install=bash)"',
    ]
    return "\n".join(lines)
