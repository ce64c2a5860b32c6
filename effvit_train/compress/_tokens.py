"""What merging and dropping tokens share: what can be changed, and what is left, counted on the meta device."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.audit.operations import OperationCounter, count_operations
from effvit_train.errors import UserError
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import Operation, apply
from effvit_train.models.tokens.change import blocks_of, why_not


@dataclass
class Reduced:
    """A model on the meta device, before and after its tokens become fewer.

    Attributes:
        model: as it is.
        record: of it.
        before: its MACs for one image.
        blocks: names of its blocks.
        patches: image tokens that the first one is given.
    """

    model: nn.Module
    record: ArchitectureRecord
    before: int
    blocks: list[str]
    patches: int

    @classmethod
    def of(cls, record: ArchitectureRecord, kind: str) -> Reduced:
        """The model of a record.

        Raises:
            UserError: its tokens cannot become fewer in this way.
        """
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: Any = build(record)
        reason = why_not(model, kind)
        if reason is not None:
            raise UserError(
                f"{record.name} {reason}", key="compress", value=kind,
                remedy="choose e.g. model=vit_s or model=deit_s, or leave it out",
            )  # fmt: skip
        macs = count_operations(model, record.input_shape).macs
        return cls(model, record, macs, list(blocks_of(model)), int(model.patch_embed.num_patches))

    def after(self, operation: Operation) -> int:
        """MACs for one image once this has been carried out too."""
        apply(self.model, [operation])
        return count_operations(self.model, self.record.input_shape).macs

    def tokens(self) -> dict[str, tuple[int, int]]:
        """Block -> image tokens that it is given, and that it gives, as its tokens are fewer now."""
        found, count = {}, self.patches
        for name, block in blocks_of(self.model).items():
            left = int(block.after(count))  # type: ignore[operator]
            found[name] = (count, left)
            count = left
        return found


class ClosedForm:
    """MACs of a model as a function of the tokens that merge, without counting it again: for a search.

    A block costs a N + b N^2 for its attention, which is given N tokens, c M for its MLP, which is given M, and
    what judging the tokens costs.

    Args:
        reduced: whose tokens are fewer already in the way that is asked for.
        total: its MACs.
    """

    def __init__(self, reduced: Reduced, total: int) -> None:
        self._blocks: list[Any] = list(blocks_of(reduced.model).values())
        self._patches = reduced.patches
        width = int(reduced.model.embed_dim)  # type: ignore[arg-type]
        self._parts = [_parts(block, width) for block in self._blocks]
        self._rest = 0
        self._rest = total - self.macs([block.r for block in self._blocks])

    def macs(self, r: Sequence[int]) -> int:
        """If so many tokens merge in each block."""
        total, count = self._rest, self._patches
        for block, merging, (linear, square, mlp) in zip(self._blocks, r, self._parts, strict=True):
            given, left = count + block.prefix, count - min(merging, count // 2)
            total += linear * given + square * given**2 + mlp * (left + block.prefix)
            if left < count:
                total += (count // 2) * (count - count // 2) * block.attn.head_dim
            count = left
        return total


def _parts(block: Any, width: int) -> tuple[int, int, int]:
    """a, b and c of a block, counted on one and two tokens."""
    one, two = (_count(block.attn, torch.zeros(1, n, width, device="meta")) for n in (1, 2))
    square = (two - 2 * one) // 2
    return one - square, square, _count(block.mlp, torch.zeros(1, 1, width, device="meta"))


@torch.no_grad()
def _count(module: nn.Module, x: Tensor) -> int:
    with OperationCounter() as counter:
        module(x)
    return counter.operations.macs


def costs(before: int, after: int) -> dict[str, int]:
    """The entry `macs` of the card's facts."""
    return {"before": before, "after": after}


def told(values: Mapping[str, Any]) -> str:
    """Values of blocks in words: `13 in blocks 0 to 4, 12 in blocks 5 to 11`; neighbours that are alike together."""
    runs = []
    for value, names in itertools.groupby(values, key=values.__getitem__):
        numbers = [int(name.rpartition(".")[2]) for name in names]
        where = f"block {numbers[0]}" if len(numbers) == 1 else f"blocks {', '.join(map(str, numbers))}"
        if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
            where = f"blocks {numbers[0]} to {numbers[-1]}"
        runs.append(f"{value:g} in {where}")
    return ", ".join(runs)
