"""Opens the data set of a finished run, for its groups and pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from effvit_train.collect import Entry
from effvit_train.config import Config
from effvit_train.data.datamodule import DataModule
from effvit_train.data.folder import list_images
from effvit_train.data.source import to_pil
from effvit_train.errors import UserError
from effvit_train.finished import open_data
from effvit_train.report.ab.pictures import Picture, Shown

LARGEST = 144  # pixels of a picture's side on the page


def open_test_set(
    entry: Entry, *, root: Path | None, columns: Sequence[str], say: Callable[[str], None]
) -> Shown:
    """Groups and pictures of the test images of a run.

    Args:
        entry: the run.
        root: where the data set is now; None where it was.
        columns: of the table of the data set; none takes those with few values.
        say: prints one line.

    Raises:
        UserError: the data cannot be read, are others, or have no such column.
    """
    overrides = ["dataset.num_workers=0"]
    if root is not None:
        overrides.append(f"dataset.root={json.dumps(str(root.expanduser().resolve()))}")
    try:
        config, data = open_data(entry.run_dir, say, overrides=overrides)
    except UserError as error:
        if root is None or error.key != "dataset.root":
            raise
        raise UserError(error.problem, key="--root", value=root, remedy=error.remedy) from None
    return Shown(_groups(data, columns), draw=lambda numbers: _pictures(config, data, numbers))


def _groups(data: DataModule, columns: Sequence[str]) -> dict[str, dict[int, str]]:
    numbers = data.indices("test").tolist()
    try:
        found = data.groups("test") | (data.groups("test", columns) if columns else {})
    except UserError as error:
        raise UserError(error.problem, key="--group", value=error.value, remedy=error.remedy) from None
    return {column: dict(zip(numbers, values, strict=True)) for column, values in found.items()}


def _pictures(config: Config, data: DataModule, numbers: Sequence[int]) -> dict[int, Picture]:
    if not numbers:
        return {}
    # an update's images are numbered across two data sets
    listed = config.dataset.name == "image_folder" and config.update.after is None
    files = list_images(config.dataset).paths if listed else None
    return {
        number: Picture(_png(image), image.shape[-1], files[number] if files is not None else "")
        for batch in data.loader_of(np.array(numbers, dtype=np.int64))
        for number, image in zip(batch.index.tolist(), batch.images.numpy(), strict=True)
    }


def _png(image: npt.NDArray[np.uint8]) -> str:
    """An image (C, H, W) as base64 of a PNG, made smaller where it is large."""
    picture = to_pil(image)
    if max(picture.size) > LARGEST:
        picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
