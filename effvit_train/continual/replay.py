"""Experience replay: some images of earlier tasks are kept, and shown again beside the new ones.

Chaudhry et al. 2019, "On tiny episodic memories in continual learning". This file declares the technique and
needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from effvit_train.config import Config
from effvit_train.continual.memory.config import MemoryConfig
from effvit_train.parts import EARLIER_IMAGES, Attachment, Context, Part

NAME = "replay"
_KEY = "continual.replay"


@dataclass
class ReplayConfig(MemoryConfig):
    """`continual.replay.*`: see `MemoryConfig`."""

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        self.check(_KEY)


PART = Part(
    name=NAME,
    key="continual",
    active=lambda config: NAME in config.continual,
    schema=ReplayConfig,
    does=frozenset({EARLIER_IMAGES}),
)


def attach(config: Config, context: Context) -> Attachment:
    """Fill a share of each batch with images of the memory."""
    from effvit_train.continual.memory.rehearsal import remember

    memory = remember(config.continual[NAME], context, _KEY)
    return Attachment(rehearsal=memory, provenance={NAME: memory.facts()})
