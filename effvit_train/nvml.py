"""Energy by an NVIDIA GPU's own counter (NVML). Needs `pynvml`."""

from __future__ import annotations

import time
from collections.abc import Callable

_PATIENCE = 3.0  # seconds without a move after which a counter counts as standing still


def measure_energy(
    work: Callable[[], object], uuid: str, *, seconds: float = 1.0
) -> tuple[float | None, str]:
    """Joules of one call of `work` by NVML, and how they were measured or why not.

    The counter moves some ten times a second: `work` is called again and again between two of its moves. Whatever
    else runs on the GPU, and idling, is in the figure.

    Args:
        work: to be measured; returns when the GPU has done it.
        uuid: of the GPU, as torch tells it, without `GPU-`.
        seconds: at least; longer if one call takes longer.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # no pynvml, no permission, a device without the counter
        return (
            None,
            f"no energy counter: needs an NVIDIA GPU with NVML and pynvml ({error or type(error).__name__})",
        )
    found = between_moves(
        work, lambda: int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)), seconds=seconds
    )
    if found is None:
        return None, f"NVML's energy counter stood still for {_PATIENCE:g} seconds"
    millijoules, calls = found
    return millijoules * 1e-3 / calls, f"NVML, {calls} calls"


def between_moves(
    work: Callable[[], object], read: Callable[[], int], *, seconds: float, patience: float = _PATIENCE
) -> tuple[int, int] | None:
    """How far a counter goes, from one of its moves to one at least `seconds` later, and calls of `work` meanwhile.

    None where it does not move for `patience` seconds.
    """

    def call_until_it_moves() -> int | None:
        start, before, calls = time.perf_counter(), read(), 0
        while time.perf_counter() - start < patience or not calls:
            work()
            calls += 1
            if read() != before:
                return calls
        return None

    if call_until_it_moves() is None:
        return None
    start, first, total = time.perf_counter(), read(), 0
    while not total or time.perf_counter() - start < seconds:
        calls = call_until_it_moves()
        if calls is None:
            return None
        total += calls
    return read() - first, total
