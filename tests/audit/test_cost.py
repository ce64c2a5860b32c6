"""What a fresh process measures, and what is written when it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from effvit_train import stopwatch
from effvit_train.audit import probe
from effvit_train.audit.cost import VIT_B16, efficient_error_rate, measure_cost
from effvit_train.card import MEASURES, Measured
from effvit_train.config import AuditConfig
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, save_model
from effvit_train.models.record import ArchitectureRecord

MICRO = ModelConfig(args={"embed_dim": 64, "depth": 4, "num_heads": 4})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ArchitectureRecord]:
    directory = tmp_path_factory.mktemp("run")
    model, record = create(
        MICRO, input_shape=(1, 8, 8), classes=[str(i) for i in range(10)], mean=[0.3], std=[0.3]
    )
    save_model(model, record, directory)
    return directory / "model.safetensors", record


@pytest.fixture(scope="module")
def answer(shipped: tuple[Path, ArchitectureRecord]) -> tuple[Measured, dict[str, object], float]:
    weights, record = shipped
    config = AuditConfig(latency_runs=20, throughput_batch=16, throughput_runs=6)
    start = time.monotonic()
    measured, conditions = measure_cost(record, config, weights=weights, num_threads=1, device="cpu")
    return measured, conditions, time.monotonic() - start


def test_counts_and_sizes(answer, shipped) -> None:  # type: ignore[no-untyped-def]
    values = answer[0].values
    # by hand: patches 4*64+64, class 64, positions 17*64, 4 blocks of 12*64^2 + 13*64, norm 128, head 650
    assert values["cost/params"] == 4 * 64 + 64 + 64 + 17 * 64 + 4 * (12 * 64**2 + 13 * 64) + 128 + 650
    # by hand: 16 patches of 4 pixels, 4 blocks, head
    assert values["cost/macs"] == 16 * 4 * 64 + 4 * (17 * 12 * 64**2 + 2 * 17**2 * 64) + 640
    assert 2 * values["cost/macs"] < values["cost/flops"] < 2.2 * values["cost/macs"]
    assert values["cost/size_mb"] == shipped[0].stat().st_size / 1e6


def test_times_and_memory_are_of_this_model(answer) -> None:  # type: ignore[no-untyped-def]
    values = answer[0].values
    assert 0.05 < values["cost/latency_ms"] <= values["cost/latency_p95_ms"] < 1000
    # images in batches are faster than one by one
    assert values["cost/throughput"] > 1000 / values["cost/latency_ms"]
    # at least the weights (0.8 MB), and not the process with its libraries (hundreds of MB)
    assert 0.8 <= values["cost/memory_mb"] < 60


def test_conditions_are_recorded(answer) -> None:  # type: ignore[no-untyped-def]
    conditions = answer[1]
    assert conditions["threads"] == 1
    assert conditions["device"] == "cpu"
    assert conditions["precision"] == "32-true"
    assert (conditions["latency_runs"], conditions["throughput_batch"], conditions["throughput_runs"]) == (
        20,
        16,
        6,
    )
    assert conditions["processor"]
    assert "uncounted_operators" not in conditions
    json.dumps(conditions, allow_nan=False)


def test_every_cost_has_a_number_or_a_reason(answer) -> None:  # type: ignore[no-untyped-def]
    measured, _, seconds = answer
    keys = {key for key in MEASURES if key.startswith("cost/")}
    assert set(measured.values) | set(measured.missing) == keys
    assert measured.values.get("cost/energy_j", 1) > 0
    assert "RAPL" in measured.missing.get("cost/energy_j", "RAPL")
    assert measured.missing["cost/train_seconds"] == "nothing was trained"
    assert seconds < 30  # about 5; the imports of torch and timm are most of it


def test_the_probe_runs_from_anywhere_and_counts_weights_it_has_to_make(
    shipped: tuple[Path, ArchitectureRecord], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, record = shipped
    monkeypatch.chdir(tmp_path)
    config = AuditConfig(latency_runs=5, throughput_batch=4, throughput_runs=5, num_threads=2)
    measured, conditions = measure_cost(record, config, precision="bf16-mixed", num_threads=1)
    assert conditions["threads"] == 2  # audit.num_threads wins
    assert conditions["precision"] == "bf16-mixed"
    assert measured.values["cost/size_mb"] == weights.stat().st_size / 1e6
    assert measured.values["cost/macs"] == 3495040


def test_a_probe_that_dies_leaves_reasons(
    shipped: tuple[Path, ArchitectureRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    measured, conditions = measure_cost(shipped[1], AuditConfig())
    assert measured.values == {}
    assert set(measured.missing) == {key for key in MEASURES if key.startswith("cost/")}
    assert "exit 1" in measured.missing["cost/latency_ms"]
    assert measured.missing["cost/train_seconds"] == "nothing was trained"
    assert "exit 1" in conditions["failed"]


def test_a_probe_that_hangs_leaves_reasons(
    shipped: tuple[Path, ArchitectureRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("probe", 600)

    monkeypatch.setattr(subprocess, "run", hang)
    measured, _ = measure_cost(shipped[1], AuditConfig())
    assert "600" in measured.missing["cost/latency_ms"]


def test_efficient_error_rate_by_hand() -> None:
    assert efficient_error_rate(VIT_B16) == 1.0
    half = {"params": VIT_B16["params"] / 2, "bits": 16, "macs": VIT_B16["macs"], "size_bytes": 0}
    assert efficient_error_rate(half) == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)


# --- the parts of the probe, in this process ----------------------------------------------------


def test_runs_stop_at_the_budget_but_not_before_five() -> None:
    assert len(stopwatch.time_runs(lambda: time.sleep(0.02), 100, 0.0, warmup=0)) == stopwatch.MIN_RUNS
    times = stopwatch.time_runs(lambda: time.sleep(0.02), 100, 0.3, warmup=0)
    assert 5 < len(times) < 20
    assert min(times) >= 0.02
    assert len(stopwatch.time_runs(lambda: None, 7, 10.0, warmup=0)) == 7


def test_warm_up_is_not_timed() -> None:
    calls: list[int] = []
    times = stopwatch.time_runs(lambda: calls.append(1), 3, 1.0, warmup=4)
    assert (len(calls), len(times)) == (7, 3)


def test_the_batch_fits_into_the_budget() -> None:
    assert stopwatch.fitting_batch(64, 0.001, probe.THROUGHPUT_SECONDS) == 64
    # 0.1 s an image, 6 batches in 8 s: 13 images a batch, of the halves 8
    assert stopwatch.fitting_batch(64, 0.1, probe.THROUGHPUT_SECONDS) == 8
    assert stopwatch.fitting_batch(64, 60.0, probe.THROUGHPUT_SECONDS) == 1


def test_percentiles_are_numpys() -> None:
    values = [3.0, 1.0, 9.0, 4.0, 4.5, 2.0, 7.0]
    for share in (0.0, 0.5, 0.95, 1.0):
        assert stopwatch.percentile(values, share) == pytest.approx(np.percentile(values, 100 * share))


def test_memory_sees_what_is_allocated() -> None:
    """In a fresh process, as in use: what other tests have freed would be taken for what is new."""
    program = (
        "import torch; from effvit_train.audit import probe\n"
        "memory = probe._Memory(torch.device('cpu'))\n"
        "kept = torch.ones(10_000_000)\n"  # 40 MB that stay
        "gone = torch.ones(30_000_000)\n"  # 120 MB of loading
        "del gone\n"
        "memory.loaded()\n"
        "print(*memory.added_mb(), sep=';')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    added, how = done.stdout.strip().split(";")
    assert how == "peak resident set"
    assert 35 < float(added) < 90
