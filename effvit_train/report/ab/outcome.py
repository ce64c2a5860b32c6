"""Everything that is found of A and B, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from effvit_train import paired, t_tests
from effvit_train.prices import Prices
from effvit_train.report.ab import cards, numbers
from effvit_train.report.ab.cards import Cost, Priced
from effvit_train.report.ab.flips import Flips, flips
from effvit_train.report.ab.numbers import Groups
from effvit_train.report.ab.rows import LEAST_SEEDS, Row, of_runs, of_table, quantile
from effvit_train.report.ab.sides import Side
from effvit_train.report.ab.tested import Images, read_images
from effvit_train.report.format import Verdict
from effvit_train.report.inputs import test_count

ACCURACY = "quality/accuracy"
UNPAIRED = "Newcombe's interval of unpaired proportions"

Scope = Literal["models", "seeds", "few"]


@dataclass(frozen=True)
class Headline:
    """What the verdict is of.

    Attributes:
        accuracy: None where the accuracies cannot be compared.
        table: of two models on the same images; None otherwise.
        over_images: of settings: interval of the difference of means as the choice of test images moves it.
        needed: about how many images (of two models) or runs a side (of settings) would show this difference
            with 80 % power; None where that cannot be told.
    """

    accuracy: Row | None
    table: paired.Table | None = None
    over_images: tuple[float, float] | None = None
    needed: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What is found.

    Attributes:
        level: of every test.
        scope: what the verdict is of: two `models` (one run a side), settings (`seeds`), or nothing (`few`).
        a, b: the sides.
        pairs: whether runs are paired by seed.
        headline: what the verdict is of.
        why_not: why the test images are not the same, or empty.
        images: the test images; None where they are not the same.
        flips: images that flipped.
        measures: what else is tested.
        classes: accuracy per class.
        groups: per column.
        no_groups: why they cannot be known, or empty.
        costs: all of `cost/*`.
        others: measures that are not tested.
        priced: a million images; None without a price list.
        streams: in what the runs' streams differ, so that `continual/*` is not compared; or empty.
    """

    level: float
    scope: Scope
    a: Side
    b: Side
    pairs: bool
    headline: Headline
    why_not: str
    images: Images | None
    flips: Flips | None = None
    measures: list[Row] = field(default_factory=list)
    classes: list[Row] = field(default_factory=list)
    groups: list[Groups] = field(default_factory=list)
    no_groups: str = ""
    costs: list[Cost] = field(default_factory=list)
    others: list[Cost] = field(default_factory=list)
    priced: Priced | None = None
    streams: str = ""

    @property
    def winner(self) -> Side | None:
        """The side whose accuracy is better; None where the data do not decide."""
        row, chance = self.headline.accuracy, self.headline.over_images
        if row is None or row.verdict not in ("better", "worse"):
            return None
        if chance is not None and chance[0] <= 0 <= chance[1]:
            return None
        return self.b if row.verdict == "better" else self.a

    @property
    def caveat(self) -> str:
        """What speaks against the comparison, or empty."""
        return self.images.caveat if self.images is not None else ""


def compare_sides(
    a: Side, b: Side, *, level: float = 0.05, groups: Mapping[str, Mapping[int, str]] | None = None, no_groups: str = "",
    prices: Prices | None = None,
) -> Outcome:  # fmt: skip
    """Find out all that the files of both sides' runs tell.

    Args:
        a, b: the sides.
        level: of every test.
        groups: column -> number of a test image -> its group.
        no_groups: why they cannot be known, or empty.
        prices: the user's price list.
    """
    images, why_not = read_images(a, b)
    count_a, count_b = len(a.entries), len(b.entries)
    scope: Scope = "models" if count_a == count_b == 1 else "seeds"
    if scope == "seeds" and min(count_a, count_b) < LEAST_SEEDS:
        scope = "few"
    pairs = a.seeds == b.seeds and not (a.private or b.private)
    headline = _apart(a, b, scope, pairs, level) if images is None else _together(images, scope, pairs, level)
    measures: list[Row] = []
    if scope == "models" and images is not None:
        measures = numbers.scores(images, level=level)
    elif scope == "seeds":
        measures = cards.over_seeds(a, b, pairs=pairs, level=level)
    shown = [ACCURACY, *(row.name for row in measures)]
    return Outcome(
        level, scope, a, b, pairs, headline, why_not, images,
        None if images is None else flips(images), measures,
        [] if images is None else numbers.by_class(images, pairs=pairs, level=level),
        [] if images is None else [
            numbers.by_group(images, column, of_image, pairs=pairs, level=level)
            for column, of_image in (groups or {}).items()
        ],
        no_groups if images is not None else "", cards.costs(a, b), cards.others(a, b, shown),
        None if prices is None else cards.priced(a, b, prices), cards.other_streams(a, b),
    )  # fmt: skip


def _together(images: Images, scope: Scope, pairs: bool, level: float) -> Headline:
    """Accuracies on the same images."""
    right_a, right_b = images.right(images.a), images.right(images.b)
    if scope == "models":
        table = numbers.table_of(right_a[0], right_b[0])
        row = of_table(ACCURACY, table, level=level)
        return Headline(row, table, needed=paired.images_needed(table, quantile(level)))
    of_a, of_b = right_a.mean(axis=1).tolist(), right_b.mean(axis=1).tolist()
    chance = numbers.over_images(images, level=level)
    return _of_settings(of_a, of_b, chance, scope, pairs, level)


def _apart(a: Side, b: Side, scope: Scope, pairs: bool, level: float) -> Headline:
    """Accuracies on different images of one data set, from the cards; none for those of different sets."""
    of_a, of_b = a.values(ACCURACY), b.values(ACCURACY)
    total_a, total_b = (test_count(side.entries[0].card) for side in (a, b))
    cards_of_both = [entry.card for entry in (*a.entries, *b.entries)]
    kinds = {(str(card.run.get("dataset")), str(card.model.get("num_classes"))) for card in cards_of_both}
    if of_a is None or of_b is None or not total_a or not total_b or len(kinds) > 1:
        return Headline(None)
    mean_a, mean_b = fmean(of_a), fmean(of_b)
    low, high = paired.interval_unpaired(
        round(mean_a * total_a), total_a, round(mean_b * total_b), total_b, quantile(level)
    )
    if scope != "models":
        return _of_settings(of_a, of_b, (low, high), scope, pairs, level)
    verdict: Verdict = "unclear" if low <= 0 <= high else "better" if low > 0 else "worse"
    return Headline(Row(ACCURACY, mean_a, mean_b, low, high, None, None, UNPAIRED, verdict))


def _of_settings(
    a: list[float], b: list[float], chance: tuple[float, float], scope: Scope, pairs: bool, level: float
) -> Headline:
    row = of_runs(ACCURACY, a, b, pairs=pairs, better="higher", level=level)
    if scope == "few":
        return Headline(row)
    needed = (t_tests.paired(a, b) if pairs else t_tests.welch(a, b)).runs_needed
    return Headline(row, over_images=chance, needed=needed)
