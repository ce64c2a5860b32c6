"""The typed schema of the `dataset` group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from effvit_train.errors import UserError, at_least, between, kinds_of, one_of

ON_BAD_IMAGE = ("error", "skip")
CROP_MODES = ("center", "squash", "border")
IN_MEMORY = ("auto", "true", "false")
STREAMS = ("class", "domain", "data", "corruption")
CLEAN = "none"  # of the kinds of corruption
# One of each family first, so that so many tasks as are asked for are as unlike as can be.
STREAM_KINDS = (
    CLEAN, "gaussian_noise", "motion_blur", "fog", "jpeg_compression", "contrast", "impulse_noise", "defocus_blur",
    "snow", "pixelate", "brightness", "shot_noise", "zoom_blur", "frost", "elastic_transform", "glass_blur",
)  # fmt: skip
STREAM_TASKS, STREAM_SEVERITY = 5, 3


@dataclass
class AugmentConfig:
    """`dataset.augment.*`: changes that keep the label of this data set's images.

    Attributes:
        shift: largest shift in pixels, each axis, drawn uniformly; the border is zero-padded.
        hflip: mirror left–right with probability one half.
        vflip: mirror top–bottom with probability one half.
        resized_crop: smallest share of the area kept by a random resized crop (1 = off).
    """

    shift: int = 0
    hflip: bool = False
    vflip: bool = False
    resized_crop: float = 1.0


@dataclass
class DatasetConfig:
    """`dataset.*`.

    Attributes:
        name: digits | fashion_mnist | cifar10 | image_folder | synthetic.
        root: directory of the data (unused by `digits` and `synthetic`).
        image_size: height = width in pixels after resizing; null keeps the set's own.
        channels: 1 or 3; null keeps the set's own.
        num_classes: null reads it from the data; otherwise it must agree (synthetic: sets it).
        num_samples: images of `synthetic`, all splits together.
        download: fetch a public set that is not under `root`.
        split_seed: fixes validation, test and `train_fraction`, whatever `seed` is.
        split_group: column of `labels_csv` whose groups are never divided between splits.
        val_fraction: share held out where the set has no validation split, of the images that the set
            itself assigns neither to validation nor to test.
        test_fraction: the same for test.
        train_fraction: share of the training split used (stratified), the rest is unused.
        labels_csv: table with `path,label` and group columns; default `root/labels.csv` if there.
        on_bad_image: `error` names the first bad files and stops; `skip` leaves them out, counted.
        crop_mode: how an image of another shape becomes square: `center` (shorter side to size,
            centre crop), `squash` (ignore the aspect), `border` (pad with its mean).
        max_pixels: larger images are refused (decompression bombs).
        in_memory: hold the decoded set as uint8; `auto` does so up to `memory_limit_mb`.
        memory_limit_mb: limit of `in_memory=auto`.
        num_workers: loader processes; null picks 0 in memory without RandAugment, else the number
            of cores.
        stream: null, all at once | class, new classes with each task | domain, the same classes in other
            circumstances | corruption, the same with corrupted images | data, portions: the training arrives task
            by task (docs/continual.md).
        tasks: how many; null = 5, or one for each value of `stream_group` or kind of corruption.
        stream_group: column of `labels_csv` whose values are the domains.
        stream_kinds: kinds of corruption, a task each; `none` leaves images as they are. null = `none`, then one of
            each family: gaussian_noise, motion_blur, fog, jpeg_compression, and more if there are more tasks.
        stream_severity: how strong they are, 1 to 5; null = 3.
        stream_order: seed of the order of classes, domains, corruptions or portions; null = the set's own.
        augment: see `AugmentConfig`.
    """

    name: str = "digits"
    root: Optional[str] = None
    image_size: Optional[int] = None
    channels: Optional[int] = None
    num_classes: Optional[int] = None
    num_samples: int = 2048
    download: bool = False
    split_seed: int = 0
    split_group: Optional[str] = None
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    train_fraction: float = 1.0
    labels_csv: Optional[str] = None
    on_bad_image: str = "error"
    crop_mode: str = "center"
    max_pixels: int = 100_000_000
    in_memory: str = "auto"
    memory_limit_mb: int = 2048
    num_workers: Optional[int] = None
    stream: Optional[str] = None
    tasks: Optional[int] = None
    stream_group: Optional[str] = None
    stream_kinds: Optional[list[str]] = None
    stream_severity: Optional[int] = None
    stream_order: Optional[int] = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        for key, allowed in (
            ("on_bad_image", ON_BAD_IMAGE),
            ("crop_mode", CROP_MODES),
        ):
            one_of(f"dataset.{key}", getattr(self, key), allowed)
        # on the command line `false` is a truth value, which arrives here as "False"
        one_of("dataset.in_memory", self.in_memory.lower(), IN_MEMORY)
        for key in ("val_fraction", "test_fraction"):
            between(f"dataset.{key}", getattr(self, key), 0.0, 1.0, example="0.1")
        value = self.train_fraction
        if not 0.0 < value <= 1.0:
            raise UserError("must be in (0, 1]", key="dataset.train_fraction", value=value, remedy="e.g. 0.2")
        for key in ("image_size", "num_samples", "max_pixels", "memory_limit_mb", "num_classes"):
            at_least(f"dataset.{key}", getattr(self, key), 2 if key == "num_classes" else 1)
        if self.channels not in (None, 1, 3):
            raise UserError(
                "must be 1, 3 or null", key="dataset.channels", value=self.channels, remedy="e.g. 3"
            )
        at_least("dataset.num_workers", self.num_workers, 0)
        if self.stream is not None:
            one_of("dataset.stream", self.stream, STREAMS)
        at_least("dataset.tasks", self.tasks, 2)
        at_least("dataset.stream_order", self.stream_order, 0)
        for key in ("tasks", "stream_group", "stream_kinds", "stream_severity", "stream_order"):
            if self.stream is None and getattr(self, key) is not None:
                raise UserError(
                    "is of a stream, and none is asked for", key=f"dataset.{key}", value=getattr(self, key),
                    remedy="add e.g. dataset.stream=class",
                )  # fmt: skip
        if self.stream_group is not None and self.stream != "domain":
            raise UserError(
                "names the domains of dataset.stream=domain", key="dataset.stream_group", value=self.stream_group,
                remedy="dataset.stream=domain",
            )  # fmt: skip
        self._validate_corruptions()
        at_least("dataset.augment.shift", self.augment.shift, 0)
        if not 0.0 < self.augment.resized_crop <= 1.0:
            raise UserError(
                "must be in (0, 1] (1 = off)",
                key="dataset.augment.resized_crop", value=self.augment.resized_crop, remedy="e.g. 0.35",
            )  # fmt: skip

    def _validate_corruptions(self) -> None:
        for key in ("stream_kinds", "stream_severity"):
            if getattr(self, key) is not None and self.stream != "corruption":
                raise UserError(
                    "is of dataset.stream=corruption", key=f"dataset.{key}", value=getattr(self, key),
                    remedy="dataset.stream=corruption",
                )  # fmt: skip
        if self.stream_severity is not None:
            between("dataset.stream_severity", self.stream_severity, 1, 6, example="3")
        if self.stream_kinds is not None:
            kinds_of(
                "dataset.stream_kinds", self.stream_kinds, STREAM_KINDS, what="show", one="none,fog",
                example="none,fog",
            )  # fmt: skip
            if self.tasks not in (None, len(self.stream_kinds)) or len(self.stream_kinds) < 2:
                raise UserError(
                    f"names {len(self.stream_kinds)} kind{'s' * (len(self.stream_kinds) != 1)}, and each is a task",
                    key="dataset.stream_kinds",
                    value=",".join(self.stream_kinds),
                    remedy="leave out dataset.tasks" if len(self.stream_kinds) > 1 else "name two or more",
                )  # fmt: skip
        elif self.stream == "corruption" and (self.tasks or 0) > len(STREAM_KINDS):
            raise UserError(
                f"are more than the {len(STREAM_KINDS)} kinds, none among them", key="dataset.tasks", value=self.tasks,
                remedy=f"at most dataset.tasks={len(STREAM_KINDS)}",
            )  # fmt: skip
