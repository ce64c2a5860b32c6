"""What the audit found about the model itself: explanations, growth with the image, weights and attention."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.audit_facts import count, number, numbers, pair, part, picture, share, word
from effvit_train.report.audit_figures import Bar, bars, hints
from effvit_train.report.charts import Series, clip, escape
from effvit_train.report.inputs import RunData, as_dict, as_dicts
from effvit_train.report.sections import figure

_METHODS = {
    "chefer": "gradient-weighted relevance", "rollout": "attention rollout",
    "integrated_gradients": "integrated gradients", "random": "random map",
    "randomised_weights": "map of shuffled weights",
}  # fmt: skip
_FIGURES = {"insertion_auc": "Insertion ↑", "deletion_auc": "Deletion ↓", "perturbation_auc": "Tokens ↑",
            "randomised_similarity": "Shuffled ↓"}  # fmt: skip
_BLOCK = re.compile(r"^(.*\bblocks\.\d+)\.(.+)$")
_STYLES = ("val", "term0", "term1", "term2", "term3", "other")


def sections(data: RunData) -> list[str]:
    """All of them; those of parts that were not run are empty."""
    return [explanations(data), growth(data), weights(data)]


def explanations(data: RunData) -> str:
    """Examples with their maps, the methods' figures, and insertion against a random map."""
    found = part(data.card, "transparency")
    facts = found.facts
    chosen = word(facts.get("method"))
    body, table, curves = _examples(data, facts), _methods(facts, chosen), ""
    lines = _insertion(facts, chosen)
    if lines:
        curves = figure(
            "Probability of the class, image uncovered", lines,
            title="Insertion curves", write=_percent, x_name="% of the image shown", y_range=(0.0, 1.0),
        )  # fmt: skip
    if table or curves:
        body += f'<div class="pair below">{table}{curves}</div>'
    if body and chosen:
        body += hints(
            f"The measures are those of {_name(chosen)}, on {count(facts.get('images')) or 0:,} images. Hidden: "
            f"{word(facts.get('hidden'))}. What does no better than the random map explains nothing.",
            *(
                f"{_name(method)}: {reason}."
                for method, reason in as_dict(facts.get("unsupported")).items()
                if isinstance(reason, str)
            ),
        )
    if found.reason:
        body += markup.absent(f"Explanations: {found.reason}")
    return markup.section("Explanations", body)


def _examples(data: RunData, facts: dict[str, Any]) -> str:
    shown = []
    for one in as_dicts(facts.get("examples")):
        image = picture(one.get("image"))
        if image is None:
            continue
        number_of, sure = count(one.get("class")), share(one.get("confidence"))
        names = data.classes
        said = names[number_of] if number_of is not None and number_of < len(names) else f"class {number_of}"
        maps = [
            (_name(method), drawn)
            for method, code in as_dict(one.get("maps")).items()
            if (drawn := picture(code))
        ]
        cells = "".join(
            f'<div><img src="data:image/png;base64,{code}" alt="{escape(title)}"><p>{escape(title)}</p></div>'
            for title, code in [("image", image), *maps]
        )
        caption = f"{clip(said, 40)}{'' if sure is None else f' ({fmt.percent(sure)})'}"
        shown.append(
            f'<figure><figcaption>{markup.text(caption)}</figcaption><div class="maps">{cells}</div></figure>'
        )
    if not shown:
        return ""
    return (
        f'<div class="examples">{"".join(shown)}</div>'
        '<p class="hint">White is what speaks most for the class that the model says, named above with its '
        "probability.</p>"
    )


def _methods(facts: dict[str, Any], chosen: str) -> str:
    found = {name: as_dict(figures) for name, figures in as_dict(facts.get("methods")).items()}
    columns = [key for key in _FIGURES if any(_figure(figures, key) for figures in found.values())]
    if not columns:
        return ""
    head = "".join(f'<th scope="col" class="num">{escape(_FIGURES[key])}</th>' for key in columns)
    rows = "".join(
        f'<tr class="{"chosen" if name == chosen else "other"}"><td class="name">{escape(_name(name))}</td>'
        + "".join(f'<td class="num">{_figure(figures, key) or fmt.NONE}</td>' for key in columns)
        + "</tr>"
        for name, figures in found.items()
    )
    return (
        '<figure><figcaption>How true the maps are to the model</figcaption><div class="scroll">'
        f'<table class="pairs methods"><thead><tr><th scope="col">Map</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></figure>"
    )


def _figure(figures: dict[str, Any], key: str) -> str:
    one = as_dict(figures.get(key))
    value, ends = number(one.get("value")), pair(one.get("interval"))
    if value is None:
        return ""
    half = f' <span class="before">± {(ends[1] - ends[0]) / 2:.2f}</span>' if ends else ""
    return escape(f"{value:.2f}".replace("-", fmt.MINUS)) + half


def _insertion(facts: dict[str, Any], chosen: str) -> list[Series]:
    curves, shares = as_dict(facts.get("curves")), numbers(as_dict(facts.get("shares")).get("cells"))
    lines = []
    for name, style in ((chosen, "val"), ("random", "other"), ("randomised_weights", "term2")):
        values = numbers(as_dict(curves.get(name)).get("insertion"))
        if len(values) < 2:
            continue
        at = shares if len(shares) == len(values) else [i / (len(values) - 1) for i in range(len(values))]
        points = sorted((100 * x, min(1.0, max(0.0, y))) for x, y in zip(at, values, strict=True))
        lines.append(Series(_name(name), points, style))
    return lines if any(line.style == "val" for line in lines) else []


def growth(data: RunData) -> str:
    """Where the arithmetic goes, and how cost grows with the number of tokens."""
    found = part(data.card, "complexity")
    facts, grown = found.facts, as_dict(found.facts.get("growth"))
    kinds = [
        Bar(markup.plain(kind), part_of)
        for kind, row in as_dict(facts.get("kinds")).items()
        if (part_of := share(as_dict(row).get("share")))
    ]
    kinds.sort(key=lambda bar: -bar.share)
    figures = [bars("Where the FLOPs go", kinds), _points(grown)]
    body = f'<div class="pair">{"".join(figures)}</div>' if any(figures) else ""
    body += hints(_exponents(facts, grown), _roofline(facts), *_refusals(facts, grown))
    if found.reason:
        body += markup.absent(f"Growth: {found.reason}")
    return markup.section("Growth with the image", body)


def _points(grown: dict[str, Any]) -> str:
    """FLOPs and memory by the number of tokens, relative to the trained size."""
    rows = []
    for row in as_dicts(grown.get("points")):
        shape = numbers(row.get("input_shape"))
        flops, memory = number(row.get("flops")), number(row.get("peak_bytes"))
        if len(shape) != 3 or flops is None:
            continue
        tokens = count(row.get("tokens"))
        rows.append(
            f'<tr><td class="name">{shape[1]:g} × {shape[2]:g}</td>'
            f'<td class="num">{fmt.NONE if tokens is None else f"{tokens:,}"}</td>'
            f'<td class="num">{markup.text(fmt.operations(flops))}</td>'
            f'<td class="num">{fmt.NONE if memory is None else markup.text(fmt.megabytes(memory / 1e6))}</td></tr>'
        )
    if not rows:
        return ""
    return (
        '<figure><figcaption>Counted at other image sizes</figcaption><table class="pairs"><thead><tr>'
        '<th scope="col">Image</th><th scope="col" class="num">Tokens</th><th scope="col" class="num">FLOPs</th>'
        '<th scope="col" class="num">Activations</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></figure>"
    )


_GROWING = {
    "flops": "FLOPs", "mixing_flops": "mixing of tokens", "peak_bytes": "memory of activations",
}  # fmt: skip


def _exponents(facts: dict[str, Any], grown: dict[str, Any]) -> str:
    found = as_dict(grown.get("exponents"))
    told = [f"{name} {text}" for key, name in _GROWING.items() if (text := _exponent(found.get(key)))]
    times = as_dict(facts.get("times"))
    if text := _exponent(times.get("latency_in_size_exponent")):
        told.append(f"measured latency {text}")
    if not told:
        return ""
    against = word(grown.get("against")) or "tokens"
    return f"Exponents of growth in the number of {against} (1 linear, 2 quadratic): {', '.join(told)}."


def _exponent(found: Any) -> str:
    value, error = number(as_dict(found).get("value")), number(as_dict(found).get("stderr"))
    if value is None:
        return ""
    return f"{value:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _roofline(facts: dict[str, Any]) -> str:
    roof = as_dict(facts.get("roofline"))
    bound = share(as_dict(roof.get("memory_bound_share")).get("1"))
    if bound is None:
        return ""
    text = f"One image by itself: {fmt.percent(bound)} of the least time on this machine is in layers that memory bounds"
    reached = number(roof.get("attained"))
    return (
        f"{text}; {fmt.percent(reached)} of the roofline's speed is reached."
        if reached is not None
        else f"{text}."
    )


def _refusals(facts: dict[str, Any], grown: dict[str, Any]) -> list[str]:
    refused = [*as_dicts(grown.get("refused")), *as_dicts(as_dict(facts.get("times")).get("skipped"))]
    return [
        f"Sides × {count(row.get('factor'))}: {reason}."
        for row in refused
        if (reason := word(row.get("reason")))
    ]


def weights(data: RunData) -> str:
    """Stable ranks and ranks of the weights by block, the norm bound, and the error of replaced parts."""
    spectral, approximation = part(data.card, "spectral"), part(data.card, "approximation")
    stable = [
        (word(row.get("name")), value)
        for row in as_dicts(spectral.facts.get("layers"))
        if (value := number(row.get("stable_rank"))) is not None and row.get("diagonal") is not True
    ]
    ranks = [
        (word(row.get("name")), value)
        for row in as_dicts(approximation.facts.get("weights"))
        if (value := _rank_share(row)) is not None
    ]
    attention = [
        (word(row.get("name")), rank / tokens[0])
        for row in as_dicts(approximation.facts.get("attention"))
        if (rank := number(row.get("effective_rank"))) is not None
        and (tokens := numbers(row.get("tokens"))) and tokens[0] > 0
    ]  # fmt: skip
    figures = [
        _by_block(
            "Stable rank",
            stable,
            "(Frobenius norm / largest singular value)² of each layer's weights",
            _plain,
        ),
        _by_block(
            "Rank of the weights", ranks, "the rank that holds 99 % of the energy, of the full rank", _percent
        ),
        _by_block(
            "Rank of attention",
            attention,
            "effective rank of the attention matrices, of the tokens",
            _percent,
        ),
        _errors(approximation.facts),
    ]
    body = f'<div class="pair">{"".join(figures)}</div>' if any(figures) else ""
    body += hints(_margin(data, spectral.facts))
    for name, found in (("Norms", spectral), ("Approximation", approximation)):
        if found.reason:
            body += markup.absent(f"{name}: {found.reason}")
    return markup.section("Weights and attention", body)


def _rank_share(row: dict[str, Any]) -> float | None:
    ranks, full = as_dict(row.get("rank")), number(row.get("full_rank"))
    energies = [key for key in ranks if re.fullmatch(r"0?\.\d+|1(\.0)?", str(key))]
    if not energies or not full or full < 0:
        return None
    rank = number(ranks[max(energies, key=float)])
    return None if rank is None else rank / full


def _by_block(caption: str, found: Sequence[tuple[str, float]], meaning: str, write: Any) -> str:
    """Lines over the model's blocks, one for each kind of layer; layers outside blocks in a sentence."""
    blocks: dict[str, int] = {}
    lines: dict[str, list[tuple[float, float]]] = {}
    outside = []
    for name, value in found:
        match = _BLOCK.match(name)
        if match is None:
            outside.append(f"{name} {write(value)}")
            continue
        at = blocks.setdefault(match[1], len(blocks))
        lines.setdefault(match[2], []).append((float(at), value))
    kept = list(lines.items())[: len(_STYLES)]
    if not kept:
        return ""
    series = [
        Series(clip(name, 30), points, style) for (name, points), style in zip(kept, _STYLES, strict=False)
    ]
    chart = figure(caption, series, title=f"{caption} by block", write=write, x_name="block")
    rest = (
        f" Outside the blocks: {', '.join(outside[:4])}{'…' if len(outside) > 4 else ''}." if outside else ""
    )
    more = (
        f" {len(lines) - len(kept)} more kinds of layers are in card.json." if len(lines) > len(kept) else ""
    )
    return f"<div>{chart}{hints(f'{meaning[0].upper()}{meaning[1:]}.{rest}{more}')}</div>"


def _errors(facts: dict[str, Any]) -> str:
    """Relative error of each block against the exact model's."""
    lines: dict[str, list[tuple[float, float]]] = {"by itself": [], "with all before it": []}
    for at, row in enumerate(as_dicts(facts.get("layers"))):
        for name, key in (("by itself", "local"), ("with all before it", "propagated")):
            if (value := number(row.get(key))) is not None:
                lines[name].append((float(at), value))
    styles = {"by itself": "val", "with all before it": "term2"}
    series = [Series(name, points, styles[name]) for name, points in lines.items() if points]
    if not series:
        return ""
    chart = figure(
        "Relative error against the exact model", series, title="Approximation error by block", write=_percent,
        x_name="block",
    )  # fmt: skip
    return f"<div>{chart}</div>"


def _margin(data: RunData, facts: dict[str, Any]) -> str:
    bound, margins = number(data.card.measures.get("spectral/log_norm_bound")), as_dict(facts.get("margins"))
    if bound is None:
        reason = data.card.missing.get("spectral/log_norm_bound")
        return f"No norm bound: {reason}." if facts and reason else ""
    text = f"The norm bound is 10^{bound:.2f}"
    margin = number(margins.get("value"))
    if margin is not None:
        text += f", with a margin of {fmt.significant(margin)} ({word(margins.get('of'))})"
    return f"{text}. It ranks models of one architecture on one data set, and guarantees nothing."


def _name(method: str) -> str:
    return _METHODS.get(method) or markup.plain(method)


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"


def _plain(value: float) -> str:
    return f"{value:.3g}"
