"""Nearest class mean on frozen features: one task trains them, and nothing is trained after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from effvit_train.config import Config
from effvit_train.errors import UserError, one_of
from effvit_train.moment import Moment
from effvit_train.parts import EARLIER_IMAGES, FREEZES_WEIGHTS, Attachment, Context, Part

NAME = "ncm"
KEY = f"continual.{NAME}"
ADAPT = ("first", "none")
CLASSIFIERS = ("mean", "lda")


@dataclass
class NearestMeanConfig:
    """`continual.ncm.*`.

    Attributes:
        adapt: what trains the features: first, the first task (Panos et al. 2023, first-session adaptation) | none:
            the starting weights are used as they are.
        classifier: mean, the nearest class mean (Mensink et al. 2013) | lda, the same with the distance of
            Mahalanobis, under one covariance for all classes (Hayes & Kanan 2020, deep SLDA).
        shrinkage: of this covariance towards a multiple of the identity, in (0, 1]; 1 is the nearest mean again.
    """

    adapt: str = "first"
    classifier: str = "mean"
    shrinkage: float = 0.01

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        one_of(f"{KEY}.adapt", self.adapt, ADAPT)
        one_of(f"{KEY}.classifier", self.classifier, CLASSIFIERS)
        if not 0 < self.shrinkage <= 1:
            raise UserError(
                "must be in (0, 1]",
                key=f"{KEY}.shrinkage",
                value=self.shrinkage,
                remedy=f"e.g. {KEY}.shrinkage=0.01",
            )


PART = Part(
    name=NAME,
    key="continual",
    active=lambda config: NAME in config.continual,
    schema=NearestMeanConfig,
    does=frozenset({FREEZES_WEIGHTS, EARLIER_IMAGES}),
    instead="train and then effvit compress RUN_DIR",
)


def attach(config: Config, context: Context) -> Attachment:
    """Freeze the model and let class means classify; refuses what would have nothing to train.

    Raises:
        UserError: another strategy is on, or the model has no classifier that class means could be written into.
    """
    from effvit_train.continual.ncm.keeper import NearestMean
    from effvit_train.continual.ncm.layers import check

    settings: Any = config.continual[NAME]
    others = sorted(set(config.continual) - {NAME})
    if others:
        raise UserError(
            f"leaves {' and '.join(others)} nothing to do: nothing is trained after the first task", key="continual",
            value=",".join(sorted(config.continual)), remedy=f"choose {NAME} or {' or '.join(others)}",
        )  # fmt: skip
    check(context.model, context.info.input_shape)
    stream = context.stream_of_tasks
    assert stream is not None
    frozen_from = stream.epochs if settings.adapt == "first" and not stream.first else 0
    if not frozen_from and not (config.model.weights or config.model.pretrained):
        context.say(f"{KEY}.adapt=none: the features stay random (model.weights=RUN_DIR starts elsewhere)")
    keeper = NearestMean(settings)
    return Attachment(
        callbacks=[keeper],
        keepers=[keeper],
        # the means are of the features as they were
        alone=(Moment(frozen_from, "epoch"), Moment(1.0, "fraction")),
    )
