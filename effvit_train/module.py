"""The LightningModule: forward, and a loss of named per-sample terms (contract C4)."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler, PolyLRScheduler, StepLRScheduler, TanhLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from effvit_train.config import RecipeConfig
from effvit_train.errors import UserError, did_you_mean
from effvit_train.keys import AugmentStream, stream_key
from effvit_train.models.changes import recorded_operations
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import Operation, apply
from effvit_train.models.tuning import merge
from effvit_train.parts import Gradients, Step, Term
from effvit_train.taps import Taps


class LabelTerm(Term):
    """Cross entropy against the (smoothed, mixed) label distribution, shape (B,).

    Args:
        weight: in the total loss.
        factors: by which each sample counts, (B,) each.
    """

    name = "label"

    def __init__(self, weight: float = 1.0, factors: Sequence[Callable[[Step], Tensor]] = ()) -> None:
        self.weight, self._factors = weight, list(factors)

    def __call__(self, step: Step) -> Tensor:
        """Return `-sum_k target_k log softmax(logits)_k` for each sample, times its factors."""
        loss = -(step.targets * F.log_softmax(step.logits, dim=-1)).sum(dim=-1)
        for factor in self._factors:
            loss = loss * factor(step)
        return loss


class VisionModule(pl.LightningModule):
    """Trains `model` on uint8 batches; losses are named terms of shape (B,) before reduction.

    Dropout and stochastic depth depend on (seed, step, rank), mixing on (seed, step, rank), erasing
    on (seed, epoch, sample): none of them on what ran before, so a restart repeats them.

    Args:
        model: maps normalised images (B, C, H, W) to logits (B, K).
        record: the architecture record; travels in every checkpoint.
        recipe: the training recipe.
        total_steps: number of processes -> optimizer steps of the whole training, where the
            schedule ends.
        seed: of everything random.
        terms: loss terms beside the label term.
        label_weight: weight of the label term.
        label_factors: by which each sample's label term is multiplied (see `parts.Attachment`).
        stream: which view of a sample an epoch shows; None = a new one in every epoch.
        compiled: run the training forward through `torch.compile`.
        views: what the model is shown of a training step's images, one after another (see `parts.Attachment`).
        cycles: how many times the learning rate goes through its schedule, once for each task of a stream.
        classes: that there will be in the end; None = as the record says.

    Attributes:
        unsettled: techniques that are still to change the architecture; while there are any, no checkpoint is
            the best.
        gradients: takes the place of autograd's backward pass; None leaves it to autograd.
        frozen: nothing is trained any more: steps are counted, and move no weight.
        figures: of a technique, for the curves of the epoch that ends.
    """

    def __init__(
        self,
        model: nn.Module,
        record: ArchitectureRecord,
        recipe: RecipeConfig,
        *,
        total_steps: Callable[[int], int],
        seed: int,
        terms: Sequence[Term] = (),
        label_weight: float = 1.0,
        label_factors: Sequence[Callable[[Step], Tensor]] = (),
        stream: AugmentStream | None = None,
        compiled: bool = False,
        views: Sequence[Callable[[Tensor, int, int], Tensor]] = (),
        cycles: int = 1,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.ema = ModelEmaV3(model, decay=recipe.ema, use_warmup=True) if recipe.ema else None
        if self.ema is not None:
            self.ema.module.requires_grad_(False)  # or DDP waits for gradients that never come
        self.record, self.recipe, self.seed = record, recipe, seed
        self.stream = stream or AugmentStream(seed)
        self.unsettled: set[str] = set()
        self.gradients: Gradients | None = None
        self.frozen = False
        self.figures: dict[str, float] = {}
        self.terms: list[Term] = [LabelTerm(label_weight, label_factors), *terms]
        self.term_modules = nn.ModuleDict(
            {term.name: term.module for term in self.terms if term.module is not None}
        )
        # after the average was copied from the model: it needs no taps
        self._taps = self._tap()
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.scheduler: Scheduler | None = None
        self._total_steps, self._cycles = total_steps, cycles
        self._views = list(views)
        self._classes = classes or len(record.classes)
        self._train_forward: Callable[[Tensor], Any] = torch.compile(model) if compiled else model.__call__
        self._mixup = _mixup(recipe, len(record.classes))
        self._erasing = RandomErasing(recipe.erasing, mode="const", device="cpu") if recipe.erasing else None
        shape = (1, record.input_shape[0], 1, 1)
        self.register_buffer("pixel_mean", torch.tensor(record.mean).view(shape) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(record.std).view(shape) * 255, persistent=False)

    @property
    def shipped(self) -> nn.Module:
        """The weights that ship: the moving average where there is one, else the model."""
        return self.model if self.ema is None else self.ema.module

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of the shipped weights for normalised images (B, C, H, W)."""
        return self.shipped(images)

    def settle(self) -> None:
        """The training is over: low-rank layers become part of the layers that they stand beside."""
        for model in (self.model, self.shipped):
            merge(model)
        self.terms = self.terms[:1]  # what others keep of the model does not follow it any further

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W) to what the model sees."""
        return (images.float() - self.pixel_mean) / self.pixel_std

    def loss_terms(self, step: Step) -> dict[str, Tensor]:
        """The unweighted terms by name, each of shape (B,)."""
        return {term.name: term(step) for term in self.terms}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms, shape (B,)."""
        return torch.stack([term.weight * terms[term.name] for term in self.terms]).sum(dim=0)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Return the mean loss for Lightning, and the batch means of the terms (detached)."""
        if self.frozen:
            return {"loss": torch.zeros((), device=self.device), "terms": {}}
        if self.gradients is not None:
            return self.gradients.compute(self, batch, batch_idx)
        images, targets = self._training_batch(batch)
        torch.manual_seed(stream_key("forward", self.seed, self.global_step, self.global_rank))
        output = self._train_forward(self._shown(images))
        terms = self._terms(batch, images, targets, self.current_epoch, output)
        loss = self.total(terms).mean()
        return {"loss": loss, "terms": {name: value.detach().mean() for name, value in terms.items()}}

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Let autograd compute the gradients, or write those that are there already."""
        if self.frozen:
            return
        if self.gradients is None:
            super().backward(loss, *args, **kwargs)
        else:
            self.gradients.write(self)

    def sample_losses(self, batch: Any, epoch: int, *, training: bool = False) -> Tensor:
        """What training minimises, for each sample (B,), of images that are not mixed.

        Args:
            batch: of the training.
            epoch: whose views of the samples these are.
            training: run the model as in training: on what a step shows it, compiled where that is asked for.
        """
        images = self.augmented(batch, epoch)
        targets = smooth(batch.labels, len(self.record.classes), self.recipe.label_smoothing)
        output = self._train_forward(self._shown(images)) if training else self.model(images)
        return self.total(self._terms(batch, images, targets, epoch, output))

    def planned_steps(self, processes: int) -> int:
        """Optimizer steps of the whole training on so many processes."""
        return self._total_steps(processes)

    def _shown(self, images: Tensor) -> Tensor:
        """Augmented images (B, C, H, W) as the model is given them in this step."""
        for view in self._views:
            images = view(images, self.global_step, self.planned_steps(self._world_size()))
        return images

    def _terms(
        self, batch: Any, images: Tensor, targets: Tensor, epoch: int, output: Any
    ) -> dict[str, Tensor]:
        logits, token_logits = output if isinstance(output, tuple) else (output, None)
        step = Step(
            images, batch.labels, targets, logits.float(), batch.index,
            variant=self.stream.variant(epoch),
            token_logits=None if token_logits is None else token_logits.float(),
            outputs=self._taps.take(),
        )  # fmt: skip
        return self.loss_terms(step)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return logits (B, K) of the shipped weights, labels and sample ids (B,)."""
        logits = self(self.normalise(batch.images)).float()
        # classes that have not come yet cannot be predicted
        logits = F.pad(logits, (0, self._classes - logits.shape[1]), value=-torch.inf)
        return {"logits": logits, "labels": batch.labels, "index": batch.index}

    test_step = validation_step

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set the learning rate as a function of the position: nothing to restore on resume."""
        assert self.scheduler is not None
        # not of `global_step`, which on a resume with other processes has counted other steps
        epoch_length = int(self.trainer.num_training_batches)
        step = self.current_epoch * epoch_length + batch_idx
        last = self._cycles - 1
        cycle = self._cycle_steps(self._world_size())
        self.scheduler.step_update(step - min(step // cycle, last) * cycle)

    @override
    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """Step, then update the moving average of the weights: before callbacks may save both."""
        if self.frozen:  # not even the optimizer's own: some move weights that have no gradient
            assert optimizer_closure is not None
            optimizer_closure()
            return
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.ema is not None:
            self.ema.update(self.model, step=self.global_step + 1)
        for term in self.terms:
            term.after_step(self.model, self.global_step + 1)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """timm's optimizer by name, with a schedule per step."""
        recipe = self.recipe
        try:
            optimizer = create_optimizer_v2(
                self.model, opt=recipe.optimizer, lr=recipe.lr, weight_decay=recipe.weight_decay,
                layer_decay=recipe.layer_decay, **recipe.opt_args,
            )  # fmt: skip
        except TypeError as error:
            raise UserError(
                f"{recipe.optimizer} does not take these arguments ({error})",
                key="recipe.opt_args",
                value=recipe.opt_args,
                remedy="e.g. '+recipe.opt_args.betas=[0.9,0.95]' with adamw",
            ) from None
        learnt = [parameter for parameter in self.term_modules.parameters() if parameter.requires_grad]
        if learnt:
            optimizer.add_param_group({"params": learnt})
        self.scheduler = _schedule(optimizer, recipe, self._cycle_steps(self._world_size()))
        return optimizer

    def cut(
        self,
        operations: Sequence[Operation],
        entry: dict[str, Any],
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        """Change the model and all that follows it: its moving average, what terms keep, the optimizer's state.

        Args:
            operations: the change.
            entry: of the architecture record.
            optimizer: that trains the model; None where there is none yet.
        """
        apply(self.model, operations, optimizer)
        if self.ema is not None:
            apply(self.ema.module, operations)
        for term in self.terms:
            term.after_cut(self.model, operations, optimizer)
        if self.gradients is not None:
            self.gradients.after_cut()
        self._taps.remove()  # modules may be others now
        self._taps = self._tap()
        self.record = self.record.changed(entry)
        self._mixup = _mixup(self.recipe, len(self.record.classes))

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the architecture record into the checkpoint: nothing needs a pickled class."""
        checkpoint["architecture"] = self.record.to_json()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Change the model as the checkpoint's was changed, before its weights are loaded.

        Raises `UserError` for weights of another architecture.
        """
        found = ArchitectureRecord.from_json(checkpoint["architecture"])
        cuts, own = found.cuts, self.record.cuts
        classes = found.classes[: len(self.record.classes)]
        same = dataclasses.replace(found, cuts=own, classes=classes).to_json() == self.record.to_json()
        if not same or cuts[: len(own)] != own:
            raise UserError(
                f"the checkpoint holds {found.name} {found.kwargs}, this run builds {self.record.name}",
                key="resume",
                remedy="resume with the configuration that the run was started with",
            )
        for entry in cuts[len(own) :]:
            self.cut(recorded_operations(self.model, entry), entry)

    def _tap(self) -> Taps:
        return Taps(self.model, [name for term in self.terms for name in term.taps], training_only=True)

    def _cycle_steps(self, world_size: int) -> int:
        return self._total_steps(world_size) // self._cycles

    def _world_size(self) -> int:
        return 1 if self._trainer is None else self.trainer.world_size

    def augmented(self, batch: Any, epoch: int) -> Tensor:
        """The batch's images (B, C, H, W) as training sees them, before samples are mixed."""
        images = self.normalise(batch.images)
        if self._erasing is not None:
            self._erasing.device = str(images.device)
            with _keyed_random(0):
                for image, index in zip(images, batch.index.tolist(), strict=True):
                    random.seed(self.stream.key("erasing", epoch, index))
                    self._erasing(image)
        return images

    def _training_batch(self, batch: Any) -> tuple[Tensor, Tensor]:
        images = self.augmented(batch, self.current_epoch)
        if self._mixup is not None:
            with _keyed_random(stream_key("mixup", self.seed, self.global_step, self.global_rank)):
                return self._mixup(images, batch.labels)
        return images, smooth(batch.labels, len(self.record.classes), self.recipe.label_smoothing)


def smooth(labels: Tensor, classes: int, smoothing: float) -> Tensor:
    """Label distributions (B, K): `1 - smoothing` on the label plus `smoothing / K` on every class.

    Szegedy et al. 2016, section 7; equal to `torch`'s `label_smoothing`.
    """
    targets = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    right = torch.full((len(labels), 1), 1 - smoothing, device=labels.device)
    return targets.scatter_add(1, labels[:, None], right)  # not in place, which `vmap` cannot do


def check_recipe(recipe: RecipeConfig) -> None:
    """Raise `UserError` for what only timm can tell: an optimizer that it does not know."""
    from timm.optim import list_optimizers

    names = [str(name) for name in list_optimizers()]
    if recipe.optimizer.lower() not in names:
        hint = did_you_mean(recipe.optimizer, names) or "e.g. recipe.optimizer=adamw"
        raise UserError(
            "is not an optimizer that timm knows", key="recipe.optimizer", value=recipe.optimizer, remedy=hint
        )
    if (recipe.mixup or recipe.cutmix) and recipe.batch_size % 2:
        raise UserError(
            "must be even with mixup or cutmix, which pair the images of a batch",
            key="recipe.batch_size",
            value=recipe.batch_size,
            remedy=f"e.g. recipe.batch_size={recipe.batch_size + 1}",
        )


def _mixup(recipe: RecipeConfig, classes: int) -> Mixup | None:
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        label_smoothing=recipe.label_smoothing,
        num_classes=classes,
    )


def _schedule(optimizer: torch.optim.Optimizer, recipe: RecipeConfig, total: int) -> Scheduler:
    warmup = round(recipe.warmup * total)
    common: dict[str, Any] = {
        "warmup_t": warmup, "warmup_lr_init": recipe.lr * 1e-3, "t_in_epochs": False,
    }  # fmt: skip
    after = max(1, total - warmup)
    floor = recipe.lr * recipe.min_lr
    if recipe.schedule == "constant":
        return StepLRScheduler(optimizer, decay_t=total + 1, **common)
    if recipe.schedule == "linear":
        return PolyLRScheduler(
            optimizer, t_initial=after, power=1.0, lr_min=floor, warmup_prefix=True, **common
        )
    if recipe.schedule == "tanh":
        return TanhLRScheduler(optimizer, t_initial=after, lr_min=floor, warmup_prefix=True, **common)
    return CosineLRScheduler(optimizer, t_initial=after, lr_min=floor, warmup_prefix=True, **common)


@contextlib.contextmanager
def _keyed_random(key: int) -> Iterator[None]:
    """Run timm's augmentations, which draw from global generators, on a stream of their own."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(key)
    np.random.seed(key % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
