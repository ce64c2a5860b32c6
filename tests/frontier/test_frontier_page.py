"""The frontier page and the summary in a real browser: clicked, filtered, printed, and read against Python's numbers."""

import json
import re

import pytest
from chrome import PROGRAM, Chrome
from made import make_run
from many import private_run, state

from effvit_train import cli
from effvit_train.report import format as fmt
from effvit_train.report.frontier.pareto import front

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None, reason="no chromium: the page's script is NOT tested (apt-get install chromium)"
    ),
]


def text(page, selector):
    return page.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")


def points(page, kind="point"):
    return page.run(f"document.querySelectorAll('#plot .{kind}').length")


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Five arms of two seeds on digits, one run on other data."""
    top = tmp_path_factory.mktemp("frontier") / "runs"
    arms = (("vit_a", [], 2.0, 0.96), ("vit_b", [], 1.0, 0.90), ("vit_a", ["prune"], 1.2, 0.95),
            ("vit_a", ["distill"], 2.5, 0.97), ("vit_c", [], 3.0, 0.80))  # fmt: skip
    for number, (model, compress, latency, accuracy) in enumerate(arms):
        for seed in (1, 2):
            path = make_run(
                top / f"{number}{seed}", model=model, compress=compress, seed=seed, id=f"{number}{seed}",
                values={"cost/latency_ms": latency + seed / 100, "quality/accuracy": accuracy + seed / 1000,
                        "cost/macs": 1e6 * (number + 1), "cost/train_seconds": 61.4 * seed, "quality/nll": -0.25},
            )  # fmt: skip
            (path / "card.html").write_text("<h1>card</h1>")
    state(private_run(top / "private", epsilon=3.0, model="vit_d", id="p"))
    make_run(top / "other", fingerprint="0" * 64, id="o")
    cli.main(["report", str(top), "--budget", "cost/latency_ms<=2.4"])
    return top


def test_fronts_filters_selection_and_keyboard(top):
    with Chrome() as page:
        page.open(top / "frontier.html")
        # by hand, of those within the budget: d (1.0 ms, 90 %), b (1.015, 90.15 %), a pruned (1.215, 95.15 %), a (2.015, 96.15 %)
        status = text(page, "#status")[0]
        assert status.startswith(
            "4 arms of 6 on the front of latency (lower is better) and accuracy (higher is better)"
        )
        assert "2 arms miss a budget" in status
        content = json.loads((top / "frontier.json").read_text())
        wanted = {
            arm["label"]
            for arm in content["arms"]
            if arm["on_front"] and arm["data"].startswith("digits (ff")
        }
        assert set(text(page, "tr.best th .what")) == wanted
        assert points(page) == 6
        assert points(page, "missing") == 2
        assert points(page, "error") > 0

        page.click("#budgets input")  # without the budget the distilled arm is the most accurate
        assert "vit_a distill" in text(page, "tr.best th .what")
        assert points(page, "missing") == 0
        page.choose("#bound-key", "quality/accuracy")
        page.choose("#bound-sign", ">=")
        page.choose("#bound-limit", "94")
        page.click("#bound button")
        assert "quality/accuracy>=94%" in text(page, "#budgets label")[1]
        assert points(page, "missing") == 3  # b, c and the private run
        page.click("#hide")
        assert points(page) == 3
        assert "3 arms hidden by the filters." in text(page, "#notes li")
        page.click("#reset")
        assert points(page) == 6

        page.choose("#text", "PRUNE")
        assert text(page, "#table .what") == ["vit_a prune"]
        page.choose("#text", "")
        page.choose("#model", "vit_a")
        assert points(page) == 3
        page.click("#reset")
        page.choose("#tech", "plain")
        assert sorted(text(page, "#table .what")) == ["vit_a plain", "vit_b plain", "vit_c plain"]
        page.click("#reset")

        page.click("#runs")
        assert points(page) == 11
        assert points(page, "error") == 0
        assert page.run("document.querySelector('#table a.what').getAttribute('href')").endswith("/card.html")
        page.click("#arms")

        page.choose("#x", "cost/macs")
        assert "MACs (lower is better)" in text(page, "#status")[0]
        assert "1 arm cannot be on it without a number for it (MACs: not measured)." in text(
            page, "#notes li"
        )
        page.choose("#x", "cost/latency_ms")

        page.run("document.querySelector('#plot .point[tabindex=\"0\"]').focus()")
        page.key("ArrowRight")
        assert page.run("document.getElementById('tip').hidden") is False
        assert "s.d. over" in text(page, "#tip")[0] or "vit_d" in text(page, "#tip")[0]
        page.key("Enter")
        assert len(text(page, ".chosen-list li")) == 1
        page.key("ArrowRight")
        page.key(" ")
        assert len(text(page, ".chosen-list li")) == 2
        for _ in range(5):
            page.click("#table tbody tr:not(:has(input:checked)) input")
        assert len(text(page, ".chosen-list li")) == 5
        assert "5 at most" in text(page, "#said")[0]
        assert page.run("document.querySelectorAll('#selection svg.c360 > g[class^=c]').length") == 5
        page.click(".chosen-list button")
        assert len(text(page, ".chosen-list li")) == 4

        page.choose("#set", "1")
        assert points(page) == 1
        # another split of data with the same name: what was spent there counts here too
        assert "One private training on digits: ε ≤ 3.00" in text(page, "#spent li")[0]
        assert page.errors == []


def test_numbers_sorting_and_the_front_agree_with_python(top):
    with Chrome() as page:
        page.open(top / "frontier.html")
        page.click("#runs")
        page.click("#every")
        content = json.loads((top / "frontier.json").read_text())
        runs = {
            run["run_dir"].rsplit("/", 1)[1]: run
            for run in content["runs"]
            if not run["run_dir"].endswith("other")
        }
        heads = [head.split(" ▼")[0].split(" ▲")[0] for head in text(page, "#table thead th")]
        rows = page.run(
            "[...document.querySelectorAll('#table tbody tr')].map((r) => [...r.children].map((c) => c.textContent))"
        )
        assert len(rows) == len(runs)
        checked = 0
        for row in rows:
            run = runs[re.search(r"\((\w+)\)$", row[1]).group(1)]
            for key, number in run["measures"].items():
                label = fmt.measure_of(key).label
                if label in heads:
                    assert row[heads.index(label)] == fmt.value(key, number).replace("\u00a0", " ")
                    checked += 1
        assert checked > 50
        accuracies = [row[heads.index("Accuracy")] for row in rows]
        assert accuracies == sorted(accuracies, key=lambda a: -float(a.split()[0]))
        page.click('[data-sort="cost/macs"]')
        first = page.run("document.querySelector('#table tbody tr').textContent")
        assert "1.00 M" in first
        assert page.run("document.querySelector('[aria-sort=ascending]').textContent") == "MACs ▲"
        last = page.run("document.querySelector('#table tbody tr:last-child').textContent")
        assert "(private)" in last  # nulls last

        page.choose("#also", "cost/macs")
        page.click("#budgets button")
        keys = ["cost/latency_ms", "quality/accuracy", "cost/macs"]
        names = list(runs)
        best = front([[runs[name]["measures"][key] for key in keys] for name in names], keys)
        shown = {re.search(r"\((\w+)\)$", name).group(1) for name in text(page, "tr.best .what")}
        assert shown == {name for name, on in zip(names, best, strict=True) if on}


def test_the_page_fits_a_phone(top):
    for width in (390, 1280):
        with Chrome(width, 844, dark=True) as page:
            page.open(top / "frontier.html")
            page.click("#plot .point")
            assert page.run("document.documentElement.scrollWidth") <= width
            assert page.errors == []


@pytest.mark.parametrize("language", ["en", "ja"])
def test_the_summary_prints_on_one_page_per_language(top, language):
    budgets = ["cost/latency_ms<=2.4", "privacy/epsilon<=8", "cost/size_mb<=1", "accuracy>=90%"]
    cli.main(
        ["report", str(top), "--summary", "--language", language, *(f"--budget={one}" for one in budgets)]
    )
    with Chrome(390, 844) as page:
        page.open(top / "summary.html")
        assert page.run("document.documentElement.scrollWidth") <= 390
        assert len(re.findall(rb"/Type\s*/Page\b", page.pdf())) == 1
        assert page.errors == []
