"""Shared by all tests: never online, a cache of their own, few threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import effvit_train  # noqa: F401  (its import hook must be in place before torchvision)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFVIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


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


def shared(name: str) -> Path:
    """A directory of the shared image sets; skips the test loudly where it is absent."""
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs the shared image set {name}, which is not at {SHARED}")
    return path
