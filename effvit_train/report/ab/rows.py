"""One difference between A and B, how it was tested and what that says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from effvit_train import t_tests
from effvit_train.paired import Table, holm, interval
from effvit_train.report.format import Verdict
from effvit_train.resampling import Estimate

MCNEMAR = "McNemar's exact test"
RANDOMISATION = "randomisation test"
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Row:
    """A measure, or the accuracy of a class or group, of both sides.

    Attributes:
        name: key of the measure, or name of the class or group.
        a, b: of each side: of its model, or the mean over its runs.
        low, high: interval of B minus A; None where there is none.
        p_value: of the test by itself; None where there is none.
        corrected: for how many were looked at together (Holm 1979); the same where it was one.
        test: which test, or why there is none.
        verdict: what it says of B: better | worse | same | unclear.
        images: test images that it is of; None where it is of all.
    """

    name: str
    a: float
    b: float
    low: float | None
    high: float | None
    p_value: float | None
    corrected: float | None
    test: str
    verdict: Verdict
    images: int | None = None

    @property
    def difference(self) -> float:
        """B minus A."""
        return self.b - self.a


def quantile(level: float) -> float:
    """Of the normal distribution, for an interval of coverage 1 - level."""
    return NormalDist().inv_cdf(1 - level / 2)


def of_table(name: str, table: Table, *, level: float, images: int | None = None) -> Row:
    """Two accuracies on the same images."""
    low, high = interval(table, quantile(level))
    a, b = table.both + table.only_a, table.both + table.only_b
    p = table.p_value
    row = Row(name, a / table.total, b / table.total, low, high, p, p, MCNEMAR, "unclear", images)
    return judged(row, "higher", level)


def of_estimate(
    name: str, a: float, b: float, found: Estimate, p: float, *, better: str, level: float
) -> Row:
    """A figure of both models, with the bootstrap's interval of its difference and the p-value of a test."""
    row = Row(name, a, b, found.low, found.high, p, p, RANDOMISATION, "unclear")
    return judged(row, better, level)


def of_runs(
    name: str, a: Sequence[float], b: Sequence[float], *, pairs: bool, better: str, level: float,
    images: int | None = None,
) -> Row:  # fmt: skip
    """A measure of several runs a side, by seed.

    Args:
        name: of the row.
        a, b: one value per run.
        pairs: whether the runs of both sides have the same seeds, in the same order.
        better: higher | lower.
        level: of the test.
        images: that it is of.
    """
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    if min(len(a), len(b)) < LEAST_SEEDS:
        reason = f"{len(a)} and {len(b)} runs: too few"
        return Row(name, mean_a, mean_b, None, None, None, None, reason, "unclear", images)
    found = t_tests.paired(a, b, level=level) if pairs else t_tests.welch(a, b, level=level)
    test = t_tests.PAIRED if pairs else t_tests.WELCH
    if found.p_value is None:
        same = found.difference == 0
        test = "the same in every run" if same else "no spread over the runs: no test"
        return Row(name, mean_a, mean_b, None, None, None, None, test, "same" if same else "unclear", images)
    row = Row(
        name, mean_a, mean_b, found.low, found.high, found.p_value, found.p_value, test, "unclear", images
    )
    return judged(row, better, level)


def judged(row: Row, better: str, level: float) -> Row:
    """The row with the verdict that its corrected p-value gives."""
    if row.corrected is None:
        return row
    if row.corrected >= level or row.difference == 0:
        return replace(row, verdict="unclear")
    return replace(row, verdict="better" if (row.difference > 0) == (better == "higher") else "worse")


def corrected(rows: Sequence[Row], better: Sequence[str], level: float) -> list[Row]:
    """The rows with p-values corrected for how many they are, and verdicts that follow from these.

    Rows without a p-value stay without and do not count.
    """
    values = iter(holm([row.p_value for row in rows if row.p_value is not None]))
    return [
        judged(replace(row, corrected=None if row.p_value is None else next(values)), way, level)
        for row, way in zip(rows, better, strict=True)
    ]
