"""The device that a file is timed on. Needs no torch."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

from effvit_train.hardware import cores
from effvit_train.runs import machine, processor

_BOARD = Path("/proc/device-tree/model")  # of a single-board computer


def describe() -> dict[str, Any]:
    """`name` (the board's where it has one, else the processor's), processor, cores and system."""
    board = ""
    with contextlib.suppress(OSError):
        board = _BOARD.read_text(errors="replace").strip("\0\n ")
    return {
        "name": board or processor(), **machine(), "cores_usable": cores(), "release": platform.release(),
    }  # fmt: skip
