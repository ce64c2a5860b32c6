"""The one place that combines the parts: configuration -> data, module, callbacks, trainer."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, Strategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from effvit_train.card import Measured
from effvit_train.changing import Changes
from effvit_train.checkpoint_file import Found
from effvit_train.checkpoints import CheckpointIO, Checkpoints
from effvit_train.config import Config
from effvit_train.curves import Curves
from effvit_train.data.datamodule import Augment, DataModule
from effvit_train.data.stream import Rehearsal, Stream
from effvit_train.errors import UserError
from effvit_train.interval import Interval
from effvit_train.kernels import choose_attention
from effvit_train.keys import AugmentStream, stream_key
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, embed_width
from effvit_train.models.heads import CannotGrowError, logits_layers
from effvit_train.models.quantised import refuse_training
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.tuning import tune
from effvit_train.module import VisionModule, check_recipe
from effvit_train.parts import Ahead, Attachment, Context
from effvit_train.precision import Precision, choose_precision
from effvit_train.report.tracking import Tracker
from effvit_train.runs import RunDir
from effvit_train.seen import Seen, merge, of_start, of_training
from effvit_train.signals import Stop
from effvit_train.streaming import Streaming
from effvit_train.techniques import techniques
from effvit_train.updating import check_strategies, earlier, lineage, starting_model


@dataclass
class Built:
    """Everything that a run needs, wired."""

    data: DataModule
    module: VisionModule
    record: ArchitectureRecord
    precision: Precision
    attention: str
    changes: Changes
    callbacks: list[pl.Callback] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    ahead: list[Ahead] = field(default_factory=list)
    previews: list[Callable[[Any, Any], Any]] = field(default_factory=list)
    measured: list[Callable[[], Measured]] = field(default_factory=list)
    streaming: Streaming | None = None


def build(
    config: Config,
    *,
    precision: str | None,
    train: Callable[[Config, str, str], Path],
    say: Callable[[str], None],
) -> Built:
    """Build data, model, techniques and module.

    Args:
        config: a validated configuration.
        precision: what an earlier start of this run chose; None chooses now.
        train: trains a model with another configuration, given what it is for and the fingerprint
            of the data (see `parts.Context`).
        say: prints one line.

    Raises:
        UserError: the data, the model or their combination is not possible.
    """
    check_recipe(config.recipe)
    if config.audit.shadow_models and (config.trainer.devices, config.trainer.num_nodes) != (1, 1):
        raise UserError(
            "are trained by a single process", key="audit.shadow_models", value=config.audit.shadow_models,
            remedy="trainer.devices=1, or audit.shadow_models=0",
        )  # fmt: skip
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    device_type = check_device(config)
    active = [module for module in techniques().values() if module.PART.active(config)]
    stream = _stream(config, active)
    data = build_data(config, stream, say)
    info = data.info
    torch.manual_seed(stream_key("weights", config.seed))
    if config.update.after is None:
        model, record = create(
            _student(config, active),
            input_shape=info.input_shape,
            classes=info.classes[: data.stream.seen(0)] if data.stream is not None else info.classes,
            mean=info.mean,
            std=info.std,
            say=say,
        )
    else:
        check_strategies(config, active, data)
        model, record = starting_model(config, _student(config, active))
    tune(model, config.recipe.tune, rank=config.recipe.lora_rank, example=torch.zeros(1, *info.input_shape))
    if config.recipe.tune != "all" and not (config.model.weights or config.model.pretrained):
        say(
            f"recipe.tune={config.recipe.tune}: what is not trained stays random (model.weights=RUN_DIR starts elsewhere)"
        )
    attention = choose_attention(model, device_type=device_type)
    chosen = choose_precision(
        precision or config.trainer.precision, device_type=device_type, width=embed_width(model)
    )

    def test_accuracy(
        predict: Callable[[Tensor], Tensor], mean: Sequence[float], std: Sequence[float]
    ) -> float:
        return _accuracy(data, predict, mean, std)

    def train_here(other: Config, what: str) -> Path:
        if config.update.after is not None:
            raise UserError(
                "needs a model to be trained first, and an update trains one only", key="update.after",
                value=config.update.after, remedy="give a finished run, e.g. compress.distill.teacher=RUN_DIR",
            )  # fmt: skip
        return train(other, what, info.fingerprint)

    epochs = _epochs(config, data.stream)
    total_steps = functools.partial(_total_steps, config, len(data.train_dataloader()), epochs)
    context = Context(
        config,
        info,
        data.indices("train"),
        data.indices("train")[:0] if data.canaries is None else data.canaries.left_out,
        stream,
        device_type,
        model,
        record,
        train_here,
        test_accuracy,
        total_steps,
        say,
        data.stream,
        data.labels_of,
    )
    refuse_training(model)
    attached: list[Attachment] = [technique.attach(config, context) for technique in active]
    module = VisionModule(
        model,
        record,
        config.recipe,
        total_steps=total_steps,
        seed=config.seed,
        terms=[term for attachment in attached for term in attachment.terms],
        label_weight=_product(attachment.label_weight for attachment in attached),
        label_factors=[a.label_factor for a in attached if a.label_factor is not None],
        stream=stream,
        compiled=config.trainer.compile,
        views=[attachment.view for attachment in attached if attachment.view is not None],
        cycles=1 if data.stream is None else len(data.stream.tasks) - data.stream.first,
        classes=len(info.classes),
    )
    provenance: dict[str, Any] = {"teacher": None, "privacy": None, "pruning": None}
    # a private training writes its own entry, with what it spent
    seen = [[] if config.privacy.on else merge(*map(of_training, data.shown)), of_start(config.model)]
    for attachment in attached:
        seen.append(attachment.provenance.get("seen") or [])
        provenance |= attachment.provenance
    provenance["seen"] = merge(*seen)
    if config.update.after is not None:
        provenance["lineage"] = lineage(config, data, provenance["seen"])
    for attachment in attached:
        if attachment.review is not None:
            attachment.review(provenance)
    try:
        module.configure_optimizers()  # refuse now what would fail after the run has begun
    except (AssertionError, ImportError, RuntimeError) as error:
        raise UserError(
            f"cannot be built on this machine ({' '.join(str(error).split())[:80]})",
            key="recipe.optimizer",
            value=config.recipe.optimizer,
            remedy="e.g. recipe.optimizer=adamw",
        ) from None
    callbacks = [callback for attachment in attached for callback in attachment.callbacks]
    streaming = None
    if data.stream is not None:
        _check_growth(model, data.stream, len(record.classes), config)
        streaming = _stream_tasks(data, attached, config, say)
    ahead = [attachment.ahead for attachment in attached if attachment.ahead is not None]
    previews = [attachment.preview for attachment in attached if attachment.preview is not None]
    measured = [attachment.measured for attachment in attached if attachment.measured is not None]
    changes = Changes(
        [change for attachment in attached for change in attachment.changes],
        {t.PART.name: a.alone for t, a in zip(active, attached, strict=True) if a.alone is not None},
        provenance,
        say,
    )
    return Built(
        data,
        module,
        record,
        chosen,
        attention,
        changes,
        callbacks,
        provenance,
        ahead,
        previews,
        measured,
        streaming,
    )


def _check_growth(model: nn.Module, stream: Stream, classes: int, config: Config) -> None:
    """Refuse now what would fail when the first new class comes."""
    if stream.seen(len(stream.tasks) - 1) > classes:
        try:
            logits_layers(model)
        except CannotGrowError as error:
            raise UserError(
                str(error), key="model.name", value=config.model.name,
                remedy="choose another model, e.g. model=vit_s",
            ) from None  # fmt: skip


def _stream_tasks(
    data: DataModule, attached: Sequence[Attachment], config: Config, say: Callable[[str], None]
) -> Streaming:
    """What shows earlier samples again, and the callback of the tasks."""
    assert data.stream is not None
    rehearsals = [a.rehearsal for a in attached if a.rehearsal is not None]
    cumulative = any(a.cumulative for a in attached)
    if len(rehearsals) + cumulative > 1:
        raise UserError(
            "show earlier samples again in more than one way", key="continual", value=",".join(config.continual),
            remedy="choose one of them",
        )  # fmt: skip
    rehearsal = rehearsals[0] if rehearsals else None
    data.rehearse(rehearsal, cumulative=cumulative)
    keepers = [keeper for a in attached for keeper in a.keepers]
    return Streaming(
        data.stream, sorted(config.continual) or ["naive"], keepers,
        lambda task: _rehearsed(data, rehearsal, task, cumulative=cumulative), say,
    )  # fmt: skip


def _rehearsed(data: DataModule, rehearsal: Rehearsal | None, task: int, *, cumulative: bool) -> int:
    """Bytes of images that are kept after a task to be shown again."""
    assert data.stream is not None
    if cumulative:
        images = sum(len(part.train) for part in data.stream.tasks[: task + 1])
        return images * math.prod(data.info.input_shape)
    return 0 if rehearsal is None else rehearsal.memory(task)


def build_data(config: Config, stream: AugmentStream, say: Callable[[str], None]) -> DataModule:
    """The data of a run."""
    shadow, models = config.audit.shadow, config.audit.shadow_models
    return DataModule(
        config.dataset,
        batch_size=config.recipe.batch_size,
        seed=config.seed,
        cache_dir=Path(config.cache_dir),
        augment=Augment(config.recipe.randaugment, stream),
        canaries=config.audit.canaries,
        shadow=None if shadow is None else (shadow, models),
        public=config.privacy.on,
        epochs=None if config.trainer.fast_dev_run else config.trainer.max_epochs,
        after=None if config.update.after is None else earlier(config, say),
        say=say,
    )


def make_trainer(
    config: Config,
    built: Built,
    *,
    run_dir: RunDir,
    tracker: Tracker,
    bar: pl.Callback | None,
    stop: Stop | None = None,
    found: Found | None = None,
    saved: Callable[[int], None] = lambda epochs: None,
    say: Callable[[str], None] = print,
) -> pl.Trainer:
    """Lightning's Trainer with our callbacks: techniques first, then curves, checkpoints, bar.

    Args:
        config: a validated configuration.
        built: what `build` made of it.
        run_dir: where the files go.
        tracker: takes the curves.
        bar: shows the progress.
        stop: says when to stop.
        found: the checkpoint to go on from.
        saved: called after each save with the number of finished epochs.
        say: prints one line.
    """
    _quieten()
    settings = config.trainer
    io = CheckpointIO(run_dir, found)
    callbacks: list[pl.Callback] = [
        *([built.streaming] if built.streaming is not None else []),
        built.changes,
        *built.callbacks,
        Seen(built.provenance["seen"]),
        Curves(
            run_dir.metrics,
            len(built.data.info.classes),
            tracker.log,
            # a point within an epoch would tell how long its steps took, and so how many images they drew
            None if config.privacy.on else settings.log_every_n_steps,
            say,
        ),
        Checkpoints(
            run_dir,
            io,
            stop or Stop(),
            say=say,
            batch_size=config.recipe.batch_size,
            every=Interval.read(settings.checkpoint_every, key="trainer.checkpoint_every"),
            found=found,
            saved=saved,
        ),
    ]
    if bar is not None and settings.progress_bar:
        callbacks.append(bar)
    fast = 1 if settings.fast_dev_run else None
    trainer = functools.partial(
        pl.Trainer,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=_strategy(settings.strategy),
        precision=built.precision.name,  # type: ignore[arg-type]
        max_epochs=_epochs(config, built.data.stream),
        limit_train_batches=fast or settings.limit_train_batches,
        limit_val_batches=fast or settings.limit_val_batches,
        limit_test_batches=fast or settings.limit_test_batches,
        check_val_every_n_epoch=settings.check_val_every_n_epoch,
        gradient_clip_val=config.recipe.clip_grad,
        # CPU kernels repeat themselves at a fixed thread count; the switch would only slow them down
        deterministic=settings.deterministic if torch.cuda.is_available() else None,
        default_root_dir=run_dir.path,
        callbacks=callbacks,
        plugins=[io],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    try:
        return trainer()
    except (ValueError, MisconfigurationException) as error:
        raise UserError(
            " ".join(str(error).split())[:160],
            key="trainer.strategy",
            value=settings.strategy,
            remedy="e.g. trainer.strategy=auto",
        ) from None


def check_device(config: Config) -> str:
    """The type of the device that training will use; `UserError` when this machine has none."""
    wanted = config.trainer.accelerator
    if wanted in ("gpu", "cuda") and not torch.cuda.is_available():
        if wanted == "gpu" and torch.backends.mps.is_available():
            return "mps"
        raise UserError(
            "this machine shows torch no CUDA device",
            key="trainer.accelerator",
            value=wanted,
            remedy="use trainer=cpu, or install a CUDA build of torch",
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            "this machine has no MPS device",
            key="trainer.accelerator",
            value=wanted,
            remedy="use trainer=cpu",
        )
    device = wanted
    if wanted == "auto":
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    device = "cuda" if device == "gpu" else device
    devices = config.trainer.devices
    if device == "cuda" and isinstance(devices, int) and devices > torch.cuda.device_count():
        raise UserError(
            f"this machine has {torch.cuda.device_count()} GPU(s)",
            key="trainer.devices",
            value=devices,
            remedy=f"at most trainer.devices={torch.cuda.device_count()}",
        )
    if device == "cpu" and config.trainer.precision in ("16-mixed",):
        raise UserError(
            "fp16 autocast needs a GPU",
            key="trainer.precision",
            value="16-mixed",
            remedy="use bf16-mixed or auto",
        )
    return device


def _stream(config: Config, active: Sequence[ModuleType]) -> AugmentStream:
    """The views that a technique asks for, or a new one of each sample in every epoch."""
    for technique in active:
        wanted = technique.PART.stream(config) if technique.PART.stream is not None else None
        if wanted is not None:
            return wanted
    return AugmentStream(config.seed)


def _student(config: Config, active: Sequence[ModuleType]) -> ModelConfig:
    """The model to build: the configured one, or what a technique makes of it."""
    for technique in active:
        if technique.PART.adapt is not None:
            config = dataclasses.replace(config, model=technique.PART.adapt(config))
    return config.model


def _epochs(config: Config, stream: Stream | None) -> int:
    """Epochs of the whole training: of a `fast_dev_run` one, or one for each task."""
    if not config.trainer.fast_dev_run:
        return config.trainer.max_epochs
    return 1 if stream is None else len(stream.tasks) - stream.first


def _total_steps(config: Config, batches: int, epochs: int, world_size: int) -> int:
    """Optimizer steps of the whole training, given its epochs and the batches of one on one process."""
    # not trainer.estimated_stepping_batches, which drops a stateful loader's state (Lightning#20550)
    batches = max(1, batches // world_size)
    if config.trainer.limit_train_batches:
        batches = min(batches, config.trainer.limit_train_batches)
    if config.trainer.fast_dev_run:
        return epochs
    return batches * epochs


def _strategy(name: str) -> str | Strategy:
    # Buffers are not broadcast: ranks may evaluate different numbers of batches, and would wait for
    # one another for ever in a broadcast that only some of them reach.
    return DDPStrategy(broadcast_buffers=False) if name == "ddp" else name


@torch.no_grad()
def _accuracy(
    data: DataModule, predict: Callable[[Tensor], Tensor], mean: Sequence[float], std: Sequence[float]
) -> float:
    shape = (1, -1, 1, 1)
    offset, scale = torch.tensor(mean).view(shape), torch.tensor(std).view(shape)
    right = total = 0
    for batch in data.test_dataloader():
        logits = predict((batch.images.float() / 255 - offset) / scale)
        right += int((logits.argmax(dim=-1) == batch.labels).sum())
        total += len(batch.labels)
    return right / total


def _product(factors: Any) -> float:
    result = 1.0
    for factor in factors:
        result *= factor
    return result


def _quieten() -> None:
    """Silence what Lightning prints about itself; our own lines say what matters."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.raiseExceptions = False  # a full disk must not print a traceback for each line of W&B's log
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning_utilities"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",
        r".*The number of training batches.*smaller than the logging interval.*",
        r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*resuming from a checkpoint that ended before the epoch ended.*",  # our sampler starts there
        r".*`broadcast_buffers` is deprecated.*",  # what replaces it is not in older torch
        r".*The `srun` command is available on your system but is not used.*",  # as on a login node
        r".*recommended to use `self.log\(.*sync_dist=True.*",  # the values are reduced already
        r".*module\(s\) in eval mode at the start of training.*",  # the average of the weights
    ):
        warnings.filterwarnings("ignore", message=message)
