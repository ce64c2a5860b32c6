"""What else has seen data: the weights at the start, and teachers (contract C7)."""

from __future__ import annotations

from effvit_train.data.info import DataInfo
from effvit_train.errors import UserError
from effvit_train.seen import Entry


def check_seen(entries: list[Entry], info: DataInfo, public: list[str]) -> None:
    """Raise `UserError` for weights or a teacher whose data epsilon would not count (contract C7)."""
    keys = {"weights": "model.weights", "teacher": "compress.distill.teacher"}
    for entry in entries:
        if entry["via"] not in keys or entry["epsilon"] is not None:
            continue
        key, name = keys[entry["via"]], entry["name"]
        if entry["data"] is None:
            if entry["declared"] or entry["via"] in public:
                continue
            raise UserError(
                "nobody declared what it has learnt from: under privacy=dp_sgd it must be public", key=key,
                remedy=f"privacy.public=[{entry['via']}] if it is",
            )  # fmt: skip
        if entry["data"] == info.fingerprint or name == info.name:
            raise UserError(
                f"has learnt from {name} without differential privacy: epsilon would not count it", key=key,
                remedy="take one that was trained with privacy=dp_sgd, or on public data",
            )  # fmt: skip
        if name not in public:
            raise UserError(
                f"has learnt from {name}, which is not declared public", key=key,
                remedy=f"privacy.public=[{name}] if it is",
            )  # fmt: skip
