"""Charts: ticks, thinning and what is drawn."""

import re

import numpy as np
import pytest

from effvit_train.report.charts import Series, escape, line_chart, log_ticks, matrix, thin, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 2.4, [0, 0.5, 1, 1.5, 2, 2.5]),
        (3, 3, [2.6, 2.8, 3, 3.2, 3.4]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_whole_ticks():
    assert ticks(0, 2, 6, whole=True) == [0, 1, 2]


@pytest.mark.parametrize(("low", "high"), [(0.07, 5.2), (1e-6, 3.0), (1e-12, 1e12), (0.011, 0.9)])
def test_log_ticks_cover_the_range_with_at_most_nine(low, high):
    found = log_ticks(low, high)
    assert found[0] <= low * 1.0001
    assert found[-1] >= high * 0.9999
    assert 2 <= len(found) <= 9


def test_thin_keeps_the_ends_and_the_extremes():
    points = [(float(i), 0.0) for i in range(5000)]
    points[1234] = (1234.0, 9.0)
    points[4321] = (4321.0, -9.0)
    kept = thin(points, 300)
    assert len(kept) <= 302
    assert {points[0], points[-1], points[1234], points[4321]} <= set(kept)
    assert kept == sorted(kept)


def test_line_chart_puts_points_where_they_belong():
    svg = line_chart([Series("a", [(0, 0.0), (10, 1.0)], "val")], title="t", write=str, y_range=(0, 1))
    points = re.search(r'polyline points="([^"]+)"', svg).group(1)
    assert points == "46.0,216.0 426.0,12.0"  # 440 x 250 less margins 46, 14, 12, 34


def test_line_chart_of_one_epoch_and_of_equal_values():
    for points in ([(0, 0.5)], [(0, 0.0), (1, 0.0)], [(3, -1.0)]):
        svg = line_chart([Series("a", points, "val")], title="t", write=str)
        assert "nan" not in svg
        assert svg.count("<circle") == len(points)


def test_line_chart_goes_logarithmic_over_a_factor_of_50():
    def ys(values):
        svg = line_chart([Series("a", list(enumerate(values)), "val")], title="t", write=str)
        return [float(y) for y in re.findall(r'<circle[^>]*cy="([\d.]+)"', svg)]

    top, middle, low = ys([100.0, 10.0, 1.0])
    assert middle == pytest.approx((top + low) / 2, abs=0.1)
    top, middle, low = ys([40.0, 10.0, 1.0])
    assert middle > (top + low) / 2


def test_matrix_shows_every_count_and_its_share():
    svg = matrix(np.array([[8, 2], [0, 5]]), ["x", "y"])
    assert re.findall(r'text-anchor="middle">(\d+)</text>', svg) == ["8", "2", "5"]
    assert "true x, predicted y: 2 of 10 (20.0%)" in svg
    assert svg.count('class="zero"') == 1


def test_escape_leaves_nothing_that_breaks_a_document():
    assert escape("<a b='\"&\x00\ud800>") == "&lt;a b=&#x27;&quot;&amp;��&gt;"
