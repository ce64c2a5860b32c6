"""Dropping tokens (Liang et al. 2022, EViT): those that the class token looks past are fused into one, or left out.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from effvit_train.compress.drop_tokens.config import DropTokensConfig
from effvit_train.config import Config
from effvit_train.moment import Moment
from effvit_train.parts import LOSES_PATCHES, TAKES_TOKENS, Attachment, Context, Part, PlannedChange

if TYPE_CHECKING:
    from effvit_train.models.record import ArchitectureRecord

__all__ = ["FEATURES", "PART", "DropTokensConfig", "attach", "entry_for"]

NAME = "drop_tokens"


def _loses(config: Config) -> bool:
    settings: DropTokensConfig | None = config.compress.get(NAME)
    return settings is not None and not settings.fuse


PART = Part(
    name=NAME,
    key="compress",
    active=lambda config: NAME in config.compress,
    schema=DropTokensConfig,
    does=frozenset({TAKES_TOKENS}),
    refuses={TAKES_TOKENS: "decides by itself which tokens stay"},
)

FEATURES = (
    Part(
        name="false",
        key="compress.drop_tokens.fuse",
        active=_loses,
        does=frozenset({LOSES_PATCHES}),
        instead="compress.drop_tokens.fuse=true",
    ),
)


def attach(config: Config, context: Context) -> Attachment:
    """Return the change at its moment; refuses a model or blocks that cannot be, before anything begins."""
    from effvit_train.compress.drop_tokens.plan import decide, plan

    settings: DropTokensConfig = config.compress[NAME]
    plan(settings, context.record)
    key = f"compress.{NAME}.start"
    start = Moment.read(settings.start, key=key, end=True)
    return Attachment(changes=[PlannedChange(NAME, key, start, functools.partial(decide, settings))])


def entry_for(config: Config, record: ArchitectureRecord) -> dict[str, Any] | None:
    """The change of a model, as its record would hold it; None where there is none. For what is never trained."""
    from effvit_train.compress.drop_tokens.plan import plan

    decided = plan(config.compress[NAME], record)
    return None if decided is None else decided.entry
