"""From what the user typed to entries of the architecture record: concrete, one for each block."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch

from effvit_train.errors import UserError, did_you_mean, first_line
from effvit_train.models.attention.forms import ARGS, KEY, Entry, expand, shown
from effvit_train.models.attention.kinds import EXACT, KINDS
from effvit_train.models.attention.swap import (
    class_of,
    construct,
    settings_of,
    site_of,
    unsuitable,
)


def plan(value: Any, args: dict[str, Any], model: Any, *, name: str) -> list[Entry] | None:
    """An entry for each block, with every setting written out; None where all blocks stay exact.

    Args:
        value: `model.attention`.
        args: `model.attention_args`: each goes to the blocks whose kind takes it, unless they have their own.
        model: as timm builds it, on the meta device.
        name: of the model, for messages.

    Raises:
        UserError: the value does not fit the model, a setting is of no kind in use, or cannot be.
    """
    if not isinstance(value, (list, dict)) and value in (None, EXACT):
        _check_args(args, [])
        return None
    why = unsuitable(model)
    if why:
        raise UserError(
            f"{name}: {why}", key=KEY, value=shown(value), remedy="e.g. model=vit_s, or model.attention=null"
        )
    entries = expand(value, len(model.blocks))
    kinds = [str(entry["kind"]) for entry in entries]
    _check_args(args, kinds)
    planned = [_settled(entry, args, model, number) for number, entry in enumerate(entries)]
    return planned if any(kind != EXACT for kind in kinds) else None


def _check_args(args: dict[str, Any], kinds: list[str]) -> None:
    used = [kind for kind in dict.fromkeys(kinds) if kind != EXACT]
    for name in args:
        if any(name in settings_of(kind) for kind in used):
            continue
        takers = [kind for kind in KINDS if name in settings_of(kind)]
        known = {setting for kind in used for setting in settings_of(kind)}
        hint = did_you_mean(name, known) or (
            "; ".join(f"{kind} takes {', '.join(settings_of(kind)) or 'none'}" for kind in used)
            or f"set {KEY}={takers[0] if takers else 'window'}"
        )
        whose = f", but of {', '.join(takers)}" if takers else ""
        raise UserError(
            f"is no setting of {', '.join(used) or 'exact attention'}{whose}",
            key=f"{ARGS}.{name}",
            value=shown(args[name]),
            remedy=hint,
        )


def _settled(entry: Entry, args: dict[str, Any], model: Any, number: int) -> Entry:
    kind = entry["kind"]
    own = {name: value for name, value in entry.items() if name != "kind"}
    if kind == EXACT:
        known: dict[str, Any] = {}
    else:
        known = settings_of(kind)
    for name in own:
        if name not in known:
            raise UserError(
                f"is no setting of {kind}", key=f"{KEY}: {name}", value=shown(own[name]),
                remedy=did_you_mean(name, known) or f"it takes {', '.join(known) or 'none'}",
            )  # fmt: skip
    if kind == EXACT:
        return {"kind": EXACT}
    own = {name: value for name, value in args.items() if name in known} | own
    cls = class_of(kind)
    try:
        if hasattr(cls, "settled"):
            own = cls.settled(site_of(model, number), **own)
        else:
            defaults = {n: v for n, v in known.items() if v is not inspect.Parameter.empty}
            own = defaults | own
        with torch.device("meta"):
            module = construct({"kind": kind, **own}, copy.deepcopy(model.blocks[number].attn), model, number)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{kind} cannot be built: {first_line(error)}", key=ARGS, value=shown(own), remedy="see docs/attention.md"
        ) from None  # fmt: skip
    rate = float(model.blocks[number].attn.attn_drop.p)
    if rate and not getattr(module, "drops", False):
        raise UserError(
            f"{kind} has no probabilities that could be dropped", key="model.args.attn_drop_rate", value=rate,
            remedy="model.args.proj_drop_rate, or leave it out",
        )  # fmt: skip
    return {"kind": kind, **own}
