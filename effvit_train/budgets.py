"""What a user can afford: `cost/latency_ms<=5`, `quality/accuracy>=98%`."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from effvit_train.card import MEASURES, Card
from effvit_train.errors import UserError, did_you_mean

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
}  # fmt: skip
_FACTORS = {"": 1.0, "%": 0.01, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BUDGET = re.compile(
    r"\s*([^<>=\s]+)\s*(<=|>=|<|>)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([%kMGT]?)\s*"
)


@dataclass(frozen=True)
class Budget:
    """A bound on one measure.

    Attributes:
        key: of the card.
        sign: <= | >= | < | >.
        limit: in the measure's unit.
        text: as the user typed it.
    """

    key: str
    sign: str
    limit: float
    text: str

    def met(self, value: float | None) -> bool:
        """Whether `value` is within the budget; what was not measured is not."""
        return value is not None and _COMPARE[self.sign](value, self.limit)


@dataclass(frozen=True)
class Verdict:
    """A budget and a run.

    Attributes:
        budget: the bound.
        value: the run's; None where it was not measured.
        met: whether it is within the budget; False where it was not measured.
        reason: why it was not measured, or empty.
    """

    budget: Budget
    value: float | None
    met: bool
    reason: str


def parse_budgets(texts: Iterable[str], *, key: str = "--budget") -> list[Budget]:
    """Read budgets such as `privacy/epsilon<=8`, `cost/macs<=1.5G`, `quality/accuracy>=98%`.

    A measure may go without its axis where one only has that name (`accuracy>=0.9`). Several in one text are
    parted by commas.

    Raises:
        UserError: no such measure, or no such form.
    """
    return [_parse(part, key) for text in texts for part in text.split(",")]


def judge(card: Card, budgets: Iterable[Budget]) -> list[Verdict]:
    """Each budget against the card, in their order."""
    found = []
    for budget in budgets:
        value = card.measures.get(budget.key)
        reason = "" if value is not None else card.missing.get(budget.key, "not measured")
        found.append(Verdict(budget, value, budget.met(value), reason))
    return found


def full_key(name: str, *, key: str) -> str:
    """The measure that `name` names, with its axis.

    Args:
        name: `cost/latency_ms`, or `latency_ms` where one measure only has that name.
        key: the option that it was given to, for the message.

    Raises:
        UserError: no measure, or several.
    """
    if name in MEASURES:
        return name
    ends = [known for known in MEASURES if known.partition("/")[2] == name]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UserError("names several measures", key=key, value=name, remedy=f"one of {', '.join(ends)}")
    short = {known.partition("/")[2]: known for known in MEASURES}
    hint = did_you_mean(name, [*MEASURES, *short])
    raise UserError("is no measure", key=key, value=name, remedy=hint or "docs/measures.md lists them")


def _parse(text: str, key: str) -> Budget:
    found = _BUDGET.fullmatch(text)
    if found is None:
        raise UserError(
            "must be a measure, one of <= >= < >, and a number",
            key=key, value=text, remedy=f"e.g. {key} 'cost/latency_ms<=5'",
        )  # fmt: skip
    name, sign, number, unit = found.groups()
    return Budget(full_key(name, key=key), sign, float(number) * _FACTORS[unit], text.strip())
