"""What merged or dropped tokens stand for, drawn on images: which patches became one token, or none."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from effvit_train.audit.transparency.attention import token_grid
from effvit_train.models.mode import evaluating
from effvit_train.models.tokens.blocks import TokenBlock
from effvit_train.models.tokens.change import DROP, MERGE, blocks_of, reduced
from effvit_train.models.tokens.steps import Tokens, sources
from effvit_train.taps import Taps

EXAMPLES = 4
STAGES = 3  # pictures of an image, from early to late
_SIDE = 112  # pixels of the longer side of a picture, about
_GREY = 205
_DARK = 128  # darker regions have light outlines


@dataclass(frozen=True)
class Stage:
    """What has become of the patches of images after a block.

    Attributes:
        block: its name.
        places: (B, patches) the image token that each patch is a part of; -1 where it is lost.
        tokens: image tokens that are left.
        gone: (B, patches) patches that were dropped, fused or lost, and have no token of their own or of their like.
    """

    block: str
    places: Tensor
    tokens: int
    gone: Tensor


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> list[Stage]:
    """Where every patch of images (B, C, H, W) has gone after each block that takes tokens away, in order.

    The model's tokens become fewer (see `reduced`); it is left as it is found.
    """
    names = [
        name
        for name, block in blocks_of(model).items()
        if isinstance(block, TokenBlock) and block.takes_tokens
    ]
    with evaluating(model):
        taps = Taps(model, names)
        try:
            model(images)
            outputs: dict[str, Any] = taps.take()
        finally:
            taps.remove()
    return [_stage(name, *outputs[name]) for name in names]


def measure_tokens(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    ids: Sequence[int] | npt.NDArray[np.int64],
) -> dict[str, Any]:
    """How many tokens each block has, and pictures of what they stand for.

    Args:
        model: what ships.
        normalise: uint8 images to what it sees.
        images: (n, C, H, W) uint8, none that a private model was trained on; some are drawn.
        ids: (n,) of them.

    Returns:
        Facts for the card; empty for a model that keeps all tokens.
    """
    grid = token_grid(model)
    if not reduced(model) or grid is None:
        return {}
    shown = images[:EXAMPLES]
    stages = trace(model, normalise(shown))
    chosen = stages if len(stages) <= STAGES else [stages[len(stages) * k // STAGES - 1] for k in (1, 2, 3)]
    rows: list[dict[str, Any]] = []
    block: Any
    for name, block in blocks_of(model).items():
        given = rows[-1]["left"] if rows else grid[0] * grid[1]
        rows.append({"block": name, "given": given, "left": int(block.after(given))})
    draw = draw_merged if all(not bool(stage.gone.any()) for stage in stages) else draw_dropped
    examples = [
        {
            "id": int(ids[k]),
            "image": _png(_enlarged(_colours(image), grid)),
            "stages": [
                {
                    "after": stage.block,
                    "tokens": stage.tokens,
                    "picture": _png(
                        draw(
                            image,
                            (stage.places if draw is draw_merged else stage.gone)[k].cpu().numpy(),
                            grid,
                        )
                    ),
                }
                for stage in chosen
            ],
        }
        for k, image in enumerate(shown.cpu().numpy())
    ]
    return {
        "kind": MERGE if draw is draw_merged else DROP, "grid": list(grid), "blocks": rows, "examples": examples,
    }  # fmt: skip


def draw_merged(
    image: npt.NDArray[np.uint8], places: npt.NDArray[np.int64], grid: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The patches of each token in their mean colour, with an outline around them (Bolya et al. 2023, figure 4).

    Args:
        image: (C, H, W).
        places: (patches,) the token that each patch is a part of.
        grid: rows and columns of the patches.

    Returns:
        (h, w, 3).
    """
    colours = _colours(image)
    regions = places.reshape(grid)
    height, width = colours.shape[:2]
    of_pixels = regions[np.arange(height) * grid[0] // height][:, np.arange(width) * grid[1] // width]
    pixels = np.bincount(of_pixels.ravel()).clip(min=1)
    means = np.stack(
        [np.bincount(of_pixels.ravel(), colours[:, :, c].ravel()) / pixels for c in range(3)], axis=1
    )
    cell = _cell(grid)
    drawn = means[regions].repeat(cell, axis=0).repeat(cell, axis=1)
    ends = np.zeros(regions.shape, dtype=bool), np.zeros(regions.shape, dtype=bool)
    ends[0][:-1] = regions[:-1] != regions[1:]
    ends[1][:, :-1] = regions[:, :-1] != regions[:, 1:]
    line = np.zeros(drawn.shape[:2], dtype=bool)
    line[cell - 1 :: cell] |= ends[0].repeat(cell, axis=1)
    line[:, cell - 1 :: cell] |= ends[1].repeat(cell, axis=0)
    outline = np.where(drawn.mean(axis=2) < _DARK, 255, 0)
    drawn[line] = outline[line][:, None]
    return drawn.round().astype(np.uint8)


def draw_dropped(
    image: npt.NDArray[np.uint8], gone: npt.NDArray[np.bool_], grid: tuple[int, int]
) -> npt.NDArray[np.uint8]:
    """The image, in which patches that were dropped are grey and struck through.

    Args:
        image: (C, H, W).
        gone: (patches,).
        grid: rows and columns of the patches.

    Returns:
        (h, w, 3).
    """
    cell = _cell(grid)
    drawn = _enlarged(_colours(image), grid).astype(np.float64)
    there = gone.reshape(grid).repeat(cell, axis=0).repeat(cell, axis=1)
    grey = 0.25 * drawn.mean(axis=2) + 0.75 * _GREY
    drawn[there] = grey[there][:, None]
    rows, columns = np.indices(there.shape) % cell
    drawn[there & (rows == columns)] = 90
    return drawn.round().astype(np.uint8)


def _stage(name: str, x: Tensor, tokens: Tokens) -> Stage:
    """Patches are gone that a step has dropped, whatever becomes of what they were fused into."""
    dropped = torch.zeros(x.shape[0], tokens.patches, dtype=torch.bool, device=x.device)
    for k, step in enumerate(tokens.steps):
        fused = step.after > step.kept.shape[1]
        if not (fused or step.lost):
            continue
        places = sources(tokens._replace(steps=tokens.steps[: k + 1]), x)
        dropped |= (places == step.after - 1) if fused else (places < 0)
    return Stage(name, sources(tokens, x), tokens.left, dropped)


def _cell(grid: tuple[int, int]) -> int:
    """Pixels a side of a patch in a picture."""
    return max(4, round(_SIDE / max(grid)))


def _colours(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """(C, H, W) as (H, W, 3): in colour where it has three channels, else its first one in grey."""
    return image.transpose(1, 2, 0) if len(image) == 3 else image[0][:, :, None].repeat(3, axis=2)


def _enlarged(colours: npt.NDArray[np.uint8], grid: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """(H, W, 3) in the size of the pictures."""
    size = grid[1] * _cell(grid), grid[0] * _cell(grid)
    larger = size[0] >= colours.shape[1]
    how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
    return np.asarray(Image.fromarray(np.ascontiguousarray(colours)).resize(size, how))


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG of (h, w, 3), in base64."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
