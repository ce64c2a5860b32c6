"""Distillation: learn from a teacher's outputs beside the labels (Hinton et al. 2015).

Adds one per-sample loss term. This file declares the technique and needs no torch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Optional

from effvit_train.config import Config, RecipeConfig
from effvit_train.errors import UserError, at_least, between
from effvit_train.models.config import ModelConfig
from effvit_train.parts import READS_TRAINING_DATA, Attachment, Context, Part

if TYPE_CHECKING:
    from effvit_train.compress.distill.teacher import Teacher


@dataclass
class TrainedTeacherConfig:
    """`compress.distill.trained.*`: the teacher that is trained first where none is given.

    It sees the student's training images, with its own recipe and seed, whatever `trainer.*` says.

    Attributes:
        model: its architecture; `name: auto` picks a convnet by image size.
        recipe: its recipe.
        max_epochs: its length, within the two limits below (see `epochs`).
        min_steps: a small set is passed over more often, up to this many optimizer steps.
        max_steps: a large set less often.
        seed: of its weights, order and augmentation.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    max_epochs: int = 60
    min_steps: int = 2400
    max_steps: int = 20_000
    seed: int = 0

    def epochs(self, images: int) -> int:
        """Passes over `images` training images: `max_epochs`, or as many as the limits on steps allow."""
        steps = max(1, images // self.recipe.batch_size)
        return max(math.ceil(self.min_steps / steps), min(self.max_epochs, math.ceil(self.max_steps / steps)))


@dataclass
class DistillConfig:
    """`compress.distill.*`.

    Attributes:
        teacher: a run directory of ours, or a timm model name; null trains one first.
        pretrained: a timm teacher's published weights are loaded.
        weights: a file with a timm teacher's weights, instead of the published ones.
        temperature: softens both distributions (Hinton 2015, eq. 1).
        weight: share of the distillation term in the loss; the labels keep the rest.
        trained: the teacher that is trained first where none is given.
    """

    teacher: Optional[str] = None
    pretrained: bool = True
    weights: Optional[str] = None
    temperature: float = 2.0
    weight: float = 0.5
    trained: TrainedTeacherConfig = field(default_factory=TrainedTeacherConfig)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        if not self.temperature > 0:
            raise UserError(
                "must be positive",
                key="compress.distill.temperature",
                value=self.temperature,
                remedy="e.g. 2.0",
            )
        between("compress.distill.weight", self.weight, 0.0, 1.000001, example="0.5")
        for key in ("max_epochs", "min_steps", "max_steps"):
            at_least(f"compress.distill.trained.{key}", getattr(self.trained, key), 1)
        if self.weights is not None and self.teacher is None:
            raise UserError(
                "are the weights of no teacher",
                key="compress.distill.weights",
                value=self.weights,
                remedy="name its architecture too, e.g. compress.distill.teacher=resnet18",
            )
        if self.teacher is not None and os.path.isdir(os.path.expanduser(self.teacher)):
            self.teacher = os.path.abspath(os.path.expanduser(self.teacher))  # found again on resume
        if self.weights is not None:
            self.weights = os.path.abspath(os.path.expanduser(self.weights))
        try:
            self.trained.model.validate()
            self.trained.recipe.validate()
        except UserError as error:
            raise error.under("compress.distill.trained") from None


PART = Part(
    name="distill",
    key="compress",
    active=lambda config: "distill" in config.compress,
    schema=DistillConfig,
    does=frozenset({READS_TRAINING_DATA}),
)


def attach(config: Config, context: Context) -> Attachment:
    """Find or train the teacher and return the distillation term (see `term.SoftTerm`)."""
    from effvit_train.compress.distill.teacher import find_teacher
    from effvit_train.compress.distill.term import SoftTerm

    distill: DistillConfig = config.compress["distill"]
    teacher: Teacher = find_teacher(distill, context)
    term = SoftTerm(teacher, context.info, temperature=distill.temperature, weight=distill.weight)
    return Attachment(
        terms=[term], label_weight=1.0 - distill.weight, provenance={"teacher": teacher.provenance}
    )
