"""A trial as a process of its own: an ordinary `train.py` run in the trial's directory, watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from effvit_train import lock
from effvit_train.budgets import parse_budgets
from effvit_train.card import Card
from effvit_train.errors import UserError
from effvit_train.hardware import cores, visible_gpus
from effvit_train.runs import RunDir, RunState, training_command
from effvit_train.runs_command import ABANDONED
from effvit_train.search.definition import Definition
from effvit_train.search.objectives import curve, read_values
from effvit_train.search.stopping import RIVALS, Finished, hopeless
from effvit_train.search.study import COMPLETE, FAILED, LEFT, PRUNED, STARTS, Outcome, SharedStudy, Turn

LOGS = "logs"
_LOOK = 1.0  # seconds between two looks at a trial
_COUNTED = ("cost/params", "cost/macs", "cost/flops")  # known before training
_ASK_COST = ("audit.latency_runs=1", "audit.throughput_runs=1", "audit.throughput_batch=1")


class TrainedTrial:
    """Evaluates a trial by training it.

    Args:
        study: shared.
        environment: of the processes.
        stopped: whether this worker has been asked to end.
        say: prints one line.
    """

    def __init__(
        self, study: SharedStudy, environment: Mapping[str, str], stopped: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.study, self.definition, self._stopped, self._say = study, study.definition, stopped, say
        self._environment = dict(environment)
        self._cwd = self.definition.directory if Path(self.definition.directory).is_dir() else None

    def __call__(self, turn: Turn) -> Outcome:
        """Train the trial, or go on with it, and read what it is worth."""
        run = RunDir(turn.run_dir)
        begin = "goes on" if run.state.exists() else "begins"
        self._say(f"trial {turn.number} {begin}: {' '.join(turn.overrides)}")
        log = self.study.directory / LOGS / f"{turn.number}.log"
        log.parent.mkdir(exist_ok=True)
        for _ in range(STARTS):
            if _done(run):
                return self._tell(turn, self._read(turn))
            with open(log, "ab") as file:
                code, reason = self._train(turn, run, file)
            if self._stopped() or lock.holder(run.path) is not None:
                return Outcome(LEFT)
            if reason is not None and not _done(run):
                _mark_abandoned(run)
                return self._tell(turn, Outcome(PRUNED, reason=reason))
            if code in (1, 2):
                why = _last_words(log) or f"ended with exit code {code}"
                return self._tell(turn, Outcome(FAILED, reason=why))
        if _done(run):
            return self._tell(turn, self._read(turn))
        return self._tell(turn, Outcome(FAILED, reason=f"its process was killed {STARTS} times (see {log})"))

    def _train(self, turn: Turn, run: RunDir, log: IO[bytes]) -> tuple[int, str | None]:
        """One process; returns its exit code, and why the search stopped it."""
        arguments = [f"resume={run.path}"] if run.state.exists() else self._arguments(turn, run)
        process = subprocess.Popen(
            [*training_command(), *arguments], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            cwd=self._cwd, env=self._environment, start_new_session=True,
        )  # fmt: skip
        watch = _Watch(self, turn)
        reason = None
        while True:
            try:
                return process.wait(_LOOK), reason
            except subprocess.TimeoutExpired:
                pass
            if reason is None and not self._stopped():
                reason = watch.hopeless()
                if reason is None:
                    continue
            # SIGINT, not SIGTERM: the run saves and ends, and a Slurm job is not queued again for it
            process.send_signal(signal.SIGINT)
            return process.wait(), reason

    def _arguments(self, turn: Turn, run: RunDir) -> list[str]:
        definition = self.definition
        return [*definition.flags, *definition.fixed, *turn.overrides, f"run_dir={run.path}"]

    def _read(self, turn: Turn) -> Outcome:
        objectives = self.definition.objectives
        budgets = parse_budgets(self.definition.sweep.budgets)
        keys = [*(objective.key for objective in objectives), *(budget.key for budget in budgets)]
        values, missing = read_values(turn.run_dir, keys)
        if missing:
            key, why = next(iter(missing.items()))
            return Outcome(FAILED, reason=f"{key} is missing: {why}")
        excess = {
            budget.text: -1.0
            if budget.met(values[budget.key])
            else max(1e-9, abs(values[budget.key] - budget.limit))
            for budget in budgets
        }
        return Outcome(COMPLETE, [values[objective.key] for objective in objectives], excess)

    def _tell(self, turn: Turn, outcome: Outcome) -> Outcome:
        if outcome.state == COMPLETE:
            pairs = zip(self.definition.objectives, outcome.values, strict=True)
            figures = ", ".join(f"{objective.key} {value:.6g}" for objective, value in pairs)
            self._say(f"trial {turn.number} is done: {figures}")
        else:
            self._say(f"trial {turn.number} {outcome.state}: {outcome.reason}")
        return outcome

    def known_costs(self, turn: Turn) -> dict[str, float]:
        """The least that the trial can cost, as far as counting tells before it has ended."""
        wanted = [o.key for o in self.definition.objectives if o.key in _COUNTED]
        if not wanted:
            return {}
        code = "from effvit_train.cli import main; main()"
        definition = self.definition
        command = [sys.executable, "-c", code, "cost", "--json"]
        done = subprocess.run(
            [*command, *definition.flags, *definition.fixed, *turn.overrides, *_ASK_COST], env=self._environment,
            capture_output=True, text=True, cwd=self._cwd, check=False,
        )  # fmt: skip
        if done.returncode:
            self._say(
                f"trial {turn.number} cannot be stopped early: its cost is not known ({done.stderr.strip()[-200:]})"
            )
            return {}
        dense = json.loads(done.stdout.strip().splitlines()[-1])["measures"]
        left = _left_by_pruning(turn.run_dir)
        return {key: dense[key] * left.get(key, 1.0 if not left else 0.0) for key in wanted if dense.get(key)}

    def finished(self) -> list[Finished]:
        """The complete trials of the study, with their curves."""
        found = []
        complete = self.study.complete()
        for number, values in complete.items():
            by_key = dict(zip((o.key for o in self.definition.objectives), values, strict=True))
            found.append(Finished(by_key, _curves(self.definition, self.study.run_dir(number))))
        return found


class _Watch:
    """Looks whether a trial is hopeless, each time it has been validated."""

    def __init__(self, owner: TrainedTrial, turn: Turn) -> None:
        self._owner, self._turn = owner, turn
        self._seen = 0
        self._bounds: dict[str, float] | None = None

    def hopeless(self) -> str | None:
        definition = self._owner.definition
        after = definition.sweep.prune_after
        if after is None:
            return None
        curves = _curves(definition, self._turn.run_dir)
        length = min((len(points) for points in curves.values()), default=0)
        if length == self._seen or not all(points[-1][0] >= after for points in curves.values() if points):
            return None
        self._seen = length
        finished = self._owner.finished()
        if len(finished) < RIVALS:
            return None
        if self._bounds is None:
            self._bounds = self._owner.known_costs(self._turn)
        return hopeless(definition.objectives, self._bounds, curves, finished, after=after)


def trial_environment(index: int, workers: int) -> dict[str, str]:
    """The environment of the trials of worker number `index` of `workers` on this machine.

    Slurm's variables are taken out: a trial is a single process, not a rank of the job. Cores are shared out
    where `OMP_NUM_THREADS` is not set, and GPUs go round.
    """
    found = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "PMI_", "PMIX_"))
    }
    if "OMP_NUM_THREADS" not in found and workers > 1:
        found["OMP_NUM_THREADS"] = str(max(1, cores() // workers))
    gpus = visible_gpus() if workers > 1 else ()
    if len(gpus) > 1:
        found["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
    return found


def _curves(definition: Definition, run_dir: Path) -> dict[str, list[tuple[float, float]]]:
    """Validation curves over the share of training, by objective."""
    epochs = _config(run_dir).get("trainer", {}).get("max_epochs")
    if not epochs:
        return {}
    return {
        objective.key: [(epoch / epochs, value) for epoch, value in curve(run_dir, objective.column)]
        for objective in definition.objectives
        if objective.column is not None
    }


def _left_by_pruning(run_dir: Path) -> dict[str, float]:
    """What pruning may leave of the dense model's costs, as shares; empty without pruning."""
    prune = (_config(run_dir).get("compress") or {}).get("prune")
    if prune is None:
        return {}
    targets = {
        f"cost/{key}": value for key, value in (prune.get("target") or {}).items() if value is not None
    }
    return targets or {"cost/macs": 0.5}


def _config(run_dir: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    path = RunDir(run_dir).config
    if not path.is_file():
        return {}
    found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _done(run: RunDir) -> bool:
    try:
        return RunState.read(run.state).status == "done" and Card.read(run.card) is not None
    except (UserError, OSError):
        return False


def _mark_abandoned(run: RunDir) -> None:
    state = RunState.read(run.state)
    state.status = ABANDONED
    state.write(run.state)


def _last_words(log: Path) -> str:
    """The line that says why a run ended: the last one that begins with `error:`, else the last."""
    lines = [
        line.strip()
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if line.strip()
    ]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1].removeprefix("error: ")[:300]
