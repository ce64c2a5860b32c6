"""Which units to cut so that budgets are met: cheap units first, in multiples that hardware likes.

The solver takes units away one chunk at a time. What is taken next follows from the allotment:

- `uniform`: every group loses the same fraction;
- `isomorphic`: every kind loses the same fraction, and within a kind the least important units of all
  its groups go first (Fang et al. 2024, isomorphic pruning): importances are compared between like
  structures only;
- `global`: the chunk whose importance is least for what it saves.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from effvit_train.compress.prune.costs import Cost, Sizes
from effvit_train.models.structure import Group, Structure

Scores = Mapping[str, tuple[Tensor, ...]]  # group -> importance of its units, factor by factor


@dataclass(frozen=True)
class Budget:
    """What a cost may be.

    Attributes:
        name: macs | params | latency_ms.
        cost: how it is computed.
        target: the most that is allowed, in the cost's own unit.
        tolerance: how far below the target the solution may end, as a fraction of it.
    """

    name: str
    cost: Cost
    target: float
    tolerance: float = 0.01


@dataclass
class Plan:
    """What is to be left.

    Attributes:
        widths: group -> units that are left, of the groups that lose some.
        blocks: blocks that are left out.
        costs: budget -> what it comes to.
        missed: budgets that end below their tolerance, since nothing smaller could be cut.
    """

    widths: dict[str, int] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    costs: dict[str, float] = field(default_factory=dict)
    missed: list[str] = field(default_factory=list)


class CannotMeetError(ValueError):
    """A budget that cannot be met; the message says how low it goes."""


@dataclass
class _Candidate:
    """The next chunk of a group, or the next block."""

    name: str
    kind: str
    change: Sizes
    block: str | None
    score: float
    share: float  # of the group that is gone after it
    count: int


def solve(
    structure: Structure,
    scores: Scores,
    block_scores: Mapping[str, float],
    budgets: Sequence[Budget],
    *,
    kinds: Collection[str],
    allot: str,
    round_to: int,
    original: Mapping[str, int] | None = None,
    blocks_at_start: int | None = None,
) -> Plan:
    """Find what to cut.

    Args:
        structure: the model as it is; not changed.
        scores: importance of each unit of each group.
        block_scores: importance of each block that may be left out.
        budgets: all are met in the end.
        kinds: what may be cut.
        allot: uniform | isomorphic | global.
        round_to: MLP, embedding and head widths end at multiples of it.
        original: factor -> units before any cut, for the shares of earlier cuts; default: as it is.
        blocks_at_start: blocks before any cut, likewise.

    Raises:
        CannotMeetError: nothing more can be cut and a budget is not met.
    """
    return _Solver(
        structure, scores, block_scores, budgets, kinds, allot, round_to, original, blocks_at_start
    ).run()


class _Solver:
    def __init__(
        self,
        structure: Structure,
        scores: Scores,
        block_scores: Mapping[str, float],
        budgets: Sequence[Budget],
        kinds: Collection[str],
        allot: str,
        round_to: int,
        original: Mapping[str, int] | None,
        blocks_at_start: int | None,
    ) -> None:
        self.structure, self.budgets, self.allot, self.round_to = structure, budgets, allot, round_to
        self.sizes = dict(structure.sizes)
        self.original = {**self.sizes, **(original or {})}
        self.dropped: frozenset[str] = frozenset()
        self.groups = {
            name: group
            for name, group in structure.groups.items()
            if group.kind in kinds and group.kind != "blocks"
        }
        # removed units, least important first, and what all up to each are worth together
        self.worth = {name: chunk_worth(scores[name]) for name in self.groups}
        self.start = dict(self.sizes)
        self.block_scores = block_scores if "blocks" in kinds else {}
        self.blocks_at_start = blocks_at_start or len(structure.blocks)
        self.costs = [budget.cost.total(self.sizes, self.dropped) for budget in budgets]
        self.at_start = list(self.costs)
        self.by_kind: dict[str, list[str]] = {}
        for name, group in self.groups.items():
            self.by_kind.setdefault(group.kind, []).append(name)
        self.savings: dict[str, list[float]] = {}

    def run(self) -> Plan:
        refused: set[str] = set()
        missed: list[str] = []
        while not self._met():
            candidates = [c for c in self._candidates() if c.name not in refused]
            if not candidates:
                overshoot = self._smallest(refused)
                if overshoot is None:
                    raise self._cannot()
                missed = [budget.name for budget in self.budgets]
                self._take(overshoot)
                break
            chosen = min(self._compared(candidates), key=self._key)
            if self._overshoots(chosen):
                refused.add(chosen.name)
                continue
            self._take(chosen)
        return Plan(
            {
                name: self.sizes[group.factors[0]]
                for name, group in self.groups.items()
                if group.block not in self.dropped
                and self.sizes[group.factors[0]] != self.start[group.factors[0]]
            },
            [block for block in self.structure.blocks if block in self.dropped],
            {
                budget.name: budget.cost.total(self.sizes, self.dropped)
                for budget in self.budgets
            },
            missed,
        )  # fmt: skip

    def _met(self) -> bool:
        return all(
            cost <= budget.target * (1 + 1e-9) for cost, budget in zip(self.costs, self.budgets, strict=True)
        )

    def _candidates(self) -> list[_Candidate]:
        found = [c for name in self.groups if (c := self._next_chunk(name)) is not None]
        return found + self._next_blocks()

    def _next_chunk(self, name: str) -> _Candidate | None:
        group = self.groups[name]
        if group.block in self.dropped:
            return None
        width = self.sizes[group.factors[0]]
        step = 1 if group.kind == "heads" else self.round_to
        after = (width - 1) // step * step
        if after < 1:
            return None
        removed = self.start[group.factors[0]] - width
        worth = self.worth[name]
        score = float(worth[removed + width - after] - worth[removed])
        share = 1 - after / self.original[group.factors[0]]
        return _Candidate(
            name, group.kind, dict.fromkeys(group.factors, after), None, score, share, width - after
        )

    def _next_blocks(self) -> list[_Candidate]:
        if len(self.structure.blocks) - len(self.dropped) <= 1:
            return []
        gone = self.blocks_at_start - len(self.structure.blocks) + len(self.dropped)
        share = (gone + 1) / self.blocks_at_start
        return [
            _Candidate(block, "blocks", {}, block, score, share, 1)
            for block, score in self.block_scores.items()
            if block not in self.dropped
        ]

    def _compared(self, candidates: list[_Candidate]) -> Collection[_Candidate]:
        """All candidates; where kinds are compared by what they lose, the least important of each kind."""
        if self.allot != "isomorphic":
            return candidates
        first: dict[str, _Candidate] = {}
        for candidate in sorted(candidates, key=lambda c: (c.score / c.count, c.name)):
            first.setdefault(candidate.kind, candidate)
        return first.values()

    def _key(self, candidate: _Candidate) -> tuple[float, float, str]:
        if self.allot == "uniform":
            return candidate.share, candidate.score, candidate.name
        if self.allot == "isomorphic":
            return self._kind_share(candidate), candidate.score / candidate.count, candidate.name
        saved = self._useful(candidate)
        return (candidate.score / saved if saved > 0 else math.inf), candidate.share, candidate.name

    def _kind_share(self, candidate: _Candidate) -> float:
        """The fraction of its kind that would be gone with it."""
        if candidate.block is not None:
            return candidate.share
        names = self.by_kind[candidate.kind]
        total = sum(self.original[self.groups[name].factors[0]] for name in names)
        left = sum(
            self.sizes[self.groups[name].factors[0]]
            for name in names
            if self.groups[name].block not in self.dropped
        )
        gone = sum(
            self.original[self.groups[name].factors[0]]
            for name in names
            if self.groups[name].block in self.dropped
        )
        return 1 - (left - candidate.count) / max(1, total - gone)

    def _saved(self, candidate: _Candidate) -> list[float]:
        key = candidate.block or candidate.name
        if key not in self.savings:
            self.savings[key] = [
                budget.cost.saving(self.sizes, self.dropped, candidate.change, candidate.block)
                for budget in self.budgets
            ]
        return self.savings[key]

    def _useful(self, candidate: _Candidate) -> float:
        """What it saves of the budgets that are not met, each relative to its start."""
        return sum(
            saved / start
            for saved, cost, start, budget in zip(
                self._saved(candidate), self.costs, self.at_start, self.budgets, strict=True
            )
            if cost > budget.target and start > 0
        )

    def _overshoots(self, candidate: _Candidate) -> bool:
        """Whether it would leave every budget below its tolerance."""
        return all(
            cost - saved < budget.target * (1 - budget.tolerance)
            for saved, cost, budget in zip(self._saved(candidate), self.costs, self.budgets, strict=True)
        )

    def _smallest(self, refused: set[str]) -> _Candidate | None:
        """Of the chunks that overshoot the one that does so least."""
        candidates = [c for c in self._candidates() if c.name in refused]
        return min(candidates, key=lambda c: (self._useful(c), c.name), default=None)

    def _take(self, candidate: _Candidate) -> None:
        saved = self._saved(candidate)
        self.costs = [cost - one for cost, one in zip(self.costs, saved, strict=True)]
        if candidate.block is not None:
            self.dropped |= {candidate.block}
        self.sizes |= candidate.change
        self._forget_savings(candidate)

    def _forget_savings(self, candidate: _Candidate) -> None:
        group = self.groups.get(candidate.name)
        if group is None or group.block is None:
            self.savings.clear()  # everything reads the embedding
            return
        near = {name for name, other in self.groups.items() if other.block in (group.block, None)}
        for name in near | {group.block}:
            self.savings.pop(name, None)

    def _cannot(self) -> CannotMeetError:
        worst = max(
            zip(self.budgets, self.costs, self.at_start, strict=True), key=lambda row: row[1] / row[0].target
        )
        budget, cost, start = worst
        return CannotMeetError(f"{budget.name} comes down to {cost / start:.3f} of what it was, no further")


def chunk_worth(scores: tuple[Tensor, ...]) -> Tensor:
    """What the k least important units are worth together, for k = 0 to n: (n + 1,).

    Of widths (heads, n) every head gives up its own least important unit at a time, in each factor.
    """
    total = sum(
        torch.sort(score.double().view(-1, score.shape[-1]), dim=-1).values.sum(dim=0) for score in scores
    )
    assert isinstance(total, Tensor)
    return torch.cat([torch.zeros(1, dtype=torch.float64), total.cumsum(0)])


def keep_best(scores: tuple[Tensor, ...], width: int) -> tuple[Tensor, ...]:
    """The `width` most important units of each factor, in their order; of equals the first."""
    kept = []
    for score in scores:
        order = torch.sort(score.double(), dim=-1, descending=True, stable=True).indices
        kept.append(order[..., :width].sort(dim=-1).values)
    return tuple(kept)


def sizes_after(structure: Structure, plan: Plan) -> Sizes:
    """The widths that a plan leaves."""
    sizes = copy.copy(structure.sizes)
    for name, width in plan.widths.items():
        group: Group = structure.groups[name]
        sizes |= dict.fromkeys(group.factors, width)
    return sizes
