"""The architecture record: what was built and what was cut, as data (contract C5)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json

SCHEMA = 1
# Arguments of `timm.create_model` that read files or fetch from a hub: no architecture, and a way in for
# somebody else's pickle. A source before the name (`hf-hub:`, `local-dir:`) does the same.
READS_FILES = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args", "checkpoint_path", "cache_dir"}
)  # fmt: skip


@dataclass(frozen=True)
class ArchitectureRecord:
    """Enough to rebuild a model without its class, a pickle or our configuration.

    Attributes:
        name: timm model name.
        kwargs: keyword arguments for `timm.create_model` (JSON values).
        input_shape: (C, H, W).
        classes: class names in the order of the outputs.
        mean, std: per channel; the model expects `(pixel / 255 - mean) / std`.
        cuts: structural changes in the order they were made; empty for an uncut model.
    """

    name: str
    kwargs: dict[str, Any]
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cuts: list[dict[str, Any]] = field(default_factory=list)

    def changed(self, entry: dict[str, Any]) -> ArchitectureRecord:
        """The record after one more change; `entry` tells its `kind`, and the names of classes that it adds."""
        classes = (*self.classes, *entry["classes"]) if entry["kind"] == "grow_head" else self.classes
        return replace(self, cuts=[*self.cuts, entry], classes=classes)

    def to_json(self) -> dict[str, Any]:
        """The content of `model.json`."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ArchitectureRecord:
        """Check and take over the content of a `model.json`.

        Raises `ValueError` when it is not one, or when building it would read other files.
        """
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise ValueError("not an architecture record of schema 1")
        if ":" in str(value.get("name")):
            raise ValueError(f"the model {value['name']} would be fetched from elsewhere: refused")
        try:
            for name in READS_FILES & set(value["kwargs"]):
                raise ValueError(f"the argument {name} would read another file: refused")
            channels, height, width = (int(n) for n in value["input_shape"])
            return cls(
                name=str(value["name"]),
                kwargs=dict(value["kwargs"]),
                input_shape=(channels, height, width),
                classes=tuple(str(c) for c in value["classes"]),
                mean=tuple(float(m) for m in value["mean"]),
                std=tuple(float(s) for s in value["std"]),
                cuts=list(value["cuts"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"incomplete architecture record: {error}") from None

    def write(self, path: Path) -> None:
        """Write `model.json` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> ArchitectureRecord:
        """Read a `model.json`; `UserError` when it is missing or is not one."""
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            raise UserError(f"no architecture record at {path}", remedy="give a run directory") from None
        except ValueError as error:
            raise UserError(f"{path}: {error}", remedy="give the model.json of a run") from None
