"""Cuts a model to a budget: measure importance, solve, cut. Knows nothing of when."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.compress.prune import costs, latency
from effvit_train.compress.prune.config import PruneConfig
from effvit_train.compress.prune.importance import Calibration, calibrate, importances
from effvit_train.compress.prune.latency import Latency, Table
from effvit_train.compress.prune.plan import operations_of
from effvit_train.compress.prune.schedule import left
from effvit_train.compress.prune.solver import Budget, CannotMeetError, Plan, Scores, sizes_after, solve
from effvit_train.errors import UserError
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import Structure, read_structure
from effvit_train.models.surgery import Operation

_KEY = "compress.prune"
_LATENCY_TOLERANCE = 0.05


@dataclass
class Batches:
    """What importance looks at.

    Attributes:
        batches: of training images.
        losses: of one of them, per sample, through the model.
    """

    batches: Callable[[], Iterable[Any]]
    losses: Callable[[Any], Tensor]


def batches(config: PruneConfig, module: Any, data: Any, epoch: int = 0) -> Batches | None:
    """The calibration images: the first ones that an epoch shows, as it shows them."""
    if not config.reads_data:
        return None
    chosen = data.first_train_batches(epoch, config.calibration)

    def loaded() -> Any:
        for batch in data.augmented_loader(chosen, epoch):
            yield data.transfer_batch_to_device(batch, module.device, 0)

    return Batches(loaded, lambda batch: module.sample_losses(batch, epoch))


@dataclass
class Decision:
    """What one cut takes away.

    Attributes:
        plan: what is to be left.
        operations: that carry it out.
        structure: of the model before it.
    """

    plan: Plan
    operations: list[Operation]
    structure: Structure


class Pruner:
    """Decides on cuts of one model, from its uncut form to its budgets.

    Args:
        config: `compress.prune`.
        record: of the uncut model, which budgets refer to.
        table: latencies of the uncut model, where `target.latency_ms` is set.

    Raises:
        UserError: nothing of this model can be cut in this way, or not down to the budget.
    """

    def __init__(self, config: PruneConfig, record: ArchitectureRecord, table: Table | None = None) -> None:
        self.config, self.record = config, record
        with torch.device("meta"):
            model = build(record)
        self.structure = read_structure(model)
        self.kinds = usable_kinds(self.structure, config, record.name)
        self.costs: dict[str, costs.Cost] = {
            "macs": costs.macs(record, self.structure),
            "params": costs.parameters(model, self.structure),
        }
        if table is not None:
            self.use(table)

    @property
    def start(self) -> dict[str, float]:
        """All known costs before any cut."""
        return {name: cost.total(self.structure.sizes, frozenset()) for name, cost in self.costs.items()}

    def facts(self) -> dict[str, Any]:
        """What the card's `pruning` says of settings and start."""
        config = self.config
        return {
            "target": dict(config.targets), "kinds": list(self.kinds), "importance": config.importance,
            "allot": config.allot, "schedule": config.schedule, "compensate": config.fill_in,
            "calibration_images": config.calibration if config.reads_data else None, "start": self.start,
            "start_widths": {
                name: self.structure.size(group)
                for name, group in self.structure.groups.items()
                if group.kind in self.kinds
            },
        }  # fmt: skip

    def measure(self, model: nn.Module, say: Callable[[str], None]) -> Table:
        """Measure the latencies of the uncut model and take them over."""
        say("measuring latencies of the parts that may be cut ...")
        table = latency.measure(model, self.structure, self.record.input_shape, self.kinds)
        self.use(table)
        return table

    def use(self, table: Table) -> None:
        """Take over the latencies of the uncut model."""
        self.costs["latency_ms"] = Latency(table, self.structure)

    @property
    def ready(self) -> bool:
        """Whether all costs that are limited can be computed."""
        return set(self.config.targets) <= set(self.costs)

    def budgets(self, done: int, cuts: int) -> list[Budget]:
        """What may be left after `done` of `cuts` cuts."""
        found = []
        starts = self.start
        for name, target in self.config.targets.items():
            start = starts[name]
            fraction = target / start if name == "latency_ms" else target
            share = left(min(fraction, 1.0), done, cuts, schedule=self.config.schedule)
            tolerance = _LATENCY_TOLERANCE if name == "latency_ms" else 0.01
            found.append(Budget(name, self.costs[name], share * start, tolerance))
        return found

    def check(self) -> None:
        """Raise `UserError` where the budget cannot be met at all."""
        if self.ready:
            even = {
                name: tuple(torch.ones(self._shape(factor, group.kind)) for factor in group.factors)
                for name, group in self.structure.groups.items()
                if group.kind in self.kinds
            }
            self._solve(self.structure, even, dict.fromkeys(self.structure.blocks, 1.0), 1, 1)

    def decide(
        self,
        model: nn.Module,
        data: Batches | None,
        done: int,
        cuts: int,
        *,
        seed: int,
        keep_blocks: Iterable[str] = (),
    ) -> Decision | None:
        """What the cut number `done` (from 1) of `cuts` takes away; None where nothing is to be taken.

        Args:
            model: as it is; not changed.
            data: for importance and compensation; None where neither reads any.
            done, cuts: see `budgets`.
            seed: of `importance=random`.
            keep_blocks: that are not left out.
        """
        config, structure = self.config, read_structure(model)
        calibration = None
        if config.reads_data:
            assert data is not None
            calibration = self._calibrate(model, structure, data)
        scores, block_scores = importances(
            config.importance, model, structure, calibration, self.kinds, norm=config.norm, seed=seed
        )
        for block in keep_blocks:
            block_scores.pop(block, None)
        plan = self._solve(structure, scores, block_scores, done, cuts)
        if not plan.widths and not plan.blocks:
            return None
        operations = operations_of(
            model, structure, plan, scores, compensate=config.fill_in, calibration=calibration
        )
        return Decision(plan, operations, structure)

    def costs_after(self, structure: Structure, plan: Plan) -> dict[str, float]:
        """All known costs of what a plan leaves."""
        sizes, dropped = sizes_after(structure, plan), self._gone(structure, plan)
        return {name: cost.total(sizes, dropped) for name, cost in self.costs.items()}

    def _gone(self, structure: Structure, plan: Plan) -> frozenset[str]:
        """All blocks that are no longer there after a plan."""
        return frozenset(set(self.structure.blocks) - set(structure.blocks) | set(plan.blocks))

    def _calibrate(self, model: nn.Module, structure: Structure, data: Batches) -> Calibration:
        config = self.config
        return calibrate(
            model, data.batches(), data.losses, structure, self.kinds,
            gradients=config.importance in ("taylor", "hessian"),
            products=config.fill_in == "least_squares",
        )  # fmt: skip

    def _solve(
        self, structure: Structure, scores: Scores, block_scores: dict[str, float], done: int, cuts: int
    ) -> Plan:
        gone = self._gone(structure, Plan())
        budgets = [
            dataclasses.replace(budget, cost=_Without(budget.cost, gone))
            for budget in self.budgets(done, cuts)
        ]
        try:
            return solve(
                structure, scores, block_scores, budgets, kinds=self.kinds, allot=self.config.allot,
                round_to=self.config.round_to, original=self.structure.sizes,
                blocks_at_start=len(self.structure.blocks),
            )  # fmt: skip
        except CannotMeetError as error:
            name, value = next(iter(self.config.targets.items()))
            raise UserError(
                f"cannot be met by cutting {', '.join(self.kinds)} in multiples of {self.config.round_to}: {error}",
                key=f"{_KEY}.target.{name}", value=value,
                remedy=f"a higher target, more {_KEY}.kinds, or a smaller {_KEY}.round_to",
            ) from None  # fmt: skip

    def _shape(self, factor: str, kind: str) -> tuple[int, ...]:
        return (1, self.structure.sizes[factor]) if kind == "head_width" else (self.structure.sizes[factor],)


class _Without:
    """A cost in which some blocks are gone already."""

    def __init__(self, cost: costs.Cost, gone: frozenset[str]) -> None:
        self._cost, self._gone = cost, gone

    def total(self, sizes: costs.Sizes, dropped: frozenset[str]) -> float:
        return self._cost.total(sizes, dropped | self._gone)

    def saving(
        self, sizes: costs.Sizes, dropped: frozenset[str], change: costs.Sizes, block: str | None
    ) -> float:
        return self._cost.saving(sizes, dropped | self._gone, change, block)


def usable_kinds(structure: Structure, config: PruneConfig, name: str) -> list[str]:
    """The configured kinds that this model has.

    Raises `UserError` when it has none of them.
    """
    there = {group.kind for group in structure.groups.values()}
    there |= {"blocks"} if len(structure.blocks) > 1 else set()
    usable = [kind for kind in config.kinds if kind in there]
    if not usable:
        can = f"only its {', '.join(sorted(there))} can be" if there else "nothing of it can be, by us"
        raise UserError(
            f"cannot be cut in {name}: {can}",
            key=f"{_KEY}.kinds", value=",".join(config.kinds),
            remedy=f"e.g. '{_KEY}.kinds=[{sorted(there)[0]}]'" if there else "choose a ViT, DeiT or Swin",
        )  # fmt: skip
    return usable
