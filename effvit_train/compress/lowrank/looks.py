"""What is looked at on images: the inputs of layers, and what a rank of one layer costs in quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.compress.lowrank.config import KEY, LowRankConfig
from effvit_train.compress.lowrank.decompose import Decomposition, Inputs
from effvit_train.errors import UserError
from effvit_train.models.mode import evaluating

_TRIED = (0.25, 0.5, 0.75, 1.0)  # of the highest rank that a layer may get


def calibration_images(config: LowRankConfig, module: Any, data: Any, epoch: int) -> Iterator[Tensor]:
    """The first training images of an epoch, as it shows them, normalised (B, C, H, W)."""
    for batch in data.augmented_loader(data.first_train_batches(epoch, config.calibration), epoch):
        yield module.augmented(data.transfer_batch_to_device(batch, module.device, 0), epoch)


def validation_images(config: LowRankConfig, module: Any, data: Any) -> list[Tensor]:
    """Validation images, evenly over the split, normalised (B, C, H, W).

    Raises:
        UserError: there are none.
    """
    if not len(data.indices("val")):
        raise UserError(
            "looks at validation images, and there are none", key=f"{KEY}.search", value=True,
            remedy=f"{KEY}.search=false",
        )  # fmt: skip
    return [
        module.normalise(data.transfer_batch_to_device(batch, module.device, 0).images)
        for batch in data.loader_of(data.evenly("val", config.search_images))
    ]


@torch.no_grad()
def inputs_of(
    model: nn.Module, layers: Sequence[str], images: Iterable[Tensor]
) -> tuple[dict[str, Inputs], int]:
    """What layers are given, over images and positions; and how many images there were."""
    seen = 0
    sums: dict[str, Tensor] = {}
    totals: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)

    def look(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            rows = inputs[0].flatten(0, -2).float()
            product, total = (rows.T @ rows).cpu().double(), rows.sum(dim=0, dtype=torch.float64).cpu()
            sums[name] = sums[name] + product if name in sums else product
            totals[name] = totals[name] + total if name in totals else total
            counts[name] += len(rows)

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(look(name)) for name in layers]
    try:
        with evaluating(model):
            for batch in images:
                model(batch)
                seen += len(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: Inputs(totals[name] / counts[name], sums[name] / counts[name]) for name in sums}, seen


@torch.no_grad()
def sensitivities(
    model: nn.Module, found: Mapping[str, Decomposition], ranks: Mapping[str, Sequence[int]], images: Sequence[Tensor]
) -> dict[str, dict[int, float]]:  # fmt: skip
    """For a few ranks of each layer what is lost in quality when that layer alone is factored.

    The loss is the mean over images of KL(p || q) of the answers p of the model as it is and q with the layer
    factored: never below zero, and it takes no labels.

    Args:
        model: is left as it was found.
        found: of each layer.
        ranks: that a layer may get, ascending.
        images: normalised.
    """
    tried = {
        name: sorted({own[max(0, round(share * len(own)) - 1)] for share in _TRIED})
        for name, own in ranks.items()
    }
    with evaluating(model):
        answers = _answers(model, images)
        return {
            name: {
                rank: _divergence(answers, _with(model, name, found[name], rank, images))
                for rank in tried[name]
            }
            for name in tried
        }


def losses(own: Decomposition, ranks: Sequence[int], measured: Mapping[int, float]) -> dict[int, float]:
    """What ranks of a layer cost in quality, from a few that were measured.

    The quality lost for the energy lost is interpolated between them, and beyond them goes on as it is.
    """
    points = sorted(measured)
    rates = [measured[rank] / max(1 - own.kept(rank), 1e-12) for rank in points]
    return {rank: float(np.interp(rank, points, rates)) * (1 - own.kept(rank)) for rank in ranks}


def _with(
    model: nn.Module, name: str, own: Decomposition, rank: int, images: Sequence[Tensor]
) -> list[Tensor]:
    """The answers with one layer factored."""
    layer = model.get_submodule(name)
    try:
        model.set_submodule(name, own.factor(name, rank).factored(layer))
        return _answers(model, images)
    finally:
        model.set_submodule(name, layer)


def _answers(model: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[Tensor]:
    return [F.log_softmax(model(batch).double(), dim=-1) for batch in images]


def _divergence(whole: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    total = sum(
        float(F.kl_div(q, p, reduction="sum", log_target=True)) for p, q in zip(whole, other, strict=True)
    )
    return max(0.0, total / sum(map(len, whole)))
