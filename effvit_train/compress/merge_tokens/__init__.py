"""Token merging (Bolya et al. 2023): similar tokens become one, block by block, in training or after it.

This file declares the technique and needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from effvit_train.compress import _by_record
from effvit_train.compress.merge_tokens.config import MergeTargetConfig, MergeTokensConfig
from effvit_train.config import Config
from effvit_train.parts import TAKES_TOKENS, Attachment, Context, Part

if TYPE_CHECKING:
    from effvit_train.models.record import ArchitectureRecord

__all__ = ["PART", "MergeTargetConfig", "MergeTokensConfig", "attach", "entry_for"]

NAME = "merge_tokens"

PART = Part(
    name=NAME,
    key="compress",
    active=lambda config: NAME in config.compress,
    schema=MergeTokensConfig,
    does=frozenset({TAKES_TOKENS}),
    refuses={TAKES_TOKENS: "decides by itself which tokens stay"},
)


def attach(config: Config, context: Context) -> Attachment:
    """Return the change at its moment; refuses a model or a target that cannot be, before anything begins."""
    from effvit_train.compress.merge_tokens.plan import plan

    return _by_record.attachment(NAME, config.compress[NAME], context.record, plan)


def entry_for(config: Config, record: ArchitectureRecord) -> dict[str, Any] | None:
    """See `_by_record.entry`."""
    from effvit_train.compress.merge_tokens.plan import plan

    return _by_record.entry(config.compress[NAME], record, plan)
