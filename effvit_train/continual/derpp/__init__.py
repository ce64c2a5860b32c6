"""DER++ (Buzzega et al. 2020, arXiv 2004.07211): replay, and on what is shown again the logits of its own task.

This file declares the technique and needs no torch; what is minimised stands in `terms`.
"""

from __future__ import annotations

from effvit_train.config import Config
from effvit_train.continual.derpp.config import KEY, DerppConfig
from effvit_train.parts import EARLIER_IMAGES, MIXES_SAMPLES, Attachment, Context, Part

__all__ = ["PART", "DerppConfig", "attach"]

NAME = "derpp"

PART = Part(
    name=NAME,
    key="continual",
    active=lambda config: NAME in config.continual,
    schema=DerppConfig,
    does=frozenset({EARLIER_IMAGES}),
    refuses={MIXES_SAMPLES: "compares what the model says of one image, not of a mixture, with what it said"},
)


def attach(config: Config, context: Context) -> Attachment:
    """Fill a share of each batch with images of the memory, and hold on to the logits kept of them."""
    from effvit_train.continual.derpp.terms import KeptLogits, LogitsTerm, label_factor
    from effvit_train.continual.memory.rehearsal import remember

    settings: DerppConfig = config.continual[NAME]
    memory = remember(settings, context, KEY, logits=len(context.info.classes))
    kept = KeptLogits(memory)
    return Attachment(
        terms=[LogitsTerm(kept, settings.alpha)],
        label_factor=label_factor(kept, settings.beta),
        provenance={NAME: memory.facts() | {"alpha": settings.alpha, "beta": settings.beta}},
        rehearsal=memory,
        keepers=[kept],
    )
