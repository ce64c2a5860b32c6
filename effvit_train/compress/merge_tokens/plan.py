"""From settings to the tokens that merge: a function of the architecture alone, no image decides."""

from __future__ import annotations

from effvit_train.compress._tokens import ClosedForm, Reduced, costs, told
from effvit_train.compress.merge_tokens.config import MergeTokensConfig
from effvit_train.compress.merge_tokens.schedule import possible, spread
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.tokens.change import MERGE, Merge
from effvit_train.parts import Decided

_KEY = "compress.merge_tokens"


def plan(settings: MergeTokensConfig, record: ArchitectureRecord) -> Decided | None:
    """How many tokens merge in each block of the model of a record; None where none do.

    Raises:
        UserError: the model is none whose tokens can be merged, `r` lists other blocks, or the target is too low.
    """
    reduced = Reduced.of(record, MERGE)
    wanted = _solved(settings, reduced) if settings.macs is not None else _given(settings, reduced)
    merging = possible(wanted, reduced.patches)
    if not any(merging):
        return None
    operation = Merge(_named(reduced, merging), settings.proportional)
    after, tokens = reduced.after(operation), reduced.tokens()
    facts = {
        "r": dict(zip(reduced.blocks, merging, strict=True)), "tokens": tokens, "patches": reduced.patches,
        "schedule": "list" if isinstance(settings.r, list) else settings.schedule, "asked": settings.r,
        "target": None if settings.macs is None else {"macs": settings.macs},
        "proportional": settings.proportional, "macs": costs(reduced.before, after),
    }  # fmt: skip
    words = f"r = {told(facts['r'])}: {reduced.patches} tokens become {tokens[reduced.blocks[-1]][1]}"
    if merging != wanted and settings.macs is None:
        words += " (no more than half of a block's tokens can merge: not all that was asked for)"
    words += f"; MACs {after / reduced.before:.3f} of before"
    entry = {"kind": MERGE, "r": dict(operation.r), "proportional": settings.proportional}
    return Decided([operation], entry, facts, words)


def _named(reduced: Reduced, merging: list[int]) -> dict[str, int]:
    return {name: r for name, r in zip(reduced.blocks, merging, strict=True) if r}


def _given(settings: MergeTokensConfig, reduced: Reduced) -> list[int]:
    blocks = len(reduced.blocks)
    if not isinstance(settings.r, list):
        return spread(settings.r * blocks, blocks, settings.schedule)
    if len(settings.r) != blocks:
        raise UserError(
            f"lists {len(settings.r)} blocks, the model has {blocks}",
            key=f"{_KEY}.r", value=settings.r, remedy=f"{blocks} numbers, or one for all",
        )  # fmt: skip
    return list(settings.r)


def _solved(settings: MergeTokensConfig, reduced: Reduced) -> list[int]:
    """The fewest that meet the target, by bisection: MACs only fall as more tokens merge."""
    assert settings.macs is not None
    blocks = len(reduced.blocks)

    if settings.macs >= 1:
        return [0] * blocks
    # where none merge, attention and MLPs are as they will be
    form = ClosedForm(reduced, reduced.after(Merge({}, settings.proportional)))

    def share(total: int) -> float:
        return form.macs(spread(total, blocks, settings.schedule)) / reduced.before

    low, high = 0, blocks * reduced.patches
    least = share(high)
    if least > settings.macs and settings.target.macs is None:
        return spread(high, blocks, settings.schedule)  # nobody asked for that much: as many as can be
    if least > settings.macs:
        raise UserError(
            f"cannot be met by merging: half of the tokens in every block, which is the most, leaves {least:.3f}",
            key=f"{_KEY}.target.macs", value=settings.macs, remedy="a higher target, or compress=prune beside it",
        )  # fmt: skip
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if share(middle) <= settings.macs else (middle, high)
    return spread(high, blocks, settings.schedule)
