"""The card's section on tokens that were merged or dropped: how many each block has, and what they stand for."""

from __future__ import annotations

from typing import Any

from effvit_train.report import format as fmt
from effvit_train.report import markup
from effvit_train.report.audit_facts import count, number, numbers, picture, word
from effvit_train.report.charts import Series, escape
from effvit_train.report.inputs import RunData, as_dict, as_dicts
from effvit_train.report.sections import figure

MERGED, DROPPED = "merge_tokens", "drop_tokens"
_HINTS = {
    MERGED: "Patches of one token have their mean colour and one outline.",
    DROPPED: "Patches that were dropped, or fused into one token with others, are grey and struck through.",
}


def section(data: RunData) -> str:
    """Tokens by block, and test images with them; nothing where all tokens stay."""
    audited = as_dict(as_dict(data.card.provenance.get("audit")).get("tokens"))
    made = {name: as_dict(data.card.provenance.get(name)) for name in (MERGED, DROPPED)}
    kind = next((name for name, facts in made.items() if facts), word(audited.get("kind")))
    rows = _rows(audited, made.get(kind, {}))
    if not rows:
        return ""
    body = _examples(audited, kind) + f'<div class="pair below">{_chart(rows)}{_table(rows)}</div>'
    return markup.section("Fewer tokens", body + _told(kind, made.get(kind, {}), rows))


def _rows(audited: dict[str, Any], made: dict[str, Any]) -> list[tuple[str, int, int]]:
    """(block, tokens that it is given, tokens that it gives)."""
    found: list[tuple[str, int, int]] = []
    given: list[tuple[Any, Any, Any]] = [
        (row.get("block"), row.get("given"), row.get("left")) for row in as_dicts(audited.get("blocks"))
    ]
    if not given:
        pairs = {name: numbers(pair) for name, pair in as_dict(made.get("tokens")).items()}
        given = [(name, pair[0], pair[1]) for name, pair in pairs.items() if len(pair) == 2]
    for name, before, after in given:
        first, last = count(before), count(after)
        if isinstance(name, str) and first is not None and last is not None:
            found.append((name, first, last))
    return found


def _chart(rows: list[tuple[str, int, int]]) -> str:
    points = [(float(at), float(given)) for at, (_, given, _) in enumerate(rows)]
    points.append((float(len(rows)), float(rows[-1][2])))
    return figure(
        "Image tokens that each block is given, and the classifier", [Series("tokens", points, "val")],
        title="Image tokens by block", write=lambda value: f"{value:.0f}", x_name="block",
    )  # fmt: skip


def _table(rows: list[tuple[str, int, int]]) -> str:
    body = "".join(
        f'<tr><th scope="row" class="name">{escape(name)}</th><td class="num">{given:,}</td>'
        f'<td class="num">{left:,}</td><td class="num">{given - left or fmt.NONE}</td></tr>'
        for name, given, left in rows
    )
    return (
        '<figure><figcaption>By block</figcaption><table class="pairs"><thead><tr><th scope="col">Block</th>'
        '<th scope="col" class="num">Attention sees</th><th scope="col" class="num">MLP sees</th>'
        f'<th scope="col" class="num">Fewer by</th></tr></thead><tbody>{body}</tbody></table></figure>'
    )


def _examples(audited: dict[str, Any], kind: str) -> str:
    shown = []
    for one in as_dicts(audited.get("examples")):
        image = picture(one.get("image"))
        drawn = [
            (f"{count(stage.get('tokens')) or 0:,} tokens after {word(stage.get('after'))}", code)
            for stage in as_dicts(one.get("stages"))
            if (code := picture(stage.get("picture")))
        ]
        if image is None or not drawn:
            continue
        cells = "".join(
            f'<div><img src="data:image/png;base64,{code}" alt="{escape(title)}"><p>{escape(title)}</p></div>'
            for title, code in [("image", image), *drawn]
        )
        shown.append(f'<div class="maps large">{cells}</div>')
    if not shown:
        return ""
    return (
        f"<figure><figcaption>Test images and what their tokens stand for</figcaption>"
        f'<div class="examples wide">{"".join(shown)}</div></figure><p class="hint">{escape(_HINTS.get(kind, ""))}</p>'
    )


def _told(kind: str, made: dict[str, Any], rows: list[tuple[str, int, int]]) -> str:
    macs = as_dict(made.get("macs"))
    before, after = number(macs.get("before")), number(macs.get("after"))
    text = f"{rows[0][1]:,} image tokens become {rows[-1][2]:,}"
    if before and after:
        text += f"; MACs {fmt.percent(after / before)} of the model before"
    how = ""
    if kind == MERGED and made:
        proportional = made.get("proportional") is True
        how = (
            "A merged token counts in attention as the patches that it stands for."
            if proportional
            else "A merged token counts in attention as one."
        )
    elif kind == DROPPED and made:
        how = "What is dropped becomes one token." if made.get("fuse") is True else "What is dropped is lost."
    return f'<p class="hint">{markup.text(f"{text}. {how}".strip())}</p>'
