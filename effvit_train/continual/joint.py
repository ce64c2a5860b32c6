"""Training on all tasks so far: the upper bound, for which all data are kept."""

from __future__ import annotations

from dataclasses import dataclass

from effvit_train.config import Config
from effvit_train.parts import EARLIER_IMAGES, Attachment, Context, Part


@dataclass
class JointConfig:
    """`continual.joint`: has no settings."""

    def validate(self) -> None:
        """Nothing can be wrong."""


PART = Part(
    name="joint",
    key="continual",
    active=lambda config: "joint" in config.continual,
    schema=JointConfig,
    does=frozenset({EARLIER_IMAGES}),
)


def attach(config: Config, context: Context) -> Attachment:
    """Let each task's samples be those of all tasks so far."""
    return Attachment(cumulative=True)
