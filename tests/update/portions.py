"""Small data sets that a tiny model learns in a second, and updates of a model in this process."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driving import SMALL
from PIL import Image

from effvit_train import cli

QUICK = (
    *SMALL, "logger=none", "audit=none", "dataset.num_workers=0", "dataset.image_size=8", "recipe.batch_size=16",
    "recipe.lr=0.01", "recipe.label_smoothing=0",
    "dataset.augment.hflip=false",
)  # fmt: skip
DAY, NIGHT, DUSK = "day", "night", "dusk"


def draw(label: str, group: str, rng: np.random.Generator) -> np.ndarray:
    """8x8 pixels, half of them bright. By day the left half is `a`, at night the upper one; at dusk the lower one."""
    pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
    first = (label == "a") != (group == DUSK)
    if group == DAY:
        pixels[:, slice(0, 4) if first else slice(4, 8)] += 180
    else:
        pixels[slice(0, 4) if first else slice(4, 8)] += 180
    return pixels


def write_set(root: Path, parts: dict[tuple[str, str], int], *, classes=("a", "b"), seed: int = 0) -> Path:
    """An image folder with a table: (split, group) -> images of each class. Class `c` is bright all over."""
    root.mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), []
    for (split, group), count in parts.items():
        for label in classes:
            for number in range(count):
                name = f"{split}-{group}-{label}-{number}.png"
                pixels = np.full((8, 8), 250, np.uint8) if label == "c" else draw(label, group, rng)
                Image.fromarray(pixels).save(root / name)
                rows.append((name, label, split, group))
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "light"), *rows])
    return root


def effvit(directory: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """`effvit ARGUMENTS` in `directory`; the exit code."""
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["effvit"])
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def verdict(run: Path) -> dict[str, Any]:
    """The content of `update.json`."""
    found: dict[str, Any] = json.loads((run / "update.json").read_text())
    return found
