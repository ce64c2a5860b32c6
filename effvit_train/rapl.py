"""Energy by the processor's own counter (RAPL, by Linux's powercap). Needs no torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

RAPL = Path("/sys/class/powercap")


def measure_energy(
    work: Callable[[], object], *, seconds: float = 1.0, root: Path = RAPL
) -> tuple[float | None, str]:
    """Joules of one call of `work` by RAPL, and how they were measured or why not.

    `work` is called again and again for `seconds`, for the counter moves once in a millisecond. It counts
    processor packages and their memory where it is counted apart, on Intel and on AMD; whatever else runs on
    them, and idling, is in the figure.

    Args:
        work: to be measured.
        seconds: at least; longer if one call takes longer.
        root: the kernel's directory of power capping zones.
    """
    try:
        zones = _zones(root)
        before = [_microjoules(zone) for zone in zones]
    except PermissionError:
        return None, "RAPL's counter is for root alone on this kernel"
    except (OSError, ValueError) as error:
        return None, f"RAPL's counter cannot be read: {error}"
    if not zones:
        return None, "no RAPL counter on this machine"
    calls, start = 0, time.perf_counter()
    while not calls or time.perf_counter() - start < seconds:
        work()
        calls += 1
    total = 0
    for zone, first in zip(zones, before, strict=True):
        spent = _microjoules(zone) - first
        if spent < 0:  # the counter began again
            spent += int((zone / "max_energy_range_uj").read_text())
        total += spent
    names = ", ".join((zone / "name").read_text().strip() for zone in zones)
    return total * 1e-6 / calls, f"RAPL ({names}), {calls} calls"


def _zones(root: Path) -> list[Path]:
    """Packages, and memory that lies outside them; cores are within a package and not counted twice."""
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        name = (zone / "name").read_text().strip()
        if name.startswith("package") or name == "dram":
            found.append(zone)
    return found


def _microjoules(zone: Path) -> int:
    return int((zone / "energy_uj").read_text())
