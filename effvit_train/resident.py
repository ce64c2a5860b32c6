"""Memory that this process has in use, by the system's own count. Needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path


def resident_bytes() -> int:
    """The resident set now; where the system does not tell, its peak so far."""
    return _status("VmRSS") or _max_rss()


def peak_bytes() -> int:
    """The largest resident set since the start, or since `forget_peak`."""
    return _status("VmHWM") or _max_rss()


def forget_peak() -> bool:
    """Set the kernel's high-water mark back to the present; False where it cannot be."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status(key: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is none."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _max_rss() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
