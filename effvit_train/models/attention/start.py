"""Starting from the weights of an exact model, or of one whose attention was swapped in another way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.models.attention.kinds import EXACT, KINDS
from effvit_train.models.attention.swap import swap

State = dict[str, Tensor]


def beside(state: State, exact: Mapping[str, Tensor]) -> State:
    """What of a state belongs to a swapped attention, and to no exact model."""
    return {name: tensor for name, tensor in state.items() if name not in exact and ".attn." in name}


def swap_loaded(model: nn.Module, entries: Sequence[Any], extra: State) -> str:
    """Swap the attention of a model with its weights loaded.

    Args:
        model: exact, as its weights are.
        entries: of the record.
        extra: what a swapped source has beside; taken over where the names and shapes are the model's own.

    Returns:
        What was made of it, in words.
    """
    before = set(model.state_dict())
    swap(model, entries)
    added = {name: tensor for name, tensor in model.state_dict().items() if name not in before}
    known = {n: extra[n] for n in added if n in extra and extra[n].shape == added[n].shape}
    with torch.no_grad():
        for name, tensor in known.items():
            added[name].copy_(tensor)
    parameters = {name for name, _ in model.named_parameters()}
    fresh = [name for name in added if name not in known and name in parameters]
    return f"{described(entries)}; {_new(model, entries, fresh)}"


def described(entries: Sequence[Any]) -> str:
    """Kinds and the blocks that have them, such as `linear in blocks 0-5`."""
    kinds = [str(entry["kind"]) for entry in entries]
    parts = []
    for kind in dict.fromkeys(kinds):
        if kind != EXACT:
            parts.append(f"{kind} in {_blocks([n for n, own in enumerate(kinds) if own == kind])}")
    return ", ".join(parts)


def _new(model: nn.Module, entries: Sequence[Any], fresh: Sequence[str]) -> str:
    if not fresh:
        return "every weight is the loaded one"
    count = sum(model.get_parameter(name).numel() for name in fresh)
    names = list(dict.fromkeys(name.partition(".attn.")[2] for name in fresh))
    random = any(not KINDS[entry["kind"]].keeps for entry in entries if entry["kind"] != EXACT)
    start = "" if random else ", which begin as averages"
    return f"new: {', '.join(names)} ({count:,} parameters{start})"


def _blocks(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return "blocks " + ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)
