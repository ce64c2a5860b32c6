"""What travels inside an exported file: how to prepare images, what its classes are, where its weights are from.

Every format has a place for text by name. Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from effvit_train._version import __version__
from effvit_train.models.record import ArchitectureRecord

PREFIX = "effvit."
FP32, DYNAMIC, STATIC = "fp32", "int8 dynamic", "int8 static"
PRECISIONS = (FP32, DYNAMIC, STATIC)
_FORMULA = (
    "(pixel / 255 - mean) / std per channel; pixels of 8 bits, float32 (batch, channels, height, width)"
)


@dataclass(frozen=True)
class Facts:
    """What an exported file says of itself.

    Attributes:
        record: of the model; holds input shape, mean, std and class names.
        weights: SHA-256 of the run's `model.safetensors`.
        precision: of `PRECISIONS`.
        seen: JSON of what data the weights have seen (`effvit_train.seen`).
    """

    record: ArchitectureRecord
    weights: str
    precision: str
    seen: str = "[]"

    def to_text(self) -> dict[str, str]:
        """Text by name. All that a program without effvit_train needs stands under a name of its own."""
        record = self.record
        values = {
            "preprocessing": _FORMULA,
            "input_shape": json.dumps(record.input_shape),
            "mean": json.dumps(record.mean),
            "std": json.dumps(record.std),
            "classes": json.dumps(record.classes, ensure_ascii=False),
            "record": json.dumps(record.to_json(), ensure_ascii=False),
            "weights_sha256": self.weights,
            "precision": self.precision,
            "seen": self.seen,
            "version": __version__,
        }
        return {PREFIX + name: text for name, text in values.items()}

    @classmethod
    def from_text(cls, text: Mapping[str, str]) -> Facts | None:
        """What a file says; None for a file that is not of `effvit export`, or that says it wrongly."""
        try:
            return cls(
                ArchitectureRecord.from_json(json.loads(text[PREFIX + "record"])), text[PREFIX + "weights_sha256"],
                text[PREFIX + "precision"], text[PREFIX + "seen"],
            )  # fmt: skip
        except (KeyError, ValueError):
            return None


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
