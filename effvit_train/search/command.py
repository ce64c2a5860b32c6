"""`python train.py sweep=OPTION [overrides]`: begins a study, joins it, or goes on with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override

from effvit_train import slurm
from effvit_train.compose import conf_dir, explain, load, parse_overrides, register
from effvit_train.errors import UserError
from effvit_train.runs import ensure_writable, program, slurm_job
from effvit_train.search.config import read_sweep
from effvit_train.search.definition import NAME, Definition, join, new_name
from effvit_train.search.process import TrainedTrial, trial_environment
from effvit_train.search.results import show_results, write_results
from effvit_train.search.space import entry_of, overridden
from effvit_train.search.study import LOCKS, SharedStudy, optuna
from effvit_train.search.worker import work
from effvit_train.signals import Stop

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_LOOK = 0.2  # seconds between two looks at the workers
_RESULTS = 10.0  # seconds between two versions of study.json
_DIRECTORIES = ("--config-dir", "-cd")
_NOT_HERE = {"-m": "a search runs many trials as it is", "--multirun": "a search runs many trials as it is"}


def is_search(arguments: Sequence[str]) -> bool:
    """Whether this command line is a search: `sweep=OPTION`, or `resume=` of a study's directory."""
    keys = {argument.partition("=")[0] for argument in arguments}
    if "sweep" in keys or any(key.lstrip("+~").startswith("sweep.") for key in keys):
        return True
    return any((Path(path) / NAME).is_file() for path in _values(arguments, "resume"))


def search(arguments: Sequence[str]) -> None:
    """Work on a study until it has its trials; print the front.

    Raises:
        UserError: the input is at fault, or too many trials failed in a row.
        SystemExit: 130 when a signal stopped it (0 when Slurm has queued it again).
    """
    wanted, typed, directory = read_command(arguments)
    optuna()  # before anything is written
    known = (directory / NAME).is_file()
    if not known or "overrides" in typed or "space" in typed:
        _check_overrides(wanted)
    ensure_writable(directory)
    definition = join(directory, wanted, typed)
    study = _open(directory, definition, known)
    command = f"{program()} sweep={definition.option} run_dir={shlex.quote(str(directory))}"
    print(f"study: {directory}\njoin it from elsewhere, or go on with it: {command}", flush=True)
    _say_how(definition)
    stop = Stop()
    stop.defer(True)
    with stop:
        code = _supervise(directory, definition, stop)
    content = write_results(study)
    if stop.requested is not None:
        if slurm.queue_again(stop.requested):
            print("\ninterrupted; the job is queued again and will go on", flush=True)
            sys.exit(0)
        print(f"\ninterrupted; to go on: {command}")
        sys.exit(130)
    from rich.console import Console

    show_results(study, content, Console())
    if code:
        sys.exit(code)


def read_command(arguments: Sequence[str]) -> tuple[Definition, set[str], Path]:
    """What a command line says: the study, what of it was typed, and its directory.

    Raises:
        UserError: something that cannot be.
    """
    flags, words = _flags(arguments)
    resumed = [path for path in _values(words, "resume") if path not in ("", "null")]
    option, own, trial, given = None, [], [], list(resumed)
    space: dict[str, Any] = {}
    for override in parse_overrides(words):
        key = override.key_or_group
        if key == "sweep":
            option = str(override.value())
        elif key.startswith("sweep."):
            own.append(override)
        elif key == "run_dir":
            given.append(str(override.value()))
        elif key != "resume":
            trial.append(override)
    directory = Path(given[-1]).expanduser().resolve() if given else _new_directory(words)
    if (directory / "state.json").exists():
        raise UserError(
            "holds a run, not a study", key="run_dir", value=directory, remedy="give another directory"
        )
    option = option or _option_of(directory)
    sweep = read_sweep(option, [conf_dir(), *_directories(flags)], own)
    fixed = _fixed(trial, space)
    sweep = replace(sweep, space=overridden(sweep.space, space, {o.key_or_group: _text(o) for o in fixed}))
    definition = Definition(
        study=new_name(), option=option, sweep=sweep, fixed=tuple(str(o.input_line) for o in fixed),
        fixed_values={o.key_or_group: _text(o) for o in fixed}, flags=tuple(flags), directory=os.getcwd(),
    )  # fmt: skip
    definition.space  # noqa: B018  (refuses what cannot be searched)
    typed = {_word(override) for override in own}
    if trial or flags:
        typed.add("overrides")
    return definition, typed, directory


def _open(directory: Path, definition: Definition, known: bool) -> SharedStudy:
    """The study; where its storage cannot be used, nothing of a new one is left."""
    try:
        return SharedStudy(directory, definition)
    except UserError:
        if not known:
            shutil.rmtree(directory / LOCKS, ignore_errors=True)
            (directory / NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                directory.rmdir()
        raise


def _fixed(overrides: Sequence[Override], space: dict[str, Any]) -> list[Override]:
    """The overrides that all trials share; those with several values go to `space`."""
    fixed = []
    for override in overrides:
        if override.is_sweep_override():
            space[override.key_or_group] = entry_of(override)
        else:
            fixed.append(override)
    return fixed


def _text(override: Override) -> str:
    return "" if override.is_delete() else override.get_value_element_as_str()


def _word(override: Override) -> str:
    key = override.key_or_group.removeprefix("sweep.")
    return "space" if key.startswith("space") else key


def _flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments of Hydra's that trials take over, and the overrides."""
    flags, words = [], []
    waiting = iter(arguments)
    for argument in waiting:
        name, _, value = argument.partition("=")
        if name in _DIRECTORIES:
            path = Path(value or next(waiting, "")).expanduser().resolve()
            if not path.is_dir():
                raise UserError(
                    "is no directory", key=name, value=path, remedy="give a directory of configurations"
                )
            flags += ["--config-dir", str(path)]
        elif argument.startswith("-"):
            why = _NOT_HERE.get(argument, "it does not go with sweep=")
            raise UserError(why, key=argument, remedy="leave it out")
        elif argument.lstrip("+~").startswith("hydra"):
            raise UserError(
                "a search names its directories itself", key=name, remedy="leave it out; run_dir=DIR moves it"
            )
        else:
            words.append(argument)
    return flags, words


def _directories(flags: Sequence[str]) -> list[Path]:
    return [Path(flag) for flag in flags if not flag.startswith("-")]


def _values(arguments: Sequence[str], key: str) -> list[str]:
    return [item.partition("=")[2].strip("'\"") for item in arguments if item.partition("=")[0] == key]


def _option_of(directory: Path) -> str:
    if (directory / NAME).is_file():
        return Definition.read(directory / NAME).option
    raise UserError("is needed", key="sweep", remedy="e.g. sweep=pareto")


def _new_directory(words: Sequence[str]) -> Path:
    """Of a new study; in a Slurm job the same for all its processes, also after it was queued again."""
    name = slurm.run_id(words, "")
    if slurm_job() is None:
        name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S_") + os.urandom(2).hex()
    return (Path("runs") / "sweeps" / name).resolve()


def _check_overrides(definition: Definition) -> None:
    """Refuse a mistyped key before a study is begun on it: compose what all trials share, and each choice.

    A combination that is refused for what goes with what is a matter of the trial.
    """
    from hydra import compose, initialize_config_dir

    register()
    searchpath = ",".join(f"file://{path}" for path in _directories(definition.flags))
    more = [f"hydra.searchpath=[{searchpath}]"] if searchpath else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for probe in [[], *definition.space.probes()]:
            overrides = [*definition.fixed, *probe]
            try:
                composed = compose("config", [*overrides, *more])
                if not probe and not any("privacy" in key for key in definition.sweep.space):
                    load(composed, overrides, lambda line: None)
            except Exception as error:
                ours = explain(error, overrides)
                if ours is None:
                    raise
                raise ours from None


def _say_how(definition: Definition) -> None:
    sweep = definition.sweep
    what = ", ".join(
        f"{o.key} ({'higher' if o.higher else 'lower'}, {o.source})" for o in definition.objectives
    )
    searched = ", ".join(dimension.key for dimension in definition.space.dimensions)
    plural = "s" * (sweep.workers > 1)
    print(
        f"{sweep.trials} trials, {sweep.workers} worker{plural} here; objectives: {what}; searched: {searched}",
        flush=True,
    )


def _supervise(directory: Path, definition: Definition, stop: Stop) -> int:
    """Keep the workers going; a killed one is replaced. Returns the exit code: that of the first that gave up."""
    context = multiprocessing.get_context("spawn")

    def start(index: int) -> BaseProcess:
        worker = context.Process(target=run_worker, args=(directory, definition, index, os.getpid()))
        worker.start()
        return worker

    workers = {index: start(index) for index in range(definition.sweep.workers)}
    code, told = 0, False
    while workers:
        time.sleep(_LOOK)
        ending = stop.requested is not None or code != 0
        if ending and not told:
            told = True
            for worker in workers.values():
                worker.terminate()
        for index, worker in list(workers.items()):
            if worker.is_alive():
                continue
            del workers[index]
            if worker.exitcode and worker.exitcode < 0 and not ending:
                print(
                    f"worker {index} was killed ({signal.Signals(-worker.exitcode).name}); another takes its place",
                    flush=True,
                )
                workers[index] = start(index)
            elif worker.exitcode and worker.exitcode > 0:
                code = code or worker.exitcode
    return code


def run_worker(directory: Path, definition: Definition, index: int, parent: int) -> None:
    """One worker process; ends when it is asked to (SIGTERM), or when `parent` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent passes it on
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))

    def stopped() -> bool:
        return bool(asked) or os.getppid() != parent

    study = SharedStudy(directory, definition, _print)
    environment = trial_environment(index, definition.sweep.workers)
    train = TrainedTrial(study, environment, stopped, _print)
    last = [0.0]

    def evaluate(turn: Any) -> Any:
        if time.monotonic() - last[0] > _RESULTS:
            last[0] = time.monotonic()
            write_results(study)
        return train(turn)

    try:
        work(study, evaluate, stopped=stopped)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _print(line: str) -> None:
    print(line, flush=True)
