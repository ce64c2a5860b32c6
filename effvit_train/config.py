"""The typed configuration and the rules of composition.

Hydra composes YAML onto these schemas, so that an unknown key or a wrong type is refused while
composing; `validate` refuses values that cannot be; `check_composition` refuses parts that do not
go together. Parts declare themselves (`Part`): a new technique edits nothing here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

from effvit_train.data.config import DatasetConfig
from effvit_train.errors import UserError, at_least, between, one_of
from effvit_train.interval import Interval
from effvit_train.models.config import TUNED, ModelConfig
from effvit_train.privacy.config import PrivacyConfig


@dataclass
class RecipeConfig:
    """`recipe.*`: how to train. Optimizers, schedules and RandAugment go by timm's names.

    Attributes:
        batch_size: images per optimizer step and process.
        optimizer: any name of `timm.optim.list_optimizers()`.
        lr: peak learning rate, as given (not scaled by the batch size).
        weight_decay: decoupled where the optimizer decouples it; none on biases and norms.
        opt_args: further arguments of the optimizer, such as `betas`.
        layer_decay: layer-wise learning-rate decay (timm's), null = off.
        schedule: cosine | linear | tanh | constant, per step (timm's).
        warmup: share of training spent on a linear warm-up.
        min_lr: final learning rate as a share of `lr`.
        clip_grad: largest global gradient norm, null = off.
        label_smoothing: share of the target spread over all classes.
        mixup: alpha of the Beta distribution (Zhang 2018), 0 = off.
        cutmix: alpha of the Beta distribution (Yun 2019), 0 = off.
        randaugment: timm's policy string such as `rand-m9-mstd0.5-inc1`, null = off.
        erasing: probability of random erasing (Zhong 2020), per image.
        ema: decay of the exponential moving average of the weights per step, 0 = off.
        tune: what is trained: all | head, the classifier | bias, it and all biases | lora, it and low-rank
            changes of the linear layers (Hu et al. 2022), which are merged into them at the end.
        lora_rank: rank of these changes.
    """

    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    opt_args: dict[str, Any] = field(default_factory=dict)
    layer_decay: Optional[float] = None
    schedule: str = "cosine"
    warmup: float = 0.1
    min_lr: float = 0.01
    clip_grad: Optional[float] = None
    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment: Optional[str] = None
    erasing: float = 0.0
    ema: float = 0.0
    tune: str = "all"
    lora_rank: int = 8

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        at_least("recipe.batch_size", self.batch_size, 1)
        at_least("recipe.lora_rank", self.lora_rank, 1)
        one_of("recipe.tune", self.tune, TUNED)
        if not self.lr > 0:
            raise UserError("must be positive", key="recipe.lr", value=self.lr, remedy="e.g. recipe.lr=0.001")
        at_least("recipe.weight_decay", self.weight_decay, 0)
        at_least("recipe.clip_grad", self.clip_grad, 0)
        one_of("recipe.schedule", self.schedule, ("cosine", "linear", "tanh", "constant"))
        for key in ("warmup", "min_lr", "label_smoothing", "ema"):
            between(f"recipe.{key}", getattr(self, key), 0.0, 1.0, example="0.1")
        between("recipe.erasing", self.erasing, 0.0, 1.0001, example="0.25")
        at_least("recipe.mixup", self.mixup, 0)
        at_least("recipe.cutmix", self.cutmix, 0)
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise UserError(
                "must be in (0, 1]", key="recipe.layer_decay", value=self.layer_decay, remedy="e.g. 0.75"
            )


@dataclass
class TrainerConfig:
    """`trainer.*`: where and how long to train; Lightning's names where it has one.

    Attributes:
        max_epochs: passes over the training images.
        accelerator: auto | cpu | gpu | cuda | mps.
        devices: number of processes, or `auto`.
        num_nodes: machines.
        strategy: auto | ddp | fsdp or any name that Lightning knows.
        precision: `auto` decides by processor and width; else Lightning's name (`32-true`,
            `bf16-mixed`, `16-mixed`).
        num_threads: threads of CPU kernels per process; null keeps torch's choice.
        deterministic: deterministic kernels on CUDA too.
        check_val_every_n_epoch: epochs between two validations.
        checkpoint_every: time between two checkpoints such as `5m`, or epochs such as `1epoch`; null = as
            often as saving takes at most 1 % of the time. Also at every best epoch, at the end and when a
            signal stops the run.
        log_every_n_steps: steps between two points of the training curves.
        limit_train_batches: batches per training epoch, null = all.
        limit_val_batches: batches per validation, null = all.
        limit_test_batches: batches of the test, null = all.
        fast_dev_run: one batch of everything, to see that all of it runs.
        progress_bar: show it.
        compile: `torch.compile` the model for training.
    """

    max_epochs: int = 100
    accelerator: str = "auto"
    devices: Union[int, str] = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"
    num_threads: Optional[int] = None
    deterministic: bool = True
    check_val_every_n_epoch: int = 1
    checkpoint_every: Optional[str] = None
    log_every_n_steps: int = 10
    limit_train_batches: Optional[int] = None
    limit_val_batches: Optional[int] = None
    limit_test_batches: Optional[int] = None
    fast_dev_run: bool = False
    progress_bar: bool = True
    compile: bool = False

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        for key in (
            "max_epochs", "num_nodes", "num_threads", "check_val_every_n_epoch", "log_every_n_steps",
            "limit_train_batches", "limit_val_batches", "limit_test_batches",
        ):  # fmt: skip
            at_least(f"trainer.{key}", getattr(self, key), 1)
        if not (self.devices == "auto" or (isinstance(self.devices, int) and self.devices > 0)):
            raise UserError(
                "must be a positive whole number or auto",
                key="trainer.devices", value=self.devices, remedy="e.g. trainer.devices=2",
            )  # fmt: skip
        one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu", "cuda", "mps"))
        one_of(
            "trainer.precision", self.precision,
            ("auto", "32-true", "bf16-mixed", "16-mixed"),
        )  # fmt: skip
        Interval.read(self.checkpoint_every, key="trainer.checkpoint_every")


@dataclass
class LoggerConfig:
    """`logger.*`: Weights & Biases.

    Attributes:
        enabled: write a W&B run at all.
        mode: `auto` is online when there is a login and the server answers, else offline;
            or online | offline. The environment's `WANDB_MODE` wins over `auto`.
        project, entity, group, name, tags: as in `wandb.init`.
    """

    enabled: bool = True
    mode: str = "auto"
    project: str = "effvit_train"
    entity: Optional[str] = None
    group: Optional[str] = None
    name: Optional[str] = None
    tags: list[str] = field(default_factory=list)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        one_of("logger.mode", self.mode, ("auto", "online", "offline"))


# Parts of an audit beyond quality, cost and privacy (`axes.parts`).
AXES = (
    "calibration", "fairness", "spectral", "predictors", "tokens", "ood", "corruptions", "transparency",
    "approximation", "complexity", "adversarial",
)  # fmt: skip
FOREIGN = ("auto", "digits", "fashion_mnist", "cifar10", "synthetic", "image_folder")


@dataclass
class AuditConfig:
    """`audit.*`: what to measure after training. `quality/*` and `cost/*` are always measured.

    Attributes:
        level: none | quick | full: how much beyond quality and cost.
        latency_runs: timed inferences at batch 1.
        throughput_batch: images per batch for `cost/throughput`.
        throughput_runs: timed batches.
        num_threads: CPU threads while measuring; null = those of training.
        canaries: mislabelled validation images of which half, by coins, are trained on: they give a lower
            bound on epsilon. 0 plants none.
        shadow_models: an even number of models that are trained as this one is, on other halves of the
            attacked images: a stronger attack on members (RMIA), for as many trainings. 0 makes do without.
        shadow: this run is the shadow model of this number; set by the attack.
        parts: axes to measure, of `AXES`, whatever the level; null = those of the level.
        groups: columns of `dataset.labels_csv` to compare; the first one's figures are the card's. null = all with
            few values.
        min_cell: images that a group needs to be compared.
        ood: a data set of other things (digits | fashion_mnist | cifar10 | synthetic | image_folder), which the model
            should doubt; auto = digits, or synthetic for a model of digits.
        ood_root: its directory.
        mc_dropout: passes with dropout left on (Gal & Ghahramani 2016); 0 = none.
        ensemble: finished runs whose probabilities are averaged with this one's (Lakshminarayanan et al. 2017).
        corrupted_images: stratified test images for the corruptions; null = all.
        attacked_images: the same for PGD and AutoAttack.
        attack_epsilon: largest change of a pixel, of 1; null = 0.1 for
            Fashion-MNIST, else 8/255 up to 84 px, 4/255 above.
        explained_images: the same for explanations.
    """

    level: str = "quick"
    latency_runs: int = 100
    throughput_batch: int = 64
    throughput_runs: int = 10
    num_threads: Optional[int] = None
    canaries: int = 0
    shadow_models: int = 0
    shadow: Optional[int] = None
    parts: Optional[list[str]] = None
    groups: Optional[list[str]] = None
    min_cell: int = 30
    ood: Optional[str] = None
    ood_root: Optional[str] = None
    mc_dropout: int = 0
    ensemble: list[str] = field(default_factory=list)
    corrupted_images: Optional[int] = 1000
    attacked_images: Optional[int] = 256
    attack_epsilon: Optional[float] = None
    explained_images: Optional[int] = 128

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        if self.canaries and self.canaries < 2:
            raise UserError(
                "must be 0 or at least 2",
                key="audit.canaries",
                value=self.canaries,
                remedy="e.g. audit.canaries=1000",
            )
        if self.shadow_models < 0 or self.shadow_models % 2:
            raise UserError(
                "must be even: each image is in half of them", key="audit.shadow_models", value=self.shadow_models,
                remedy="e.g. audit.shadow_models=4",
            )  # fmt: skip
        one_of("audit.level", self.level, ("none", "quick", "full"))
        for key in ("latency_runs", "throughput_batch", "throughput_runs", "num_threads"):
            at_least(f"audit.{key}", getattr(self, key), 1)
        for key in ("min_cell", "corrupted_images", "attacked_images", "explained_images"):
            at_least(f"audit.{key}", getattr(self, key), 1)
        at_least("audit.mc_dropout", self.mc_dropout, 0)
        if self.attack_epsilon is not None:
            between("audit.attack_epsilon", self.attack_epsilon, 0.0, 1.0, example="0.03")
        if self.ood is not None:
            one_of("audit.ood", self.ood, FOREIGN)
        for name in self.parts or ():
            one_of("audit.parts", name, AXES)


EARLIER = ("auto", "all", "test", "none")


@dataclass
class UpdateConfig:
    """`update.*`: what `effvit update` starts from, and what its verdict follows (docs/update.md).

    Attributes:
        after: run directory of the shipped model; null = this run is no update.
        root: where that run's data set is now; null = where it was.
        earlier: which images of that run may be looked at: all | test, none of its training images | none |
            auto, all that are at hand and not private. The start replaces `auto` by what it found.
        asked: what was asked for, before the start replaced it; none forbids to test on them too.
        tolerance: loss of accuracy that is accepted, as a share of the images.
        level: of the tests and intervals.
        budgets: that the new model has to keep, as `effvit check` reads them.
        confident: the worse end of a budgeted measure's interval counts.
    """

    after: Optional[str] = None
    root: Optional[str] = None
    earlier: str = "auto"
    asked: str = "auto"
    tolerance: float = 0.02
    level: float = 0.05
    budgets: list[str] = field(default_factory=list)
    confident: bool = False

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        one_of("update.earlier", self.earlier, EARLIER)
        one_of("update.asked", self.asked, EARLIER)
        between("update.tolerance", self.tolerance, 0.0, 1.0, example="0.02")
        if not 0 < self.level < 0.5:
            raise UserError(
                "must be above 0 and below 0.5", key="update.level", value=self.level, remedy="e.g. 0.05"
            )


@dataclass
class Config:
    """The whole configuration. `compress` and `continual` map each active technique to its own schema."""

    seed: int = 0
    name: str = ""
    run_dir: str = ""
    resume: Optional[str] = None
    cache_dir: str = ""
    model: ModelConfig = field(default_factory=ModelConfig)
    compress: dict[str, Any] = field(default_factory=dict)
    continual: dict[str, Any] = field(default_factory=dict)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
