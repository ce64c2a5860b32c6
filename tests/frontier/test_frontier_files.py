"""What the report of many runs writes: the right runs together, all measures, reasons, and nothing that runs."""

import csv
import json
import re
import subprocess
import sys

import pytest
from made import make_run
from many import private_run, state, studied

from effvit_train import cli
from effvit_train.budgets import parse_budgets
from effvit_train.report.frontier.page import embedded
from effvit_train.report.frontier.payload import payload

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def sweep(top):
    """Two arms of two seeds and one of one, by latency and accuracy."""
    for name, compress, seed, latency, accuracy in (
        ("0", [], 1, 2.0, 0.96), ("1", [], 2, 2.2, 0.98), ("2", ["prune"], 1, 1.0, 0.95), ("3", ["prune"], 2, 1.0, 0.93),
        ("4", ["distill"], 1, 3.0, 0.90),
    ):  # fmt: skip
        make_run(
            top / name, compress=compress, seed=seed, started=f"2026-01-0{int(name) + 1}", id=f"id{name}",
            values={"cost/latency_ms": latency, "quality/accuracy": accuracy},
        )  # fmt: skip
    return top


def written(capsys, *arguments):
    cli.main(["report", *map(str, arguments)])
    return capsys.readouterr().out


def test_json_has_arms_runs_fronts_and_reasons(tmp_path, capsys):
    top = sweep(tmp_path / "runs")
    out = written(capsys, top)
    assert "5 runs, 3 arms" in out
    content = json.loads((top / "frontier.json").read_text())
    assert [one["key"] for one in content["objectives"]] == ["cost/latency_ms", "quality/accuracy"]
    assert [(arm["label"], arm["on_front"]) for arm in content["arms"]] == [
        ("vit_micro plain", True), ("vit_micro prune", True), ("vit_micro distill", False),
    ]  # fmt: skip
    plain = content["arms"][0]
    assert plain["mean"]["cost/latency_ms"] == pytest.approx(2.1)
    assert plain["sd"]["cost/latency_ms"] == pytest.approx(0.2 / 2**0.5)
    assert content["arms"][2]["sd"]["cost/latency_ms"] is None
    assert [run["on_front"] for run in content["runs"]] == [True, True, True, False, False]
    assert content["runs"][0]["id"] == "id0"


def test_budgets_take_runs_off_the_front_and_not_off_the_page(tmp_path, capsys):
    top = sweep(tmp_path / "runs")
    written(capsys, top, "--budget", "cost/latency_ms<=2.1", "--x", "params")
    content = json.loads((top / "frontier.json").read_text())
    assert content["objectives"][0]["key"] == "cost/params"
    assert [run["meets_budgets"] for run in content["runs"]] == [True, False, True, True, False]
    assert [run["on_front"] for run in content["runs"]] == [True, False, False, False, False]
    written(capsys, top, "--budget", "privacy/epsilon<=8")
    content = json.loads((top / "frontier.json").read_text())
    assert not any(run["meets_budgets"] or run["on_front"] for run in content["runs"])
    assert content["runs"][0]["measures"]["privacy/epsilon"] is None
    assert content["runs"][0]["missing"]["privacy/epsilon"] == "not measured"


def test_csv_has_a_row_per_run_and_nothing_that_a_spreadsheet_would_run(tmp_path, capsys):
    top = sweep(tmp_path / "runs")
    make_run(top / "5", model='=HYPERLINK("http://x")', seed=-1, started="2026-02-01")
    written(capsys, top)
    rows = list(csv.DictReader((top / "frontier.csv").open()))
    assert len(rows) == 6
    assert rows[0]["cost/latency_ms"] == "2.0"
    assert rows[0]["data"] == "digits"
    assert rows[2]["techniques"] == "prune"
    assert rows[5]["model"] == '\'=HYPERLINK("http://x")'
    assert rows[5]["seed"] == "-1"
    assert "cost/energy_j" not in rows[0]  # no run has it


def test_runs_on_other_data_are_never_on_one_front(tmp_path, capsys):
    values = {"cost/latency_ms": 1.0, "quality/accuracy": 0.9}
    make_run(tmp_path / "a", values=values)
    make_run(tmp_path / "b", values={**values, "quality/accuracy": 0.5}, fingerprint="0" * 64)
    found = studied(tmp_path)
    assert [one.label for one in found.sets] == ["digits (ffffff)", "digits (000000)"]
    written(capsys, tmp_path)
    content = json.loads((tmp_path / "frontier.json").read_text())
    assert [run["on_front"] for run in content["runs"]] == [True, True]
    assert [arm["data"] for arm in content["arms"]] == ["digits (ffffff)", "digits (000000)"]


def test_a_sealed_fingerprint_is_known_by_the_state_or_else_by_the_name(tmp_path):
    make_run(tmp_path / "a")
    state(private_run(tmp_path / "b", epsilon=1.0, fingerprint="sealed:b"))
    private_run(tmp_path / "c", epsilon=1.0, fingerprint="sealed:c")
    found = studied(tmp_path)
    assert [(one.label, one.by_name) for one in found.sets] == [("digits", 1)]
    told = payload(found, x="cost/params", y=["quality/accuracy"], budgets=[], privacy=[], out=tmp_path)
    assert "1 of them are known by the name" in told["sets"][0]["note"]


def test_the_page_is_whole_alone_and_safe(tmp_path, capsys):
    top = sweep(tmp_path / "runs")
    make_run(top / HOSTILE.replace("/", "∕"), model=HOSTILE, started="2026-02-01")
    (top / "0" / "card.html").write_text("a card")
    written(capsys, top)
    page = (top / "frontier.html").read_text()
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", page)
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S).group(1)
    content = json.loads(text)
    assert HOSTILE in content["models"]
    assert content["runs"]["href"][0] == "0/card.html"
    assert content["runs"]["href"][1] == ""


def test_embedded_json_reads_back():
    content = {"a": "</script><!--\u2028", "b": [1.5, None]}
    assert "<" not in embedded(content)
    assert json.loads(embedded(content)) == content
    with pytest.raises(ValueError, match="not JSON compliant"):
        embedded(float("nan"))


def test_a_card_of_strange_numbers_is_read_as_not_measured(tmp_path, capsys):
    sweep(tmp_path)
    card = json.loads((tmp_path / "0" / "card.json").read_text())
    card["measures"] |= {"quality/accuracy": "high", "cost/latency_ms": float("nan"), "cost/params": True}
    (tmp_path / "0" / "card.json").write_text(json.dumps(card))
    written(capsys, tmp_path)
    run = json.loads((tmp_path / "frontier.json").read_text())["runs"][0]
    assert [run["measures"][key] for key in ("quality/accuracy", "cost/latency_ms", "cost/params")] == [
        None
    ] * 3
    assert not run["on_front"]


def test_intervals_and_burdens_of_the_360_chart(tmp_path):
    sweep(tmp_path)
    told = payload(
        studied(tmp_path),
        x="cost/params",
        y=["quality/accuracy"],
        budgets=parse_budgets([]),
        privacy=[],
        out=tmp_path,
    )
    place = [spoke["key"] for spoke in told["spokes"]].index("quality/accuracy")
    # Wilson's interval of 96 of 100, from the formula: centre (96 + 1.92) / 103.84, half-width 0.0402
    low, high = told["runs"]["interval"][place][0]
    assert (low, high) == pytest.approx((0.9016, 0.9843), abs=2e-4)
    assert told["runs"]["logs"][place][0] == pytest.approx(-3.218876)  # ln 0.04
    assert told["arms"]["logs"][place][0] == pytest.approx(-3.506558)  # ln 0.03, of the mean
    assert told["runs"]["stands"]["privacy/epsilon"][0] == 0.0


def test_no_torch_is_loaded(tmp_path):
    sweep(tmp_path)
    code = (
        "import sys; from effvit_train.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    for option in ((), ("--summary",)):
        subprocess.run(
            [sys.executable, "-c", code, "report", str(tmp_path), *option], check=True, timeout=120
        )


def test_equal_values_have_no_spread(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / str(seed), seed=seed, values={"privacy/epsilon": 7.995})
    told = payload(
        studied(tmp_path), x="cost/params", y=["quality/accuracy"], budgets=[], privacy=[], out=tmp_path
    )
    assert told["arms"]["sd"]["privacy/epsilon"] == [0.0]
