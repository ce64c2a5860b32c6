"""What would be cut, as a table, without training (`compress.prune.dry_run=true`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from effvit_train.compress.prune.config import PruneConfig
from effvit_train.compress.prune.pruner import Decision, Pruner, batches
from effvit_train.errors import UserError
from effvit_train.keys import stream_key
from effvit_train.parts import Context


def preview(config: PruneConfig, pruner: Pruner, context: Context) -> Callable[[Any, Any], Table]:
    """A function of the module and its data that gives the table of a single cut to the target, made now."""

    def show(module: Any, data: Any) -> Table:
        if not pruner.ready:
            pruner.measure(module.model, context.say)
        decision = pruner.decide(
            module.model,
            batches(config, module, data),
            1,
            1,
            seed=stream_key("prune", context.config.seed, 1),
        )
        return plan_table(pruner, decision)

    return show


def plan_table(pruner: Pruner, decision: Decision | None) -> Table:
    """Before and after of every group that may be cut, and of the costs."""
    if decision is None:
        raise UserError(
            "is met by the model as it is", key="compress.prune.target",
            value=str(pruner.config.targets), remedy="a lower target",
        )  # fmt: skip
    structure, plan = decision.structure, decision.plan
    kinds = [kind for kind in ("heads", "head_width", "mlp") if kind in pruner.kinds]
    table = Table(title=f"what would be cut now, by {pruner.config.importance}", title_justify="left")
    table.add_column("part")
    for kind in kinds:
        table.add_column(kind.replace("_", " "), justify="right")
    by_block: dict[str, dict[str, str]] = {}
    for name, group in structure.groups.items():
        if group.kind in kinds:
            place = group.block or name
            by_block.setdefault(place, {})[group.kind] = _change(structure.size(group), plan.widths.get(name))
    for place, cells in by_block.items():
        gone = place in plan.blocks
        table.add_row(place, *("left out" if gone else cells.get(kind, "") for kind in kinds))
    table.add_section()
    for name, group in structure.groups.items():
        if group.kind == "embed" and "embed" in pruner.kinds:
            table.add_row(
                name, _change(structure.size(group), plan.widths.get(name)), *[""] * (len(kinds) - 1)
            )
    starts = pruner.start
    for name, value in pruner.costs_after(structure, plan).items():
        start = starts[name]
        table.add_row(name, f"{_number(start)} -> {_number(value)}", *[""] * (len(kinds) - 1))
        table.add_row("", f"{value / start:.3f} of the start", *[""] * (len(kinds) - 1))
    return table


def _change(before: int, after: int | None) -> str:
    return str(before) if after is None else f"{before} -> {after}"


def _number(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.2f} {unit}"
    return f"{value:.2f}"
