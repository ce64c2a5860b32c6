"""`update.html`: the verdict on an update, and what it rests on. One file, no network, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.charts import escape
from effvit_train.report.html import page
from effvit_train.verdict import signed_points

_WORDS = {"promote": "Promote", "hold": "Hold", "roll back": "Roll back"}
_MEANS = {
    "promote": "The update may take the place of the shipped model.",
    "hold": "The shipped model stays, until what is named below is settled.",
    "roll back": "The shipped model stays: the update is worse.",
}
_GROUPS = 12  # shown, those that lost most first
_OF_MODEL = (
    "cost/params", "cost/macs", "cost/latency_ms", "cost/throughput", "cost/memory_mb", "cost/size_mb",
    "cost/train_seconds", "privacy/epsilon", "privacy/delta",
)  # fmt: skip


def render(result: Mapping[str, Any]) -> str:
    """The page as text, from the content of `update.json`."""
    parts = (
        _header(result), _findings(result), _sets(result), _groups(result), _measures(result), _model(result),
        _lineage(result), _method(result),
    )  # fmt: skip
    style = resources.files("effvit_train.report").joinpath("update.css").read_text(encoding="utf-8")
    return page(
        f"{_WORDS[result['verdict']]}: update of {_parent(result).get('name') or 'a model'}",
        "\n".join(part for part in parts if part), more_style=style,
    )  # fmt: skip


def _parent(result: Mapping[str, Any]) -> dict[str, Any]:
    lineage = result.get("lineage") or {}
    found: dict[str, Any] = lineage.get("parent") or {}
    return found


def _header(result: Mapping[str, Any]) -> str:
    verdict = result["verdict"]
    data = ((result.get("lineage") or {}).get("new_data") or {}).get("name")
    learnt = f", on {data}" if data else ""
    trained = "" if result["trained"] else " Nothing was trained."
    return (
        f"<header>\n<h1>Update of {escape(_parent(result).get('name') or 'a shipped model')}</h1>\n"
        f'<p class="facts">From {escape(_parent(result).get("run_dir") or "")}{escape(learnt)}</p>\n'
        f'<p class="badge {_style(verdict)}">{_WORDS[verdict]}</p>\n'
        f'<p class="against">{markup.text(_MEANS[verdict] + trained)}</p>\n</header>'
    )


def _style(verdict: str) -> str:
    return verdict.replace(" ", "")


def _findings(result: Mapping[str, Any]) -> str:
    words = {"promote": "Fine", "hold": "Hold", "roll back": "Roll back"}
    items = "".join(
        f'<li><span class="word {_style(one["verdict"])}">{words[one["verdict"]]}</span>'
        f"<span>{markup.text(one['text'])}</span></li>"
        for one in result["findings"]
    )
    return markup.section("Reasons", f'<ul class="findings">{items}</ul>' if items else "")


def _sets(result: Mapping[str, Any]) -> str:
    rows = []
    for name, pair in result["compared"].items():
        title = f"{name.capitalize()} test set"
        if "missing" in pair:
            rows.append(
                f'<tr><th scope="row">{title}</th><td colspan="6">Not tested: {markup.text(pair["missing"])}</td></tr>'
            )
        else:
            rows.append(_pair_row(title, pair))
    if not rows:
        return ""
    return markup.section(
        "Accuracy on both test sets",
        _table("Test set", rows, "Accuracy of both models on the same images", result),
    )


def _pair_row(title: str, pair: Mapping[str, Any]) -> str:
    p = "<0.001" if pair["p_value"] < 0.001 else f"{pair['p_value']:.2g}"
    return (
        f'<tr><th scope="row">{markup.text(title)}</th>'
        f'<td class="num">{markup.text(fmt.percent(pair["a"]))}</td>'
        f'<td class="num">{markup.text(fmt.percent(pair["b"]))}</td>'
        f'<td class="num">{markup.text(signed_points(pair["b"] - pair["a"]))}</td>'
        f'<td class="num less">{markup.text(signed_points(pair["low"]))} to {markup.text(signed_points(pair["high"]))}</td>'
        f'<td class="num less">{escape(p)}</td><td class="num less">{pair["images"]:,}</td></tr>'
    )


def _table(first: str, rows: Sequence[str], caption: str, result: Mapping[str, Any]) -> str:
    coverage = f"{100 * (1 - result['rule']['level']):g} % interval"
    heads = (
        ("Shipped", "num"), ("Update", "num"), ("Difference in pp", "num"), (coverage, "num less"), ("p", "num less"),
        ("Images", "num less"),
    )  # fmt: skip
    cells = "".join(f'<th scope="col" class="{style}">{markup.text(name)}</th>' for name, style in heads)
    return (
        f'<div class="scroll"><table class="up"><caption>{escape(caption)}</caption><thead><tr>'
        f'<th scope="col">{escape(first)}</th>{cells}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )


def _groups(result: Mapping[str, Any]) -> str:
    body = ""
    for name, pairs in result["groups"].items():
        if pairs:
            shown = pairs[:_GROUPS]
            more = f", {_GROUPS} of {len(pairs)}" if len(pairs) > _GROUPS else ""
            rows = [_pair_row(pair["name"], pair) for pair in shown]
            body += _table("Group", rows, f"{name.capitalize()} test set, what lost most first{more}", result)
    small = sum(result["groups_too_small"].values())
    if small:
        body += f'<p class="hint">{small} groups have too few test images to be judged.</p>'
    return markup.section("Classes and groups", body)


def _measures(result: Mapping[str, Any]) -> str:
    models = result["models"]
    if not models:
        return ""
    sets = list(models["shipped"]["test"])
    keys = list(
        dict.fromkeys(
            key for which in models.values() for one in which["test"].values() for key in one["measures"]
        )
    )
    heads = "".join(
        f'<th scope="col" class="num">{escape(f"{title}, {name}")}</th>'
        for name in sets
        for title in ("Shipped", "Update")
    )
    rows = ""
    for key in keys:
        cells = "".join(
            _measured(key, models[which]["test"][name]) for name in sets for which in ("shipped", "updated")
        )
        rows += f'<tr><th scope="row">{escape(fmt.measure_of(key).label)}</th>{cells}</tr>'
    table = (
        f'<div class="scroll"><table class="up"><thead><tr><th scope="col">Measure</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    return markup.section("What was measured on them", table)


def _measured(key: str, tested: Mapping[str, Any]) -> str:
    number = tested["measures"].get(key)
    why = tested["missing"].get(key, "")
    title = f' title="{escape(why)}"' if number is None and why else ""
    return f'<td class="num"{title}>{markup.text(fmt.value(key, number))}</td>'


def _model(result: Mapping[str, Any]) -> str:
    models = result["models"]
    if not models:
        return ""
    budgets = {budget["key"]: budget for budget in result["budgets"]}
    keys = [
        key
        for key in dict.fromkeys((*_OF_MODEL, *budgets))
        if key in budgets or any(model["of_model"].get(key) is not None for model in models.values())
    ]
    rows = ""
    for key in keys:
        budget = budgets.get(key)
        of_update = budget["value"] if budget else models["updated"]["of_model"].get(key)
        bound = (
            f"{budget['sign']} {fmt.value(key, budget['limit'])}: {'met' if budget['passed'] else 'not met'}"
            if budget
            else ""
        )
        rows += (
            f'<tr><th scope="row">{escape(fmt.measure_of(key).label)}</th>'
            f'<td class="num">{markup.text(fmt.value(key, models["shipped"]["of_model"].get(key)))}</td>'
            f'<td class="num">{markup.text(fmt.value(key, of_update))}</td><td class="is">{markup.text(bound)}</td></tr>'
        )
    table = (
        '<div class="scroll"><table class="up"><thead><tr><th scope="col">Measure</th>'
        '<th scope="col" class="num">Shipped</th><th scope="col" class="num">Update</th>'
        f'<th scope="col" class="is">Budget</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
    hint = (
        '<p class="hint">The shipped model\'s figures are those of its card. Quality budgets are held against the '
        "update's card, which is of the old and new test images together.</p>"
    )
    return markup.section("Cost, privacy and budgets", table + hint)


def _lineage(result: Mapping[str, Any]) -> str:
    lineage = result.get("lineage") or {}
    if "new_data" not in lineage:
        return ""
    items = "".join(_ancestor(one) for one in (*lineage.get("ancestors", []), lineage["parent"]))
    new = lineage["new_data"]
    print_ = new.get("fingerprint") or "sealed, on the card"
    items += (
        f"<li>This update, on {escape(new.get('name') or '')}; earlier images looked at in training: "
        f'{escape(lineage.get("earlier_images") or "")}<br><span class="print">data {escape(print_)}</span></li>'
    )
    before = lineage.get("epsilon_before")
    spent = ""
    if before:
        total = result["models"].get("updated", {}).get("of_model", {}).get("privacy/epsilon")
        now = f", {total:.4g} with this one" if isinstance(total, (int, float)) else ""
        spent = (
            f'<p class="hint">Epsilon of the trainings before: {before["epsilon"]:.4g}{now}; '
            f"{markup.text(before['composition'])}.</p>"
        )
    return markup.section("Lineage", f'<ol class="chain">{items}</ol>{spent}')


def _ancestor(one: Mapping[str, Any]) -> str:
    data = one.get("data") or {}
    prints = "; ".join(
        f"{name} {value}"
        for name, value in (
            ("card", one.get("card")),
            ("weights", one.get("weights")),
            ("data", data.get("fingerprint")),
        )
        if value
    )
    return (
        f"<li>{escape(one.get('name') or '')} ({escape(one.get('id') or '')}), on {escape(data.get('name') or '')}: "
        f'{escape(one.get("run_dir") or "")}<br><span class="print">{escape(prints)}</span></li>'
    )


def _method(result: Mapping[str, Any]) -> str:
    rule = result["rule"]
    loss, level = f"{rule['tolerance'] * 100:g} pp", rule["level"]
    text = (
        f"Roll back: on the old or the new test set the whole {100 * (1 - level):g} % interval of the difference lies "
        f"below −{loss}. Hold: the interval reaches below −{loss}; or a class or group lost more than {loss}, with a "
        f"p-value below {level:g} (McNemar's exact test, corrected by Holm for how many there are); or the "
        "shipped model does not know all classes and the update is not surely better on the new test set; or a budget is "
        "not met; or something was not measured. Promote: none of these."
    )
    return markup.section("The rule", f'<p class="hint">{markup.text(text)}</p>')
