"""The page of a comparison: one file, no network, no script."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import resources

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.ab import cards, tables, words
from effvit_train.report.ab.flips import Flip
from effvit_train.report.ab.numbers import MIN_CELL
from effvit_train.report.ab.outcome import ACCURACY, Outcome
from effvit_train.report.ab.pictures import Picture, Shown
from effvit_train.report.ab.rows import MCNEMAR
from effvit_train.report.ab.sides import Side
from effvit_train.report.audit_figures import hints
from effvit_train.report.charts import clip, escape
from effvit_train.report.commands import seeds_command
from effvit_train.report.html import page

_TINY = 48  # pixels: smaller pictures are shown with their pixels
_RUNS_LISTED = 12


def render(outcome: Outcome, data: Shown, *, shown: int) -> str:
    """The page as text.

    Args:
        outcome: what was found.
        data: the groups and pictures of the test images.
        shown: flipped images of a kind.
    """
    body = "\n".join(
        part
        for part in (
            _header(outcome), _streams(outcome), _tiles(outcome), _agreement(outcome), _flipped(outcome, data, shown),
            _classes(outcome), _groups(outcome), _measures(outcome), _continual(outcome), _costs(outcome),
            _others(outcome),
            _method(outcome), _commands(outcome),
        )
        if part
    )  # fmt: skip
    style = resources.files("effvit_train.report.ab").joinpath("ab.css").read_text(encoding="utf-8")
    return page(f"{outcome.a.label} and {outcome.b.label}", body, more_style=style)


def _header(outcome: Outcome) -> str:
    sides = "".join(_side(side) for side in (outcome.a, outcome.b))
    return (
        f"<header>\n<h1>A and B on the same test images</h1>\n"
        f'<div class="sides">{sides}</div>\n'
        f'<p class="verdict">{markup.text(words.verdict(outcome))}</p>\n'
        f'<p class="against">{markup.text(words.scope(outcome))}</p>\n</header>'
        if outcome.images is not None
        else f'<header>\n<h1>A and B</h1>\n<div class="sides">{sides}</div>\n'
        f'<p class="verdict">{markup.text(words.verdict(outcome))}</p>\n'
        f'<p class="notice">Not paired image by image: {markup.text(outcome.why_not)}.</p>\n</header>'
    )


def _streams(outcome: Outcome) -> str:
    note = words.streams(outcome)
    return f'<p class="notice">{markup.text(note)}</p>' if note else ""


def _side(side: Side) -> str:
    runs = [str(entry.run_dir) for entry in side.entries]
    listed = ", ".join(runs[:_RUNS_LISTED]) + (
        f" and {len(runs) - _RUNS_LISTED} more" if len(runs) > _RUNS_LISTED else ""
    )
    accuracies = side.values(ACCURACY) or []
    each = [
        f"{fmt.value(ACCURACY, found)} with seed {seed}"
        for found, seed in zip(accuracies, side.seeds, strict=False)
    ]
    several = f'<p class="runs">{markup.text(", ".join(each))}</p>' if len(each) > 1 else ""
    seed = f"seed {side.seeds[0]} · " if len(runs) == 1 else ""
    return (
        f'<div class="side"><p class="who"><span class="name">{side.name}</span>{escape(side.label)}</p>'
        f'<p class="runs">{escape(seed + listed)}</p>{several}</div>'
    )


def _tiles(outcome: Outcome) -> str:
    row = outcome.headline.accuracy
    if row is None:
        return ""
    mean = "" if outcome.scope == "models" else "Mean accuracy of "
    items = [
        (f"{mean or 'Accuracy of '}A", markup.number_with_unit(fmt.value(row.name, row.a)), ""),
        (f"{mean or 'Accuracy of '}B", markup.number_with_unit(fmt.value(row.name, row.b)), ""),
        (
            "B − A", markup.number_with_unit(words.signed(row.name, row.difference)),
            f"{words.coverage(outcome)} interval {words.ends(row.name, row)}" if row.low is not None else row.test,
        ),
    ]  # fmt: skip
    if row.p_value is not None:
        items.append(("p", escape(words.p_value(row.p_value)), row.test))
    cells = "".join(
        f'<div class="tile"><p class="label">{markup.text(label)}</p><p class="number">{number}</p>'
        f'<p class="before">{markup.text(below)}</p></div>'
        for label, number, below in items
    )
    return f'<section class="tiles even" aria-label="Accuracy">{cells}</section>'


def _agreement(outcome: Outcome) -> str:
    table = outcome.headline.table
    if table is None:
        return ""
    body = (
        '<div class="scroll"><table class="agree"><thead><tr><th></th><th scope="col">B right</th>'
        '<th scope="col">B wrong</th></tr></thead><tbody>'
        f'<tr><th scope="row">A right</th><td>{table.both:,}</td><td class="differ">{table.only_a:,}</td></tr>'
        f'<tr><th scope="row">A wrong</th><td class="differ">{table.only_b:,}</td><td>{table.neither:,}</td></tr>'
        "</tbody></table></div>"
    )
    return markup.section(
        "Who is right",
        body + hints("Only the shaded images, on which A and B differ, say which one is better."),
    )


def _flipped(outcome: Outcome, data: Shown, shown: int) -> str:
    found = outcome.flips
    if found is None or outcome.images is None:
        return ""
    chosen = {"Right in A only": found.only_a[:shown], "Right in B only": found.only_b[:shown]}
    totals = {"Right in A only": len(found.only_a), "Right in B only": len(found.only_b)}
    numbers = sorted({flip.image for some in chosen.values() for flip in some})
    pictures = data.draw(numbers) if data.draw is not None and numbers else {}
    body = ""
    for heading, some in chosen.items():
        count = totals[heading]
        title = f"{heading}: {count:,} image{'' if count == 1 else 's'}"
        if some and len(some) < count:
            title += f", {len(some)} of them here"
        items = "".join(_flip(flip, outcome, pictures.get(flip.image)) for flip in some)
        body += f'<div class="kind"><h3>{escape(title)}</h3>' + (
            f'<ul class="flipped">{items}</ul></div>' if items else "</div>"
        )
    many = "Most runs of a side decide. " * (outcome.scope != "models")
    wrong = f"{found.both_wrong:,} more are wrong in both, in different ways. " * bool(found.both_wrong)
    body += hints(
        f"{many}First those on which the probability of the true class differs most. {wrong}".strip(),
        f"No pictures: {data.no_pictures}." if numbers and data.draw is None and data.no_pictures else "",
    )
    return markup.section("Images that flipped", body)


def _flip(flip: Flip, outcome: Outcome, picture: Picture | None) -> str:
    assert outcome.images is not None
    names = outcome.images.classes
    true, a, b = (_class(names, number) for number in (flip.label, flip.said_a, flip.said_b))
    image = ""
    if picture is not None:
        alt = escape(f"test image {flip.image}, {true}")
        style = ' class="tiny"' if picture.pixels < _TINY else ""
        image = f'<img{style} src="data:image/png;base64,{picture.png}" alt="{alt}">'
    said_a = _said(a, flip.share_a, len(outcome.a.entries))
    said_b = _said(b, flip.share_b, len(outcome.b.entries))
    file = picture.name if picture is not None else ""
    which = clip(file.rpartition("/")[2], 44) if file else f"image {flip.image}"
    return (
        f'<li>{image}<p class="true">{escape(true)}</p><p>A: {escape(said_a)}<br>B: {escape(said_b)}</p>'
        f'<p class="which" title="{escape(file or which)}">{escape(which)}</p></li>'
    )


def _said(name: str, share: float, runs: int) -> str:
    """What most runs of a side say, and how many are right."""
    if runs > 1:
        return f"{name} ({share * runs:.0f}/{runs} right)"
    return f"{name} {'✓' if share else '✗'}"


def _class(names: Sequence[str], number: int) -> str:
    return clip(names[number], 40) if number >= 0 else "no answer"


def _classes(outcome: Outcome) -> str:
    table = tables.accuracies(outcome, outcome.classes, "class")
    return (
        markup.section("Accuracy per class", table + _many(outcome, len(outcome.classes), "classes"))
        if table
        else ""
    )


def _groups(outcome: Outcome) -> str:
    body = ""
    for one in outcome.groups:
        table = tables.accuracies(outcome, one.rows, "group")
        notes = []
        if one.small:
            few = f"{one.small:,} group{'s' * (one.small > 1)} with fewer than {MIN_CELL} test images"
            notes.append(f"Not tested: {few} ({one.small_images:,} together).")
        if one.without:
            notes.append(f"{one.without:,} images have no group.")
        many = _many(outcome, len(one.rows), f"groups of {one.column}") if one.rows else ""
        body += f'<div class="kind"><h3>{escape(one.column)}</h3>{table}{many}{hints(" ".join(notes))}</div>'
    if not outcome.groups and outcome.no_groups:
        body = markup.absent(f"No groups: {outcome.no_groups}.")
    return markup.section("Accuracy per group", body)


def _many(outcome: Outcome, count: int, what: str) -> str:
    if count < 2:
        return ""
    return hints(
        f"p-values are corrected for looking at {count} {what} (Holm); each interval is of its row alone."
    )


def _measures(outcome: Outcome) -> str:
    table = tables.measures(outcome, outcome.measures)
    if not table:
        return ""
    how = (
        "Intervals by drawing test images again, for both models the same (bootstrap, BCa); p-values by swapping their "
        "answers by coins (randomisation test); 2,000 draws each."
        if outcome.scope == "models"
        else f"{'Paired t-tests' if outcome.pairs else 'Welch tests'} over the runs."
    )
    return markup.section(
        "Other measures", table + hints(how) + _many(outcome, len(outcome.measures), "measures")
    )


def _continual(outcome: Outcome) -> str:
    rows = cards.continual(outcome.a, outcome.b)
    return markup.section("Continual learning", tables.costs(rows, None)) if rows else ""


def _costs(outcome: Outcome) -> str:
    notes = ["Times and memory that differ by less than 10 % count as noise."]
    if any(cost.change is not None and cost.change.word == "other conditions" for cost in outcome.costs):
        notes.append(
            "The runs were measured on other machines or in another way: times are shown without a verdict."
        )
    if outcome.priced is not None:
        notes += [f"Cost per million images: {note}." for note in outcome.priced.notes]
    else:
        notes.append("With --prices FILE: what a million images cost.")
    return markup.section("Costs", tables.costs(outcome.costs, outcome.priced) + hints(" ".join(notes)))


def _others(outcome: Outcome) -> str:
    table = tables.costs(outcome.others, None)
    if not table:
        return ""
    body = (
        f"<details><summary>{len(outcome.others):,} measures that both cards hold</summary>{table}</details>"
    )
    return markup.section("Not tested", body)


def _method(outcome: Outcome) -> str:
    row = outcome.headline.accuracy
    if row is None:
        return ""
    if row.test == MCNEMAR:
        text = (
            "McNemar's exact test asks whether the images on which A and B differ fall to both sides alike (McNemar "
            "1947); the interval is Newcombe's for paired proportions (1998, method 10)."
        )
    elif outcome.scope == "models":
        text = "The interval is Newcombe's for the difference of unpaired proportions (1998, method 10)."
    elif row.p_value is not None:
        text = (
            f"{row.test[0].upper()}{row.test[1:]} of the accuracies of the runs: what repeating the trainings would show "
            "on these test images. A verdict asks more: that other test images would not undo it, by the interval of "
            "the mean difference over images (Bonett & Price 2012)."
        )
    else:
        text = ""
    return markup.section("How this was decided", hints(text, f"Level of the tests: {outcome.level:g}."))


def _commands(outcome: Outcome) -> str:
    runs = [",".join(str(entry.run_dir) for entry in side.entries) for side in (outcome.a, outcome.b)]
    lines = [("this comparison again", f"effvit compare {shlex.join(runs)}")]
    if outcome.scope != "seeds":
        why = "over three seeds, for a verdict on its settings"
        lines += [
            (f"{side.name} {why}", seeds_command(side.entries[0].card)) for side in (outcome.a, outcome.b)
        ]
    items = "".join(
        f"<li><p>{escape(why[0].upper() + why[1:])}</p><pre><code>{escape(line)}</code></pre></li>"
        for why, line in lines
    )
    return markup.section("Commands", f'<ul class="commands">{items}</ul>')
