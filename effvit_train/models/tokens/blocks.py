"""timm's blocks with fewer tokens behind their attention: parameters, names and settings stay timm's."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.models.tokens.steps import Tokens, choose, drop, kept_of, match, merge, to_grid

Made = TypeVar("Made", bound=nn.Module)


def adopt(kind: type[Made], module: nn.Module, **settings: Any) -> Made:
    """A module of another class in the place of one, with all that it holds: parameters, submodules, hooks."""
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


class TokenAttention(Attention):
    """timm's attention, which gives its queries and keys too: tokens are judged by them."""

    def forward(  # type: ignore[override]
        self, x: Tensor, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What it computes (B, N, D), and queries and keys (B, heads, N, d).

        Args:
            x: (B, N, D).
            attn_mask: (B, 1, 1, N), added to the logits.
        """
        query, key, value = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        query, key = self.q_norm(query), self.k_norm(key)
        mask = None if attn_mask is None else attn_mask.to(query.dtype)
        if self.fused_attn:
            rate = self.attn_drop.p if self.training else 0.0
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        else:
            logits = (query * self.scale) @ key.transpose(-2, -1)
            logits = logits if mask is None else logits + mask
            mixed = self.attn_drop(logits.softmax(dim=-1)) @ value
        mixed = self.norm(mixed.transpose(1, 2).flatten(2))
        if self.gate is not None:
            mixed = mixed * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(mixed)), query, key


class TokenBlock(Block):
    """A block whose MLP may see fewer tokens than its attention.

    Attributes:
        prefix: tokens before those of the image.
    """

    attn: TokenAttention
    prefix: int

    @property
    def takes_tokens(self) -> bool:
        """Whether any are taken away."""
        raise NotImplementedError

    def forward(  # type: ignore[override]
        self, x: Tensor, tokens: Tokens | None = None
    ) -> tuple[Tensor, Tokens]:
        """Tokens (B, N, D) to (B, M, D), and what has become of them.

        Args:
            x: (B, N, D).
            tokens: of x; None where it is what the first block is given.
        """
        tokens = tokens or Tokens(self.prefix, x.shape[1] - self.prefix)
        mixed, query, key = self.attn(self.norm1(x), attn_mask=self.bias(tokens))
        x = x + self.drop_path1(self.ls1(mixed))
        x, tokens = self.reduce(x, tokens, query, key)
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x)))), tokens

    def bias(self, tokens: Tokens) -> Tensor | None:
        """What is added to the attention's logits, (B, 1, 1, N)."""
        return None

    def reduce(self, x: Tensor, tokens: Tokens, query: Tensor, key: Tensor) -> tuple[Tensor, Tokens]:
        """Take tokens away from x (B, N, D), by the queries and keys (B, heads, N, d) of its attention."""
        raise NotImplementedError

    def after(self, count: int) -> int:
        """Image tokens that are left of so many."""
        raise NotImplementedError

    def judging(self, count: int) -> tuple[int, bool]:
        """What judging so many image tokens costs: MACs per dimension of a head, and whether each head pays them."""
        raise NotImplementedError


class MergingBlock(TokenBlock):
    """Merges similar tokens (Bolya et al. 2023, "Token Merging: your ViT but faster").

    Attributes:
        r: how many merge into others; of fewer than 2 r tokens half do, rounded down.
        proportional: a token counts in the attention as the patches that it stands for (equation 1).
    """

    r: int
    proportional: bool

    @property
    def takes_tokens(self) -> bool:
        """See `TokenBlock`."""
        return self.r > 0

    def bias(self, tokens: Tokens) -> Tensor | None:
        """The logarithm of the sizes."""
        if tokens.sizes is None or not self.proportional:
            return None
        return tokens.sizes.log()[:, None, None, :]

    def reduce(self, x: Tensor, tokens: Tokens, query: Tensor, key: Tensor) -> tuple[Tensor, Tokens]:
        """Merge by the mean of the heads' keys."""
        r = tokens.left - self.after(tokens.left)
        if r == 0:
            return x, tokens
        # their sum points the way of their mean, and is three times as fast head by head
        keys = functools.reduce(torch.add, key[:, :, tokens.prefix :].unbind(dim=1))
        return merge(x, tokens, match(keys, r, tokens.prefix))

    def after(self, count: int) -> int:
        """See `TokenBlock`."""
        return count - min(self.r, count // 2)

    def judging(self, count: int) -> tuple[int, bool]:
        """Each token of one set against each of the other, once for all heads."""
        return (count // 2) * (count - count // 2) if self.after(count) < count else 0, False


class DroppingBlock(TokenBlock):
    """Keeps what the class token attends to (Liang et al. 2022, "EViT").

    The class token is the first one. Other prefix tokens stay, and their attention does not count.

    Attributes:
        keep: share of the tokens that stay, rounded up.
        fuse: the others become one token.
    """

    keep: float
    fuse: bool

    @property
    def takes_tokens(self) -> bool:
        """See `TokenBlock`."""
        return self.keep < 1

    def reduce(self, x: Tensor, tokens: Tokens, query: Tensor, key: Tensor) -> tuple[Tensor, Tokens]:
        """Drop by the mean of the heads' attention from the class token."""
        if kept_of(tokens.left, self.keep) == tokens.left:
            return x, tokens
        logits = (query[:, :, :1] * self.attn.scale) @ key.transpose(-2, -1)
        kind = torch.promote_types(logits.dtype, torch.float32)
        attention = logits.softmax(dim=-1, dtype=kind).mean(dim=1)[:, 0, tokens.prefix :]
        return drop(x, tokens, choose(attention, self.keep, fuse=self.fuse), attention)

    def after(self, count: int) -> int:
        """See `TokenBlock`."""
        kept = kept_of(count, self.keep)
        return kept + (self.fuse and kept < count)

    def judging(self, count: int) -> tuple[int, bool]:
        """The class token's query against all keys, for each head."""
        return (count + self.prefix if kept_of(count, self.keep) < count else 0), True


class TokenBlocks(nn.Sequential):
    """The blocks in their order, each told what has become of the tokens.

    Attributes:
        prefix: tokens before those of the image.
        whole: the classifier looks at every patch, so that each is given what its token holds.
    """

    prefix: int
    whole: bool

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, P + n, D) to (B, P + m, D), or to (B, P + n, D) where the classifier wants all."""
        tokens = Tokens(self.prefix, x.shape[1] - self.prefix)
        for block in self:
            if not isinstance(block, nn.Identity):  # left out
                x, tokens = block(x, tokens)
        return to_grid(x, tokens) if self.whole else x
