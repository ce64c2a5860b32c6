"""Numbers and sentences of a comparison; above all the verdict."""

from __future__ import annotations

from effvit_train.report import format as fmt
from effvit_train.report.ab.cards import Priced
from effvit_train.report.ab.outcome import Outcome
from effvit_train.report.ab.rows import LEAST_SEEDS, MCNEMAR, Row
from effvit_train.report.inputs import test_count

# Units that are part of how a number is written (`2 min 35 s`, `1.20 GB`).
_WRITTEN = ("s", "ms", "MB")


def value(key: str, number: float | None) -> str:
    """A measure without the long name of its unit, which stands elsewhere: `98.3 %`, `3.4 ms`, `0.29`."""
    unit = fmt.measure_of(key).unit
    written = fmt.value(key, number)
    return written if unit in _WRITTEN else written.removesuffix(f" {unit}")


def signed(key: str, number: float) -> str:
    """A difference of a measure, likewise: `+0.4 pp`, `−0.031`."""
    sign = "+" if number > 0 else fmt.MINUS if number < 0 else "±"
    unit = fmt.measure_of(key).unit
    if unit == "fraction":
        return f"{sign}{_points(number)} pp"
    if unit in ("parameters", "MACs/image", "FLOPs/image"):
        return f"{sign}{fmt.value(key, abs(number))}"
    return f"{sign}{fmt.significant(abs(number), 2)}"


def ends(key: str, row: Row) -> str:
    """An interval of differences: `−0.8 to +1.5`; an en dash where there is none."""
    return fmt.NONE if row.low is None or row.high is None else span(key, row.low, row.high)


def span(key: str, low: float, high: float) -> str:
    """`−0.8 to +1.5`: percentage points go without `pp`."""
    return f"{signed(key, low).removesuffix(' pp')} to {signed(key, high).removesuffix(' pp')}"


def p_value(number: float | None) -> str:
    """`0.56`, `0.012`, `<0.001`; an en dash for None."""
    if number is None:
        return fmt.NONE
    return "<0.001" if number < 0.001 else f"{number:.2g}" if number < 0.995 else "1"


def coverage(outcome: Outcome) -> str:
    """`95 %`."""
    return f"{100 * (1 - outcome.level):g} %"


def word(row: Row) -> str:
    """The verdict of a row, in words."""
    return {"unclear": "not decided"}.get(row.verdict, row.verdict)


def verdict(outcome: Outcome) -> str:
    """One sentence: which side is more accurate, or that the data do not decide."""
    row = outcome.headline.accuracy
    if row is None:
        return f"Not decided: {outcome.why_not}, so that their accuracies cannot be compared."
    if outcome.scope == "few":
        return _few(outcome, row)
    return _models(outcome, row) if outcome.scope == "models" else _settings(outcome, row)


def _few(outcome: Outcome, row: Row) -> str:
    of_a, of_b = len(outcome.a.entries), len(outcome.b.entries)
    return (
        f"Not decided: A has {of_a} run{'s' * (of_a > 1)} and B has {of_b}, and settings are compared over "
        f"{LEAST_SEEDS} seeds a side at least (the mean of B is {_apart(row)}); repeat both with seed=1,2,3."
    )


def _models(outcome: Outcome, row: Row) -> str:
    only = "this is about these two models, not their settings (one run each; repeat both with seed=1,2,3)"
    table = outcome.headline.table
    if table is None:
        where = f"on different images ({_tested(outcome)}; {outcome.why_not})"
    else:
        where = f"on the same {table.total:,} test images"
    found = _interval(outcome, row, row.low, row.high)
    if row.test == MCNEMAR:
        found += f", McNemar p {_equals(row.p_value)}"
    winner = outcome.winner
    if winner is not None:
        return f"{winner.name} is better: {_points(row.difference)} points more accurate {where} ({found}); {only}."
    if table is not None and table.only_a == table.only_b:
        many = "the same images" if not table.only_a else "equally many images"
        return f"Not decided: A and B get {many} right, of {table.total:,} ({found}); {only}."
    more = f"; about {_rough(outcome.headline.needed)} test images would be needed" * bool(
        outcome.headline.needed
    )
    return f"Not decided: B is {_apart(row)} {where} ({found}{more}); {only}."


def _settings(outcome: Outcome, row: Row) -> str:
    runs = _runs(outcome)
    found = f"{_interval(outcome, row, row.low, row.high)}, {row.test} p {_equals(row.p_value)}"
    if row.p_value is None:
        return f"Not decided: over {runs} B is {_apart(row)}, without any spread that a test could measure it by."
    chance = outcome.headline.over_images
    images = "" if chance is None else _interval(outcome, row, *chance)
    winner = outcome.winner
    if winner is not None:
        return (
            f"{winner.name} is better: over {runs} {_points(row.difference)} points more accurate ({found}), and the "
            f"choice of the {_tested(outcome)} does not explain it ({images})."
        )
    if row.verdict != "unclear":
        return (
            f"Not decided: over {runs} B is {_apart(row)} on these {_tested(outcome)} ({found}), but on other test "
            f"images it may not be ({images})."
        )
    more = f"; about {_rough(outcome.headline.needed)} runs a side would be needed" * bool(
        outcome.headline.needed
    )
    return f"Not decided: over {runs} B is {_apart(row)} ({found}{more})."


def scope(outcome: Outcome) -> str:
    """What the verdict is of, and how it was found; empty where there is none to have."""
    if outcome.headline.accuracy is None:
        return ""
    if outcome.scope == "models":
        text = "One run a side: what differs may be their seeds as well as their settings."
    elif outcome.scope == "few":
        text = f"Fewer than {LEAST_SEEDS} runs on a side: their spread says too little for a test."
    elif outcome.pairs:
        text = "Runs of equal seed are pairs."
    else:
        secret = outcome.a.private or outcome.b.private
        why = "noise of private runs does not come from the seed" if secret else "A and B have other seeds"
        text = f"Runs are no pairs: {why}."
    return f"{text} {outcome.caveat}".strip()


def streams(outcome: Outcome) -> str:
    """A warning where the runs learnt from different streams; else empty."""
    if not outcome.streams:
        return ""
    return f"The runs learnt from different streams ({outcome.streams}): continual/* is of other tasks and not compared."


def _interval(outcome: Outcome, row: Row, low: float | None, high: float | None) -> str:
    """Of the winner's lead in points, or of B minus A where there is no winner."""
    if low is None or high is None:
        return "no interval"
    if outcome.winner is outcome.a:
        low, high = -high, -low
    whose = "" if outcome.winner is not None else "B − A: "
    return f"{whose}{coverage(outcome)} interval {span(row.name, low, high)}"


def _apart(row: Row) -> str:
    if row.difference == 0:
        return "as accurate as A"
    way = "more" if row.difference > 0 else "less"
    return f"{_points(row.difference)} points {way} accurate than A"


def _runs(outcome: Outcome) -> str:
    of_a, of_b = len(outcome.a.entries), len(outcome.b.entries)
    if of_a == of_b:
        return f"{of_a} {'seeds' if outcome.pairs else 'runs'} a side"
    return f"{of_a} runs of A and {of_b} of B"


def _tested(outcome: Outcome) -> str:
    if outcome.images is not None:
        return f"{len(outcome.images.labels):,} test images"
    of_a, of_b = (test_count(side.entries[0].card) or 0 for side in (outcome.a, outcome.b))
    return f"{of_a:,} and {of_b:,} test images"


def _equals(number: float | None) -> str:
    written = p_value(number)
    return f"< {written[1:]}" if written.startswith("<") else f"= {written}"


def _points(difference: float) -> str:
    shown = abs(difference) * 100
    return f"{shown:.{1 if shown >= 0.095 or shown == 0 else 2}f}"


def _rough(count: int | None) -> str:
    """Two digits: what would be needed is known no better."""
    return "" if count is None else f"{round(count, 2 - len(str(count))) if count > 99 else count:,}"


def amount(currency: str, number: float | None) -> str:
    """`0.16 EUR`; an en dash for None."""
    return fmt.NONE if number is None else f"{fmt.significant(number)} {currency}".strip()


def priced(found: Priced) -> list[tuple[str, tuple[float | None, float | None], fmt.Change | None]]:
    """Rows of a price: name, amounts of A and B, change; its parts too where it has two."""
    rows: list[tuple[str, tuple[float | None, float | None], fmt.Change | None]] = [
        ("Cost per million images", (found.a, found.b), found.change)
    ]
    if len(found.parts) > 1:
        rows += [(f"  of it {name}", amounts, None) for name, amounts in found.parts.items()]
    return rows
