"""Dropping tokens (Liang et al. 2022, EViT): those that the class token looks past are fused into one, or left out.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effvit_train.compress import _by_record
from effvit_train.compress.drop_tokens.config import DropTokensConfig
from effvit_train.config import Config
from effvit_train.parts import LOSES_PATCHES, TAKES_TOKENS, Attachment, Context, Part

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
    from effvit_train.compress.drop_tokens.plan import plan

    return _by_record.attachment(NAME, config.compress[NAME], context.record, plan)


def entry_for(config: Config, record: ArchitectureRecord) -> dict[str, Any] | None:
    """See `_by_record.entry`."""
    from effvit_train.compress.drop_tokens.plan import plan

    return _by_record.entry(config.compress[NAME], record, plan)
