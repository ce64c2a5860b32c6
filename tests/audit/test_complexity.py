"""The axis by hand, with a clock of our own; and once with a real one."""

from __future__ import annotations

import functools
import json
import subprocess

import pytest
from test_tally import VIT

from effvit_train.audit import scaling
from effvit_train.audit.complexity import (
    BOUND,
    FLOPS,
    INTENSITY,
    LATENCY,
    MIXING,
    SHARE,
    measure_complexity,
    roofline,
)
from effvit_train.audit.machine import Machine
from effvit_train.audit.scaling import Job, Times, time_jobs
from effvit_train.audit.tally import Layer, Tally
from effvit_train.models.record import ArchitectureRecord

RECORD = ArchitectureRecord("vit_tiny_patch16_224", dict(VIT), (1, 8, 8), tuple("0123456789"), (0.0,), (1.0,))
MACHINE = Machine(flops_per_second=1e9, bytes_per_second=1e8, threads=1, device="cpu")


def test_counted_by_hand() -> None:
    measured, facts = measure_complexity(RECORD)
    macs = 16 * 4 * 64 + 4 * (17 * 12 * 64**2 + 2 * 17**2 * 64) + 640
    assert measured.values[SHARE] == 4 * 2 * 17**2 * 64 / macs
    assert 1 < measured.values[FLOPS] < measured.values[MIXING] < 2.01
    assert (
        measured.values[INTENSITY] < 20
    )  # each weight is used for 17 tokens: 17 x 2 FLOPs over 4 bytes at most
    assert sum(kind["share"] for kind in facts["kinds"].values()) == pytest.approx(1)
    assert measured.missing == {LATENCY: "nothing was timed", BOUND: "nothing was timed"}
    json.dumps(facts, allow_nan=False)


def test_a_model_without_attention() -> None:
    mixer = ArchitectureRecord("mixer_s32_224", {"img_size": 64}, (3, 64, 64), (), (), ())
    measured, _ = measure_complexity(mixer, factors=(1, 2))
    assert measured.values[SHARE] == 0
    assert (
        measured.missing[MIXING]
        == "no attention product and no Fourier or wavelet mixer is known in this model"
    )


def test_roofline_by_hand() -> None:
    layers = [
        Layer("a", "mlp", macs=1000, weight_bytes=100),  # 2,000 FLOPs: 2 us; 100 bytes: 1 us
        Layer("b", "other", elementwise=10, activation_bytes=600),  # 10 FLOPs; 600 bytes: 6 us
    ]
    found = roofline(Tally(layers), MACHINE, batches=(1, 10))
    assert [layer["bound"] for layer in found["layers"]] == ["compute", "memory"]
    assert [layer["intensity"] for layer in found["layers"]] == [20, 10 / 600]
    assert found["least_seconds"] == pytest.approx({"1": 8e-6, "10": 80e-6})
    assert found["memory_bound_share"] == pytest.approx({"1": 6 / 8, "10": 60 / 80})
    assert found["machine"]["ridge"] == 10


def test_a_clock_of_our_own() -> None:
    seen: list[tuple[int, int]] = []

    def timer(jobs: list[Job]) -> Times:
        seconds: list[float | None] = []
        for job in jobs:
            side = job.record.input_shape[1]
            seen.append((side, job.batch))
            tokens = (side // 2) ** 2 + 1
            seconds.append(1e-3 * tokens**1.3 * job.batch**0.5 if side < 32 else None)
        reasons = ["too slow" if s is None else "" for s in seconds]
        return Times(seconds, reasons, MACHINE, {"energy_j": None}, {"precision": "32-true"})

    measured, facts = measure_complexity(RECORD, batches=(4, 16), timer=timer)
    assert seen[0] == (8, 1)
    assert sorted(seen) == [(8, 1), (8, 4), (8, 16), (16, 1), (16, 4), (24, 1), (24, 4), (32, 1), (32, 4)]
    assert measured.values[LATENCY] == pytest.approx(1.3)
    times = facts["times"]
    assert times["latency_in_size_exponent"]["points"] == 3
    assert times["seconds_in_batch_exponent"]["value"] == pytest.approx(0.5)
    assert [(row["factor"], row["reason"]) for row in times["skipped"]] == [(4, "too slow")] * 2
    least = facts["roofline"]["least_seconds"]["1"]
    assert facts["roofline"]["attained"] == pytest.approx(least / (1e-3 * 17**1.3))
    assert measured.values[BOUND] == 1  # below 8.5 FLOPs per byte everywhere (above); the ridge is at 10
    assert not measured.missing
    json.dumps(facts, allow_nan=False)


def test_a_clock_that_breaks() -> None:
    def timer(jobs: list[Job]) -> Times:
        raise RuntimeError("signal 9")

    measured, facts = measure_complexity(RECORD, factors=(1, 2), timer=timer)
    reason = "the measuring process failed: signal 9"
    assert measured.missing == {LATENCY: reason, BOUND: reason}
    assert SHARE in measured.values
    assert "times" not in facts


def test_one_size_has_no_exponent() -> None:
    def timer(jobs: list[Job]) -> Times:
        return Times([1.0] * len(jobs), [""] * len(jobs), MACHINE)

    measured, _ = measure_complexity(RECORD, factors=(1,), timer=timer)
    assert measured.missing[FLOPS] == "the architecture takes no image of another size"
    assert measured.missing[LATENCY].startswith("fewer than two image sizes could be timed")


@pytest.mark.slow
def test_a_fresh_process_times_models_in_turn() -> None:
    timer = functools.partial(time_jobs, num_threads=1, device="cpu", seconds=0.2)
    measured, facts = measure_complexity(RECORD, factors=(1, 3), batches=(8,), timer=timer)
    rows = {(row["factor"], row["batch"]): row["seconds"] for row in facts["times"]["rows"]}
    assert set(rows) == {(1, 1), (1, 8), (3, 1), (3, 8)}
    assert rows[1, 1] < rows[3, 8]  # 8 x 8.5 times the tokens
    assert measured.values[LATENCY] < 2
    conditions = facts["times"]["conditions"]
    assert (conditions["threads"], conditions["device"], conditions["precision"]) == (1, "cpu", "32-true")
    assert conditions["rounds"] >= 3
    assert facts["hardware"]["energy"]  # measured, or why not
    json.dumps(facts, allow_nan=False)


def test_what_would_take_too_long_is_left_out() -> None:
    jobs = [
        {"record": RECORD.to_json(), "batch": batch, "flops": flops} for batch, flops in ((1, 1), (2, 10**9))
    ]
    request = {"jobs": jobs, "num_threads": 1, "precision": "32-true", "device": "cpu"}
    times = scaling._answer({**request, "seconds": 0.05, "longest": 1.0})
    assert times.seconds[0] is not None
    assert times.seconds[1] is None
    assert times.reasons[1].startswith("it would take about")


def test_a_process_that_dies_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(RuntimeError, match="signal 9"):
        time_jobs([Job(RECORD, 1, 1)])
