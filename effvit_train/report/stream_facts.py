"""What `provenance.continual` of a card holds, read with care; and whether two runs learnt from the same stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from effvit_train.card import Card
from effvit_train.paired import interval_unpaired
from effvit_train.report.audit_facts import count, number, share, word, words
from effvit_train.report.inputs import as_dict, as_dicts

CLASS, DOMAIN, DATA = "class", "domain", "data"
AXIS = "continual/"
# Shares of test images, and what is made of them: two numbers without a test decide nothing.
SAMPLED = (
    "continual/average_accuracy", "continual/average_incremental_accuracy", "continual/forgetting",
    "continual/backward_transfer", "continual/forward_transfer", "continual/task_incremental_accuracy",
)  # fmt: skip

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class TaskFacts:
    """One task of a stream; None where the card does not tell.

    Attributes:
        name: such as `classes 0, 1`.
        classes: labels that occur in it.
        train, test: images.
        steps: optimizer steps; 0 where the model knew the task before.
        seconds: wall time of its training.
        memory_bytes: what is kept of this and earlier tasks after it.
    """

    name: str
    classes: tuple[int, ...]
    train: int | None
    test: int | None
    steps: int | None
    seconds: float | None
    memory_bytes: int | None


@dataclass(frozen=True)
class Lost:
    """What became of a task.

    Attributes:
        task: its number, from 0.
        best: highest accuracy on it after its own and before the last task.
        end: accuracy on it after the last task.
        chance: whether the choice of its test images explains the difference.
    """

    task: int
    best: float
    end: float
    chance: bool

    @property
    def points(self) -> float:
        """Share of its test images that is lost; negative where the task got better."""
        return self.best - self.end


@dataclass(frozen=True)
class StreamFacts:
    """A stream, and the accuracy on each of its T tasks after each of the tasks that were trained.

    Attributes:
        kind: class, domain, data, or another word.
        strategies: against forgetting.
        tasks: T of them, in their order.
        epochs: of each task; None where the card does not tell.
        first: number of the task that was trained first; the model knew those before it.
        accuracy: R, at most T rows of T, among all classes seen so far.
        within: likewise, among the classes of the task; empty where the card does not tell.
    """

    kind: str
    strategies: tuple[str, ...]
    tasks: tuple[TaskFacts, ...]
    epochs: int | None
    first: int
    accuracy: Matrix
    within: Matrix

    @property
    def title(self) -> str:
        """`class-incremental stream of 5 tasks`."""
        return f"{self.kind}-incremental stream of {len(self.tasks)} task{'s' * (len(self.tasks) != 1)}"

    @property
    def rows(self) -> range:
        """Tasks after which it was tested; of those that were known before, the last one only."""
        return range(max(0, min(self.first, len(self.accuracy)) - 1), len(self.accuracy))

    @property
    def lost(self) -> list[Lost]:
        """Of each task that another one followed; nothing where all portions share their test images.

        The mean of their `points` is the forgetting of Chaudhry et al. 2018.
        """
        last = len(self.accuracy) - 1
        if self.kind == DATA:
            return []
        found = []
        for task in range(last):
            best, end = (
                max(self.accuracy[i][task] for i in range(task, last)),
                self.accuracy[last][task],
            )
            found.append(Lost(task, best, end, _by_chance(best, end, self.tasks[task].test)))
        return found

    @property
    def forgotten(self) -> Lost | None:
        """The task of which most was forgotten; None where none got worse."""
        worst = max(self.lost, key=lambda lost: lost.points, default=None)
        return worst if worst is not None and worst.points > 0 else None


def stream_of(card: Card) -> StreamFacts | None:
    """The stream that a run learnt from; None where all data came at once, or the card does not tell it whole."""
    found = as_dict(card.provenance.get("continual"))
    costs = as_dicts(found.get("costs"))
    tasks = tuple(
        _task(task, costs[i] if i < len(costs) else {}) for i, task in enumerate(as_dicts(found.get("tasks")))
    )
    accuracy = _matrix(found.get("accuracy"), len(tasks))
    within = _matrix(found.get("within_task"), len(tasks))
    kind = word(found.get("kind"))
    if not kind or len(tasks) < 2 or not accuracy:
        return None
    return StreamFacts(
        kind, tuple(words(found.get("strategies"))), tasks, count(found.get("epochs_per_task")),
        min(count(found.get("first")) or 0, len(tasks) - 1), accuracy,
        within if len(within) == len(accuracy) else (),
    )  # fmt: skip


def differ(a: Card, b: Card) -> str:
    """In what two runs' streams differ, in a few words: the kind, the tasks, or their order. Empty where in nothing."""
    one, other = stream_of(a), stream_of(b)
    if one is None or other is None:
        if one is other:
            return ""
        titles = [f"a {found.title}" if found else "all data at once" for found in (one, other)]
        return f"{titles[0]} against {titles[1]}"
    if (one.kind, len(one.tasks)) != (other.kind, len(other.tasks)):
        return f"a {one.title} against a {other.title}"
    if one.first != other.first:
        return f"{one.first} against {other.first} tasks that were known before"
    mine, theirs = [_identity(task) for task in one.tasks], [_identity(task) for task in other.tasks]
    if mine == theirs:
        return ""
    if sorted(mine) == sorted(theirs):
        return "the tasks come in another order"
    at = next(i for i, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    names = one.tasks[at].name, other.tasks[at].name
    told = f"'{names[0]}' against '{names[1]}'" if names[0] != names[1] else f"other images in '{names[0]}'"
    return f"task {at + 1} is not the same: {told}"


def groups_differ(a: Sequence[Card], b: Sequence[Card]) -> str:
    """The same of runs over several orders: empty where each has its like on the other side."""
    for mine, theirs in ((b, a), (a, b)):
        for card in mine:
            found = [differ(other, card) if mine is b else differ(card, other) for other in theirs]
            if found and all(found):
                return found[0]
    return ""


def _identity(task: TaskFacts) -> tuple[str, int, int]:
    return task.name, -1 if task.train is None else task.train, -1 if task.test is None else task.test


def _task(task: dict[str, Any], cost: dict[str, Any]) -> TaskFacts:
    labels = task.get("classes")
    numbers = [count(label) for label in labels] if isinstance(labels, list) else []
    return TaskFacts(
        word(task.get("name")) or "?", tuple(label for label in numbers if label is not None),
        count(task.get("train")), count(task.get("test")), count(cost.get("steps")), number(cost.get("seconds")),
        count(cost.get("memory_bytes")),
    )  # fmt: skip


def _matrix(value: Any, size: int) -> Matrix:
    """At most `size` rows of `size` shares; empty for anything else."""
    if not isinstance(value, list) or not 0 < len(value) <= size:
        return ()
    rows = [[share(cell) for cell in row] if isinstance(row, list) else [] for row in value]
    whole = [tuple(cell for cell in row if cell is not None) for row in rows]
    return tuple(whole) if all(len(row) == size for row in whole) else ()


def _by_chance(best: float, end: float, tested: int | None) -> bool:
    """Whether Newcombe's 95 % interval of the difference of two shares of `tested` images holds 0 (1998, method 10).

    Both are of the same images, which the card does not pair: the interval is too wide rather than too narrow.
    """
    if not tested:
        return False
    low, high = interval_unpaired(round(best * tested), tested, round(end * tested), tested)
    return low <= 0 <= high
