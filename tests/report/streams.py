"""A card's `continual`, made by hand, for tests of what is shown of a stream."""

from __future__ import annotations

import json
from pathlib import Path

from made import make_run

from effvit_train.audit.continual import measure_continual

# Four tasks. Forgotten of the first three: 0.9 - 0.3, 0.8 - 0.5, 0.6 - 0.65 -> mean (0.6 + 0.3 - 0.05) / 3.
R = [
    [0.9, 0.0, 0.0, 0.0],
    [0.7, 0.8, 0.0, 0.0],
    [0.4, 0.6, 0.6, 0.0],
    [0.3, 0.5, 0.65, 0.95],
]
WITHIN = [
    [0.9, 0.0, 0.0, 0.0],
    [0.85, 0.8, 0.0, 0.0],
    [0.75, 0.7, 0.6, 0.0],
    [0.75, 0.7, 0.7, 0.95],
]
NAMES = ("classes 0, 1", "classes 2, 3", "classes 4, 5", "classes 6, 7")


def continual(kind="class", accuracy=R, within=WITHIN, names=NAMES, test=100, **more):
    """`provenance.continual` of a finished stream."""
    count = len(names)
    return {
        "kind": kind, "strategies": ["naive"], "epochs_per_task": 3, "first": 0,
        "tasks": [
            {"name": name, "classes": [2 * k, 2 * k + 1], "train": 250 + k, "test": test} for k, name in enumerate(names)
        ],
        "accuracy": [list(row) for row in accuracy], "within_task": [list(row) for row in within], "before": [],
        "costs": [{"steps": 35, "seconds": 2.5 + k, "memory_bytes": 1_500_000 * k} for k in range(count)], **more,
    }  # fmt: skip


def stream_run(path: Path, found=None, **more) -> Path:
    """A run directory whose card holds a stream and its measures; `found=None` leaves the stream out."""
    make_run(path, **more)
    if found is None:
        return path
    card = json.loads((path / "card.json").read_text())
    card["provenance"]["continual"] = found
    if isinstance(found, dict):
        told = measure_continual(
            found["accuracy"], found["within_task"], found["before"], kind=found["kind"], costs=found["costs"]
        )
        card["measures"] |= {**told.values, **dict.fromkeys(told.missing)}
        card["missing"] |= told.missing
    (path / "card.json").write_text(json.dumps(card))
    return path
