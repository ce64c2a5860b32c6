"""The page in plain English."""

from __future__ import annotations

from effvit_train.budgets import Budget, Verdict
from effvit_train.report import format as fmt
from effvit_train.report.frontier.privacy import Composed
from effvit_train.report.stream_facts import DATA, StreamFacts
from effvit_train.report.summary.choice import ACCURACY, Choice, Option
from effvit_train.report.summary.facts import Facts
from effvit_train.report.summary.sheet import (
    Part,
    Sheet,
    about,
    by_reason,
    half_width,
    kilowatt_hours,
    of_hundred,
    points,
    ratio,
    told,
)

LANGUAGE = "en"
_TECHNIQUES = {
    "distill": "taught by a larger model", "prune": "with parts cut out", "dp_sgd": "trained with a privacy guarantee",
}  # fmt: skip
_SIGNS = {"<=": "of at most", ">=": "of at least", "<": "below", ">": "above"}
_NOT_MEASURED = {
    "accuracy": ("Accuracy", "without it nothing here supports using the model"),
    "latency": ("Speed", "try it on the machine that it is to run on"),
    "energy": ("Energy", "running costs and battery life are not known"),
    "damage": ("Blurred, noisy or badly lit images", "cameras in use take worse images than those tested"),
    "attack": ("Images altered on purpose", "matters where somebody gains from a wrong answer"),
    "groups": ("Groups of images or people", "an average can hide a group that is served badly"),
    "doubt": ("Whether it knows when it is unsure", "needed if unsure cases are to go to a person"),
    "foreign": ("Images that show none of the classes", "it may give them a class with confidence"),
    "explanation": ("Why it decides as it does", "needed where decisions must be justified"),
}


def sheet(facts: Facts | None, choice: Choice, table: list[Option]) -> Sheet:
    """The page.

    Args:
        facts: of the chosen run; None where no run can be chosen.
        choice: what is recommended.
        table: alternatives, the chosen one first.
    """
    if facts is None:
        return Sheet(
            LANGUAGE, "Image recognition model: summary for a decision", _count(choice),
            "No run can be recommended.", [f"None has a number for {_label(choice.y)}."], False, [],
        )  # fmt: skip
    return Sheet(
        LANGUAGE,
        f"Image recognition on {facts.data}: summary for a decision",
        _count(choice),
        _verdict(facts, choice),
        _lead(facts, choice),
        choice.met,
        [[_accuracy(facts), _risk(facts)], [_cost(facts), _missing(facts)]],
        ("", "Accuracy", "One image", "File", "Meets the limits" if _bounded(choice) else "")
        if len(table) > 1
        else (),
        [_row(option, choice) for option in table] if len(table) > 1 else (),
        "Recommended and alternatives" if choice.met else "What there is",
        _foot(facts),
    )


def _count(choice: Choice) -> str:
    if choice.runs == 1:
        text = "One trained model"
    else:
        text = f"{choice.runs} trained models of {choice.arms} kind{'s' * (choice.arms > 1)} compared"
    if choice.elsewhere:
        text += f"; {choice.elsewhere} more on other data are not in this"
    return text


def _name(model: str, techniques: tuple[str, ...]) -> str:
    done = " and ".join(_TECHNIQUES.get(name, name) for name in techniques)
    return f"{model}, {done}" if done else model


def _label(key: str) -> str:
    label = fmt.measure_of(key).label
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


def _bounded(choice: Choice) -> bool:
    return bool(choice.chosen and choice.chosen.verdicts)


def _verdict(facts: Facts, choice: Choice) -> str:
    name = _name(facts.model, facts.techniques)
    if choice.met:
        what = "This model" if choice.runs == 1 else "Recommended"
        every = (
            ""
            if not _bounded(choice)
            else "; it meets every limit"
            if choice.runs == 1
            else ", which meets every limit"
        )
        return f"{what}: {name}{every}."
    if choice.runs == 1:
        return f"This model misses a limit: {name}."
    return f"None of the models meets every limit. Nearest: {name}."


def _lead(facts: Facts, choice: Choice) -> list[str]:
    found = []
    chosen, best = choice.chosen, choice.best
    if choice.met and choice.runs > 1 and chosen is not None and best is not None:
        among = (
            f"Of the {choice.meeting} kinds that meet the limits"
            if _bounded(choice)
            else f"Of {choice.arms} kinds"
        )
        if _bounded(choice) and choice.meeting == 1:
            found.append("It is the only kind that meets the limits.")
        elif chosen is best:
            found.append(f"{among} it is best in {_label(choice.y)}.")
        else:
            found.append(
                f"{among}, the best {_label(choice.y)} is {told(choice.y, best.y)} ({best.arm.label}). This one has "
                f"{told(choice.y, chosen.y)}, a difference that chance explains, and is clearly better in "
                f"{_label(choice.x)}: {told(choice.x, chosen.x)} against {told(choice.x, best.x)}."
            )
    found += [_judged(verdict) for verdict in (chosen.verdicts if chosen else ())]
    for budget, nearest in choice.nearest:
        best_seen = (
            "none has a number for it"
            if nearest is None
            else f"the nearest value is {told(budget.key, nearest)}"
        )
        found.append(f"No model has {_label(budget.key)} {_limit(budget)}: {best_seen}.")
    return found


def _judged(verdict: Verdict) -> str:
    name = fmt.measure_of(verdict.budget.key).label
    if verdict.value is None:
        return f"{name} {_limit(verdict.budget)} was asked: not known, and so not met ({verdict.reason})."
    met = "met" if verdict.met else "not met"
    return (
        f"{name} {_limit(verdict.budget)} was asked: it has {told(verdict.budget.key, verdict.value)}, {met}."
    )


def _limit(budget: Budget) -> str:
    return f"{_SIGNS[budget.sign]} {told(budget.key, budget.limit)}"


def _accuracy(facts: Facts) -> Part:
    share = facts.get(ACCURACY)
    if share is None:
        return Part("Accuracy", "", "", ["Not measured."])
    right, total = of_hundred(share)
    lines = [f"Of {total:,} images that it had not seen, it gets {right} right ({fmt.percent(share)})."]
    if facts.interval and facts.tested:
        scale = points(half_width(facts.interval) * total / 100)
        lines.append(
            f"It was tested on {facts.tested:,} images: chance in their choice alone moves this by about ±{scale} (95 %)."
        )
    if facts.seeds:
        count, low, high = facts.seeds
        lines.append(
            f"Trained {count} times with other random numbers: {fmt.percent(low)} to {fmt.percent(high)}."
        )
    if facts.guessing:
        lines.append(f"Guessing would get about {of_hundred(facts.guessing)[0]} of 100 right.")
    ece = facts.get("calibration/ece")
    if ece is not None:
        lines.append(
            f"How sure it says it is and how often it is right differ by {points(ece)} points on average."
        )
    sure = facts.get("calibration/accuracy_at_80pct_coverage")
    if sure is not None:
        lines.append(
            "If a person takes the 20 of 100 images of which it is least sure, it gets "
            f"{fmt.percent(sure)} of the rest right."
        )
    return Part("Accuracy", right, f"of {total:,} images right", lines)


def _cost(facts: Facts) -> Part:
    latency, lines = facts.get("cost/latency_ms"), []
    processor, threads = facts.conditions
    if latency is not None and latency > 0:
        where = f" on {processor}" if processor else ""
        where += f" with {threads} thread{'s' * (threads > 1)}" if threads else ""
        lines.append(
            f"One image takes {fmt.milliseconds(latency)}{where}: about {about(60_000 / latency)} a minute, one "
            "after the other."
        )
    throughput = facts.get("cost/throughput")
    if throughput is not None:
        lines.append(f"Many at once: about {about(throughput)} images a second.")
    size, memory = facts.get("cost/size_mb"), facts.get("cost/memory_mb")
    if size is not None:
        needs = f", and it needs {fmt.megabytes(memory)} of memory to run" if memory is not None else ""
        lines.append(f"The file has {fmt.megabytes(size)}{needs}.")
    energy = facts.get("cost/energy_j")
    if energy is not None:
        lines.append(f"A million images take {kilowatt_hours(energy)} kWh of electricity.")
    seconds = facts.get("cost/train_seconds")
    if seconds is not None:
        lines.append(f"Training it took {fmt.duration(seconds)}.")
    if (other := facts.against) is not None:
        parts = []
        if other.smaller is not None:
            parts.append(f"{ratio(other.smaller)} times {'smaller' if other.smaller >= 1 else 'larger'}")
        if other.faster is not None:
            parts.append(f"{ratio(other.faster)} times {'faster' if other.faster >= 1 else 'slower'}")
        if other.points is not None:
            way = "more" if other.points > 0 else "less"
            by = f"{points(other.points)} points {way} accurate" + (
                ", which chance explains" if other.chance else ""
            )
            parts.append("equally accurate" if other.points == 0 else by)
        if parts:
            lines.append(f"Against the same model without this treatment: {', '.join(parts)}.")
    number = fmt.milliseconds(latency) if latency is not None else ""
    return Part("Cost", number, "for one image" if number else "", lines or ["Not measured."])


def _risk(facts: Facts) -> Part:
    lines = [] if facts.stream is None else [_learnt(facts.stream)]
    damaged = facts.get("robustness/corruption_accuracy")
    if damaged is not None:
        lines.append(
            f"Blurred, noisy or otherwise damaged images: {of_hundred(damaged)[0]} of {of_hundred(damaged)[1]:,} right."
        )
    attacked = facts.get("robustness/autoattack_accuracy")
    attacked = facts.get("robustness/pgd_accuracy") if attacked is None else attacked
    if attacked is not None:
        right, total = of_hundred(attacked)
        lines.append(f"Images altered on purpose, too little to notice: {right} of {total:,} right.")
    worst = facts.get("fairness/worst_group_accuracy")
    if worst is not None:
        group = f" ({facts.worst_group})" if facts.worst_group else ""
        lines.append(
            f"The group that it serves worst{group}: {of_hundred(worst)[0]} of {of_hundred(worst)[1]:,} right."
        )
    foreign = facts.get("calibration/ood_auroc")
    if foreign is not None:
        lines.append(
            "Shown one of its images and one that is none of its classes, its doubt tells which in "
            f"{of_hundred(foreign)[0]} of {of_hundred(foreign)[1]:,} pairs (50 of 100 is guessing)."
        )
    epsilon, members = facts.get("privacy/epsilon"), facts.get("privacy/mia_auc")
    if epsilon is not None and facts.attacker is not None:
        right, total = of_hundred(facts.attacker)
        lines.append(
            f"Privacy is guaranteed (ε = {fmt.significant(epsilon)}): whoever guesses whether an image was used for "
            f"training is right in at most {right} of {total:,} cases (50 of 100 is guessing)."
        )
        lines += _search(facts.search)
    else:
        lines.append("No privacy guarantee: the model may give away which images it was trained on.")
    if members is not None:
        lines.append(
            f"A simple attack that was tried tells a training image from another in {of_hundred(members)[0]} of "
            f"{of_hundred(members)[1]:,} pairs (50 of 100 is guessing); better attacks may exist."
        )
    return Part("Risk", "", "", lines)


def _learnt(stream: StreamFacts) -> str:
    """How it came to what it knows, and what it has forgotten on the way."""
    text = f"It learnt its data in {len(stream.tasks)} parts, one after the other."
    last = stream.accuracy[-1]
    if stream.kind == DATA:
        first = stream.accuracy[stream.rows[0]]
        return f"{text} After the first part it got {fmt.percent(first[-1])} right, after the last {fmt.percent(last[-1])}."
    worst = stream.forgotten
    if worst is None:
        return f"{text} Later parts have made it forget nothing of earlier ones."
    doubt = ", a difference that chance explains" if worst.chance else ""
    return (
        f"{text} Of part {worst.task + 1} ({stream.tasks[worst.task].name}) it has forgotten most: it got "
        f"{fmt.percent(worst.best)} of its images right, and now {fmt.percent(worst.end)}{doubt}."
    )


def _search(spent: Composed | None) -> list[str]:
    if spent is None:
        return []
    if spent.method == "own":
        return ["If it was chosen among several private trainings, those count too."]
    count = spent.trials + spent.unfinished + spent.unknown
    if spent.epsilon is None:
        return [f"It was chosen among {count} private trainings; what they spent together is not bounded."]
    return [
        f"It was chosen among {count} private trainings on the same data; together they spent ε = "
        f"{fmt.significant(spent.epsilon)}, and that is what choosing costs in privacy."
    ]


def _missing(facts: Facts) -> Part:
    lines = [f"{_NOT_MEASURED[topic][0]}: {_NOT_MEASURED[topic][1]}." for topic in facts.missing]
    lines.append(
        "Images from elsewhere: all tests use images of the same origin as the training; try your own first."
    )
    return Part("Not measured", "", "", lines)


def _row(option: Option, choice: Choice) -> tuple[str, ...]:
    card = option.entry.card
    cells = [option.arm.label + (" ←" if choice.met and option is choice.chosen else "")]
    cells += [fmt.value(key, card.measures.get(key)) for key in (ACCURACY, "cost/latency_ms", "cost/size_mb")]
    return (*cells, ("yes" if option.met else "no") if _bounded(choice) else "")


def _foot(facts: Facts) -> list[str]:
    reasons = [
        f"{', '.join(_NOT_MEASURED[topic][0].lower() for topic in topics)}: {reason}"
        for reason, topics in by_reason(facts.missing).items()
    ]
    return [
        *([f"Why it was not measured, as recorded: {'; '.join(reasons)}."] if reasons else []),
        f"All numbers are measured and come from the card of the run {facts.place} ({facts.label}); its card.html has every "
        "detail. Where a kind was trained several times, the run nearest to the mean stands for it. The most "
        "accurate kind is recommended, or one that costs over a tenth less if chance explains the difference in accuracy.",
    ]
