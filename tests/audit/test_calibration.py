"""Calibration by hand, against torchmetrics and scikit-learn, and the coverage of the intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn import metrics
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from effvit_train.audit.calibration import (
    KEYS,
    NoTemperature,
    equal_mass,
    equal_width,
    fit_temperature,
    measure_calibration,
)

ECE, EQUAL_MASS, BRIER = KEYS[:3]


def logits_of(*probabilities: list[float]) -> Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def drawn(count: int, classes: int, seed: int, scale: float = 2.0, temperature: float = 1.0):
    """Logits, and labels drawn from their softmax: calibrated at `temperature`."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, labels


def test_by_hand() -> None:
    # confidences 0.9 right, 0.9 wrong, 0.65 right, 0.7 right; bins of width 1/15: 0.9 lies in (0.867, 0.933],
    # 0.65 in (0.6, 0.667], 0.7 in (0.667, 0.733]
    logits = logits_of([0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.3, 0.7])
    measured, facts = measure_calibration(logits, torch.tensor([0, 1, 1, 1]))
    values = measured.values
    assert values[ECE] == pytest.approx((2 * abs(0.9 - 0.5) + abs(0.65 - 1) + abs(0.7 - 1)) / 4)
    # four images in 15 bins: each its own, but for the two that are equally sure
    assert values[EQUAL_MASS] == pytest.approx(values[ECE])
    assert values[BRIER] == pytest.approx(2 * (0.1**2 + 0.9**2 + 0.35**2 + 0.3**2) / 4)
    # the two surest are equal: half of one is wrong; risks 1/2, 1/2, 1/3, 1/4
    assert values["calibration/aurc"] == pytest.approx((1 / 2 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert values["calibration/accuracy_at_80pct_coverage"] == pytest.approx(3 / 4)  # 3.2 images are 4
    assert measured.missing == {
        "calibration/ece_scaled": "there are no validation images to fit a temperature on"
    }
    assert facts["confidence"] == pytest.approx((0.9 + 0.9 + 0.65 + 0.7) / 4)
    assert facts["accuracy"] == 0.75
    filled = [row for row in facts["reliability"]["equal_width"] if row["count"]]
    assert [row["count"] for row in filled] == [1, 1, 2]
    assert [row["accuracy"] for row in filled] == [1, 1, 0.5]
    assert [row["confidence"] for row in filled] == pytest.approx([0.65, 0.7, 0.9])
    assert [row["low"] for row in filled] == pytest.approx([9 / 15, 10 / 15, 13 / 15])
    assert [row["count"] for row in facts["reliability"]["equal_mass"]] == [1, 1, 2]


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (10, 3.0), (100, 6.0)])
def test_against_torchmetrics_and_scikit_learn(classes: int, scale: float) -> None:
    logits, labels = drawn(3000, classes, 0, scale, temperature=1.5)
    values = measure_calibration(logits, labels)[0].values
    p = logits.softmax(1)
    other = multiclass_calibration_error(p, labels, classes, n_bins=15, norm="l1")
    assert values[ECE] == pytest.approx(float(other), abs=1e-6)  # torchmetrics computes in single precision
    brier = metrics.brier_score_loss(labels, p.numpy(), labels=range(classes), scale_by_half=False)
    assert values[BRIER] == pytest.approx(brier, abs=1e-12)


def test_a_confidence_of_one_belongs_to_the_last_bin() -> None:
    # Half of the images say 1.0 and are wrong half of the time, half say 0.95 and are right: one bin of
    # (14/15, 1], in which the mean confidence is 0.975 and the accuracy 0.75. torchmetrics 1.9 gives exactly
    # 1.0 a sixteenth bin: (0.5 + 0.05) / 2.
    logits = torch.cat([torch.tensor([[800.0, 0.0]]).expand(4, 2), logits_of(*[[0.95, 0.05]] * 4)])
    labels = torch.tensor([0, 0, 1, 1, 0, 0, 0, 0])
    assert measure_calibration(logits, labels)[0].values[ECE] == pytest.approx(0.975 - 0.75)
    other = multiclass_calibration_error(logits.softmax(1), labels, 2, n_bins=15)
    assert float(other) == pytest.approx(0.275)


def test_edges_belong_to_the_bin_below() -> None:
    assert equal_width(np.array([0.0, 0.25, 0.2500001, 0.5, 0.75, 1.0]), 4).tolist() == [0, 0, 1, 1, 2, 3]


def test_bins_of_equal_mass() -> None:
    rng = np.random.default_rng(0)
    doubt = rng.random(1000)
    counts = np.bincount(equal_mass(doubt))
    assert (len(counts), counts.min(), counts.max()) == (15, 66, 67)
    assert doubt[equal_mass(doubt) == 3].max() < doubt[equal_mass(doubt) == 4].min()
    # equal doubts stay together, wherever they stand
    tied = np.repeat([0.1, 0.2, 0.3], [400, 300, 300])
    order = rng.permutation(1000)
    assert np.array_equal(equal_mass(tied[order]), equal_mass(tied)[order])
    assert len(np.unique(equal_mass(tied))) == 3


def test_the_order_of_the_images_does_not_matter() -> None:
    logits, labels = drawn(500, 4, 1)
    logits = logits.round()  # many ties
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    here, there = (
        measure_calibration(z, y)[0].values for z, y in ((logits, labels), (logits[order], labels[order]))
    )
    assert here == pytest.approx(there, abs=1e-12)


@pytest.mark.parametrize("true", [0.3, 1.0, 2.5, 40.0])
def test_a_known_temperature_is_found(true: float) -> None:
    logits, labels = drawn(20000, 10, 2)
    fit = fit_temperature(logits * true, labels)  # calibrated at temperature `true`
    assert fit.low < true < fit.high
    assert fit.value == pytest.approx(true, rel=0.03)
    assert (fit.high - fit.low) / true < 0.06
    # a second optimiser, on the NLL itself
    nll = torch.nn.functional.cross_entropy
    other = optimize.minimize_scalar(
        lambda log_t: float(nll(logits * true / math.exp(log_t), labels)),
        bounds=(-5, 5), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert fit.value == pytest.approx(math.exp(other.x), rel=1e-6)


def test_the_interval_of_the_temperature_holds_it() -> None:
    held = [
        (fit := fit_temperature(2 * logits, labels)).low <= 2 <= fit.high
        for logits, labels in (drawn(500, 5, seed) for seed in range(150))
    ]
    assert 0.91 <= np.mean(held) <= 0.99  # 0.95 within two standard errors of 150


def test_scaling_by_the_temperature_calibrates() -> None:
    logits, labels = drawn(8000, 10, 3)
    measured, facts = measure_calibration(
        3 * logits[:4000], labels[:4000], validation=(3 * logits[4000:], labels[4000:])
    )
    found = facts["temperature"]
    assert found["value"] == pytest.approx(3, rel=0.1)
    assert found["images"] == 4000
    assert measured.values[ECE] == found["before"]["ece"] > 0.15
    assert measured.values["calibration/ece_scaled"] == found["after"]["ece"] < 0.03
    assert found["after"]["nll"] < found["before"]["nll"]
    assert found["after"]["brier"] < found["before"]["brier"]
    assert found["before"]["nll"] == pytest.approx(
        float(torch.nn.functional.cross_entropy(3 * logits[:4000], labels[:4000]))
    )
    # sharper logits do not change the order of the images by doubt
    assert measured.values["calibration/aurc"] < 1 - facts["accuracy"]


def test_no_temperature_has_its_reason() -> None:
    logits, labels = drawn(50, 3, 4)
    right = logits.argmax(1)
    for case, reason in (
        ((logits, right), "every validation image is classified right: the best temperature would be 0"),
        ((-logits, right), "do not point to the labels: the best temperature is infinite"),
        ((torch.zeros(6, 3), torch.tensor([0, 0, 0, 1, 1, 2])), "the best temperature"),
        ((logits[:0], labels[:0]), "there are no validation images"),
        ((logits.where(logits < 2, math.nan), labels), "of 50 validation images are not finite"),
    ):
        measured, facts = measure_calibration(logits, labels, validation=case)
        assert reason in measured.missing["calibration/ece_scaled"]
        assert "temperature" not in facts
        assert set(measured.values) | set(measured.missing) == set(KEYS)
    with pytest.raises(NoTemperature):
        fit_temperature(logits, right)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_logits_of_any_scale(scale: float) -> None:
    logits, labels = drawn(300, 4, 5)
    assert fit_temperature(logits * scale, labels).value == pytest.approx(
        scale * fit_temperature(logits, labels).value, rel=1e-6
    )
    measured, facts = measure_calibration(logits * scale, labels, validation=(logits * scale, labels))
    assert all(math.isfinite(value) for value in measured.values.values())
    json.dumps(facts, allow_nan=False)


def test_intervals_hold_the_truth() -> None:
    """Labels drawn at temperature t, so that the binned error of the population is known from many images."""
    for temperature in (1.0, 1.5, 3.0):
        logits, labels = drawn(200_000, 3, 6, temperature=temperature)
        values = measure_population(logits, labels)
        held = {ECE: 0, BRIER: 0}
        for seed in range(30):
            rows = slice(seed * 400, (seed + 1) * 400)
            measured, facts = measure_calibration(logits[rows], labels[rows])
            for key in held:
                low, high = facts["intervals"][key]
                held[key] += low <= values[key] <= high
                assert low <= measured.values[key] <= high
        assert held[ECE] >= 26, temperature  # at least 95 % of 30, within two standard errors
        assert held[BRIER] >= 26, temperature


def measure_population(logits: Tensor, labels: Tensor) -> dict[str, float]:
    p = logits.softmax(1)
    return {
        ECE: float(multiclass_calibration_error(p, labels, p.shape[1], n_bins=15)),
        BRIER: float((p - torch.nn.functional.one_hot(labels, p.shape[1])).square().sum(1).mean()),
    }


def test_what_chance_shows() -> None:
    logits, labels = drawn(400, 3, 7)
    measured, facts = measure_calibration(logits, labels)
    assert facts["if_calibrated"][ECE]["mean"] == pytest.approx(measured.values[ECE], rel=0.6)
    assert measured.values[ECE] < facts["if_calibrated"][ECE]["p95"]
    assert facts["intervals"][ECE][0] == 0
    _, sure = measure_calibration(3 * logits, labels)
    assert sure["intervals"][ECE][0] > sure["if_calibrated"][ECE]["p95"]


def test_equal_inputs_give_equal_facts() -> None:
    logits, labels = drawn(300, 5, 8)
    first, second = (measure_calibration(logits, labels, validation=(logits, labels)) for _ in range(2))
    assert first == second
    json.dumps(first[1], allow_nan=False)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    measure_calibration(logits, labels)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (torch.zeros(0, 3), "there are no test images"),
        (torch.tensor([[math.nan, 0.0], [0.0, math.inf]]), "the logits of 2 of 2 test images are not finite"),
        (torch.zeros(4, 1), "one class leaves nothing to doubt"),
    ],
)
def test_what_cannot_be_measured_has_a_reason(logits: Tensor, reason: str) -> None:
    measured, facts = measure_calibration(logits, torch.zeros(len(logits), dtype=torch.int64))
    assert measured.values == {}
    assert measured.missing == dict.fromkeys(KEYS, reason)
    assert facts == {}


def test_one_image_and_images_of_one_class_are_measured() -> None:
    measured, facts = measure_calibration(logits_of([0.8, 0.2]), torch.tensor([0]))
    assert measured.values[ECE] == pytest.approx(0.2)
    assert facts["intervals"][BRIER] == [0, 2]
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    measured, _ = measure_calibration(logits, torch.full((100,), 2))
    assert set(measured.values) == set(KEYS) - {"calibration/ece_scaled"}


@pytest.mark.parametrize(
    ("shape", "labels"), [((2, 3), [0]), ((2,), [0, 1]), ((2, 3), [0, 3]), ((2, 3), [0, -1])]
)
def test_shapes_that_do_not_match(shape: tuple[int, ...], labels: list[int]) -> None:
    for function in (measure_calibration, fit_temperature):
        with pytest.raises(ValueError, match=r"match|outside"):
            function(torch.zeros(shape), torch.tensor(labels))
