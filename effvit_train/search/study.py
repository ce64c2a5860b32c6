"""The study that all workers share: who takes which trial, what became of each.

Optuna keeps trials, parameters and values; the study's directory keeps two kinds of locks (`lock.RunLock`),
which die with their holders. One is held while a trial is taken, so that a trial is never given out twice
and there are never more than `sweep.trials`. The other, one per trial, is held by the worker that has it: a
trial that is RUNNING while nobody holds it or its run directory has lost its worker, and is taken up again.
"""

from __future__ import annotations

import contextlib
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from effvit_train import lock
from effvit_train.errors import UserError, first_line
from effvit_train.keys import stream_key
from effvit_train.lock import RunLock
from effvit_train.search.definition import Definition, without_password

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

JOURNAL = "study.journal"
LOCKS = ".study"  # a hidden directory: whoever looks for runs does not enter it
STARTS = 3  # how often a trial may lose its process until it counts as failed
COMPLETE, PRUNED, FAILED, LEFT = "complete", "pruned", "failed", "left"


def optuna() -> ModuleType:
    """The library, which is an extra; `UserError` where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError(
            "needs Optuna, which is not installed", key="sweep", remedy="pip install 'effvit_train[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass(frozen=True)
class Turn:
    """A trial that this worker has.

    Attributes:
        number: of the trial, also the name of its run directory.
        overrides: what makes it.
        params: the values drawn, by key.
        run_dir: where it is trained.
        trial: Optuna's.
    """

    number: int
    overrides: list[str]
    params: Mapping[str, Any]
    run_dir: Path
    trial: Trial


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        state: complete | pruned | failed | left, to whoever takes it up again.
        values: of the objectives, in their order; complete trials only.
        excess: by how much each budget is passed (above 0), by its text.
        reason: of pruned and failed ones, one line.
        facts: kept with the trial.
    """

    state: str
    values: list[float] = field(default_factory=list)
    excess: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class SharedStudy:
    """A study as one worker sees it.

    Args:
        directory: of the study; exists.
        definition: what it is.
        say: prints one line.

    Attributes:
        study: Optuna's.

    Raises:
        UserError: the storage cannot be reached.
    """

    def __init__(self, directory: Path, definition: Definition, say: Callable[[str], None] = print) -> None:
        self.directory, self.definition, self._say = Path(directory).resolve(), definition, say
        self._optuna = optuna()
        self._space = definition.space
        self._claims: dict[int, RunLock] = {}
        directions = ["maximize" if objective.higher else "minimize" for objective in definition.objectives]
        with self._desk():  # two workers that create one study at once would both find none
            self.study: Study = self._optuna.create_study(
                storage=self._storage(), study_name=definition.study, directions=directions,
                sampler=self._sampler(0), load_if_exists=True,
            )  # fmt: skip

    def take(self) -> Turn | None:
        """A trial for this worker, a lost one before a new one; None when there is none to take now."""
        with self._desk():
            trials = self._trials()
            for number in [trial.number for trial in trials if not trial.state.is_finished()]:
                if self._held(number):
                    continue
                lost = self._trials()[number]  # again: it may have been told, and then let go, just now
                if not lost.state.is_finished():
                    turn = self._take_up(lost)
                    if turn is not None:
                        return turn
            if len(trials) >= self.definition.sweep.trials:
                return None
            self.study.sampler = self._sampler(len(trials))
            return self._hand_out(self.study.ask())

    def finish(self, turn: Turn, outcome: Outcome) -> None:
        """Tell what became of a trial, and let it go."""
        try:
            if outcome.state == LEFT:
                taken = turn.trial.user_attrs["taken"]
                # a stop is no loss
                turn.trial.set_user_attr("taken", {**taken, "starts": max(0, taken["starts"] - 1)})
            else:
                self._tell(turn.trial, outcome)
        finally:
            self.release(turn)

    def release(self, turn: Turn) -> None:
        """Let go of a trial: one that was not told of is for anybody to take up."""
        claim = self._claims.pop(turn.number, None)
        if claim is not None:
            claim.__exit__(None, None, None)
            with contextlib.suppress(OSError):
                claim.path.parent.rmdir()

    def busy_here(self) -> bool:
        """Whether another process of this machine has a trial, which would be ours to take up if it died."""
        open_ = [trial.number for trial in self._trials() if not trial.state.is_finished()]
        return any(holder.here for number in open_ for holder in self._holders(number))

    def complete(self) -> dict[int, list[float]]:
        """Values of the complete trials, by number."""
        return {
            trial.number: list(trial.values) for trial in self._trials() if trial.state.name == "COMPLETE"
        }

    def run_dir(self, number: int) -> Path:
        """The run directory of a trial."""
        return self.directory / str(number)

    def _take_up(self, frozen: FrozenTrial) -> Turn | None:
        # nothing is drawn again: what was drawn stays, and only what is missing is added
        self.study.sampler = self._sampler(frozen.number)
        trial = self._optuna.Trial(self.study, frozen._trial_id)
        starts = _starts(trial)
        if starts >= STARTS:
            self._tell(trial, Outcome(FAILED, reason=f"its process was killed {starts} times"))
            return None
        return self._hand_out(trial)

    def _hand_out(self, trial: Trial) -> Turn:
        overrides = self._space.suggest(trial)
        claim = RunLock(self._made(str(trial.number)), self._say)
        claim.__enter__()
        self._claims[trial.number] = claim
        taken = {"overrides": overrides, "worker": str(claim.holder), "starts": _starts(trial) + 1}
        trial.set_user_attr("taken", taken)
        return Turn(trial.number, overrides, dict(trial.params), self.run_dir(trial.number), trial)

    def _tell(self, trial: Trial, outcome: Outcome) -> None:
        states = self._optuna.trial.TrialState
        told = {**outcome.facts, **({"reason": outcome.reason} if outcome.reason else {})}
        if told:
            trial.set_user_attr("told", told)
        for text, over in outcome.excess.items():
            trial.set_constraint(text, over)
        if outcome.state == COMPLETE:
            self.study.tell(trial.number, outcome.values, skip_if_finished=True)
        else:
            state = states.PRUNED if outcome.state == PRUNED else states.FAIL
            self.study.tell(trial.number, state=state, skip_if_finished=True)

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _held(self, number: int) -> bool:
        return any(True for _ in self._holders(number))

    def _holders(self, number: int) -> Iterator[lock.Holder]:
        """Who has a trial: a worker; or, where that was killed, the training that it has left behind."""
        for path in (self.directory / LOCKS / str(number), self.run_dir(number)):
            holder = lock.holder(path)
            if holder is not None:
                # the run's own lock is not looked at while a worker is there: looking takes it for a moment
                yield holder
                return

    def _made(self, name: str) -> Path:
        path = self.directory / LOCKS / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def _desk(self) -> Iterator[None]:
        """One worker at a time, of all machines."""
        path = self._made("desk")
        while True:
            desk = RunLock(path, self._say)
            try:
                desk.__enter__()
                break
            except UserError:  # somebody is being served
                time.sleep(random.uniform(0.002, 0.02))
        try:
            yield
        finally:
            desk.__exit__(None, None, None)

    def _storage(self) -> Any:
        url = self.definition.sweep.storage
        if url is None:
            journal = self._optuna.storages.journal
            # an absolute path: the lock of a relative one is never broken after its holder was killed
            return self._optuna.storages.JournalStorage(
                journal.JournalFileBackend(str(self.directory / JOURNAL))
            )
        try:
            return self._optuna.storages.RDBStorage(url)
        except Exception as error:
            raise UserError(
                f"cannot be used ({type(error).__name__}: {first_line(error)[:150]})", key="sweep.storage",
                value=without_password(url), remedy="e.g. postgresql://user@host/name, or null for a file",
            ) from None  # fmt: skip

    def _sampler(self, number: int) -> BaseSampler:
        """A sampler for one trial: its draws are a function of (seed, trial, what was told before)."""
        sweep, samplers = self.definition.sweep, self._optuna.samplers
        seed = stream_key("sweep", sweep.seed, number) % 2**32
        if sweep.sampler == "random":
            return samplers.RandomSampler(seed=seed)
        if sweep.sampler == "nsga2":
            return samplers.NSGAIISampler(seed=seed, population_size=sweep.population)
        with warnings.catch_warnings(action="ignore"):  # of settings that Optuna calls experimental
            return samplers.TPESampler(seed=seed, n_startup_trials=sweep.startup, constant_liar=True)


def _starts(trial: Trial) -> int:
    """How often a worker has taken the trial and was not asked to let it go."""
    return int(trial.user_attrs.get("taken", {}).get("starts", 0))
