"""The teacher's own card beside the student's."""

from __future__ import annotations

from typing import Any

from effvit_train.card import MEASURES, Card
from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.charts import escape
from effvit_train.report.inputs import RunData, as_dict, as_dicts, as_list

_COLUMNS = 3  # teachers of an ensemble that fit beside the student


def section(data: RunData) -> str:
    """Student and teacher, measure by measure, and where the teacher comes from; nothing without one."""
    teacher = as_dict(data.card.provenance.get("teacher"))
    if not teacher.get("name"):
        return ""
    if teacher.get("source") == "self":
        text = "The student learnt from the moving average of its own weights, which has no card of its own."
        return markup.section("Teacher and student", f'<p class="hint">{escape(text)}</p>')
    members = as_dicts(teacher.get("members")) or [teacher]
    sentences = [_origin(member) for member in members]
    if len(members) > _COLUMNS:
        sentences.append(f"The table shows {_COLUMNS} of the {len(members)} teachers.")
    sentences.append(_learnt(teacher))
    hints = "".join(f'<p class="hint">{markup.text(sentence)}</p>' for sentence in sentences if sentence)
    return markup.section("Teacher and student", _table(data.card, members[:_COLUMNS]) + hints)


def line(card: Card) -> str:
    """`Teacher: test_efficientnet 97.2 %, 0.10 M parameters.`, or nothing."""
    teacher = as_dict(card.provenance.get("teacher"))
    if not teacher.get("name") or teacher.get("source") == "self":
        return ""
    accuracy, params = teacher.get("accuracy"), teacher.get("params")
    facts = [fmt.percent(accuracy)] if isinstance(accuracy, (int, float)) else []
    facts += [f"{fmt.parameters(params)} parameters"] if isinstance(params, (int, float)) else []
    return f"Teacher: {teacher['name']} {', '.join(facts)}".rstrip() + "."


def _table(card: Card, teachers: list[dict[str, Any]]) -> str:
    own = [as_dict(teacher.get("measures")) for teacher in teachers]
    keys = [key for key in MEASURES if any(_number(measures.get(key)) is not None for measures in own)]
    if not keys:
        return ""
    alone = len(teachers) == 1
    names = "".join(
        f'<th scope="col" class="num before">{escape("Teacher" if alone else str(t.get("name")))}</th>'
        for t in teachers
    )
    last = '<th scope="col" class="change">Student against teacher</th>' if alone else ""
    rows = "".join(_row(key, card, teachers, own) for key in keys)
    head = f'<tr class="axis"><th scope="col">Measure</th><th scope="col" class="num">Student</th>{names}{last}</tr>'
    return f'<table class="measures"><tbody>{head}{rows}</tbody></table>'


def _row(key: str, card: Card, teachers: list[dict[str, Any]], own: list[dict[str, Any]]) -> str:
    student = card.measures.get(key)
    cells = "".join(
        f'<td class="num before" title="{escape(str(as_dict(teacher.get("missing")).get(key, "")))}">'
        f"{markup.text(fmt.value(key, _number(measures.get(key))))}</td>"
        for teacher, measures in zip(teachers, own, strict=True)
    )
    if len(teachers) == 1:
        change = fmt.change(key, student, _number(own[0].get(key)))
        style, text = (change.verdict, markup.text(change)) if change else ("", fmt.NONE)
        cells += f'<td class="change {style}">{text}</td>'
    return (
        f'<tr><th scope="row">{escape(fmt.measure_of(key).label)}</th>'
        f'<td class="num">{markup.text(fmt.value(key, student))}</td>{cells}</tr>'
    )


def _origin(teacher: dict[str, Any]) -> str:
    """`test_efficientnet: trained here, on the same training images.`"""
    if teacher.get("same_data"):
        data = "trained on the same training images"
    elif teacher.get("declared"):
        data = f"trained on {teacher['declared']}, as declared"
    else:
        seen = [entry.get("name") for entry in as_dicts(teacher.get("seen"))]
        names = ", ".join(dict.fromkeys(str(name) for name in seen if name))
        data = f"trained on {names}" if names else "what it was trained on is not declared"
    source = {"trained here": "trained for this run", "run": "an earlier run", "timm": "published weights"}
    kind = source.get(str(teacher.get("source")), f"weights from a {teacher.get('source') or 'file'}")
    return f"{teacher.get('name')}: {kind}; {data}."


def _learnt(teacher: dict[str, Any]) -> str:
    kinds = ", ".join(map(str, as_list(teacher.get("kinds"))))
    cache = as_dict(teacher.get("cache"))
    text = f"Learnt: {kinds}." if kinds else ""
    if cache:
        text += (
            f" From a cache of {cache.get('epochs')} views of each image "
            f"(the {cache.get('top_k')} likeliest classes, {cache.get('dtype')})."
        )
    return text.strip()


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
