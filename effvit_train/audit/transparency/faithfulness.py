"""Whether an explanation is true to the model: what happens when that which it names is taken away.

Letters: B images, U units that are ranked (cells of a grid, or patch tokens), S points of a curve.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.audit.transparency.attention import num_prefix_tokens
from effvit_train.keys import stream_key

_BATCH = 64  # images at once


def order_of(relevance: Tensor, tie: Tensor) -> Tensor:
    """Units (B, U) from the most to the least relevant.

    Equal ones stand in the order of `tie` (B, U), highest first: maps with many zeros would otherwise be
    judged by where in the image their zeros are.
    """
    shuffled = tie.argsort(dim=1, descending=True, stable=True)
    ranked = relevance.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    return shuffled.gather(1, ranked)


def counts_of(units: int, steps: int) -> list[int]:
    """How many of so many units are changed at each point of a curve: from none to all in equal steps."""
    return sorted({round(units * step / steps) for step in range(steps + 1)})


def area(curves: Tensor, counts: Sequence[int]) -> Tensor:
    """Area under curves (..., S) at `counts` (S,), over their range: of a curve in 0..1 it is in 0..1."""
    at = torch.tensor(counts, dtype=torch.float64)
    return torch.trapezoid(curves.double(), at) / (at[-1] - at[0])


@torch.no_grad()
def insertion_deletion(
    model: nn.Module,
    images: Tensor,
    classes: Tensor,
    order: Tensor,
    grid: tuple[int, int],
    counts: Sequence[int],
    ends: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Probabilities of the classes while cells of the images are shown, and hidden (Petsiuk et al. 2018, section 4).

    A hidden cell is zero after normalisation: the data set's mean colour, in both directions. (Petsiuk et al.
    insert into a blurred image; how much a blur hides depends on the image's size, and on digits of 8 to 28
    pixels it hides nothing.)

    Args:
        model: in evaluation mode.
        images: (B, C, H, W) normalised.
        classes: (B,).
        order: (B, U) cells, the most relevant first.
        grid: rows and columns of the cells; U = rows x columns.
        counts: (S,) how many cells are shown, or hidden; the first is none, the last all.
        ends: (B,) probabilities when everything is hidden, and shown; they are the same for all orders.

    Returns:
        Insertion and deletion (B, S), in float64 on the CPU.
    """
    rank = _ranks(order)
    hidden, shown = (end.double().cpu() for end in ends)
    inserted, deleted = [hidden], [shown]
    for count in counts[1:-1]:
        among = (rank < count).to(images.dtype).unflatten(1, grid)[:, None]
        mask = F.interpolate(among, images.shape[2:], mode="nearest")
        inserted.append(probabilities(model, images * mask, classes))
        deleted.append(probabilities(model, images * (1 - mask), classes))
    return torch.stack([*inserted, shown], dim=1), torch.stack([*deleted, hidden], dim=1)


def removal_counts(tokens: int) -> list[int]:
    """How many tokens are taken away at each point: none, a tenth, ... nine tenths, rounded down, so that some stay."""
    return sorted({tokens * tenth // 10 for tenth in range(10)})


def droppable(model: nn.Module) -> bool:
    """Whether patch tokens can be taken out of the model's sequence: each carries its position with it."""
    return isinstance(model, VisionTransformer)


@torch.no_grad()
def kept_predictions(
    model: nn.Module, images: Tensor, classes: Tensor, order: Tensor, counts: Sequence[int]
) -> Tensor:
    """Whether the model still says the same when its first tokens of `order` are gone (Chefer et al. 2021, section 4).

    The tokens are left out of the sequence after they have got their positions, so that no block sees them;
    class, distillation and register tokens stay.

    Args:
        model: `droppable`, in evaluation mode.
        images: (B, C, H, W) normalised.
        classes: (B,) what the model says of the whole images.
        order: (B, U) patch tokens, those to go first first.
        counts: (S,) how many go.

    Returns:
        (B, S) one or zero, in float64 on the CPU.
    """
    assert isinstance(model, VisionTransformer)
    rank = _ranks(order)
    prefix = num_prefix_tokens(model)
    curve = []
    for count in counts:
        if count == 0:
            curve.append(torch.ones(len(images), dtype=torch.float64))
            continue
        # the indices of those that stay, in the image's order
        kept = (rank >= count).nonzero()[:, 1].view(len(images), -1) + prefix
        first = torch.arange(prefix, device=kept.device).expand(len(images), -1)
        logits = _forward_with(model, images, torch.cat([first, kept], dim=1))
        curve.append((logits.argmax(dim=1) == classes).double().cpu())
    return torch.stack(curve, dim=1)


@torch.no_grad()
def probabilities(model: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Softmax probability of each image's class (B,), in float64 on the CPU."""
    parts = zip(images.split(_BATCH), classes.split(_BATCH), strict=True)
    chosen = [model(some).double().softmax(1).gather(1, theirs[:, None])[:, 0] for some, theirs in parts]
    return torch.cat(chosen).cpu()


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of two maps of the same image, (B, U) each -> (B,), float64.

    Zero where a map is constant: it ranks nothing.
    """
    ranks = [stats.rankdata(maps.cpu().numpy(), axis=1) for maps in (one, other)]  # equal ones share the mean
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    product = (centred[0] * centred[1]).sum(axis=1)
    scale = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    correlation = np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)
    return torch.from_numpy(correlation)


def randomised(model: nn.Module, seed: int, copy_number: int = 0) -> nn.Module:
    """A copy that has unlearnt everything (Adebayo et al. 2018, section 3: all layers at once).

    The entries of each parameter are shuffled. Unlike a new initialisation this needs to know nothing about
    the model, which may be cut, and keeps the size of its weights: attention does not become uniform.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            key = stream_key("transparency.randomised", seed, copy_number, name)
            generator = torch.Generator().manual_seed(key)
            shuffle = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[shuffle].view_as(parameter))
    return model


def _ranks(order: Tensor) -> Tensor:
    """The place of each unit in an order (B, U)."""
    return order.argsort(dim=1)


def _forward_with(model: VisionTransformer, images: Tensor, tokens: Tensor) -> Tensor:
    """Logits from these tokens (B, M) alone."""
    parts = []
    for some, theirs in zip(images.split(_BATCH), tokens.split(_BATCH), strict=True):

        def select(module: nn.Module, inputs: object, output: Tensor, theirs: Tensor = theirs) -> Tensor:
            return output.gather(1, theirs[:, :, None].expand(-1, -1, output.shape[2]))

        # `norm_pre` is the last that is done to tokens before the blocks, whatever the model's options
        hook = model.norm_pre.register_forward_hook(select)
        try:
            parts.append(model(some))
        finally:
            hook.remove()
    return torch.cat(parts)
