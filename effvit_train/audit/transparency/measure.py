"""The measures `transparency/*`: how true maps of what the model looked at are to the model.

One method stands for a model, by a rule and not by its number: gradient-weighted relevance where the model's
attention can be followed, integrated gradients elsewhere. The others are reported beside it, and so are two
that know nothing: a random map, and the map of a copy of the model that has unlearnt everything. A method
that does no better than these explains nothing, however good its number looks.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from effvit_train.audit.transparency import faithfulness, maps
from effvit_train.audit.transparency.attention import token_grid
from effvit_train.card import Measured
from effvit_train.models.mode import evaluating
from effvit_train.proportions import Z95

KEYS = (
    "transparency/insertion_auc", "transparency/deletion_auc", "transparency/perturbation_auc",
    "transparency/randomised_similarity",
)  # fmt: skip
STEPS = 16
EXAMPLES = 6
RANDOM, RANDOMISED = "random", "randomised_weights"  # the two that know nothing
_SIDE = 16  # cells at most: more would cost steps and be judged on finer noise than others
_THUMBNAIL = 96  # pixels a side at most
_BATCH = 64  # images at once
_COPIES = 4  # that have unlearnt: on digits one alone is off by 0.07, in all images together

Numbers = npt.NDArray[np.float64]


def measure_transparency(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    ids: Tensor | npt.NDArray[np.int64],
    *,
    seed: int,
    methods: Sequence[str] = maps.METHODS,
    steps: int = STEPS,
) -> tuple[Measured, dict[str, Any]]:
    """Measure how faithful explanations of the model's own predictions are.

    What is explained is the class that the model says, right or wrong. It costs, for each image, about
    (methods + 2) x (2 x steps + 10) forward passes, and 100 more for integrated gradients.

    Args:
        model: left as it is found: modes, fused kernels, gradients, generators.
        normalise: uint8 images to what the model sees, zero being the mean colour; on the model's device.
        images: (n, C, H, W) uint8.
        ids: (n,) of the images.
        seed: of the random map and of the model that has unlearnt.
        methods: of `maps.METHODS`, reported beside the one that stands for the model.
        steps: of the insertion and deletion curves; no more than there are cells.

    Returns:
        The measures, and for the card's provenance: all methods, curves, 95 % intervals, some examples.

    Raises:
        ValueError: for ids that are not the images', fewer than two steps, or a method that there is not.
    """
    sample_ids = np.asarray(ids.cpu() if isinstance(ids, Tensor) else ids).astype(np.int64)
    if images.ndim != 4 or sample_ids.shape != images.shape[:1]:
        raise ValueError(f"images {tuple(images.shape)} and ids {sample_ids.shape} do not match")
    if steps < 2:
        raise ValueError(f"steps={steps} is less than two")
    for method in methods:
        if method not in maps.METHODS:
            raise ValueError(f"{method!r} is not one of {', '.join(maps.METHODS)}")
    if len(images) == 0:
        return _nothing("there are no images to explain")
    with (
        torch.inference_mode(False),
        evaluating(model, gradients=True),
    ):  # whatever the caller is in: gradients are needed
        return _measure(model, normalise, images, sample_ids, seed, methods, steps)


@dataclass(frozen=True)
class _Case:
    """What all maps of one model are judged by.

    Attributes:
        inputs: (n, C, H, W) normalised.
        logits: (n, K) of them.
        classes: (n,) that the model says.
        ends: (n,) their probabilities with everything hidden, and shown.
        grid: of the cells that insertion and deletion change.
        counts: of the cells, at the points of their curves.
        tokens: grid of the patch tokens; None for a model without them.
        removed: of the tokens, at the points of the curves of those; empty where none can be taken away.
        ties: grid -> (n, h, w), the order of what a map calls equal.
    """

    model: nn.Module
    inputs: Tensor
    logits: Tensor
    classes: Tensor
    ends: tuple[Tensor, Tensor]
    grid: tuple[int, int]
    counts: list[int]
    tokens: tuple[int, int] | None
    removed: list[int]
    ties: dict[tuple[int, int], Tensor]


@dataclass(frozen=True)
class _Judged:
    """One kind of map: curves (n, S), and per image what is under them."""

    curves: dict[str, Tensor]
    figures: dict[str, Numbers]


def _measure(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    ids: npt.NDArray[np.int64],
    seed: int,
    methods: Sequence[str],
    steps: int,
) -> tuple[Measured, dict[str, Any]]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    case = _case(model, normalise(images.to(device)), ids, seed, steps)
    if isinstance(case, str):
        return _nothing(case)
    against = {method: maps.reason_against(method, model, case.inputs[:1]) for method in maps.METHODS}
    chosen = "integrated_gradients" if against["chefer"] else "chefer"
    shown = [m for m in maps.METHODS if m == chosen or (m in methods and not against[m])]
    own = {method: maps.explain(method, model, case.inputs, case.classes) for method in shown}
    similar: dict[str, list[Numbers]] = {method: [] for method in shown}
    for copy in range(_COPIES):
        unlearnt = faithfulness.randomised(model, seed, copy)
        for method in shown if copy == 0 else [chosen]:
            foreign = maps.explain(method, unlearnt, case.inputs, case.classes)
            similar[method].append(_similarity(case, own[method], foreign))
            if copy == 0 and method == chosen:
                of_unlearnt = foreign
    everything = own | {RANDOM: case.ties[case.tokens or case.grid].float(), RANDOMISED: of_unlearnt}
    judged = {name: _judge(case, relevance) for name, relevance in everything.items()}
    for method in shown:
        judged[method].figures["randomised_similarity"] = np.mean(similar[method], axis=0)
    if not all(np.isfinite(values).all() for one in judged.values() for values in one.figures.values()):
        return _nothing("some changed images or weights give outputs that are not finite numbers")

    figures = judged[chosen].figures
    measured = Measured({f"transparency/{key}": float(values.mean()) for key, values in figures.items()})
    if not case.removed:
        measured.missing["transparency/perturbation_auc"] = "no tokens can be taken out of this model"
    facts = {
        "method": chosen,
        "images": len(images),
        **_conditions(case),
        "copies": _COPIES,  # with shuffled weights; of the methods beside the one that stands for the model: one
        "intervals": {f"transparency/{key}": _interval(values) for key, values in figures.items()},
        "methods": {name: {k: _figure(v) for k, v in one.figures.items()} for name, one in judged.items()},
        # differences image by image: far more certain than what intervals that overlap suggest
        "better_than": {name: _differences(figures, judged[name].figures) for name in (RANDOM, RANDOMISED)},
        "unsupported": {m: reason for m in maps.METHODS if (reason := against[m]) and m in methods},
        "curves": {
            name: {what: _rounded(curve.mean(dim=0)) for what, curve in one.curves.items()}
            for name, one in judged.items()
        },
        "examples": _examples(images, ids, case, own),
    }
    if "integrated_gradients" in own:
        facts["completeness_gap"] = _completeness_gap(case, own["integrated_gradients"])
    return measured, facts


def _case(model: nn.Module, inputs: Tensor, ids: npt.NDArray[np.int64], seed: int, steps: int) -> _Case | str:
    """What there is to judge by, or why there is nothing to judge."""
    logits = _logits(model, inputs)
    if not bool(logits.isfinite().all()):
        return "the model's outputs are not finite numbers"
    if logits.shape[1] < 2:
        return "a model with one output says nothing about classes"
    tokens = token_grid(model)
    grid = cells(tokens or (inputs.shape[2], inputs.shape[3]))
    if math.prod(grid) < 2:
        return "the model sees a single patch, where nothing can be ranked"
    classes = logits.argmax(dim=1)
    hidden = _logits(model, torch.zeros_like(inputs[:1])).double().softmax(1)[0, classes]
    shown = logits.double().softmax(1).gather(1, classes[:, None])[:, 0]
    counts = faithfulness.counts_of(math.prod(grid), steps)
    droppable = tokens is not None and faithfulness.droppable(model)
    removed = faithfulness.removal_counts(math.prod(tokens)) if tokens and droppable else []
    ties = {
        shape: torch.from_numpy(maps.random_map(seed, ids, shape)).to(inputs.device)
        for shape in {grid, tokens or grid}
    }
    return _Case(model, inputs, logits, classes, (hidden, shown), grid, counts, tokens, removed, ties)


def _conditions(case: _Case) -> dict[str, Any]:
    """How it was measured; `shares` are the places of the points on the curves."""
    shares = {"cells": [count / case.counts[-1] for count in case.counts]}
    if case.tokens and case.removed:
        shares["tokens"] = [count / math.prod(case.tokens) for count in case.removed]
    return {
        "explained": "logit of the class that the model says",
        "hidden": "mean colour of the data set (zero after normalisation)",
        "cells": list(case.grid),
        "confidence": {"whole": float(case.ends[1].mean()), "hidden": float(case.ends[0].mean())},
        "shares": shares,
    }


def cells(grid: tuple[int, int]) -> tuple[int, int]:
    """The cells that are ranked: a model's patches, or pixels, joined two by two until there are few enough.

    Models with small and large patches, and without, are so judged at much the same resolution.
    """
    rows, columns = grid
    while max(rows, columns) > _SIDE and rows % 2 == 0 and columns % 2 == 0:
        rows, columns = rows // 2, columns // 2
    return rows, columns


def _judge(case: _Case, relevance: Tensor) -> _Judged:
    """Curves and figures of maps (n, h, w)."""
    model, inputs, classes = case.model, case.inputs, case.classes
    order = _order(case, relevance, case.grid)
    inserted, deleted = faithfulness.insertion_deletion(
        model, inputs, classes, order, case.grid, case.counts, case.ends
    )
    curves = {"insertion": inserted, "deletion": deleted}
    figures = {f"{name}_auc": faithfulness.area(curve, case.counts).numpy() for name, curve in curves.items()}
    if case.tokens and case.removed:
        order = _order(case, relevance, case.tokens)
        for name, which in (("most_relevant_first", order), ("least_relevant_first", order.flip(1))):
            curves[name] = faithfulness.kept_predictions(model, inputs, classes, which, case.removed)
        most, least = (
            faithfulness.area(curves[name], case.removed)
            for name in ("most_relevant_first", "least_relevant_first")
        )
        figures["perturbation_auc"] = (least - most).numpy()
    return _Judged(curves, figures)


def _order(case: _Case, relevance: Tensor, grid: tuple[int, int]) -> Tensor:
    return faithfulness.order_of(maps.coarser(relevance, grid).flatten(1), case.ties[grid].flatten(1))


def _similarity(case: _Case, one: Tensor, other: Tensor) -> Numbers:
    """Rank correlation of each image's two maps, cell by cell."""
    cells_of = (maps.coarser(relevance, case.grid).flatten(1) for relevance in (one, other))
    return faithfulness.rank_correlation(*cells_of).numpy()


@torch.no_grad()
def _logits(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(some) for some in inputs.split(_BATCH)])


def _completeness_gap(case: _Case, relevance: Tensor) -> float:
    """How far integrated gradients miss what they have to sum to, as a share of it, over all images."""
    blank = _logits(case.model, torch.zeros_like(case.inputs[:1]))[0, case.classes]
    due = (case.logits.gather(1, case.classes[:, None])[:, 0] - blank).double()
    missed = relevance.double().sum(dim=(1, 2)) - due
    return float(missed.abs().sum() / due.abs().sum().clamp(min=1e-12))


def _nothing(reason: str) -> tuple[Measured, dict[str, Any]]:
    return Measured(missing=dict.fromkeys(KEYS, reason)), {}


def _interval(values: Numbers) -> list[float] | None:
    """95 % for the mean over images, by the normal approximation; None from a single image."""
    if len(values) < 2:
        return None
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    mean = float(values.mean())
    return [mean - half, mean + half]


def _figure(values: Numbers) -> dict[str, Any]:
    return {"value": float(values.mean()), "interval": _interval(values)}


def _differences(own: dict[str, Numbers], other: dict[str, Numbers]) -> dict[str, Any]:
    """How much better, image by image; of deletion, where less is better, how much less."""
    signs = {"insertion_auc": 1, "deletion_auc": -1, "perturbation_auc": 1}
    return {key: _figure(sign * (own[key] - other[key])) for key, sign in signs.items() if key in own}


def _rounded(curve: Tensor) -> list[float]:
    return [round(float(value), 4) for value in curve]


def _examples(
    images: Tensor, ids: npt.NDArray[np.int64], case: _Case, found: dict[str, Tensor]
) -> list[dict[str, Any]]:
    """The first images with their maps, as PNGs in base64; white = what speaks most for the class."""
    return [
        {
            "id": int(ids[k]),
            "class": int(case.classes[k]),
            "confidence": round(float(case.ends[1][k]), 4),
            "image": _picture(images[k].cpu().numpy()),
            "maps": {name: _picture(_grey(relevance[k])[None]) for name, relevance in found.items()},
        }
        for k in range(min(EXAMPLES, len(images)))
    ]


def _grey(relevance: Tensor) -> npt.NDArray[np.uint8]:
    """A map (h, w) in 0..255; what speaks against the class is black, like what does not matter."""
    values = relevance.double().clamp(min=0).cpu()
    values = values - values.min()
    return (values / values.max().clamp(min=1e-30) * 255).round().to(torch.uint8).numpy()


def _picture(pixels: npt.NDArray[np.uint8]) -> str:
    """A PNG, in base64, of an image (C, h, w): in colour where it has three channels, else its first one."""
    picture = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
