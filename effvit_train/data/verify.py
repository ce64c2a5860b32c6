"""Every file of a streamed set is decoded once before training; the outcome is remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from effvit_train.data.config import DatasetConfig
from effvit_train.data.folder import Listing
from effvit_train.data.source import FileSource, decode_all, each
from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json

_SIZE = 8  # verification decodes wholly whatever the size that is asked for; small costs least memory
_SHOWN = 3


@dataclass(frozen=True)
class Verified:
    """What a pass over all files found.

    Attributes:
        bad: sample id -> reason.
        content: SHA-256 per file (see `Listing.content`), in hex, and "" for a bad one.
    """

    bad: dict[int, str]
    content: list[str]


def verify(
    listing: Listing,
    source: FileSource,
    *,
    channels: int,
    max_pixels: int,
    cache_dir: Path,
    say: Callable[[str], None],
) -> Verified:
    """Decode every file, or recall the outcome if no file was touched since.

    The outcome lies in `cache_dir/verified`, under a hash of all paths, sizes and times of change.
    """
    name = hashlib.sha256(f"{listing.key()} {max_pixels} {channels} {PIL.__version__}".encode()).hexdigest()
    file = cache_dir / "verified" / f"{name[:40]}.json"
    if file.is_file():
        known = read_json(file)
        return Verified({int(k): reason for k, reason in known["bad"].items()}, known["content"])
    say(f"checking {len(listing.paths):,} images (once: the outcome is remembered) ...")
    sizes = np.full(len(listing.paths), _SIZE)
    _, bad = decode_all(source, sizes, channels, keep=False)
    good = [k for k in range(len(listing.paths)) if k not in bad]
    content = [""] * len(listing.paths)
    for k, digest in zip(good, each(listing.content, good), strict=True):
        content[k] = digest.hex()
    try:
        write_json(file, {"bad": {str(k): bad[k] for k in sorted(bad)}, "content": content})
    except OSError as error:
        say(f"could not remember this in {file.parent} ({error.strerror}): the next run will check again")
    return Verified(bad, content)


def settle_bad(
    config: DatasetConfig, listing: Listing, bad: dict[int, str], say: Callable[[str], None]
) -> None:
    """Say which images are left out, or refuse to go on, as `dataset.on_bad_image` says."""
    if not bad:
        return
    first = sorted(bad)[:_SHOWN]
    names = ", ".join(f"{listing.paths[k]} ({bad[k]})" for k in first)
    names += ", ..." if len(bad) > _SHOWN else ""
    count = f"{len(bad)} of {len(listing.paths)} images cannot be used"
    if config.on_bad_image == "skip":
        say(f"{count} and are left out: {names}")
        return
    raise UserError(
        f"{count}: {names}",
        key="dataset.root", value=config.root, remedy="mend or remove them, or dataset.on_bad_image=skip",
    )  # fmt: skip
