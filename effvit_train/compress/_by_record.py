"""Techniques whose change follows from the architecture record alone: no weight and no image decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from effvit_train.moment import Moment
from effvit_train.parts import Attachment, Decided, PlannedChange

if TYPE_CHECKING:
    from effvit_train.models.record import ArchitectureRecord

Plan = Callable[[Any, "ArchitectureRecord"], Decided | None]


def attachment(name: str, settings: Any, record: ArchitectureRecord, plan: Plan) -> Attachment:
    """The change at `settings.start`; refuses now what `plan(settings, record)` refuses."""
    plan(settings, record)
    key = f"compress.{name}.start"
    start = Moment.read(settings.start, key=key, end=True)

    def decide(module: Any, data: Any, epoch: int) -> Decided | None:
        return plan(settings, module.record)

    return Attachment(changes=[PlannedChange(name, key, start, decide)])


def entry(settings: Any, record: ArchitectureRecord, plan: Plan) -> dict[str, Any] | None:
    """The change of a model, as its record would hold it; None where there is none. For what is never trained."""
    decided = plan(settings, record)
    return None if decided is None else decided.entry
