"""What the rest of the house knows about a data set."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class DataInfo:
    """Facts of a prepared data set; goes to the card's provenance.

    Attributes:
        name: name of the data set; of an image folder, the folder's.
        classes: class names, in the order of the labels.
        input_shape: (C, H, W) of what the model sees.
        mean, std: per channel, of training pixels in 0..1.
        counts: images per split (`train`, `val`, `test`, `unused`).
        class_counts: per split, images per class.
        fingerprint: SHA-256 over content, labels and splits (see `data.fingerprint`).
        split: how the splits came to be (`source`, `seed`, `group`, `train_fraction`).
        groups: group column -> its values, sorted.
        skipped: number of bad images left out (`on_bad_image=skip`).
        ignored: number of files that are not images.
    """

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: dict[str, int]
    class_counts: dict[str, list[int]]
    fingerprint: str
    split: dict[str, Any]
    groups: dict[str, list[str]] = field(default_factory=dict)
    skipped: int = 0
    ignored: int = 0

    def public(self) -> DataInfo:
        """These facts without what was measured on training images: constants in its place."""
        channels = self.input_shape[0]
        return replace(
            self,
            mean=(0.5,) * channels,
            std=(0.5,) * channels,
            class_counts={
                name: found for name, found in self.class_counts.items() if name in ("val", "test")
            },
        )

    def to_json(self) -> dict[str, Any]:
        """JSON for the card's provenance."""
        return asdict(self)
