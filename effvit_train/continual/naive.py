"""Fine-tuning from task to task: the lower bound."""

from __future__ import annotations

from dataclasses import dataclass

from effvit_train.config import Config
from effvit_train.parts import Attachment, Context, Part


@dataclass
class NaiveConfig:
    """`continual.naive`: has no settings."""

    def validate(self) -> None:
        """Nothing can be wrong."""


PART = Part(
    name="naive", key="continual", active=lambda config: "naive" in config.continual, schema=NaiveConfig
)


def attach(config: Config, context: Context) -> Attachment:
    """Add nothing."""
    return Attachment()
