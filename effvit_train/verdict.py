"""Whether an updated model may take the place of the shipped one. Needs no torch.

The rule (docs/update.md). Let d be the accuracy of the update minus that of the shipped model, on the same test
images, with an interval of coverage 1 - level, and t the tolerance.

- roll back: on the old or on the new test set the whole interval of d lies below -t. It is worse.
- hold: the interval reaches below -t, so that too few images were seen to exclude it; a group has lost more than t
  and the loss is no chance (McNemar's exact test, corrected for how many groups there are); there are new classes,
  and the new test set does not show that they were learnt (the interval reaches 0); a budget is not met; or what the
  verdict needs was not measured.
- promote: none of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from effvit_train.check_command import Line
from effvit_train.paired import Table, holm, interval
from effvit_train.report import format as fmt

Word = Literal["promote", "hold", "roll back"]
PROMOTE: Word = "promote"
HOLD: Word = "hold"
ROLL_BACK: Word = "roll back"
_ORDER = (ROLL_BACK, HOLD, PROMOTE)


@dataclass(frozen=True)
class Rule:
    """What the verdict follows.

    Attributes:
        tolerance: loss of accuracy that is accepted, as a share of the images.
        level: of every test.
    """

    tolerance: float = 0.02
    level: float = 0.05


@dataclass(frozen=True)
class Pair:
    """The accuracies of the shipped model (A) and of the update (B) on the same images.

    Attributes:
        name: of the test set, or of a group in it.
        images: how many.
        a, b: accuracies.
        low, high: interval of B minus A (Newcombe's score interval for paired proportions).
        p_value: McNemar's exact test; of groups corrected for how many there are (Holm 1979).
    """

    name: str
    images: int
    a: float
    b: float
    low: float
    high: float
    p_value: float

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a

    def to_json(self) -> dict[str, Any]:
        """For `update.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        verdict: what it alone would make of the update.
        kind: old | new | group | budget | missing.
        text: one line, with the numbers.
    """

    verdict: Word
    kind: str
    text: str


def pair_of(name: str, table: Table, *, z: float) -> Pair:
    """A pair from the 2 x 2 table of at least one image, with an interval of normal quantile `z`."""
    low, high = interval(table, z)
    n = table.total
    a, b = (table.both + table.only_a) / n, (table.both + table.only_b) / n
    return Pair(name, n, a, b, low, high, table.p_value)


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that are looked at together, their p-values corrected for it."""
    values = holm([pair.p_value for pair in pairs])
    return [replace(pair, p_value=value) for pair, value in zip(pairs, values, strict=True)]


def decide(
    *,
    sets: Mapping[str, Pair | str],
    groups: Mapping[str, Sequence[Pair]],
    budgets: Sequence[Line],
    rule: Rule,
    added: Sequence[str] = (),
    missing: Sequence[str] = (),
) -> tuple[Word, list[Finding]]:
    """The verdict, and all that it rests on, the gravest first.

    Args:
        sets: `old` and `new` -> the two models on that test set, or why they could not be tested on it.
        groups: `old` and `new` -> the groups in it that are large enough to be judged, corrected.
        budgets: held against the update's card.
        rule: the tolerance and level.
        added: classes that the shipped model does not know.
        missing: why something else that is needed was not measured, one line each.
    """
    findings = [
        Finding(HOLD, "missing", f"{name} test set: not tested ({found})") if isinstance(found, str)
        else _of_set(name, found, rule)
        for name, found in sets.items()
    ]  # fmt: skip
    new = sets.get("new")
    if added and isinstance(new, Pair) and new.low <= 0:
        findings.append(_not_learnt(new, added, rule))
    for name, pairs in groups.items():
        findings += _of_groups(name, pairs, rule)
    findings += [_of_budget(line) for line in budgets]
    findings += [Finding(HOLD, "missing", text) for text in missing]
    findings.sort(key=lambda finding: _ORDER.index(finding.verdict))
    return (findings[0].verdict if findings else PROMOTE), findings


def _of_set(name: str, pair: Pair, rule: Rule) -> Finding:
    where, loss = f"{name} test set", f"a loss of {_points(rule.tolerance)} pp"
    accepted = f"{loss} is accepted"
    if pair.high < -rule.tolerance:
        return Finding(ROLL_BACK, name, f"{where}: worse, {told(pair, rule)}; {accepted}")
    if pair.low < -rule.tolerance:
        return Finding(
            HOLD, name,
            f"{where}: not decided, {told(pair, rule)}; more than {loss} cannot be excluded{_needed(pair, rule)}",
        )  # fmt: skip
    better = "better" if pair.low > 0 else "no worse"
    return Finding(PROMOTE, name, f"{where}: {better}, {told(pair, rule)}; {accepted}")


def _not_learnt(new: Pair, added: Sequence[str], rule: Rule) -> Finding:
    names = ", ".join(added[:5]) + (f" and {len(added) - 5} more" if len(added) > 5 else "")
    return Finding(
        HOLD,
        "new",
        f"new test set: not better, {told(new, rule)}, though the shipped model does not know {names}",
    )


def _of_groups(name: str, pairs: Sequence[Pair], rule: Rule) -> list[Finding]:
    where = f"{name} test set"
    worse = [pair for pair in pairs if group_worse(pair, rule)]
    if worse:
        return [Finding(HOLD, "group", f"{pair.name} ({where}): worse, {told(pair, rule)}") for pair in worse]
    if not pairs:
        return []
    lost = min(pairs, key=lambda pair: pair.difference)
    count = f"{len(pairs)} group{'s' * (len(pairs) > 1)}"
    return [
        Finding(
            PROMOTE, "group", f"{count} of the {where}: none worse beyond chance; lowest difference: {lost.name}, "
            f"{told(lost, rule)}",
        )
    ]  # fmt: skip


def group_worse(pair: Pair, rule: Rule) -> bool:
    """Whether a group has lost more than is accepted, and not by chance."""
    return pair.p_value < rule.level and pair.difference < -rule.tolerance


def _of_budget(line: Line) -> Finding:
    key = line.verdict.budget.key
    if line.passed:
        return Finding(PROMOTE, "budget", f"{key}: {line.value}, budget {line.limit}")
    if line.verdict.value is None:
        return Finding(HOLD, "missing", f"{key}: budget {line.limit} and {line.note}")
    note = f" ({line.note})" if line.note else ""
    return Finding(HOLD, "budget", f"{key}: {line.value} breaks the budget {line.limit}{note}")


def told(pair: Pair, rule: Rule) -> str:
    """The numbers of a pair: `97.8 % -> 91.1 % (−6.7 pp, 95 % interval −9.9 to −3.5, p <0.001, 360 images)`."""
    p = "<0.001" if pair.p_value < 0.001 else f"= {pair.p_value:.2g}"
    return (
        f"{fmt.percent(pair.a)} → {fmt.percent(pair.b)} ({signed_points(pair.difference)} pp, "
        f"{100 * (1 - rule.level):g} % interval {signed_points(pair.low)} to {signed_points(pair.high)}, "
        f"p {p}, {pair.images:,} images)"
    )


def signed_points(share: float) -> str:
    """A difference of accuracies in percentage points: `+0.3`, `−6.7`, `±0`."""
    if round(share * 100, 1) == 0:
        return "±0"
    return f"{'+' if share > 0 else fmt.MINUS}{_points(abs(share))}"


def _points(share: float) -> str:
    return f"{share * 100:.1f}".removesuffix(".0") if share < 0.1 else f"{share * 100:.0f}"


def _needed(pair: Pair, rule: Rule) -> str:
    """About how many images would tell, if the difference stayed as it is."""
    room, half = pair.difference + rule.tolerance, pair.difference - pair.low
    if room <= 0:
        return ""
    return f"; about {math.ceil(pair.images * (half / room) ** 2):,} images would tell"
