"""Peaks, RAPL's counter in a directory of our own, and perf where it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from effvit_train import nvml
from effvit_train.audit.machine import EVENTS, Machine, count_events, measure_machine
from effvit_train.rapl import measure_energy


def zone(root: Path, name: str, kind: str, energy: int, most: int = 10**9) -> Path:
    directory = root / name
    directory.mkdir()
    for file, value in (("name", kind), ("energy_uj", energy), ("max_energy_range_uj", most)):
        (directory / file).write_text(f"{value}\n")
    return directory


def test_the_roof_by_hand() -> None:
    machine = Machine(flops_per_second=1e9, bytes_per_second=1e8, threads=1, device="cpu")
    assert machine.ridge == 10
    assert machine.seconds(2e9, 1e8) == 2  # arithmetic takes two seconds, memory one
    assert machine.seconds(1e9, 3e8) == 3


def test_peaks_are_of_this_century() -> None:
    machine = measure_machine(seconds=0.1)
    assert 1e8 < machine.flops_per_second < 1e14
    assert 1e8 < machine.bytes_per_second < 1e13
    assert (machine.threads, machine.device) == (torch.get_num_threads(), "cpu")


def test_joules_of_a_call(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 1)  # within the package
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 100)
    wrapping = zone(tmp_path, "intel-rapl:1", "package-1", 999_999_000)

    def work() -> None:
        (package / "energy_uj").write_text("8000000")  # 3 J
        (memory / "energy_uj").write_text("1000100")  # 1 J
        (wrapping / "energy_uj").write_text("1999000")  # 1,000 to the end of the range, and 1,999,000: 2 J

    joules, how = measure_energy(work, seconds=0, root=tmp_path)
    assert joules == pytest.approx(6)
    assert how == "RAPL (package-0, dram, package-1), 1 calls"


def test_calls_are_repeated_and_shared(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        (package / "energy_uj").write_text(str(2_000_000 * len(calls)))  # 2 J each

    joules, _ = measure_energy(work, seconds=0.01, root=tmp_path)
    assert joules == pytest.approx(2)
    assert len(calls) > 1


def test_no_counter_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure_energy(lambda: 1, root=tmp_path / "none") == (None, "no RAPL counter on this machine")
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    read = Path.read_text

    def refuse(self: Path, *args: object, **kwargs: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError
        return read(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    joules, why = measure_energy(lambda: 1, root=tmp_path)
    assert joules is None
    assert why == "RAPL's counter is for root alone on this kernel"


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_events_are_counted_or_explained() -> None:
    ran: list[int] = []
    counts, why = count_events(lambda: ran.append(sum(range(10**6))), ("task-clock", *EVENTS))
    assert set(counts) == {"task-clock", *EVENTS}
    if why.startswith("perf cannot count"):  # a container that forbids it
        assert set(counts.values()) == {None}
        return
    assert len(ran) == 1
    silent = [event for event, count in counts.items() if count is None]
    assert why == (f"this machine does not count {', '.join(silent)}" if silent else "")
    assert all(count >= 0 for count in counts.values() if count is not None)


@pytest.mark.skipif(shutil.which("perf") is None, reason="perf is not installed")
def test_an_event_that_there_is_not() -> None:
    counts, why = count_events(lambda: pytest.fail("ran without being counted"), ("nonsense",))
    assert counts == {"nonsense": None}
    assert why.startswith("perf cannot count")


def test_without_perf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert count_events(lambda: 1, ("cycles",)) == ({"cycles": None}, "perf is not installed")


# --- the counter of a GPU, which moves now and then ---------------------------------------------


def test_a_gpu_is_measured_between_two_moves_of_its_counter() -> None:
    calls = [3]  # it has counted before
    found = nvml.between_moves(
        lambda: calls.append(1), lambda: len(calls) // 7 * 7 * 250, seconds=0.001, patience=1
    )  # every seventh call, 250 mJ each
    assert found is not None
    millijoules, counted = found
    assert counted >= 7
    assert millijoules == 250 * counted


def test_a_counter_that_stands_still_measures_nothing() -> None:
    assert nvml.between_moves(lambda: 1, lambda: 5, seconds=0, patience=0.01) is None


def test_without_nvml_there_is_a_reason() -> None:
    joules, why = nvml.measure_energy(lambda: 1, "00000000-0000-0000-0000-000000000000")
    assert joules is None
    assert why.startswith("no energy counter: needs an NVIDIA GPU with NVML and pynvml (")
