"""Shared by all tests: never online, a cache of their own, few threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import effvit_train  # noqa: F401  (its import hook must be in place before torchvision)

ROOT = Path(__file__).resolve().parent.parent

os.environ["WANDB_MODE"] = "offline"
# Tiny models gain nothing from a second thread, and two processes with two threads each lose much.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the tests' own; and what a DDP test leaves behind (LOCAL_RANK, MASTER_PORT) goes with it."""
    before = dict(os.environ)
    os.environ["EFFVIT_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def train_py(tmp_path: Path):
    """Run `python train.py ...` as a user would, from an empty directory; returns the finished process."""

    def run(
        *arguments: str, env: dict[str, str] | None = None, timeout: float = 300, cwd: Path | None = None
    ):
        return subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=cwd or tmp_path,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def no_probe(monkeypatch):
    """Cost has tests of its own; here its fresh process would only take time."""
    from effvit_train import measuring
    from effvit_train.card import Measured

    def not_timed(*arguments, **settings):
        raise RuntimeError("not timed")

    monkeypatch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
    monkeypatch.setattr(measuring, "time_jobs", not_timed)
