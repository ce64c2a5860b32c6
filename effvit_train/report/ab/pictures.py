"""What the data set itself adds to a comparison: groups of the test images, and their pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from effvit_train.report.ab.sides import Side
from effvit_train.report.inputs import as_dict


@dataclass(frozen=True)
class Picture:
    """A test image.

    Attributes:
        png: base64.
        pixels: height = width of the test image.
        name: its file below the root, or empty.
    """

    png: str
    pixels: int
    name: str


@dataclass(frozen=True)
class Shown:
    """What there is to show.

    Attributes:
        groups: column -> number of a test image -> its group.
        no_groups: why they cannot be known, or empty.
        draw: numbers of images -> their pictures; None where there are none.
        no_pictures: why there are none, or empty.
    """

    groups: dict[str, dict[int, str]] = field(default_factory=dict)
    no_groups: str = ""
    draw: Callable[[Sequence[int]], dict[int, Picture]] | None = None
    no_pictures: str = ""


def wanted(side: Side, *, pictures: bool, columns: Sequence[str]) -> bool:
    """Whether the data set must be opened: for pictures, or for groups that it is known to have."""
    known = as_dict(as_dict(side.entries[0].card.provenance.get("dataset")).get("groups"))
    return pictures or bool(columns) or bool(known)
