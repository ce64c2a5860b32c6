"""Changes of an architecture, as a record holds them: which module knows which kind (contract C5).

A change is a list of operations and an entry of the record, `{"kind": ..., ...}`. The operations may hold
tensors (which units stay, a factor of a weight) and are carried out on all that follows the model; the entry
holds what is needed to build the same modules again, without weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from effvit_train.models.surgery import Operation, apply

# Kind -> the module whose `recorded(model, entry)` gives the operations of a recorded change.
_KINDS = {
    "lowrank": "effvit_train.models.low_rank",
    "prune": "effvit_train.models.surgery",
    "quantize": "effvit_train.models.quantised",
    "fake_quantize": "effvit_train.models.quantised",
    "resolution": "effvit_train.models.resolution",
    "merge_tokens": "effvit_train.models.tokens.change",
    "drop_tokens": "effvit_train.models.tokens.change",
    "grow_head": "effvit_train.models.heads",
}


def rebuild(model: nn.Module, changes: Sequence[Mapping[str, Any]]) -> None:
    """Change a model as recorded, in the recorded order; its weights are of no account.

    Raises `ValueError` for a change that cannot be made: the record is not of this model.
    """
    for change in changes:
        apply(model, recorded_operations(model, change))


def recorded_operations(model: nn.Module, change: Mapping[str, Any]) -> list[Operation]:
    """The operations that change a model's modules as recorded; raises as `rebuild` does."""
    if not isinstance(change, Mapping):
        raise ValueError(f"{change!r} is not a change in the architecture record")
    module = _KINDS.get(str(change.get("kind")))
    if module is None:
        raise ValueError(f"unknown change {change.get('kind')!r} in the architecture record")
    operations: list[Operation] = importlib.import_module(module).recorded(model, change)
    return operations
