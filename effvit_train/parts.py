"""How parts declare themselves and what they are given.

A technique is a module in `compress/` or `privacy/` that holds `PART` (its declaration, needs no
torch) and `attach(config, context) -> Attachment` (what it adds to the training). The rules of
composition follow from the declarations: a new technique edits no table.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.keys import AugmentStream
from effvit_train.models.config import ModelConfig
from effvit_train.moment import Moment

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pytorch_lightning import Callback
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from effvit_train.card import Measured
    from effvit_train.data.info import DataInfo
    from effvit_train.data.stream import Rehearsal, Stream
    from effvit_train.models.record import ArchitectureRecord
    from effvit_train.models.surgery import Operation

# What a part can do, in the words that other parts refuse.
MIXES_SAMPLES = "mixes samples"
READS_TRAINING_DATA = "reads the training data"
UNDECLARED_DATA = "has learnt from data that nobody declared"
FREEZES_WEIGHTS = "trains few of the weights"
ROUNDED_WEIGHTS = "weights that are rounded while they train"
IN_TASKS = "comes task by task"
EARLIER_IMAGES = "looks at training images of earlier tasks"
CHANGES_GRADIENTS = "changes the gradients after they were computed"
TAKES_TOKENS = "takes tokens away"
LOSES_PATCHES = "leaves patches without a token"
NEW_WEIGHTS = "puts other weights in the place of those that were trained"


@dataclass(frozen=True)
class Part:
    """Declaration of one technique, or of one feature of the recipe.

    Attributes:
        name: as the user types it.
        key: the configuration key that switches it on, such as `compress` or `recipe.mixup`.
        active: whether this configuration switches it on.
        schema: the technique's typed configuration.
        does: its capabilities (the constants above).
        refuses: capability -> why this part cannot stand it, in one clause.
        switch_off: takes the part out of a configuration; None where nothing can.
        adapt: the model to build instead of the configured one; None leaves it.
        stream: the views of the samples that it needs; None leaves a new one in every epoch.
        instead: what to do where another part refuses this one; empty = leave one of them out.
        resolve: replaces, in the technique's own configuration, what stands for something said elsewhere.
    """

    name: str
    key: str
    active: Callable[[Config], bool]
    schema: type | None = None
    does: frozenset[str] = frozenset()
    refuses: Mapping[str, str] = field(default_factory=dict)
    switch_off: Callable[[Config], None] | None = None
    adapt: Callable[[Config], ModelConfig] | None = None
    stream: Callable[[Config], AugmentStream | None] | None = None
    resolve: Callable[[Config], None] | None = None
    instead: str = ""


@dataclass(frozen=True)
class Step:
    """What a loss term may look at: one training step, per sample.

    Attributes:
        images: (B, C, H, W) normalised.
        labels: (B,).
        targets: (B, K) probabilities.
        logits: (B, K) of the class head.
        index: (B,) sample ids, on the CPU.
        variant: number of the view of the samples (see `keys.AugmentStream`).
        token_logits: (B, K) of the distillation token's head, where the model has one.
        outputs: name of a submodule -> what it gave, for those that a term taps.
        memo: what the terms of one step share, such as one pass of a teacher.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor
    logits: Tensor
    index: Tensor
    variant: int = 0
    token_logits: Tensor | None = None
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)


class Term:
    """A named loss term.

    Attributes:
        name: of its curve.
        weight: in the total loss.
        taps: names of the model's submodules whose outputs it reads from `Step.outputs`.
        module: what it learns or keeps beside the model: in every checkpoint, never shipped.
    """

    name: str
    weight: float = 1.0
    taps: tuple[str, ...] = ()
    module: nn.Module | None = None

    def __call__(self, step: Step) -> Tensor:
        """Return the unreduced term, shape (B,)."""
        raise NotImplementedError

    def after_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step; `step` counts from 1."""

    def after_cut(
        self, model: nn.Module, operations: Sequence[Operation], optimizer: Optimizer | None
    ) -> None:
        """Called after the model was cut: bring what the term keeps of it, or learns for it, up to date."""


class Gradients(Protocol):
    """Takes the place of autograd's backward pass."""

    def compute(self, module: Any, batch: Any, number: int) -> dict[str, Any]:
        """Compute the gradients of batch `number` of the epoch; returns what `training_step` returns."""
        ...

    def write(self, module: Any) -> None:
        """Leave them where the optimizer looks."""
        ...

    def after_cut(self) -> None:
        """The model was cut."""
        ...


@dataclass(frozen=True)
class Decided:
    """A change of the architecture that has been decided on.

    Attributes:
        operations: that carry it out on the model as it is.
        entry: of the architecture record.
        facts: for the card, JSON.
        words: what is said of it, one line.
    """

    operations: Sequence[Operation]
    entry: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    words: str = ""


@dataclass(frozen=True)
class PlannedChange:
    """One change of the architecture, at a moment of the training or after it.

    `decide(module, data, epoch)` looks at the module (`module.model` is trained, `module.shipped` ships), at the
    DataModule where it reads images, and returns the change, or None where none is needed. It changes nothing,
    and its result is a function of the weights, the data and the seed: one process decides for all.

    Attributes:
        name: of the technique.
        key: of the moment's setting.
        moment: when; 1 is after the last step, on the weights that ship.
        decide: what is to be changed.
        leaves: what it leaves of the model, in the words that changes after it refuse.
        refuses: such words -> why it cannot come after a change that leaves that, in one clause.
        trains: the setting that asked for it, where it does nothing but shape the training after it; else empty.
    """

    name: str
    key: str
    moment: Moment
    decide: Callable[[Any, Any, int], Decided | None]
    leaves: frozenset[str] = frozenset()
    refuses: Mapping[str, str] = field(default_factory=dict)
    trains: str = ""


class Keeper:
    """What a technique keeps of the tasks of a stream that have ended, and does with the model between them."""

    def after_task(self, module: Any, data: Any, task: int) -> None:
        """Called after the last step of a task, before the model is tested, on all processes alike.

        Of tasks that the model knew before the training it is called before the first step.

        Args:
            module: the VisionModule; `module.model` is trained, `module.shipped` ships.
            data: the DataModule, with its `stream`.
            task: the number of the task that has ended; 0 is the first.
        """
        raise NotImplementedError

    def kept(self) -> dict[str, Any]:
        """What it keeps, for checkpoints: tensors and plain values."""
        return {}

    def restore(self, module: Any, kept: dict[str, Any]) -> None:
        """Take over what `kept` told; the module is as it was then, cuts included."""

    def memory(self) -> int:
        """Bytes that it keeps of earlier tasks."""
        return 0


@dataclass
class Attachment:
    """What a technique adds to the training.

    Attributes:
        terms: loss terms to add.
        label_weight: factor on the weight of the label term.
        label_factor: factors (B,) on the label term of each sample.
        callbacks: Lightning callbacks.
        provenance: entries of the card's `provenance`.
        ahead: work on views of samples that can be done before the training (`effvit cache`).
        preview: shows what would be done instead of doing it: (module, data) -> something to print.
        review: looks at the card's provenance when all techniques are attached; may refuse, or keep and fill it.
        measured: what the technique knows for the card when the training has ended.
        changes: of the architecture, at their moments.
        alone: from when to when no other technique may change the architecture.
        view: what the student is shown of a step's images, when they are augmented and mixed:
            (images (B, C, H, W), step, steps of the whole training) -> images. Each image by itself, and a
            function of the seed and the step. Terms and evaluation see the images as they were.
        rehearsal: which samples of earlier tasks of a stream are shown again.
        cumulative: whether each task of a stream is trained on all tasks so far.
        keepers: what is told of the ends of tasks, in this order.
    """

    terms: list[Term] = field(default_factory=list)
    label_weight: float = 1.0
    label_factor: Callable[[Step], Tensor] | None = None
    callbacks: list[Callback] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    ahead: Ahead | None = None
    preview: Callable[[Any, Any], Any] | None = None
    review: Callable[[dict[str, Any]], None] | None = None
    measured: Callable[[], Measured] | None = None
    changes: list[PlannedChange] = field(default_factory=list)
    alone: tuple[Moment, Moment] | None = None
    view: Callable[[Tensor, int, int], Tensor] | None = None
    rehearsal: Rehearsal | None = None
    cumulative: bool = False
    keepers: list[Keeper] = field(default_factory=list)


class Ahead(Protocol):
    """Work that can be done ahead for views of samples, and is kept where the training finds it."""

    def missing(self, ids: npt.NDArray[np.int64], variant: int) -> npt.NDArray[np.bool_]:
        """For which of the samples (n,) it is still to be done."""
        ...

    def fill(self, images: Tensor, ids: npt.NDArray[np.int64], variant: int) -> None:
        """Do it for normalised images (B, C, H, W)."""
        ...

    def finish(self) -> None:
        """All of it has been done: see that it lasts."""
        ...


@dataclass(frozen=True)
class Context:
    """What a technique is given when it is attached.

    `train(config, what)` trains a model with a configuration of its own, kept under `cache_dir`
    keyed by everything that shaped it, and returns its run directory; a second call finds it.
    `test_accuracy(predict, mean, std)` is the accuracy on the test images of a function from images
    normalised with `mean` and `std` to logits.

    `train_ids` are the sample ids of the training split (n,), ascending; `absent_ids` are those whose slots in
    it are empty; `stream` says which views of
    them the training shows; `device` is the type of device that it will use. `total_steps(processes)` are
    the optimizer steps of the whole training. Where the data come in tasks, `stream_of_tasks` are the tasks, and
    `labels_of(ids)` the classes (n,) of samples (n,).
    """

    config: Config
    info: DataInfo
    train_ids: npt.NDArray[np.int64]
    absent_ids: npt.NDArray[np.int64]
    stream: AugmentStream
    device: str
    model: nn.Module
    record: ArchitectureRecord
    train: Callable[[Config, str], Path]
    test_accuracy: Callable[[Callable[[Tensor], Tensor], Sequence[float], Sequence[float]], float]
    total_steps: Callable[[int], int]
    say: Callable[[str], None]
    stream_of_tasks: Stream | None = None
    labels_of: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]] | None = None


def discover(*packages: str) -> dict[str, ModuleType]:
    """Import the technique modules of the given packages: technique name -> module."""
    found: dict[str, ModuleType] = {}
    for package in packages:
        parent = importlib.import_module(package)
        for entry in pkgutil.iter_modules(parent.__path__):
            if not entry.name.startswith("_"):
                module = importlib.import_module(f"{package}.{entry.name}")
                if isinstance(getattr(module, "PART", None), Part):
                    found[module.PART.name] = module
    return found


def _off(*keys: str) -> Callable[[Config], None]:
    def switch_off(config: Config) -> None:
        for key in keys:
            setattr(config.recipe, key, 0.0)

    return switch_off


RECIPE_PARTS: tuple[Part, ...] = (
    Part(
        name="stream",
        key="dataset.stream",
        active=lambda config: config.dataset.stream is not None,
        does=frozenset({IN_TASKS}),
        instead="train the first task privately, then effvit update RUN_DIR: the epsilons compose",
    ),
    Part(
        name="mixup",
        key="recipe.mixup",
        active=lambda config: config.recipe.mixup > 0,
        does=frozenset({MIXES_SAMPLES}),
        switch_off=_off("mixup"),
    ),
    Part(
        name="cutmix",
        key="recipe.cutmix",
        active=lambda config: config.recipe.cutmix > 0,
        does=frozenset({MIXES_SAMPLES}),
        switch_off=_off("cutmix"),
    ),
    Part(
        name="gradient clipping",
        key="recipe.clip_grad",
        active=lambda config: config.recipe.clip_grad is not None,
        does=frozenset({CHANGES_GRADIENTS}),
        switch_off=lambda config: setattr(config.recipe, "clip_grad", None),
    ),
    Part(
        name="frozen weights",
        key="recipe.tune",
        active=lambda config: config.recipe.tune != "all",
        does=frozenset({FREEZES_WEIGHTS}),
        instead="recipe.tune=all",
    ),
)


def check_composition(
    config: Config, parts: Sequence[Part], typed: set[str], say: Callable[[str], None]
) -> None:
    """Refuse or resolve combinations of active parts that cannot go together.

    Args:
        config: the configuration; a part that only a default brought in is switched off in it.
        parts: the declarations of all known parts.
        typed: the keys that the user gave.
        say: prints one line.

    Raises:
        UserError: the user typed both sides, or neither side can be switched off.
    """
    active = [part for part in parts if part.active(config)]
    for refusing in active:
        for other in active:
            reasons = [refusing.refuses[c] for c in sorted(other.does) if c in refusing.refuses]
            if other is refusing or not reasons or not other.active(config):
                continue
            if other.key not in typed and other.switch_off is not None:
                other.switch_off(config)
                say(f"{other.key} switched off: {refusing.key}={refusing.name} {reasons[0]}")
            else:
                raise UserError(
                    f"cannot be combined with {refusing.key}={refusing.name}, which {reasons[0]}",
                    key=other.key,
                    value=_value(config, other),
                    remedy=other.instead or f"leave out {other.key} or {refusing.key}={refusing.name}",
                )


def _value(config: Config, part: Part) -> object:
    node: Any = config
    for name in part.key.split("."):
        node = node.get(name) if isinstance(node, dict) else getattr(node, name, None)
    return part.name if isinstance(node, dict) or node is None else node
