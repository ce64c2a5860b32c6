"""Ask a module of ours in a process of its own: JSON in, JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import effvit_train


def ask(module: str, request: dict[str, Any], *, timeout: float) -> dict[str, Any]:
    """What `python -m module` answers to a request on its standard input.

    Args:
        module: its full name.
        request: JSON; `num_threads` and `device` say what the process may use.
        timeout: seconds.

    Raises `RuntimeError` with the last line of its complaint when it fails, or takes too long.
    """
    environment = dict(os.environ)
    # The child must find the very package that runs here, installed or not, in any directory.
    package_root = str(Path(effvit_train.__file__).resolve().parent.parent)
    inherited = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = package_root + (os.pathsep + inherited if inherited else "")
    if request["num_threads"]:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(request["num_threads"])
    if request["device"] == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    try:
        finished = subprocess.run(
            [sys.executable, "-m", module], input=json.dumps(request), capture_output=True, text=True,
            env=environment, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(str(error)) from None
    if finished.returncode != 0:
        lines = finished.stderr.strip().splitlines()
        how = f"signal {-finished.returncode}" if finished.returncode < 0 else f"exit {finished.returncode}"
        raise RuntimeError(f"{how}: {lines[-1]}" if lines else how)
    return json.loads(finished.stdout.strip().splitlines()[-1])
