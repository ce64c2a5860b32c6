"""Pairs of images side by side, to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from effvit_train.data.source import to_pil
from effvit_train.data.splits import TRAIN
from effvit_train.files import atomic_path
from effvit_train.stock.survey import Surveyed

MOST = 96  # pairs
_ACROSS = 8  # pairs in a row
_GAP = 6  # pixels
_SIDE = (48, 96)  # least and most of a picture, in pixels


def write_sheet(path: Path, surveyed: Surveyed) -> int:
    """Write a PNG of near pairs, those between training and other splits first, else by how much they stand out.

    Returns:
        How many pairs it shows; nothing is written where there are none.
    """
    twins, looks, split = surveyed.twins, surveyed.looks, surveyed.prepared.split
    if not len(twins.pairs):
        return 0
    between = (split[looks.ids[twins.pairs]] == TRAIN).sum(axis=1) == 1
    order = np.argsort(~between, kind="stable")[:MOST]
    ids = looks.ids[twins.pairs[order]]
    side = int(np.clip(surveyed.stock.info.input_shape[-1], *_SIDE))
    width, height = 2 * side + _GAP, side + _GAP
    rows = -(-len(ids) // _ACROSS)
    sheet = Image.new("RGB", (min(len(ids), _ACROSS) * (width + _GAP), rows * height), "grey")
    size = surveyed.stock.info.input_shape[-1]
    for number, pair in enumerate(ids):
        for place, sample in enumerate(pair):
            picture = to_pil(surveyed.prepared.source.read(np.array([sample]), size)[0]).convert("RGB")
            left = number % _ACROSS * (width + _GAP) + place * side
            sheet.paste(picture.resize((side, side)), (left, number // _ACROSS * height))
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        sheet.save(file, format="PNG")
    return len(ids)
