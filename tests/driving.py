"""Driving runs from tests: in this process, on models that train in a second."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from published import cifar_batches, write_idx

from effvit_train import cli
from effvit_train.curves import Curves
from effvit_train.data import known

SMALL = (
    "trainer.progress_bar=false",
    "model.args.depth=1",
    "model.args.embed_dim=16",
    "model.args.num_heads=2",
)


def run_in(directory: Path, monkeypatch, *arguments: str) -> None:
    """`python train.py ARGUMENTS` in `directory`."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    cli.train(list(arguments))


def exit_code(directory: Path, monkeypatch, *arguments: str) -> int:
    """The same, for a command that does not end well."""
    with pytest.raises(SystemExit) as caught:
        run_in(directory, monkeypatch, *arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


def signal_at(hook: str, count: int, signum: int = signal.SIGTERM) -> Callable[..., None]:
    """A replacement for `Curves.<hook>` that sends this process a signal at its call number `count`."""
    original, calls = getattr(Curves, hook), [0]

    def hooked(self, *args, **kwargs):
        original(self, *args, **kwargs)
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signum)

    return hooked


def interrupted_run(directory: Path, monkeypatch, hook: str, count: int, *arguments: str) -> int:
    """A run that gets SIGTERM at call number `count` of `Curves.<hook>`; returns the exit code."""
    with monkeypatch.context() as patch:
        patch.setattr(Curves, hook, signal_at(hook, count))
        return exit_code(directory, monkeypatch, *arguments)


def result(run: Path) -> list[bytes]:
    """The files that a resumed run must share with one that nothing stopped."""
    return [(run / name).read_bytes() for name in ("model.safetensors", "metrics.csv", "model.json")]


def card(run: Path) -> dict[str, Any]:
    """The run's card."""
    found: dict[str, Any] = json.loads((run / "card.json").read_text())
    return found


def cuts(run: Path) -> list[dict[str, Any]]:
    """How the model that it ships was changed."""
    found: list[dict[str, Any]] = json.loads((run / "model.json").read_text())["cuts"]
    return found


def runs_in(directory: Path) -> list[Path]:
    """Finished runs."""
    return sorted(path.parent for path in directory.rglob("card.json"))


def curves(run: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv`."""
    with open(run / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def data_of(option: str, root: Path, monkeypatch) -> list[str]:
    """Small files in the set's own format; a public set's checksums are replaced by theirs."""
    if option == "synthetic":
        return ["dataset.num_samples=256"]
    if option == "fashion_mnist":
        monkeypatch.setattr(known, "FASHION_MNIST_MD5", write_idx(root))
    if option == "cifar10":
        (root / known.CIFAR10_FOLDER).mkdir(parents=True)
        files = cifar_batches()
        for name, content in files.items():
            (root / known.CIFAR10_FOLDER / name).write_bytes(content)
        md5 = {name: hashlib.md5(files.get(name, b"")).hexdigest() for name in known.CIFAR10_MD5}
        monkeypatch.setattr(known, "CIFAR10_MD5", md5)
    if option == "image_folder":
        for name in ("a", "b"):
            (root / name).mkdir(parents=True)
            for k in range(60):
                pixels = np.random.default_rng(k).integers(0, 255, (9, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / name / f"{k}.png")
        return [f"dataset.root={root}", "dataset.image_size=16"]
    return [f"dataset.root={root}"]
