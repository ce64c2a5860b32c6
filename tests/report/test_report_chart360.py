"""The 360 chart: where points lie, which way is better, and that nothing is left out."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from test_report_html import check, visible

from effvit_train.audit.approximation import NOTHING_REPLACED
from effvit_train.card import MEASURES, Card
from effvit_train.report import chart360, tracking
from effvit_train.report.baseline import Baseline
from effvit_train.report.compare import Comparison
from effvit_train.report.html import render
from effvit_train.report.spokes import SPOKES, readings, times

KEYS = [spoke.key for spoke in SPOKES]


def card(values, *, missing=None, audit=None, **run):
    measures = dict.fromkeys(KEYS) | values
    reasons = {key: f"no {key}" for key, value in measures.items() if value is None} | (missing or {})
    facts = {"audit": audit} if audit else {}
    return Card({"privacy": "none", "compress": ["prune"], **run}, {}, measures, reasons, facts)


def against(now, before, **options):
    other = before if isinstance(before, Card) else card(before, compress=[])
    return Comparison(now if isinstance(now, Card) else card(now, **options), Baseline(None, other, ""))


def reading(comparison, key):
    return next(found for found in readings(comparison) if found.spoke.key == key)


def spoke_of(svg, name):
    """The group of a spoke, as text."""
    return next(group for group in re.findall(r"<g class=.*?</g>", svg) if f">{name}</tspan>" in group)


# By hand: burden of the baseline over burden of this run.
FACTORS = [
    ("quality/accuracy", 0.98, 0.96, 2.0),  # errors 0.02 and 0.04
    ("quality/accuracy", 0.96, 0.98, 0.5),
    ("quality/accuracy", 1.0, 0.996, 4.0),  # no errors count as 0.001
    ("cost/size_mb", 3.0, 6.0, 2.0),
    ("cost/macs", 6e9, 3e9, 0.5),
    ("cost/latency_ms", 1.0, 2.0, 2.0),
    ("cost/memory_mb", 1.0, 2.0, 2.0),
    ("cost/energy_j", 1.0, 2.0, 2.0),
    ("cost/eer", 0.1, 0.2, 2.0),
    ("robustness/corruption_accuracy", 0.6, 0.2, 2.0),
    ("robustness/autoattack_accuracy", 0.0, 0.0, 1.0),
    ("robustness/autoattack_accuracy", 0.5, 0.0, 2.0),
    ("calibration/ece", 0.02, 0.04, 2.0),
    ("calibration/ece", 0.0, 0.0, 1.0),
    ("fairness/worst_group_accuracy", 0.9, 0.8, 2.0),
    ("transparency/insertion_auc", 0.6, 0.2, 2.0),
    ("privacy/epsilon", math.log(3), math.log(7), 1.5),  # advantages (3-1)/(3+1) and (7-1)/(7+1)
    ("privacy/mia_auc", 0.55, 0.6, 2.0),
    ("privacy/mia_auc", 0.45, 0.6, 2.0),  # an attack below chance, turned round, is one above
    ("privacy/mia_auc", 0.5, 0.5, 1.0),
    ("complexity/flops_exponent", 1.0, 2.0, 2.0),  # twice the tokens cost 2 or 4 times as much
    ("spectral/log_norm_bound", 3.0, 3 + math.log10(2), 2.0),
    ("spectral/log_norm_bound", -1.0, math.log10(0.2), 2.0),  # bounds 0.1 and 0.2
    ("approximation/attention_error", 0.5, 0.0, 1 / 1.5),
    ("continual/forgetting", 0.1, 0.2, 2.0),
    ("continual/forgetting", -0.05, 0.02, 2.0),  # below 0.01 counts as 0.01
]


@pytest.mark.parametrize(("key", "now", "before", "factor"), FACTORS)
def test_factors_point_the_right_way(key, now, before, factor):
    found = reading(against({key: now}, {key: before}), key)
    assert found.factor == pytest.approx(factor)
    expected = "same" if factor == 1 else "better" if factor > 1 else "worse"
    assert found.verdict == expected


def test_every_spoke_has_a_factor_by_hand():
    assert {row[0] for row in FACTORS} == set(KEYS)
    assert all(len(spoke.name) <= 13 for spoke in SPOKES)
    assert len({spoke.name for spoke in SPOKES}) == len(SPOKES)


def test_burdens_fall_where_the_table_of_measures_says_better():
    for spoke in SPOKES:
        if spoke.key in MEASURES and spoke.key != "privacy/mia_auc":
            low, high = spoke.log_burden(0.6), spoke.log_burden(0.7)
            assert (high < low) == (MEASURES[spoke.key].better == "higher"), spoke.key


def test_a_factor_of_two_lies_half_way_to_the_rim():
    svg = chart360.svg(readings(against({"cost/macs": 500.0}, {"cost/macs": 1000.0})))
    # Third of 18 spokes: 2.5 x 20 degrees. Radii 18 to 110 for 1/4 to 4: 2 lies at 18 + 0.75 x 92 = 87.
    x, y = 230 + 87 * math.sin(math.radians(50)), 170 - 87 * math.cos(math.radians(50))
    mark = re.search(r'<circle class="mark" cx="([\d.]+)" cy="([\d.]+)"', spoke_of(svg, "Compute"))
    assert (float(mark[1]), float(mark[2])) == pytest.approx((x, y), abs=0.06)
    assert chart360.radius(1) == 64  # the baseline: the middle of 18 and 110
    assert "2.0× better" in spoke_of(svg, "Compute")


def test_worse_lies_inside_the_circle():
    svg = chart360.svg(readings(against({"quality/accuracy": 0.96}, {"quality/accuracy": 0.98})))
    group = spoke_of(svg, "Quality")
    mark = re.search(r'<circle class="mark" cx="([\d.]+)" cy="([\d.]+)"', group)
    # 1/2 lies at 18 + 0.25 x 92 = 41
    assert math.hypot(float(mark[1]) - 230, float(mark[2]) - 170) == pytest.approx(41, abs=0.1)
    assert 'class="spoke worse"' in group
    assert "2.0× worse" in group


@pytest.mark.parametrize(
    ("values", "before"),
    [
        ({}, {}),
        ({"cost/macs": 1.0}, {}),
        ({}, {"cost/macs": 1.0}),
        (dict.fromkeys(KEYS, 0.3), dict.fromkeys(KEYS, 0.4)),
    ],
)
def test_every_spoke_is_in_the_chart_and_in_the_table(values, before):
    page = chart360.section(against(values, before))
    check(page)
    svg, table = page.partition("</svg>")[0], page.partition('<table class="measures t360">')[2]
    for spoke in SPOKES:
        assert svg.count(f">{spoke.name}</tspan>") == 1
        assert f"<summary>{spoke.name}" in table
    assert svg.count('<g class="spoke') == len(SPOKES) == table.count("<details>")
    assert (svg.count('class="dashed"'), svg.count('class="open"')) == (table.count("not measured: "),) * 2


def test_a_null_on_either_side_is_dashed_open_and_told_with_its_reason():
    comparison = against(
        card({"cost/macs": 5.0}, missing={"calibration/ece": "no <logits>"}), {"calibration/ece": 0.1}
    )
    page = chart360.section(comparison)
    for name in ("Compute", "Calibration"):
        group = spoke_of(page, name)
        assert 'class="dashed"' in group
        assert 'class="open"' in group
        assert "not measured" in group
        # the open mark lies off the scale, 8 beyond the rim
        at = re.search(r'class="open" cx="([\d.]+)" cy="([\d.]+)"', group)
        assert math.hypot(float(at[1]) - 230, float(at[2]) - 170) == pytest.approx(118, abs=0.1)
    text = visible(page)
    assert "not measured: of the baseline: no cost/macs" in text
    assert "not measured: no &lt;logits&gt;" in text
    legend = text.partition("Lines between the points")[2].partition("This run")[0]
    assert "Compute" in legend.partition("not measured:")[2]


def test_no_line_is_drawn_over_a_null():
    both = {"cost/size_mb": 1.0, "cost/macs": 1.0, "cost/memory_mb": 1.0}  # latency, in between, is null
    svg = chart360.svg(readings(against(both, both)))
    assert svg.count('class="outline"') == 1


@pytest.mark.parametrize(("now", "name", "edge"), [(100.0, "8.0× better", 110), (6400.0, "8.0× worse", 18)])
def test_what_is_off_the_scale_is_marked(now, name, edge):
    page = chart360.section(against({"cost/macs": now}, {"cost/macs": 800.0}))
    group = spoke_of(page, "Compute")
    at = re.search(r'class="mark clamped".*?translate\(([\d.]+) ([\d.]+)\)', group)
    assert math.hypot(float(at[1]) - 230, float(at[2]) - 170) == pytest.approx(edge, abs=0.1)
    assert '<circle class="mark"' not in group
    assert f"{name}, drawn at 4×" in visible(page)
    assert f"off the scale, drawn at its edge: Compute ({name})" in visible(page)


def test_exactly_four_is_on_the_scale():
    assert not reading(against({"cost/macs": 1.0}, {"cost/macs": 4.0}), "cost/macs").clamped


def test_numbers_that_no_float_holds():
    found = reading(
        against({"spectral/log_norm_bound": -4000.0}, {"spectral/log_norm_bound": 4000.0}),
        "spectral/log_norm_bound",
    )
    assert (found.verdict, found.clamped, found.short) == ("better", True, "over a million × better")
    for value in (4e9, 1e308):
        page = chart360.section(
            against({"spectral/log_norm_bound": value}, {"spectral/log_norm_bound": -value})
        )
        assert not re.search(r"\b(nan|inf)\b", page)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_measured(value):
    assert reading(against({"cost/macs": value}, {"cost/macs": 1.0}), "cost/macs").short == "not measured"
    assert reading(against({"cost/macs": 1.0}, {"cost/macs": value}), "cost/macs").short == "not measured"


def test_a_ratio_to_zero_is_none_and_says_so():
    page = chart360.section(against({"cost/energy_j": 1.0}, {"cost/energy_j": 0.0}))
    assert "no factor: the baseline's value, 0 J/image, has no ratio to another" in visible(page).replace(
        "&#x27;", "'"
    )
    assert 'class="open"' in spoke_of(page, "Energy")


def test_without_privacy_epsilon_is_infinite():
    comparison = against(card({"privacy/epsilon": math.log(3)}, privacy="dp_sgd"), {})
    found = reading(comparison, "privacy/epsilon")
    assert found.factor == pytest.approx(2.0)  # 1 over (3 - 1) / (3 + 1)
    assert "no bound (∞)" in visible(chart360.section(comparison))
    both = reading(against(card({}), {}), "privacy/epsilon")
    assert both.short == "not measured"  # of this run a null stays a null
    private = card({}, compress=[], privacy="dp_sgd")
    assert reading(against({"privacy/epsilon": 1.0}, private), "privacy/epsilon").short == "not measured"


def test_a_baseline_with_nothing_replaced_is_exact():
    key = "approximation/attention_error"
    exact = card({}, compress=[], missing={key: NOTHING_REPLACED})
    found = reading(against({key: 1.0}, exact), key)
    assert (found.factor, found.before_words) == (pytest.approx(0.5), "exact (0)")
    assert reading(against({key: 1.0}, {}), key).short == "not measured"  # it may just not have been audited


def test_chance_and_other_conditions_give_no_verdict():
    def ece(value, low, high, **options):
        facts = {"calibration": {"intervals": {"calibration/ece": [low, high]}, "images": 9}}
        return card({"calibration/ece": value}, audit=facts, **options)

    near = reading(against(ece(0.04, 0.02, 0.06), ece(0.05, 0.03, 0.07, compress=[])), "calibration/ece")
    assert (near.verdict, near.words) == ("unclear", "1.25× better, within noise")
    # 0.06 apart; root of 0.01^2 + 0.01^2 is 0.014
    far = reading(against(ece(0.02, 0.01, 0.03), ece(0.08, 0.07, 0.09, compress=[])), "calibration/ece")
    assert far.verdict == "better"
    timed = reading(against({"cost/latency_ms": 1.0}, {"cost/latency_ms": 1.05}), "cost/latency_ms")
    assert timed.words == "1.05× better, within noise"
    pruned = against(
        {"spectral/log_norm_bound": 1.0, "cost/params": 5.0},
        {"spectral/log_norm_bound": 3.0, "cost/params": 9.0},
    )
    assert reading(pruned, "spectral/log_norm_bound").doubt == "other architecture"


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (1.25, "1.25×"),
        (0.5, "2.0×"),
        (1.997, "2.0×"),
        (99.96, "100×"),
        (1200.0, "1,200×"),
        (1e-9, "over a million ×"),
    ],
)
def test_factors_in_words(factor, text):
    assert times(factor) == text


def test_labels_keep_apart():
    svg = chart360.svg(readings(against({}, {})))
    places = [
        (float(x), float(y))
        for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(?:start|end)"', svg)
    ]
    assert len(places) == len(SPOKES)
    for right in (True, False):
        ys = sorted(y for x, y in places if (x > 230) == right)
        assert min(b - a for a, b in itertools.pairwise(ys)) >= 32.9
        assert ys[0] > 12  # within the picture
        assert ys[-1] + 15 < 340


def test_without_a_baseline_there_is_a_list_and_no_chart():
    alone = Comparison(card({"cost/macs": 5e9}), Baseline(None, None, "no uncompressed run <here>"))
    page = chart360.section(alone)
    check(page)
    text = visible(page)
    assert "<svg" not in page
    assert "there is none to draw it with. No baseline: no uncompressed run &lt;here&gt;." in text
    assert "Compute 5.00 G" in text
    assert text.count("not measured: no ") == len(SPOKES) - 1
    assert all(spoke.name in text for spoke in SPOKES)


def test_names_cannot_break_the_chart():
    evil = "</title><script>alert(1)</script>\"'&\x00"
    page = chart360.section(
        against(
            card({}, missing=dict.fromkeys(KEYS, evil)), card({"cost/macs": 1.0}, missing={"cost/eer": evil})
        )
    )
    check(page)
    assert "<script" not in page
    assert "\x00" not in page


def test_the_chart_can_be_read_aloud():
    svg = chart360.svg(readings(against({"cost/macs": 1.0}, {"cost/macs": 2.0})))
    assert 'role="img" aria-labelledby="c360-title c360-desc"' in svg
    assert re.search(
        r'<title id="c360-title">[^<]+</title><desc id="c360-desc">[^<]*Compute: 2.0× better', svg
    )


def test_on_the_card_it_comes_first_where_there_is_a_baseline(tmp_path, run):
    run(tmp_path / "runs" / "x" / "0", values={"cost/macs": 10.0})
    mine = run(tmp_path / "runs" / "x" / "1", compress=["prune"], values={"cost/macs": 5.0})
    page = render(mine)
    check(page)
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings[0] == "All axes against the baseline"
    alone = re.findall(r"<h2>(.*?)</h2>", render(tmp_path / "runs" / "x" / "0"))
    assert alone.index("All axes") == alone.index("Measures") - 1


def test_the_same_picture_for_the_tracker(tmp_path, run):
    run(tmp_path / "runs" / "x" / "0", values={"cost/macs": 10.0})
    mine = run(tmp_path / "runs" / "x" / "1", compress=["prune"], values={"cost/macs": 5.0})
    page = tracking._chart(Card.read(mine / "card.json"))
    check(page)
    assert "2.0× better" in page
    assert len(page) < 60_000
    assert str(tmp_path) not in page


def test_the_tracker_gets_nothing_of_others_from_a_private_run(tmp_path, run):
    run(tmp_path / "runs" / "x" / "0", values={"cost/macs": 12345.0})
    mine = run(tmp_path / "runs" / "x" / "1", privacy="dp_sgd", values={"cost/macs": 5.0})
    assert "c360" in render(mine).partition("</style>")[2]
    page = tracking._chart(Card.read(mine / "card.json")).partition("</style>")[2]
    assert "c360" not in page
    assert "12.3 k" not in page
    assert "from a private run goes nothing but its own card" in page
