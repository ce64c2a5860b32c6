"""The teacher's card beside the student's: which numbers, from where, and what is not known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from effvit_train.card import Card
from effvit_train.report import teacher
from effvit_train.report.baseline import find_baseline
from effvit_train.report.html import render
from effvit_train.report.terminal import card_table

OWN = {
    "name": "resnet<18>", "source": "trained here", "run_dir": "/t", "accuracy": 0.95, "params": 4000,
    "kinds": ["soft", "feature"], "same_data": True, "missing": {"cost/macs": "no <counter>"},
    "measures": {"quality/accuracy": 0.95, "cost/params": 4000.0, "cost/macs": None, "cost/latency_ms": 8.0},
}  # fmt: skip


@pytest.fixture
def shown(run, tmp_path):
    """The page's section for this `provenance.teacher`, without tags, and the whole page."""

    def show(found: dict) -> tuple[str, str]:
        path: Path = run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", compress=["distill"])
        card = Card.read(path / "card.json")
        card.provenance["teacher"] = found
        card.write(path / "card.json")
        page = render(path)
        part = page.partition("<h2>Teacher and student</h2>")[2].partition("</section>")[0]
        text = re.sub(r"<[^>]+>", "|", part).replace("\u00a0", " ").replace("\u2060", "")
        return re.sub(r"[|\s]*\|[|\s]*", "|", text), page

    return show


def test_measures_side_by_side(shown):
    text, page = shown(OWN)
    assert "|Measure|Student|Teacher|Student against teacher|" in text
    assert "|Accuracy|90.0 %|95.0 %|▼ −5.0 pp worse|" in text  # 0.90 and 0.95
    assert "|Parameters|1.00 k|4.00 k|▼ 4.0× less better|" in text
    assert "|Latency|1.0 ms|8.0 ms|▼ 8.0× less better|" in text
    assert "MACs" not in text  # neither took it
    assert "resnet&lt;18&gt;: trained for this run; trained on the same training images." in text
    assert "Learnt: soft, feature." in text
    assert "Distilled (soft, feature) from resnet&lt;18&gt;" in page.replace("\u00a0", " ")


def test_an_ensemble_has_a_column_for_each_of_three(shown):
    members = [OWN | {"name": f"t{k}"} for k in range(4)]
    text, _ = shown({"name": "t0 + t1 + t2 + t3", "source": "ensemble", "accuracy": 0.96, "members": members})
    assert "|Measure|Student|t0|t1|t2|Accuracy|90.0 %|95.0 %|95.0 %|95.0 %|" in text
    assert "The table shows 3 of the 4 teachers." in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"same_data": False, "seen": [{"name": "archive"}]}, "trained on archive."),
        ({"same_data": None, "source": "file", "seen": None}, "weights from a file; what it was trained on is not declared."),
        ({"same_data": None, "source": "timm", "declared": "in1k"}, "published weights; trained on in1k, as declared."),
        ({"cache": {"epochs": 10, "top_k": 5, "dtype": "float16"}}, "From a cache of 10 views of each image (the 5 likeliest"),
    ],
)  # fmt: skip
def test_where_it_comes_from(change, sentence, shown):
    assert sentence in shown(OWN | change)[0]


def test_without_a_card_there_is_no_table(shown):
    text, page = shown(OWN | {"measures": None})
    assert "Measure" not in text
    assert "trained for this run" in text
    text, page = shown({"name": "vit", "source": "self", "kinds": ["self"]})
    assert "the moving average of its own weights" in text
    assert "Distilled (self) from itself" in page


def test_old_cards_and_cards_without_a_teacher(shown, run, tmp_path):
    text, _ = shown({"name": "resnet18", "accuracy": 0.9})
    assert "resnet18" in text
    assert "Teacher and student" not in render(run(tmp_path / "plain"))


def test_the_terminal_names_it_in_a_line(run, tmp_path):
    path = run(tmp_path / "run")
    card = Card.read(path / "card.json")
    assert teacher.line(card) == ""
    card.provenance["teacher"] = OWN | {"name": "resnet18"}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(card_table(card, find_baseline(path, card)))
    assert "Teacher: resnet18 95.0 %, 4.00 k parameters." in console.export_text()
