"""What was cut, on the page: widths before and after, blocks left out, how it came to it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from effvit_train.card import Card
from effvit_train.report.html import render

FOUND = {
    "start": {"macs": 1000, "params": 200}, "importance": "hessian", "allot": "isomorphic", "compensate": "mean",
    "start_widths": {
        "blocks.0.attn.heads": 4, "blocks.0.mlp": 64, "blocks.1.attn.heads": 4, "blocks.1.mlp": 64,
        "blocks.2.attn.heads": 4, "blocks.2.mlp": 64, "embed": 32,
    },
    "cuts": [
        {"epoch": 1.0, "macs": 700, "params": 150, "blocks": [], "widths": {"blocks.0.mlp": 40, "embed": 24}},
        {"epoch": 2.5, "macs": 490, "params": 100, "blocks": ["blocks.1"],
         "widths": {"blocks.0.mlp": 32, "blocks.2.attn.heads": 3}},
    ],
}  # fmt: skip


@pytest.fixture
def shown(run, tmp_path):
    def show(found: object) -> str:
        path: Path = run(tmp_path / "run", compress=["prune"])
        card = Card.read(path / "card.json")
        card.provenance["pruning"] = found
        card.write(path / "card.json")
        part = render(path).partition("<h2>What was cut</h2>")[2].partition("</section>")[0]
        text = re.sub(r"<[^>]+>", "|", part).replace("\u00a0", " ").replace("\u2060", "")
        return re.sub(r"[|\s]*\|[|\s]*", "|", text)

    return show


def test_widths_before_and_after(shown):
    text = shown(FOUND)
    assert "|Part|Heads|MLP|Embedding|" in text
    assert "|blocks.0|4|64 →|32|" in text  # of the last cut
    assert "|blocks.1|left out|left out|" in text
    assert "|blocks.2|4 →|3|64|" in text
    assert "|embed|32 →|24|" in text
    assert "Left of the start: MACs 49.0 %, parameters 50.0 %." in text  # 490 of 1,000 and 100 of 200
    assert "Made in 2 cuts from epoch 1.0 to 2.5. Importance: hessian; allotment: isomorphic." in text
    assert "Means of the removed units were folded" in text


def test_one_cut_after_training(shown):
    cut = {key: value for key, value in FOUND["cuts"][1].items() if key != "epoch"}
    text = shown({**FOUND, "cuts": [cut], "made_by": "effvit prune", "compensate": "none"})
    assert "Made in one cut by effvit prune, without training." in text
    assert "folded" not in text


@pytest.mark.parametrize(
    "found", [None, {}, {"cuts": []}, {"cuts": "no"}, {**FOUND, "start_widths": None}, "cut"]
)
def test_nothing_where_nothing_was_cut(found, shown):
    assert shown(found) == ""


def test_a_name_cannot_break_the_page(shown):
    text = shown({**FOUND, "start_widths": {"<b>": "<script>"}, "cuts": [{"widths": {"<b>": "<i>"}}]})
    assert "&lt;script&gt;" in text
    assert "&lt;b&gt;" in text
