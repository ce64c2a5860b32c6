"""Numbers as the card writes them, and how two of them compare."""

import pytest

from effvit_train.report import format as fmt


@pytest.mark.parametrize(
    ("key", "number", "written"),
    [
        ("quality/accuracy", 0.9833, "98.3 %"),
        ("quality/accuracy", 1.0, "100.0 %"),
        ("quality/accuracy", 0.0, "0.0 %"),
        ("quality/accuracy", 0.99967, "99.97 %"),  # one decimal would claim 100
        ("quality/accuracy", 0.0002, "0.02 %"),
        ("cost/params", 5_717_416, "5.7 M"),
        ("cost/params", 86_567_656, "86.6 M"),
        ("cost/params", 210_762, "211 k"),
        ("cost/params", 999_600, "1.0 M"),
        ("cost/params", 650, "650"),
        ("cost/macs", 1.258e9, "1.26 G"),
        ("cost/macs", 17.58e9, "17.58 G"),
        ("cost/macs", 3.62e6, "3.62 M"),
        ("cost/macs", 999.6e6, "1.00 G"),
        ("cost/latency_ms", 3.44, "3.4 ms"),
        ("cost/latency_ms", 0.618, "0.62 ms"),
        ("cost/latency_ms", 128.4, "128 ms"),
        ("cost/size_mb", 12.08, "12.1 MB"),
        ("cost/size_mb", 0.852, "0.85 MB"),
        ("cost/memory_mb", 1234.0, "1.23 GB"),
        ("cost/throughput", 3417.6, "3,418 images/s"),
        ("cost/train_seconds", 94.2, "94 s"),
        ("cost/train_seconds", 155, "2 min 35 s"),
        ("cost/train_seconds", 3599.7, "1 h"),
        ("cost/train_seconds", 4320, "1 h 12 min"),
        ("quality/nll", 0.0761, "0.076 nats"),
        ("cost/eer", 0.001934, "0.00193"),
        ("cost/energy_j", 0.5, "0.500 J/image"),
        ("privacy/unknown_to_this_version", 2.5, "2.50"),
        ("cost/macs", None, "–"),
    ],
)
def test_value(key, number, written):
    assert fmt.value(key, number) == written


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (9.996, "10.0"), (99.96, "100"), (-0.5, "−0.500"), (1639.6, "1,640"), (2.5e-7, "2.50e-07")],
)
def test_significant(number, written):
    assert fmt.significant(number) == written


@pytest.mark.parametrize(
    ("key", "now", "before", "written", "verdict"),
    [
        ("quality/accuracy", 0.978, 0.967, "▲ +1.1 pp better", "better"),
        ("quality/accuracy", 0.967, 0.978, "▼ −1.1 pp worse", "worse"),
        ("quality/nll", 0.09, 0.12, "▼ −25 % better", "better"),
        ("quality/nll", 0.15, 0.12, "▲ +25 % worse", "worse"),
        ("cost/params", 5.7e6, 22.1e6, "▼ 3.9× less better", "better"),
        ("cost/macs", 4.61e9, 1.26e9, "▲ 3.7× more worse", "worse"),
        ("cost/size_mb", 10.0, 10.5, "▼ −4.8 % better", "better"),
        ("cost/throughput", 300.0, 100.0, "▲ 3.0× more better", "better"),
        ("cost/latency_ms", 0.62, 0.61, "▲ +1.6 % within noise", "unclear"),
        ("cost/latency_ms", 0.80, 0.61, "▲ +31 % worse", "worse"),
        ("cost/params", 210_762, 210_762, "= same", "same"),
        ("privacy/epsilon_like", 1.0, 0.0, "▲ +1.00 better", "better"),
    ],
)
def test_change(key, now, before, written, verdict):
    found = fmt.change(key, now, before)
    assert (str(found), found.verdict) == (written, verdict)


def test_change_with_doubt_gives_no_verdict():
    found = fmt.change("quality/accuracy", 0.978, 0.967, doubt="within noise")
    assert (found.verdict, str(found)) == ("unclear", "▲ +1.1 pp within noise")


def test_change_needs_both_numbers():
    assert fmt.change("cost/macs", None, 1.0) is None
    assert fmt.change("cost/macs", 1.0, None) is None
