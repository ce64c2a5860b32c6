"""Small image folders for the tests of the data package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effvit_train.data.config import AugmentConfig, DatasetConfig
from effvit_train.data.datamodule import DataModule


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    """Write pixels (H, W) or (H, W, 3) to an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make `root/<prefix><class>/<k>.png` of random pixels; returns root."""

    def make(
        classes: tuple[str, ...] = ("cat", "dog"),
        count: int = 10,
        size: int = 8,
        prefix: str = "",
        grey=False,
    ) -> Path:
        root = tmp_path / "set"
        generator = np.random.default_rng(len(prefix))
        for name in classes:
            for k in range(count):
                shape = (size, size) if grey else (size, size, 3)
                pixels = generator.integers(0, 256, shape, dtype=np.uint8)
                save(root / f"{prefix}{name}" / f"{k:03d}.png", pixels)
        return root

    return make


@pytest.fixture
def module(tmp_path: Path) -> Callable[..., DataModule]:
    """Make a DataModule; keywords are keys of `dataset`, `augment` a dictionary."""

    def make(batch_size: int = 4, seed: int = 0, say=lambda line: None, loader=None, **keys) -> DataModule:
        keys["augment"] = AugmentConfig(**keys.get("augment", {}))
        if "root" in keys:
            keys = {"name": "image_folder", "image_size": 8, **keys, "root": str(keys["root"])}
        more = {} if loader is None else {"augment": loader}
        return DataModule(
            DatasetConfig(**keys),
            batch_size=batch_size,
            seed=seed,
            cache_dir=tmp_path / "cache",
            say=say,
            **more,
        )

    return make
