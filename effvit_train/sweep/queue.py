"""What Slurm has in its queue. Needs no accounting (`sacct`): what has left the queue has ended."""

from __future__ import annotations

import os
import subprocess

_SECONDS = 30.0


def active(names: list[str]) -> dict[str, str] | None:
    """Of these jobs (`17`, `17_3`) those that wait or run, with Slurm's state; None where Slurm is silent."""
    if not names:
        return {}
    command = ["squeue", "-h", "-r", f"--user={os.getuid()}", "-o", "%i|%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = dict(line.strip().split("|", 1) for line in done.stdout.splitlines() if "|" in line)
    return {name: found[name] for name in names if name in found}
