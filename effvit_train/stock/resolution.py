"""How fine a difference so many test images can show."""

from __future__ import annotations

import math
from dataclasses import dataclass

from effvit_train.paired import POWER_Z
from effvit_train.proportions import Z95, wilson

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Resolution:
    """What a number of test images shows at an accuracy.

    Attributes:
        accuracy: of a model.
        half_width: half of the 95 % Wilson interval of that accuracy.
        difference: two models with accuracies about this must differ by so much for a comparison of both
            proportions to find it (two-sided at 5 %) in 80 of 100 cases. Answers to the same images pair up,
            which makes a comparison finer, the more the models err on the same ones.
    """

    accuracy: float
    half_width: float
    difference: float


def resolution(images: int, accuracy: float) -> Resolution:
    """What `images` test images show of an accuracy."""
    low, high = wilson(round(images * accuracy), images)
    spread = math.sqrt(2 * accuracy * (1 - accuracy) / images)
    return Resolution(accuracy, (high - low) / 2, (Z95 + POWER_Z) * spread)


def provable(images: int) -> float:
    """The highest accuracy that a faultless model can be sure of: the lower end of its 95 % interval."""
    return wilson(images, images)[0]


def images_to_prove(accuracy: float) -> int:
    """How many test images, all of them right, show with 95 % confidence that an accuracy is reached.

    From Wilson's lower bound n / (n + z^2) of n right answers.
    """
    return math.ceil(accuracy * Z95**2 / (1 - accuracy) - 1e-9)
