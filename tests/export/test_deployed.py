"""The table of runtimes and devices on the card."""

from __future__ import annotations

from rich.console import Console

from effvit_train.card import Card
from effvit_train.report import deployed
from effvit_train.report.html import render
from effvit_train.report.inputs import read_run

ROWS = [
    {
        "runtime": "PyTorch", "precision": "fp32", "device": "a <processor>", "threads": 1, "latency_ms": 4.0,
        "latency_ratio": 1.0, "throughput": 300.0, "throughput_batch": 64, "size_mb": 0.8, "accuracy": 0.9,
        "made_by": "effvit export", "energy_j": None, "max_difference": None, "images": 360,
        "missing": {"energy_j": "effvit bench measures it"},
    },
    {
        "runtime": "ONNX Runtime", "precision": "int8 dynamic", "device": "a <processor>", "threads": 1,
        "latency_ms": 1.0, "latency_ratio": 0.25, "throughput": 900.0, "throughput_batch": 64, "size_mb": 0.3,
        "accuracy": 0.875, "made_by": "effvit export", "max_difference": 0.02, "equal_predictions": 0.95, "images": 360,
    },
    {
        "runtime": "ONNX Runtime", "precision": "int8 dynamic", "device": "board", "threads": 4, "latency_ms": 8.0,
        "energy_j": 0.5, "throughput_batch": 16, "made_by": "effvit bench",
    },
    "nonsense", {"latency_ms": "fast", "threads": None},
]  # fmt: skip


def with_rows(path, run, rows):
    card = Card.read(run(path / "r") / "card.json")
    card.provenance["runtimes"] = rows
    card.write(path / "r" / "card.json")
    return path / "r"


def make(path):
    from made import make_run

    return make_run(path)


def test_the_section(tmp_path):
    page = deployed.section(read_run(with_rows(tmp_path, make, ROWS)))
    assert "a &lt;processor&gt;, 1 thread</th>" in page
    assert "board, 4 threads, effvit bench</th>" in page
    assert ">0.250</td>" in page
    assert ">0.500 J</td>" in page
    assert (
        "Against the trained model, on 360 test images: ONNX Runtime int8 dynamic: logits apart by at most"
        in page
    )
    assert "95.0\u00a0% of predictions equal" in page
    assert "at a batch of 16, 64" in page
    assert "energy (effvit bench measures it)" in page
    assert page.count("<tbody>") == 3
    assert "Memory" not in page  # nobody measured it
    assert page in render(tmp_path / "r")


def test_without_rows_there_is_nothing(tmp_path):
    assert deployed.section(read_run(with_rows(tmp_path, make, []))) == ""
    for number, rows in enumerate(([], None, "x")):
        assert "Deployed" not in render(with_rows(tmp_path / str(number), make, rows))


def test_the_terminal_shows_the_same_in_80_columns(tmp_path):
    console = Console(width=80, file=open(tmp_path / "out", "w"))  # noqa: SIM115
    console.print(deployed.terminal_table(Card.read(with_rows(tmp_path, make, ROWS) / "card.json")))
    console.file.close()
    text = (tmp_path / "out").read_text()
    assert "ONNX Runtime int8 dynamic" in text
    assert "…" not in text
    assert "0.25" in text
