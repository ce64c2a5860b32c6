"""The page: well formed, self-contained, safe, and with the right numbers."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from effvit_train.errors import UserError
from effvit_train.report.html import render, write_html

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order or never."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(page):
    """Parse `page`; it must be balanced and must refer to nothing outside."""
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.tags
    names = {name for name, _ in parser.attributes}
    assert not names & {"src", "href", "srcset", "data", "action", "xlink:href"}
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", page)
    return parser


def visible(page):
    """The words of the page."""
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.S)
    text = re.sub(r"<[^>]+>", " ", text).replace("\u00a0", " ").replace("\u2060", "")
    return " ".join(text.split())


@pytest.fixture
def digits(tmp_path, run):
    labels = np.repeat(np.arange(3), 30)
    predicted = labels.copy()
    predicted[:4] = 1
    return run(tmp_path / "runs" / "x" / "me", labels=labels, predicted=predicted)


def test_page_is_whole_and_says_the_numbers(digits):
    path = write_html(digits)
    assert path == digits / "card.html"
    page = path.read_text(encoding="utf-8")
    check(page)
    text = visible(page)
    # 86 of 90: Wilson 0.8912 to 0.9826
    assert "95.6 % of 90 test images right (95 % interval 89.1–98.3)" in text
    assert "1.0 k parameters" in text or "1.00 k parameters" in text
    assert "4 of 30" in text
    assert "26/30" in text
    assert "Energy no counter &lt;here&gt;" in text
    assert "python train.py compress=distill" in text
    assert not list(digits.glob(".card.html*"))


def test_page_works_without_network_or_script(digits):
    page = render(digits)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_everything_from_the_user_is_escaped(tmp_path, run):
    evil = "</style><script>alert(1)</script>\"'&\x00"
    path = run(
        tmp_path / "runs" / "me",
        classes=(evil, "b" * 300),
        labels=[0, 1, 0, 1],
        predicted=[1, 1, 0, 0],
        model=evil,
        dataset=evil,
        overrides=[f"name={evil}"],
        precision_reason=evil,
    )
    page = write_html(path).read_text(encoding="utf-8")
    check(page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_against_a_baseline(tmp_path, run):
    labels = np.zeros(100, int)
    weak, strong = labels.copy(), labels.copy()
    weak[:20] = 1
    strong[:3] = 1
    run(tmp_path / "runs" / "x" / "0", labels=labels, predicted=weak, values={"cost/params": 4000.0})
    mine = run(tmp_path / "runs" / "x" / "1", labels=labels, predicted=strong, compress=["distill"])
    text = visible(render(mine))
    assert "17.0 points more accurate than the same model uncompressed" in text
    assert "17 images only this run gets right, 0 only the baseline" in text
    assert "▲ +17.0 pp better baseline 80.0 %" in text
    assert "▼ 4.0× less better" in text


def test_chance_is_called_chance(tmp_path, run):
    labels = np.zeros(100, int)
    one, other = labels.copy(), labels.copy()
    one[:5] = 1
    other[3:9] = 1
    run(tmp_path / "runs" / "x" / "0", labels=labels, predicted=other)
    text = visible(
        render(run(tmp_path / "runs" / "x" / "1", labels=labels, predicted=one, compress=["distill"]))
    )
    # differ on 3 + 4 images: p = 1
    assert "1.0 points more accurate" in text
    assert "no more than chance explains" in text
    assert "▲ +1.0 pp within noise" in text


def test_times_of_another_machine_get_no_verdict(tmp_path, run):
    run(tmp_path / "runs" / "x" / "0", processor="two", values={"cost/latency_ms": 9.0})
    text = visible(render(run(tmp_path / "runs" / "x" / "1", compress=["distill"])))
    assert "▼ 9.0× less other conditions" in text


def test_no_baseline_gives_the_reason(tmp_path, run):
    text = visible(render(run(tmp_path / "runs" / "x" / "1", compress=["distill"])))
    assert "No baseline: no uncompressed run of this model, data and number of epochs" in text
    assert "python train.py compress=none" in text


def test_missing_files_are_said(tmp_path, run):
    path = run(tmp_path / "me", curves=False)
    (path / "model.json").unlink()
    text = visible(render(path))
    assert "No curves: metrics.csv is not in the run directory." in text
    assert "predictions.npz is not in the run directory." in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"logits": np.zeros((3, 2)), "labels": np.array([0, 1])}, "shapes do not agree"),
        ({"logits": np.zeros((2, 2)), "labels": np.array([0, 2])}, "labels outside its classes"),
        ({"logits": np.zeros((0, 2)), "labels": np.zeros(0, int)}, "holds no image"),
        ({"logits": np.zeros((2, 2))}, "lacks an array"),
        ({"logits": np.array([[object()]]), "labels": np.array([0])}, "cannot be read"),  # a pickle
        (None, "cannot be read"),
    ],
)
def test_damaged_predictions_are_said(tmp_path, run, content, reason):
    path = run(tmp_path / "me")
    if content is None:
        (path / "predictions.npz").write_bytes(b"PK\x03\x04 broken")
    else:
        np.savez(path / "predictions.npz", **content)
    page = render(path)
    check(page)
    assert reason in visible(page)


def test_warnings_come_first(tmp_path, run):
    text = visible(render(run(tmp_path / "a", fast_dev_run=True)))
    assert "One batch only" in text
    assert "This run is interrupted" in visible(render(run(tmp_path / "b", status="interrupted")))


def test_card_with_nothing_but_its_sections(tmp_path):
    path = tmp_path / "bare"
    path.mkdir()
    (path / "card.json").write_text(
        '{"schema": 1, "run": {}, "model": {}, "measures": {}, "missing": {}, "provenance": {}}'
    )
    page = render(path)
    check(page)
    assert "Nothing was measured." in page


def test_no_card_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="no card at"):
        write_html(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("classes", "images", "epochs", "limit", "has_matrix"),
    [
        (2, 50, 1, 300, True),
        (10, 400, 150, 300, True),
        (40, 4000, 20, 800, True),
        (100, 10_000, 300, 300, False),
        (1000, 20_000, 1000, 1500, False),
    ],
)
def test_size_for_any_number_of_classes(tmp_path, run, classes, images, epochs, limit, has_matrix):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, images)
    predicted = np.where(rng.random(images) < 0.5, labels, rng.integers(0, classes, images))
    names = [f"class number {i} with a long name" for i in range(classes)]
    path = run(tmp_path / "me", classes=names, labels=labels, predicted=predicted, epochs=epochs)
    page = render(path)
    check(page)
    assert len(page.encode()) < limit * 1000
    assert ("Confusion matrix," in page) == has_matrix
    assert "Most confused pairs" in page


def test_curves_leave_out_empty_and_non_finite_cells(tmp_path, run):
    from effvit_train.report.inputs import read_run

    data = read_run(run(tmp_path / "me"))
    assert data.curves["train/distill"] == [(0.0, 1.0), (1.0, 0.5)]  # the last one is nan
    assert data.curves["val/accuracy"] == [(2.0, 0.875)]
    assert "step" not in data.curves
