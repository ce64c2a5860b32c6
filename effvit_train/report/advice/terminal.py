"""The advice in the terminal: short, every sentence with its numbers."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from effvit_train.report import format as fmt
from effvit_train.report.advice.advice import Advice, budget_rows, levers_of
from effvit_train.report.advice.effects import Effect, Interaction, Order, amount
from effvit_train.report.advice.estimate import LEVEL, Estimate
from effvit_train.report.advice.experiments import Experiment
from effvit_train.report.advice.predict import shown
from effvit_train.report.terminal import COLOURS

_WORDS = {
    "better": "better", "worse": "worse", "same": "same", "hidden": "noise hides it", "untold": "too few runs",
}  # fmt: skip
_MOST_ROWS = 12


def show(advice: Advice, console: Console) -> None:
    """Print it."""
    arms = len(advice.points)
    head = f"{advice.runs} runs on {advice.dataset}: {arms} arm{'s' * (arms != 1)} that differ in more than the seed"
    console.print(Text(head, "bold"))
    if advice.others:
        console.print(
            Text(f"{advice.others} runs on other data are left out: give their directories alone.", "dim")
        )
    if advice.too_few:
        console.print(f"\nToo few runs to advise: {advice.too_few}.", markup=False)
        console.print(
            "The small set of runs that tells (distil, prune, both, privacy; three seeds):", markup=False
        )
        _command(console, advice.first_steps)
        _budgets(advice, console)
        return
    _effects(advice, console)
    _interactions(advice, console)
    _orders(advice, console)
    _budgets(advice, console)
    _plan(advice, console)
    _next(advice, console)


def _effects(advice: Advice, console: Console) -> None:
    console.print(
        Text("\nWhat each does", "bold"),
        Text("mean over pairs that differ in this alone [95 % interval]", "dim"),
    )
    for lever in levers_of(advice):
        mine = [one for one in advice.effects if one.lever == lever]
        same = [fmt.measure_of(one.key).label.lower() for one in mine if one.verdict == "same"]
        rest = [one for one in mine if one.verdict != "same"]
        pairs = max((len(one.pairs), one.estimate.runs) for one in mine)
        where = f"{pairs[1]} run{'s' * (pairs[1] != 1)} a side" + (
            f", in {pairs[0]} places" if pairs[0] > 1 else ""
        )
        console.print(Text.assemble((lever.label, "bold"), ("  " + where, "dim")))
        for one in rest:
            console.print(_effect(one), soft_wrap=True)
        if same:
            console.print(Text(f"  the same: {', '.join(same)}", "dim"))
    for chance in advice.chances:
        images, name = chance.images, chance.effect.lever.label
        console.print(
            f"{name}: of the two models, {images.only_here} images only the one with it gets right, "
            f"{images.only_there} only the other (McNemar p = {images.p_value:.2g}); another seed may differ.",
            markup=False,
        )
    if advice.alpha >= 0.5:
        count = round(advice.alpha)
        text = f"Of these intervals about {count} leave{'s' * (count == 1)} out 0 by chance alone"
        console.print(Text(f"{text}; the order below allows for it.", "dim"))


def _effect(one: Effect) -> Text:
    return Text.assemble(
        f"  {fmt.measure_of(one.key).label:24}{amount(one.key, one.estimate.value):>10}  ",
        (f"{_interval(one.key, one.estimate):24}", "dim"),
        (_WORDS[one.verdict], COLOURS.get(one.verdict, "dim")),
    )


def _interactions(advice: Advice, console: Console) -> None:
    if not advice.interactions:
        return
    console.print(Text("\nTogether", "bold"), Text("both at once against the sum of each alone", "dim"))
    counted = [
        one for one in advice.interactions if one.estimate.error == 0 and abs(one.estimate.value) < 5e-4
    ]
    adding = ", ".join(dict.fromkeys(fmt.measure_of(one.key).label.lower() for one in counted))
    told = [one for one in advice.interactions if one not in counted]
    shown_first = sorted(told, key=lambda one: one.estimate.p_value)
    for one in shown_first[:_MOST_ROWS]:
        console.print(Text("  " + interaction_text(one)), soft_wrap=True)
    if adding:
        console.print(Text(f"  {adding}: {len(counted)} pairs add up exactly", "dim"))
    if len(shown_first) > _MOST_ROWS:
        console.print(Text(f"  … {len(shown_first) - _MOST_ROWS} more with --json", "dim"))


def interaction_text(one: Interaction) -> str:
    """`distill + prune: accuracy −0.4 pp, alone −0.7 pp in sum: +0.3 pp [..], noise hides it`."""
    names = " + ".join(lever.label for lever in one.levers)
    beside = f" beside {', '.join(sorted(x.label for x in one.beside))}" if one.beside else ""
    exact = one.estimate.error == 0
    if one.estimate.error is None:
        word = "too few runs to tell"
    elif exact or one.estimate.p_value < LEVEL:
        word = "they add up" if one.estimate.value == 0 else "they do not simply add up"
    else:
        word = "noise hides any interaction"
    between = _interval(one.key, one.estimate)
    return (
        f"{names}{beside}: {fmt.measure_of(one.key).label.lower()} {amount(one.key, one.together)} together, "
        f"{amount(one.key, one.apart)} in sum: {amount(one.key, one.estimate.value)} {between}".rstrip()
        + f": {word}"
    )


def _orders(advice: Advice, console: Console) -> None:
    if not advice.orders:
        return
    console.print(Text("\nOrder", "bold"), Text("> told apart at 5 % over all pairs (Holm), ~ not", "dim"))
    for one in advice.orders:
        console.print(Text("  " + order_text(one)), soft_wrap=True)


def order_text(one: Order) -> str:
    """`accuracy, beside vit_micro: distill > none ~ prune`, or that noise hides it."""
    label = fmt.measure_of(one.key).label.lower()
    head = f"{label}, from {one.start.label}: "
    if one.refused and one.runs < 2:
        return f"{head}no order: a single run of an arm shows no spread"
    if one.refused:
        return f"{head}no order: noise hides every difference ({one.comparisons} comparisons, {one.runs} runs each)"
    names = [lever.label if lever else "as it is" for lever in one.levers]
    words = [names[0]]
    for parted, name in zip(one.parted, names[1:], strict=True):
        words += [">" if parted else "~", name]
    return head + " ".join(words)


def _budgets(advice: Advice, console: Console) -> None:
    if not advice.budgets:
        return
    console.print(Text("\nBudgets", "bold"), Text("means of each arm", "dim"))
    table = Table.grid(padding=(0, 2))
    rows = budget_rows(advice)
    table.add_row(*(Text("  " + budget.text, "dim") for budget in advice.budgets))
    for point, cells in rows[:_MOST_ROWS]:
        table.add_row(
            *(
                Text(
                    f"  {'✓' if ok else '✗'} {fmt.value(budget.key, value)}",
                    COLOURS["better" if ok else "worse"],
                )
                for budget, (value, ok) in zip(advice.budgets, cells, strict=True)
            ),
            Text(point.label),
        )
    console.print(table)
    if len(rows) > _MOST_ROWS:
        console.print(Text(f"  … {len(rows) - _MOST_ROWS} more arms with --json", "dim"))


def _plan(advice: Advice, console: Console) -> None:
    plan = advice.plan
    assert plan is not None
    console.print(Text("\nAdvice", "bold"), Text("rules of docs/advice.md that fired", "dim"))
    for rule in plan.rules:
        console.print(Text.assemble("  ", (f"{rule.name:6}", "dim"), rule.says), soft_wrap=True)
    if not advice.budgets:
        console.print(
            "  No budget is given: there is no gap to close. Give --budget 'cost/macs<=1M'.", markup=False
        )
    if plan.added:
        steps = ", then ".join(lever.label for lever in plan.added)
        console.print(
            Text.assemble("  ", ("order ", "dim"), f"To {plan.start.label}, add {steps}."), soft_wrap=True
        )
    if plan.unmet:
        missed = ", ".join(budget.text for budget in plan.unmet)
        console.print(
            Text.assemble("  ", ("unmet ", "dim"), f"Not expected to be met: {missed}."), soft_wrap=True
        )


def _next(advice: Advice, console: Console) -> None:
    if not advice.experiments:
        console.print("\nNothing that is missing would tell more.", markup=False)
        return
    console.print(Text("\nRun next", "bold"))
    first, *others = advice.experiments
    _experiment(first, console)
    if others:
        console.print(Text("after that:", "dim"))
        _experiment(others[0], console)


def _experiment(one: Experiment, console: Console) -> None:
    console.print(Text("  " + one.why + "."), soft_wrap=True)
    for line in one.commands:
        _command(console, line)
    if one.expected:
        parts = [
            f"{fmt.measure_of(key).label.lower()} {expected_text(key, told)}"
            for key, told in one.expected.items()
        ]
        console.print(Text("  expected: " + ", ".join(parts), "dim"), soft_wrap=True)


def expected_text(key: str, told: Estimate) -> str:
    """`97.1 % [96.0 %, 98.2 %]`."""
    found = told.interval()
    if found is None or told.error == 0:
        return fmt.value(key, shown(key, told))
    ends = [shown(key, Estimate(end, None, 0, 0)) for end in found]
    if fmt.measure_of(key).unit == "fraction":
        ends = [min(max(end, 0.0), 1.0) for end in ends]
    low, high = (fmt.value(key, end) for end in ends)
    return f"{fmt.value(key, shown(key, told))} [{low}, {high}]"


def _interval(key: str, told: Estimate) -> str:
    found = told.interval()
    if found is None:
        return ""
    return "counted" if told.error == 0 else f"[{amount(key, found[0])}, {amount(key, found[1])}]"


def _command(console: Console, line: str) -> None:
    console.print(f"    {line}", markup=False, soft_wrap=True, highlight=False)
