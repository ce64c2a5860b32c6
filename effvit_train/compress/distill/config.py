"""The typed configuration of distillation. Needs no torch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any, Optional

from effvit_train.config import RecipeConfig
from effvit_train.errors import UserError, at_least, between, kinds_of, one_of
from effvit_train.models.config import ModelConfig

LOGIT_KINDS = ("soft", "hard", "self")
KINDS = ("soft", "hard", "token", "feature", "relation", "attention", "self")
ALL = "all"
_KEY = "compress.distill"
MAX_INDEX = 65_536  # classes that a cached record can name


@dataclass
class TrainedTeacherConfig:
    """`compress.distill.trained.*`: the teacher that is trained first where none is given.

    It sees the student's training images, with its own recipe and seed, whatever `trainer.*` says.

    Attributes:
        model: its architecture; `name: auto` picks a convnet by image size, or a ViT where a kind
            needs one (see `find.default_teacher`).
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
class FeatureConfig:
    """`compress.distill.feature.*`: kind `feature` (Romero et al. 2015, FitNets).

    Attributes:
        weight: of the term.
        loss: cosine | mse, between the projected student's and the teacher's features.
        blocks: the student's blocks, counted from 0, or from the end below 0; `all` of them.
        teacher_blocks: the teacher's, one for each of the student's; null takes those at the same depth
            of a ViT, and of a convnet the last stage that is no coarser than half the student's grid.
    """

    weight: float = 1.0
    loss: str = "cosine"
    blocks: Any = field(default_factory=lambda: [-1])
    teacher_blocks: Optional[list[int]] = None


@dataclass
class RelationConfig:
    """`compress.distill.relation.*`: kind `relation` (Wang et al. 2021, MiniLMv2).

    Attributes:
        weight: of the term.
        relations: which of query, key, value: their products with themselves, between patches.
        heads: relation heads, into which both widths are cut; null takes as many as the student's
            attention heads, or the most below that divide both widths.
        block: the student's block.
        teacher_block: the teacher's; null takes the one at the same depth.
    """

    weight: float = 1.0
    relations: list[str] = field(default_factory=lambda: ["query", "key", "value"])
    heads: Optional[int] = None
    block: int = -1
    teacher_block: Optional[int] = None


@dataclass
class AttentionConfig:
    """`compress.distill.attention.*`: kind `attention` (Zhang et al. 2025, LoLCATs).

    Attributes:
        weight: of the term.
        blocks: numbers of the blocks whose attention learns from the teacher's; `all` whose attention is not the
            exact one.
    """

    weight: float = 1.0
    blocks: Any = ALL


@dataclass
class SelfConfig:
    """`compress.distill.ema.*`: kind `self`, whose teacher is the moving average of the student.

    Attributes:
        decay: of the average, per optimizer step (with timm's warm-up).
    """

    decay: float = 0.999


@dataclass
class CacheConfig:
    """`compress.distill.cache.*`: what the teacher said, kept on disk (Wu et al. 2022, TinyViT).

    Attributes:
        epochs: N: epoch e shows view e modulo N of each sample, and the teacher judges each view once;
            null runs the teacher at every step.
        top_k: classes kept of each record; null keeps all up to 100. The rest share what is left.
        dtype: float16 | float32, of the records.
        seed: of the augmentation, instead of the run's: runs with other seeds share the cache.
    """

    epochs: Optional[int] = None
    top_k: Optional[int] = None
    dtype: str = "float16"
    seed: int = 0


@dataclass
class DistillConfig:
    """`compress.distill.*`.

    Attributes:
        kinds: what is learnt: soft | hard | token | feature | relation | attention | self, in any mix. With `token`
            the distillation token's head learns what the teacher says (hard labels if neither soft nor
            hard is named), the class head the labels.
        teacher: a run directory of ours, or a timm model name, or a list of them (the mean of their
            distributions); `self` is the run that `model.weights` names; null trains one first.
        pretrained: a timm teacher's published weights are loaded.
        weights: a file with a timm teacher's weights, instead of the published ones.
        teacher_data: what a foreign teacher was trained on, in the user's words, for the card.
        image_size: pixels per side that a timm teacher sees; null = the student's. A run of ours sees
            its own.
        temperature: softens both distributions (Hinton 2015, eq. 1).
        weight: share of the loss that soft, hard and self have together; the labels keep the rest. null
            is 0.9 with soft and without hard labels, else 0.5 (Touvron 2021, eq. 3).
        feature, relation, attention, ema, cache: of these kinds, and of the cache.
        trained: the teacher that is trained first where none is given.
    """

    kinds: Any = field(default_factory=lambda: ["soft"])
    teacher: Any = None
    pretrained: bool = True
    weights: Optional[str] = None
    teacher_data: Optional[str] = None
    image_size: Optional[int] = None
    temperature: float = 1.0
    weight: Optional[float] = None
    feature: FeatureConfig = field(default_factory=FeatureConfig)
    relation: RelationConfig = field(default_factory=RelationConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    ema: SelfConfig = field(default_factory=SelfConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    trained: TrainedTeacherConfig = field(default_factory=TrainedTeacherConfig)

    @property
    def logit_kinds(self) -> tuple[str, ...]:
        """The kinds that compare distributions over the classes."""
        kinds = tuple(kind for kind in LOGIT_KINDS if kind in self.kinds)
        if "token" in self.kinds and not {"soft", "hard"} & set(kinds):
            kinds = ("hard", *kinds)
        return kinds

    @property
    def needs_teacher(self) -> bool:
        """Whether anything is learnt from another model."""
        return set(self.kinds) != {"self"}

    @property
    def needs_features(self) -> bool:
        """Whether a teacher's inner outputs are looked at."""
        return bool({"feature", "relation", "attention"} & set(self.kinds))

    @property
    def share(self) -> float:
        """Share of the loss of the kinds that compare distributions."""
        if not self.logit_kinds:
            return 0.0
        if self.weight is not None:
            return self.weight
        return 0.9 if "soft" in self.logit_kinds and "hard" not in self.logit_kinds else 0.5

    @property
    def teachers(self) -> list[str]:
        """The named teachers."""
        return [] if self.teacher is None else list(self.teacher)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        self.kinds = kinds_of(
            f"{_KEY}.kinds", self.kinds, KINDS, what="learn", one="soft", example="soft,feature"
        )
        self._check_teacher()
        if not self.temperature > 0:
            raise UserError(
                "must be positive", key=f"{_KEY}.temperature", value=self.temperature, remedy="e.g. 2.0"
            )
        if self.weight is not None:
            between(f"{_KEY}.weight", self.weight, 0.0, 1.000001, example="0.5")
            if not self.logit_kinds:
                raise UserError(
                    "is the share of soft, hard and self, none of which is asked for",
                    key=f"{_KEY}.weight", value=self.weight,
                    remedy=f"e.g. {_KEY}.feature.weight=1, or add soft to {_KEY}.kinds",
                )  # fmt: skip
        for key in ("max_epochs", "min_steps", "max_steps"):
            at_least(f"{_KEY}.trained.{key}", getattr(self.trained, key), 1)
        at_least(f"{_KEY}.image_size", self.image_size, 1)
        at_least(f"{_KEY}.feature.weight", self.feature.weight, 0)
        at_least(f"{_KEY}.relation.weight", self.relation.weight, 0)
        at_least(f"{_KEY}.attention.weight", self.attention.weight, 0)
        at_least(f"{_KEY}.relation.heads", self.relation.heads, 1)
        one_of(f"{_KEY}.feature.loss", self.feature.loss, ("cosine", "mse"))
        for relation in self.relation.relations:
            one_of(f"{_KEY}.relation.relations", relation, ("query", "key", "value"))
        self._check_blocks()
        between(f"{_KEY}.ema.decay", self.ema.decay, 0.0, 1.0, example="0.999")
        self._check_cache()
        try:
            self.trained.model.validate()
            self.trained.recipe.validate()
        except UserError as error:
            raise error.under(f"{_KEY}.trained") from None

    def _check_teacher(self) -> None:
        key = f"{_KEY}.teacher"
        if isinstance(self.teacher, str):
            self.teacher = [self.teacher]
        if self.teacher is not None:
            if not (isinstance(self.teacher, list) and self.teacher and all(map(_is_name, self.teacher))):
                raise UserError(
                    "must be a run directory, a timm model or a list of them",
                    key=key, value=self.teacher, remedy=f"e.g. {key}=resnet18",
                )  # fmt: skip
            # found again on resume, from wherever
            self.teacher = [
                os.path.abspath(path) if os.path.isdir(path := os.path.expanduser(name)) else name
                for name in self.teacher
            ]
            if not self.needs_teacher:
                raise UserError(
                    f"is not asked: {_KEY}.kinds=[self] learns from the student's own average",
                    key=key, value=self.teacher[0], remedy=f"add e.g. soft to {_KEY}.kinds",
                )  # fmt: skip
        if self.weights is not None:
            if self.teacher is None or len(self.teacher) > 1:
                raise UserError(
                    "are the weights of one teacher, whose architecture must be named",
                    key=f"{_KEY}.weights",
                    value=self.weights,
                    remedy=f"e.g. {key}=resnet18",
                )
            self.weights = os.path.abspath(os.path.expanduser(self.weights))

    def _check_blocks(self) -> None:
        feature = self.feature
        feature.blocks = _blocks(f"{_KEY}.feature.blocks", feature.blocks)
        self.attention.blocks = _blocks(f"{_KEY}.attention.blocks", self.attention.blocks)
        if (
            feature.teacher_blocks is not None
            and feature.blocks != ALL
            and len(feature.teacher_blocks) != len(feature.blocks)
        ):
            raise UserError(
                f"must name one block for each of {_KEY}.feature.blocks={feature.blocks}",
                key=f"{_KEY}.feature.teacher_blocks", value=feature.teacher_blocks, remedy="or leave it out",
            )  # fmt: skip
        if not self.relation.relations:
            raise UserError(
                "names no relation", key=f"{_KEY}.relation.relations", value="[]", remedy="e.g. [query,key,value]"
            )  # fmt: skip

    def _check_cache(self) -> None:
        cache, key = self.cache, f"{_KEY}.cache"
        at_least(f"{key}.epochs", cache.epochs, 1)
        at_least(f"{key}.top_k", cache.top_k, 1)
        at_least(f"{key}.seed", cache.seed, 0)
        one_of(f"{key}.dtype", cache.dtype, ("float16", "float32"))
        if cache.epochs is None:
            return
        for kind in ("feature", "relation", "attention"):
            if kind in self.kinds:
                raise UserError(
                    f"holds what the teacher said, not the inner outputs that kind {kind} needs at every step",
                    key=f"{key}.epochs", value=cache.epochs, remedy=f"leave {kind} out, or the cache",
                )  # fmt: skip
        if not self.needs_teacher:
            raise UserError(
                f"keeps nothing: {_KEY}.kinds=[self] has no teacher but the student itself",
                key=f"{key}.epochs", value=cache.epochs, remedy=f"leave it out, or add soft to {_KEY}.kinds",
            )  # fmt: skip


def _blocks(key: str, value: Any) -> Any:
    """Numbers of blocks, of which one alone needs no brackets, or `all`."""
    if value == ALL:
        return ALL
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int) for n in numbers):
        raise UserError(
            "names no block" if not numbers else "must be numbers of blocks, or all",
            key=key, value="[]" if not numbers else value, remedy=f"e.g. '{key}=[-1]' or {key}=all",
        )  # fmt: skip
    return numbers


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value)
