"""The axis `fairness/*`: whether the model is as good for every group of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from effvit_train.card import Measured
from effvit_train.keys import stream_key
from effvit_train.proportions import Z95, wilson

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

WORST, GAP, REWEIGHTED = "fairness/worst_group_accuracy", "fairness/accuracy_gap", "fairness/reweighted_gap"
PARITY, ODDS = "fairness/demographic_parity_difference", "fairness/equalized_odds_difference"
KEYS = (WORST, GAP, REWEIGHTED, PARITY, ODDS)
MIN_CELL = 30  # a 95 % interval of an accuracy of 0.9 is then 0.22 wide
MIN_COMMON = 0.5  # share of the compared images whose classes all compared groups must have
LISTED = 200  # groups in the provenance
_PERMUTATIONS = 200


def measure_fairness(
    predicted: Tensor | npt.ArrayLike,
    labels: Tensor | npt.ArrayLike,
    groups: Sequence[str],
    *,
    classes: Sequence[str],
    min_cell: int = MIN_CELL,
    known: Sequence[str] = (),
) -> tuple[Measured, dict[str, Any]]:
    """How much accuracy, predictions and errors differ between groups, by the definitions of Fairlearn.

    Only groups with at least `min_cell` images are compared: in an extreme over many groups, small ones would
    show little but chance. The others are told, one by one and pooled. Demographic parity and equalized odds
    are of a binary decision; with K classes each is measured once per class (it against the rest), and the
    largest counts. With two classes that is the binary measure.

    A gap between the best and the worst group is above 0 by chance alone. `facts["chance"]` says what a model
    would show that treats groups alike: groups are dealt out again among all images (worst group, gap,
    demographic parity) or among the images of each class (reweighted gap, equalized odds).

    Args:
        predicted: (N,) class 0..K-1 of each image; -1 = no answer (logits that are not finite), which is wrong.
        labels: (N,) in 0..K-1.
        groups: (N,) name of each image's group; "" = not known, left out of every comparison.
        classes: K names.
        min_cell: images that a rate needs to be compared: of a group, and for equalized odds also of the
            class, and of the rest, within the group.
        known: names of groups that the data set has, so that those without test images are told.

    Returns:
        The measures by key, each a number or a reason, and for the provenance every group and class.

    Raises:
        ValueError: shapes, labels or predictions that do not belong together.
    """
    truth, guess = _ints(labels), _ints(predicted)
    _check(guess, truth, groups, len(classes), min_cell)
    if not len(truth):
        return _missing("there are no test images")
    if len(classes) < 2:
        return _missing("one class leaves nothing to get wrong")
    has_group = np.array([name != "" for name in groups], dtype=np.bool_)
    if not has_group.any():
        return _missing("no test image has a group")
    names, code = np.unique(np.array(groups, dtype=str)[has_group], return_inverse=True)
    cells = _Cells.of(code, truth[has_group], guess[has_group], len(names), len(classes))
    compared = cells.size >= min_cell
    result = _Result.of(cells, compared, min_cell)
    facts: dict[str, Any] = {
        "images": int(has_group.sum()), "without_group": int((~has_group).sum()), "min_cell": min_cell,
        "compared_groups": int(compared.sum()),
        "groups_without_images": sorted(set(known) - set(names.tolist()) - {""}),
        **_group_facts(cells, names.tolist(), compared, result),
        "classes": _class_facts(truth, guess, classes, result),
    }  # fmt: skip
    if compared.sum() < 2:
        largest = int(cells.size.argmax())
        have = f"the largest, '{names[largest]}', has {int(cells.size[largest])}"
        return _missing(f"fewer than two groups have {min_cell} test images ({have})", facts)
    best, worst = (
        names[compared][extreme] for extreme in (result.accuracy.argmax(), result.accuracy.argmin())
    )
    facts |= {"worst_group": str(worst), "best_group": str(best)}
    facts["classes_compared"] = {
        "reweighted": int(result.common.sum()), "of_the_images": round(result.common_share, 6),
        "equalized_odds": int((~np.isnan(result.odds)).sum()),
    }  # fmt: skip
    # As Fairlearn does, without a least size; it takes the rate of an empty cell for 0, here it is left out
    facts["equalized_odds_with_all_cells"] = _max(_Result.of(cells, cells.size > 0, 1).odds)
    facts["chance"] = _chance(result, code, truth[has_group], guess[has_group], cells, compared, min_cell)
    measured = Measured({key: value for key, value in result.values().items() if value is not None})
    if REWEIGHTED not in measured.values:
        measured.missing[REWEIGHTED] = (
            f"the compared groups share {int(result.common.sum())} of {len(classes)} classes, "
            f"with {result.common_share:.0%} of their images"
        )
    if ODDS not in measured.values:
        measured.missing[ODDS] = (
            f"no class has two groups with {min_cell} test images of it and {min_cell} others"
        )
    return measured, facts


@dataclass(frozen=True)
class _Cells:
    """Counts by group and class, shape (G, K).

    Attributes:
        count: images of the class.
        hits: those of them that are predicted right.
        selected: images of any class that are predicted as this one.
    """

    count: Floats
    hits: Floats
    selected: Floats

    @classmethod
    def of(cls, code: Ints, truth: Ints, guess: Ints, groups: int, classes: int) -> _Cells:
        def table(columns: Ints, rows: Bools | slice) -> Floats:
            flat = np.bincount(code[rows] * classes + columns[rows], minlength=groups * classes)
            return flat.reshape(groups, classes).astype(np.float64)

        return cls(table(truth, slice(None)), table(truth, guess == truth), table(guess, guess >= 0))

    @property
    def size(self) -> Floats:
        """(G,) images of each group."""
        return self.count.sum(axis=1)

    @property
    def accuracy(self) -> Floats:
        """(G,) of each group."""
        return self.hits.sum(axis=1) / np.maximum(self.size, 1)


@dataclass(frozen=True)
class _Result:
    """The figures of the compared groups.

    Attributes:
        accuracy: (C,) of each compared group.
        reweighted: (G,) accuracy of each group, its classes weighted alike in all; NaN if not compared.
        common: (K,) classes that all compared groups have.
        common_share: share of their images that is of these classes.
        parity, odds: (K,) per class; NaN where fewer than two groups can be compared.
        tpr, fpr: (K,) the two differences of which `odds` is the larger.
    """

    accuracy: Floats
    reweighted: Floats
    common: Bools
    common_share: float
    parity: Floats
    odds: Floats
    tpr: Floats
    fpr: Floats

    @classmethod
    def of(cls, cells: _Cells, compared: Bools, min_cell: int) -> _Result:
        size = cells.size[:, None]
        others = size - cells.count
        enough = compared[:, None]
        parity = _spread(_ratio(cells.selected, size), np.broadcast_to(enough, cells.count.shape))
        tpr = _spread(_ratio(cells.hits, cells.count), enough & (cells.count >= min_cell))
        fpr = _spread(_ratio(cells.selected - cells.hits, others), enough & (others >= min_cell))
        odds = np.maximum(tpr, fpr)  # NaN if either is: half of the definition would understate it
        common = np.logical_and(compared.any(), (cells.count[compared] > 0).all(axis=0))
        mix = np.where(common, cells.count[compared].sum(axis=0), 0.0)
        share = float(mix.sum() / max(cells.count[compared].sum(), 1))
        reweighted = np.full(len(compared), np.nan)
        if share > 0:
            rates = _ratio(cells.hits, cells.count)[compared][:, common]
            reweighted[compared] = rates @ mix[common] / mix.sum()
        return cls(cells.accuracy[compared], reweighted, common, share, parity, odds, tpr, fpr)

    def values(self) -> dict[str, float | None]:
        """The measures; None where there is none. Two groups at least have been compared."""
        return {
            WORST: float(self.accuracy.min()),
            GAP: float(np.ptp(self.accuracy)),
            REWEIGHTED: (
                float(np.nanmax(self.reweighted) - np.nanmin(self.reweighted))
                if self.common_share >= MIN_COMMON
                else None
            ),
            PARITY: _max(self.parity),
            ODDS: _max(self.odds),
        }


def _intervals(right: Floats, total: Floats) -> tuple[Floats, Floats]:
    """95 % intervals of proportions, arrays of one shape; 0..1 where there are no trials."""
    found = [wilson(int(r), int(n)) if n else (0.0, 1.0) for r, n in zip(right.flat, total.flat, strict=True)]
    low, high = np.array(found).T
    return low.reshape(right.shape), high.reshape(right.shape)


def _group_facts(cells: _Cells, names: list[str], compared: Bools, result: _Result) -> dict[str, Any]:
    """Every group, the compared ones first, the worst on top; and the small ones together."""
    low, high = _intervals(cells.hits.sum(axis=1), cells.size)
    of_class = _ratio(cells.hits.sum(axis=0), cells.count.sum(axis=0))
    expected = (cells.count * np.nan_to_num(of_class)).sum(axis=1) / cells.size
    spread = _reweighted_error(cells, compared, result)
    rows = []
    for g in np.lexsort((cells.accuracy, ~compared))[:LISTED]:
        row = {
            "group": names[g], "images": int(cells.size[g]), "accuracy": _short(cells.accuracy[g]),
            "interval": [_short(low[g]), _short(high[g])],
            "expected": _short(expected[g]),  # if it were as good as all groups together in each class
            "compared": bool(compared[g]),
        }  # fmt: skip
        if not np.isnan(result.reweighted[g]):
            value, half = result.reweighted[g], Z95 * spread[g]
            row["reweighted"] = _short(value)
            row["reweighted_interval"] = [_short(max(0.0, value - half)), _short(min(1.0, value + half))]
        rows.append(row)
    small = ~compared
    facts: dict[str, Any] = {"groups": rows, "groups_not_listed": max(0, len(names) - LISTED)}
    if small.any():
        right, total = cells.hits[small].sum(keepdims=True)[0], cells.size[small].sum(keepdims=True)
        low, high = _intervals(right, total)
        facts["small_groups"] = {
            "groups": int(small.sum()), "images": int(total[0]), "accuracy": _short(right[0] / total[0]),
            "interval": [_short(low[0]), _short(high[0])],
        }  # fmt: skip
    return facts


def _reweighted_error(cells: _Cells, compared: Bools, result: _Result) -> Floats:
    """(G,) standard error of the reweighted accuracies, with one success and one failure added to each cell."""
    mix = np.where(result.common, cells.count[compared].sum(axis=0), 0.0)
    n, p = cells.count + 2, (cells.hits + 1) / (cells.count + 2)
    return np.sqrt((mix**2 * p * (1 - p) / n).sum(axis=1)) / max(mix.sum(), 1)


def _class_facts(truth: Ints, guess: Ints, classes: Sequence[str], result: _Result) -> dict[str, list[Any]]:
    """One column per figure, one entry per class; None where a figure has no value."""
    count = np.bincount(truth, minlength=len(classes)).astype(np.float64)
    hits = np.bincount(truth[guess == truth], minlength=len(classes)).astype(np.float64)
    low, high = _intervals(hits, count)
    columns = {
        "accuracy": _ratio(hits, count), "low": low, "high": high, PARITY.partition("/")[2]: result.parity,
        "true_positive_rate_difference": result.tpr, "false_positive_rate_difference": result.fpr,
    }  # fmt: skip
    return {
        "name": list(classes), "images": count.astype(int).tolist(),
        **{name: [_short(value) for value in column] for name, column in columns.items()},
    }  # fmt: skip


def _chance(
    result: _Result, code: Ints, truth: Ints, guess: Ints, cells: _Cells, compared: Bools, min_cell: int
) -> dict[str, Any]:
    """What 200 random assignments of the images to groups of the same sizes show.

    Per measure the mean, the 95th percentile (the 5th of the worst group's accuracy) and the share of
    assignments, the real one counted in, that are at least as unequal (Phipson & Smyth 2010). `all_groups` is
    that share for the chi-squared statistic of the accuracies of all groups, small ones too.
    """
    rng = np.random.default_rng(stream_key("fairness.permutation"))
    shape = cells.count.shape
    order = np.argsort(truth, kind="stable")  # images of one class side by side: dealt out within the class
    code, truth, guess = code[order], truth[order], guess[order]
    drawn: dict[str, list[float]] = {key: [] for key in KEYS}
    overall: list[float] = []
    for _ in range(_PERMUTATIONS):
        anywhere = _Cells.of(rng.permutation(code), truth, guess, *shape)
        in_class = _Cells.of(code[np.argsort(truth + rng.random(len(code)))], truth, guess, *shape)
        overall.append(_chi_squared(anywhere))
        free = _Result.of(anywhere, compared, min_cell).values()
        within = _Result.of(in_class, compared, min_cell).values()
        for key in KEYS:
            value = (within if key in (REWEIGHTED, ODDS) else free)[key]
            if value is not None:
                drawn[key].append(value)
    told: dict[str, Any] = {}
    for key, value in result.values().items():
        if value is not None:
            sign = -1.0 if key == WORST else 1.0
            found = np.array(drawn[key])
            told[key] = {
                "mean": _short(found.mean()),
                "p5" if key == WORST else "p95": _short(np.quantile(found, 0.05 if key == WORST else 0.95)),
                "p_value": _at_least(sign * found, sign * value),
            }
    told["all_groups"] = {"p_value": _at_least(np.array(overall), _chi_squared(cells))}
    return told


def _chi_squared(cells: _Cells) -> float:
    """Weighted spread of the accuracies of all groups; constant factors left out."""
    mean = cells.hits.sum() / cells.size.sum()
    return float((cells.size * (cells.accuracy - mean) ** 2).sum())


def _at_least(drawn: Floats, value: float) -> float:
    return round((1 + int((drawn >= value - 1e-12).sum())) / (1 + len(drawn)), 6)


def _spread(rates: Floats, valid: Bools) -> Floats:
    """(K,) largest minus smallest of the valid rates (G, K) of a class; NaN with fewer than two."""
    high = np.where(valid, rates, -np.inf).max(axis=0)
    low = np.where(valid, rates, np.inf).min(axis=0)
    return np.where(valid.sum(axis=0) > 1, high - low, np.nan)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Element by element; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _max(values: Floats) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmax(values))


def _short(value: float) -> float | None:
    """Six decimals: there are many of them; None for NaN, which JSON does not know."""
    return None if np.isnan(value) else round(float(value), 6)


def _ints(values: Tensor | npt.ArrayLike) -> Ints:
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"classes are integers, not {array.dtype}")
    return array.astype(np.int64)


def _check(guess: Ints, truth: Ints, groups: Sequence[str], classes: int, min_cell: int) -> None:
    if truth.ndim != 1 or guess.shape != truth.shape or len(groups) != len(truth):
        raise ValueError(f"predicted {guess.shape}, labels {truth.shape}, {len(groups)} groups do not match")
    for values, lowest, what in ((truth, 0, "labels"), (guess, -1, "predictions")):
        if values.size and (values.min() < lowest or values.max() >= classes):
            raise ValueError(f"{what} outside {lowest}..{classes - 1}")
    if min_cell < 1:
        raise ValueError(f"min_cell={min_cell} is below 1")


def _missing(reason: str, facts: dict[str, Any] | None = None) -> tuple[Measured, dict[str, Any]]:
    return Measured(missing=dict.fromkeys(KEYS, reason)), facts or {}
