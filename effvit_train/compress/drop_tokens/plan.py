"""From settings to the blocks that drop: a function of the architecture alone; which tokens go, each image decides."""

from __future__ import annotations

from effvit_train.compress._tokens import Reduced, costs, told
from effvit_train.compress.drop_tokens.config import DropTokensConfig
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.tokens.change import DROP, Drop
from effvit_train.parts import Decided

_KEY = "compress.drop_tokens"


def plan(settings: DropTokensConfig, record: ArchitectureRecord) -> Decided | None:
    """Which share of the tokens stays in which block of the model of a record; None where all do.

    Raises:
        UserError: the model is none whose tokens can be dropped, or has no such blocks.
    """
    reduced = Reduced.of(record, DROP)
    blocks = _blocks(settings, reduced)
    rates = settings.rates
    if len(rates) not in (1, len(blocks)):
        raise UserError(
            f"lists {len(rates)} shares for {len(blocks)} blocks ({', '.join(blocks)})",
            key=f"{_KEY}.keep", value=settings.keep, remedy="one share for each, or one for all",
        )  # fmt: skip
    keep = dict(zip(blocks, rates * len(blocks) if len(rates) == 1 else rates, strict=True))
    keep = {name: rate for name in reduced.blocks if (rate := keep.get(name, 1.0)) < 1}
    if not keep:
        return None
    operation = Drop(keep, settings.fuse)
    after, tokens = reduced.after(operation), reduced.tokens()
    facts = {
        "keep": keep, "fuse": settings.fuse, "tokens": tokens, "patches": reduced.patches,
        "macs": costs(reduced.before, after),
    }  # fmt: skip
    words = (
        f"keeps {told(keep)}: {reduced.patches} tokens become {tokens[reduced.blocks[-1]][1]}; "
        f"MACs {after / reduced.before:.3f} of before"
    )
    return Decided([operation], {"kind": DROP, "keep": keep, "fuse": settings.fuse}, facts, words)


def _blocks(settings: DropTokensConfig, reduced: Reduced) -> list[str]:
    there = reduced.blocks
    if settings.blocks is None:
        return list(dict.fromkeys(there[len(there) * quarter // 4] for quarter in (1, 2, 3)))
    names = [f"blocks.{number}" for number in settings.blocks]
    for name in names:
        if name not in there:
            raise UserError(
                f"the model has no {name} (it has {there[0]} to {there[-1]})",
                key=f"{_KEY}.blocks", value=settings.blocks, remedy="blocks that are there, counted from 0",
            )  # fmt: skip
    return names
