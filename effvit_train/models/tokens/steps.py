"""What becomes of the tokens of images in one block, and where every patch of an image has gone.

Letters: B images, P prefix tokens (class, distillation, registers), n image tokens before a step and m after it,
D the width. Images do not see one another: every decision is made for each image by itself, and the numbers of
tokens are the same for all images, so that shapes are known without looking at values.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Step(NamedTuple):
    """What becomes of n image tokens; places are counted without the prefix.

    Attributes:
        kept: (B, k) places of those that stay, in the order in which they stand afterwards.
        gone: (B, n - k) places of the others.
        into: (B, n - k) places, afterwards, of what they are now a part of; m where they are lost.
        after: m.
        lost: whether the others are lost.
    """

    kept: Tensor
    gone: Tensor
    into: Tensor
    after: int
    lost: bool = False


class Tokens(NamedTuple):
    """The tokens on their way through the blocks.

    Attributes:
        prefix: P.
        patches: image tokens that the first block was given.
        sizes: (B, P + n) patches that each token stands for, 1 for prefix tokens; None while all are 1.
        steps: what has become of them, block by block.
    """

    prefix: int
    patches: int
    sizes: Tensor | None = None
    steps: tuple[Step, ...] = ()

    @property
    def left(self) -> int:
        """n."""
        return self.steps[-1].after if self.steps else self.patches


def match(keys: Tensor, r: int, prefix: int) -> Step:
    """Bipartite soft matching (Bolya et al. 2023, "Token Merging", section 3): which r tokens merge into which.

    Tokens are put into two sets in turn, prefix tokens counted; each of the first set draws an edge to the one of
    the second whose key is most similar (cosine), and the r strongest edges are followed. Afterwards the tokens of
    the first set that are left come first, then the second set.

    Args:
        keys: (B, n, d) of the image tokens, the mean over the heads or a multiple of it.
        r: at most half of n, rounded down.
        prefix: P, which decides which set is first.
    """
    with torch.no_grad():
        first, second = prefix % 2, 1 - prefix % 2
        directions = F.normalize(keys, dim=-1)
        edges, partner = (directions[:, first::2] @ directions[:, second::2].transpose(1, 2)).max(dim=-1)
        # without `stable`, which ONNX does not know; on a CPU the first of equal ones comes first all the same
        order = edges.argsort(dim=-1, descending=True)
        merged, left = order[:, :r], order[:, r:].sort(dim=-1).values
        others = torch.arange(second, keys.shape[1], 2, device=keys.device).expand(keys.shape[0], -1)
        return Step(
            kept=torch.cat([2 * left + first, others], dim=1),
            gone=2 * merged + first,
            into=left.shape[1] + partner.gather(1, merged),
            after=keys.shape[1] - r,
        )


def merge(x: Tensor, tokens: Tokens, step: Step) -> tuple[Tensor, Tokens]:
    """Put the mean of merged tokens, weighted by their sizes, into the place of one of them.

    Args:
        x: (B, P + n, D).
        tokens: of x.
        step: of `match`.

    Returns:
        (B, P + m, D), and its tokens.
    """
    prefix = tokens.prefix
    sizes = tokens.sizes
    if sizes is None:
        sizes = x.new_ones(x.shape[:2], dtype=torch.promote_types(x.dtype, torch.float32))
    kept, gone, into = _with_prefix(step.kept, prefix), step.gone + prefix, step.into + prefix
    own, added = sizes.gather(1, kept), sizes.gather(1, gone)
    total = own.scatter_add(1, into, added)
    stays = rows(x, kept) * (own / total).to(x.dtype)[:, :, None]
    joins = rows(x, gone) * (added / total.gather(1, into)).to(x.dtype)[:, :, None]
    # in place: the product above is ours alone
    flat = stays.flatten(0, 1).index_add_(0, _flat(into, stays.shape[1]), joins.flatten(0, 1))
    return flat.unflatten(0, stays.shape[:2]), tokens._replace(sizes=total, steps=(*tokens.steps, step))


def choose(attention: Tensor, keep: float, *, fuse: bool) -> Step:
    """Which tokens the class token attends to most (Liang et al. 2022, "EViT", section 3.2).

    Args:
        attention: (B, n) of the class token to the image tokens, the mean over the heads.
        keep: share of the tokens that stay, rounded up.
        fuse: the others become one token, which stands last; else they are lost.
    """
    with torch.no_grad():
        order = attention.argsort(dim=-1, descending=True)
        stay = kept_of(attention.shape[1], keep)
        kept, gone = (part.sort(dim=-1).values for part in (order[:, :stay], order[:, stay:]))
        return Step(kept, gone, torch.full_like(gone, stay), stay + 1 if fuse else stay, lost=not fuse)


def kept_of(count: int, keep: float) -> int:
    """Tokens that stay of so many: their share, rounded up."""
    return min(count, math.ceil(keep * count - 1e-9))


def drop(x: Tensor, tokens: Tokens, step: Step, attention: Tensor) -> tuple[Tensor, Tokens]:
    """Leave tokens out; where one takes their place it is their sum, weighted by attention (EViT, equation 3).

    Args:
        x: (B, P + n, D).
        tokens: of x.
        step: of `choose`.
        attention: (B, n), which the weights come from.

    Returns:
        (B, P + m, D), and its tokens.
    """
    stays = rows(x, _with_prefix(step.kept, tokens.prefix))
    if not step.lost:
        weights = attention.gather(1, step.gone).to(x.dtype)
        fused = (rows(x, step.gone + tokens.prefix) * weights[:, :, None]).sum(dim=1, keepdim=True)
        stays = torch.cat([stays, fused], dim=1)
    return stays, tokens._replace(steps=(*tokens.steps, step))


def sources(tokens: Tokens, like: Tensor) -> Tensor:
    """The image token that each patch is a part of, (B, patches): its place without the prefix; -1 where it is lost.

    Args:
        tokens: as they are after some block.
        like: any tensor (B, ...) of the same images.
    """
    place = torch.arange(tokens.patches, device=like.device).expand(like.shape[0], -1)
    before = tokens.patches
    for step in tokens.steps:
        stay = step.kept.shape[1]
        # one more place, of what was lost before
        to = torch.full_like(place[:, :1], step.after).repeat(1, before + 1)
        to = to.scatter(1, step.kept, torch.arange(stay, device=to.device).expand(to.shape[0], -1))
        place, before = to.scatter(1, step.gone, step.into).gather(1, place), step.after
    return torch.where(place == before, -1, place)


def to_grid(x: Tensor, tokens: Tokens) -> Tensor:
    """Give every patch what its token holds: (B, P + n, D) to (B, P + patches, D); zeros where it is lost.

    x may be of any width that has a row for each token.
    """
    if not tokens.steps:
        return x
    place = sources(tokens, x)
    whole = rows(x, _with_prefix(place.clamp(min=0), tokens.prefix))
    if not any(step.lost for step in tokens.steps):
        return whole
    there = F.pad(place >= 0, (tokens.prefix, 0), value=True)
    return torch.where(there[:, :, None], whole, torch.zeros_like(whole))


def rows(x: Tensor, places: Tensor) -> Tensor:
    """Rows (B, k, D) of x (B, n, D) at places (B, k).

    The same as `gather` along dimension 1, which on a CPU moves numbers one by one and takes six times as long.
    """
    return x.flatten(0, 1).index_select(0, _flat(places, x.shape[1])).unflatten(0, places.shape)


def _flat(places: Tensor, count: int) -> Tensor:
    """Places (B, k) among `count` rows of each image as places among the rows of all images, (B * k,)."""
    return (places + count * torch.arange(places.shape[0], device=places.device)[:, None]).flatten()


def _with_prefix(places: Tensor, prefix: int) -> Tensor:
    """Places of image tokens (B, k) as (B, P + k) of all tokens, with the prefix before them."""
    first = torch.arange(prefix, device=places.device).expand(places.shape[0], -1)
    return torch.cat([first, places + prefix], dim=1)
