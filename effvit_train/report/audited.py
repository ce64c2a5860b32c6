"""What the audit found, section by section: calibration, robustness, fairness; then the model itself.

A part that was not run shows nothing; one that gave only a reason shows the reason.
"""

from __future__ import annotations

from typing import Any

from effvit_train.report import audited_model, markup
from effvit_train.report import format as fmt
from effvit_train.report.audit_facts import Part, count, number, numbers, pair, part, share, word, words
from effvit_train.report.audit_figures import Bar, bars, hints, reliability, shaded
from effvit_train.report.charts import Series
from effvit_train.report.inputs import RunData, as_dict, as_dicts
from effvit_train.report.sections import figure

_ATTACKS = {"apgd-ce": "APGD-CE", "apgd-t": "then APGD-T", "fab-t": "then FAB-T", "square": "then Square"}
_FOLLOWING = " AutoAttack is its four attacks one after another."


def sections(data: RunData) -> list[str]:
    """All sections; those of parts that were not run are empty."""
    return [
        calibration(data),
        robustness(data),
        fairness(data),
        predictors(data),
        members(data),
        *audited_model.sections(data),
    ]


def calibration(data: RunData) -> str:
    """Reliability diagram, what abstaining would bring, temperature, foreign images."""
    found, ood = part(data.card, "calibration"), part(data.card, "ood")
    facts = found.facts
    diagram = reliability(as_dicts(as_dict(facts.get("reliability")).get("equal_width")))
    figures = []
    if diagram:
        figures.append(
            f"<figure><figcaption>Right as often as it says?</figcaption>{diagram}"
            '<p class="hint">The dashed line is a model that is. Strong bars hold many images; thin lines are 95 % '
            "intervals.</p></figure>"
        )
    curve = as_dict(as_dict(facts.get("selective")).get("curve"))
    coverage, risk = numbers(curve.get("coverage")), numbers(curve.get("risk"))
    if coverage and len(coverage) == len(risk):
        points = [(100 * x, y) for x, y in zip(coverage, risk, strict=True)]
        figures.append(
            figure(
                "Wrong among the surest images", [Series("wrong answers", points, "val")],
                title="Risk by coverage", write=_percent, x_name="% of the images answered",
            )
        )  # fmt: skip
    body = f'<div class="pair">{"".join(figures)}</div>' if figures else ""
    body += hints(_confidence(facts), _temperature(facts), _foreign(data, ood))
    body += _reasons(("Calibration", found), ("Foreign images", ood))
    return markup.section("Calibration", body)


def _confidence(facts: dict[str, Any]) -> str:
    confidence, accuracy = share(facts.get("confidence")), share(facts.get("accuracy"))
    if confidence is None or accuracy is None:
        return ""
    text = f"On average it is {fmt.percent(confidence)} sure, and right in {fmt.percent(accuracy)}."
    chance = as_dict(as_dict(facts.get("if_calibrated")).get("calibration/ece"))
    mean, most = number(chance.get("mean")), number(chance.get("p95"))
    if mean is not None and most is not None:
        text += (
            f" On so many images a calibrated model shows a calibration error of {fmt.percent(mean)} by chance alone, "
            f"and in one of twenty cases more than {fmt.percent(most)}."
        )
    return text


def _temperature(facts: dict[str, Any]) -> str:
    found = as_dict(facts.get("temperature"))
    value, images = number(found.get("value")), count(found.get("images"))
    if value is None or value <= 0:
        return ""
    around, ends = "", pair(found.get("interval"))
    if ends is not None:
        around = f" (95 % interval {fmt.significant(ends[0])}–{fmt.significant(ends[1])})"
    on = f" on {images:,} validation images" if images else ""
    way = "too sure" if value > 1 else "not sure enough"
    text = f"The best temperature{on} is {fmt.significant(value)}{around}: without it the model is {way}."
    before, after = (number(as_dict(found.get(k)).get("ece")) for k in ("before", "after"))
    if before is not None and after is not None:
        text += f" It brings the calibration error from {fmt.percent(before)} to {fmt.percent(after)}."
    return text


def _foreign(data: RunData, ood: Part) -> str:
    area, images = (
        number(data.card.measures.get("calibration/ood_auroc")),
        count(ood.facts.get("images_from_elsewhere")),
    )
    if area is None or not images:
        return ""
    text = f"{images:,} images of none of its classes are told from test images with an AUROC of {area:.3f}"
    rate = share(as_dict(ood.facts.get("found_at_5pct_false_alarms")).get("value"))
    if rate is not None:
        text += f"; {fmt.percent(rate)} of them are found when 5 % of the test images are taken for such"
    return f"{text} (score: {word(ood.facts.get('score'))})."


def robustness(data: RunData) -> str:
    """Accuracy by kind and severity of corruption, and after each attack."""
    corruptions, attacks = part(data.card, "corruptions"), part(data.card, "adversarial")
    figures = [_corruptions(corruptions.facts), _attacks(attacks.facts)]
    body = f'<div class="pair">{"".join(figures)}</div>' if any(figures) else ""
    return markup.section("Robustness", body + _reasons(("Corruptions", corruptions), ("Attacks", attacks)))


def _corruptions(facts: dict[str, Any]) -> str:
    severities = [f"{s:g}" for s in numbers(facts.get("severities"))]
    rows: list[tuple[str, list[float | None]]] = []
    for kind, found in as_dict(facts.get("accuracy")).items():
        values = [share(v) for v in found] if isinstance(found, list) else []
        if severities and len(values) == len(severities):
            known = [v for v in values if v is not None]
            rows.append((markup.plain(kind), [*values, sum(known) / len(known) if known else None]))
    if not rows:
        return ""
    clean, images = share(facts.get("clean_accuracy")), count(facts.get("images"))
    note = "" if clean is None else f"The same images unchanged: {fmt.percent(clean)}."
    if (mean := share(facts.get("mean"))) is not None:
        ends = pair(facts.get("interval"))
        around = f" (95 % interval {ends[0] * 100:.1f}–{ends[1] * 100:.1f})" if ends else ""
        note += f" Mean over all: {fmt.percent(mean)}{around}."
    note += f" {images:,} images." if images else ""
    table = shaded("Accuracy in % by corruption and severity", [*severities, "mean"], rows)
    return f"<div>{table}{hints(note)}</div>"


def _attacks(facts: dict[str, Any]) -> str:
    rows = []
    if (clean := share(facts.get("clean_accuracy"))) is not None:
        rows.append(Bar("no attack", clean, pair(facts.get("clean_interval"))))
    pgd, auto = as_dict(facts.get("pgd")), as_dict(facts.get("autoattack"))
    if (standing := share(pgd.get("accuracy"))) is not None:
        steps = count(pgd.get("steps"))
        rows.append(Bar(f"PGD, {steps} steps" if steps else "PGD", standing, pair(pgd.get("interval"))))
    for name, after in as_dict(auto.get("after")).items():
        if (standing := share(after)) is not None:
            rows.append(Bar(_ATTACKS.get(name, f"then {name}"), standing))
    if (standing := share(auto.get("accuracy"))) is not None:
        rows.append(Bar("AutoAttack", standing, pair(auto.get("interval"))))
    if not pgd and not auto:
        return ""
    budget, images = number(facts.get("epsilon")), count(facts.get("images"))
    note = (
        ""
        if budget is None
        else f"Every value may change by at most {budget * 255:.3g}/255 ({word(facts.get('norm'))})."
    )
    note += f" {images:,} images." if images else ""
    return bars("Right, and still right under attack", rows, note + _FOLLOWING * bool(auto))


def fairness(data: RunData) -> str:
    """Accuracy of every group with its interval, small groups included, column by column."""
    found = part(data.card, "fairness")
    facts = found.facts
    body, rows = _groups(facts, word(facts.get("column")))
    body += _reasons(("Groups", found))
    if rows and (reason := data.card.missing.get("fairness/worst_group_accuracy")):
        body += hints(f"Groups are not compared: {reason}.")
    for column, others in as_dict(facts.get("others")).items():
        body += _groups(as_dict(others), word(column))[0]
    return markup.section("Fairness", body)


def _groups(facts: dict[str, Any], column: str) -> tuple[str, int]:
    """Of one column; and how many groups are shown."""
    rows = []
    for one in as_dicts(facts.get("groups")):
        accuracy, images = share(one.get("accuracy")), count(one.get("images"))
        if accuracy is None or images is None:
            continue
        compared = one.get("compared") is True
        note = f"of {images:,}{'' if compared else ', too few'}"
        rows.append(
            Bar(word(one.get("group")), accuracy, pair(one.get("interval")), note, faint=not compared)
        )
    title = f"Accuracy per group{f' of {column}' if column else ''}, worst first, and number of images"
    return bars(title, rows, _small(facts)) + hints(_chance(facts)), len(rows)


def _small(facts: dict[str, Any]) -> str:
    parts = ["Thin lines are 95 % Wilson intervals."]
    least = count(facts.get("min_cell"))
    pooled = as_dict(facts.get("small_groups"))
    groups, images, accuracy = (
        count(pooled.get("groups")),
        count(pooled.get("images")),
        share(pooled.get("accuracy")),
    )
    if groups and images and accuracy is not None:
        ends = pair(pooled.get("interval"))
        around = f", interval {ends[0] * 100:.1f}–{ends[1] * 100:.1f}" if ends else ""
        parts.append(
            f"Groups with fewer than {least} images are not compared; {groups:,} of them together: "
            f"{fmt.percent(accuracy)} of {images:,} images{around}."
        )
    if more := count(facts.get("groups_not_listed")):
        parts.append(f"{more:,} more groups are not listed.")
    if empty := words(facts.get("groups_without_images")):
        parts.append(f"Without test images: {', '.join(empty[:20])}{'…' if len(empty) > 20 else ''}.")
    if without := count(facts.get("without_group")):
        parts.append(f"{without:,} images have no group.")
    return " ".join(parts)


def _chance(facts: dict[str, Any]) -> str:
    chance = as_dict(facts.get("chance"))
    gap = as_dict(chance.get("fairness/accuracy_gap"))
    mean, most, p = number(gap.get("mean")), number(gap.get("p95")), number(gap.get("p_value"))
    if mean is None or most is None or p is None:
        return ""
    return (
        f"If groups did not matter, the gap between best and worst would be {fmt.percent(mean)} on average and above "
        f"{fmt.percent(most)} in one of twenty cases; one as large as this has the probability {p:.2g}."
    )


_PREDICTORS = ("quality/accuracy", "quality/nll", "calibration/ece", "calibration/brier")


def predictors(data: RunData) -> str:
    """The model beside what dropout at test time, and several runs together, make of the same images."""
    facts = as_dict(as_dict(data.card.provenance.get("audit")).get("predictors"))
    rows, reasons = [], ""
    for key, name in (("mc_dropout", "Dropout left on"), ("ensemble", "Ensemble")):
        found = as_dict(facts.get(key))
        if reason := word(found.get("reason")):
            reasons += markup.absent(f"{name}: {reason}")
        elif values := as_dict(found.get("measures")):
            members = count(found.get("members"))
            what = "passes" if key == "mc_dropout" else "models"
            rows.append((f"{name}, {members:,} {what}" if members else name, values))
    if rows:
        rows.insert(0, ("This model", data.card.measures))
    head = "".join(f'<th scope="col" class="num">{fmt.measure_of(key).label}</th>' for key in _PREDICTORS)
    lines = "".join(
        f'<tr><th scope="row">{markup.text(name)}</th>'
        + "".join(
            f'<td class="num">{markup.text(fmt.value(k, number(values.get(k))))}</td>' for k in _PREDICTORS
        )
        + "</tr>"
        for name, values in rows
    )
    table = (
        f'<table><thead><tr><th scope="col">Predictor</th>{head}</tr></thead><tbody>{lines}</tbody></table>'
        if rows
        else ""
    )
    return markup.section("Other predictors", table + reasons)


def members(data: RunData) -> str:
    """How well training images are told from others, and by which attack."""
    facts = as_dict(as_dict(data.card.provenance.get("membership")).get("attack"))
    inside, outside = count(facts.get("members")), count(facts.get("others"))
    area = number(data.card.measures.get("privacy/mia_auc"))
    if area is None or not inside or not outside:
        return ""
    ends = pair(as_dict(facts.get("intervals")).get("privacy/mia_auc"))
    around = f" (95 % interval {ends[0]:.3f}–{ends[1]:.3f})" if ends else ""
    text = (
        f"{word(facts.get('attack')) or 'An attack'} tells {inside:,} training images from {outside:,} others with an "
        f"AUC of {area:.3f}{around}; 0.5 is chance."
    )
    if ends and ends[0] > 0.5:
        text += " So the model gives away who was in its training data, beyond chance."
    if models := count(facts.get("shadow_models")):
        text += f" It trained {models:,} shadow models."
    lira = number(as_dict(facts.get("lira")).get("auc"))
    if lira is not None:
        text += f" LiRA with the same models: {lira:.3f}."
    return markup.section("Membership", hints(text[:1].upper() + text[1:]))


def _reasons(*parts: tuple[str, Part]) -> str:
    return "".join(markup.absent(f"{name}: {found.reason}") for name, found in parts if found.reason)


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"
