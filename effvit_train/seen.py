"""What data weights have seen, and under which epsilon: travels with them, from run to run (contract C7).

An entry is a JSON dictionary with the keys `name` (of the data set), `data` (its fingerprint), `images`
(of the training split), `epsilon` (null: no differential privacy; else there is a `delta` too) and `via`:
`training`, or `weights` or `teacher` where it came with them. Where nobody knows the data, all but `via`
are null, `name` is what somebody declared, and a further key `declared` says whether anybody did.

What is read may have been written by anybody: every value is checked, and a list that is not well
formed counts as none at all.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import safetensors
import torch
from typing_extensions import override

from effvit_train.files import read_json
from effvit_train.runs import RunDir

if TYPE_CHECKING:
    from effvit_train.data.info import DataInfo
    from effvit_train.models.config import ModelConfig

Entry = dict[str, Any]

KEY = "seen"  # in a card's provenance, a checkpoint, and the metadata of safetensors
VIA = ("training", "weights", "teacher")
_ENTRIES = 1000
_NAME = 200  # characters
_TEXT = 1 << 20  # characters of JSON: room for all entries
_CARD = 1 << 26  # bytes
_FINGERPRINT = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_IMAGES = 1 << 53
_EPSILON = sys.float_info.max


def of_training(info: DataInfo) -> list[Entry]:
    """What training without differential privacy on this data shows a model."""
    return [_entry(_clean(info.name), info.fingerprint, int(info.counts["train"]), None, "training")]


def of_private_training(info: DataInfo, sealed: str, *, epsilon: float, delta: float) -> Entry:
    """What differentially private training on this data shows a model.

    Args:
        info: of the data.
        sealed: stands for its fingerprint, which would tell who has the data that these are they.
        epsilon, delta: an upper bound of what was spent.
    """
    entry = _entry(_clean(info.name), sealed, int(info.counts["train"]), epsilon, "training")
    return entry | {"delta": delta}


def inherited(entries: Sequence[Entry], via: str) -> list[Entry]:
    """What somebody's weights or teacher have seen, as it reaches the one who takes them over."""
    return merge([{**entry, "via": via} for entry in entries])


def foreign(declared: str | None, via: str) -> list[Entry]:
    """What weights or a teacher of unknown data have seen; `declared` is what somebody says it was."""
    name = None if declared is None else _clean(declared)
    return [_entry(name, None, None, None, via) | {"declared": name is not None}]


def merge(*lists: Sequence[Entry]) -> list[Entry]:
    """All entries in their order, each once: the same data, name, epsilon and via are the same entry."""
    found: dict[tuple[Any, ...], Entry] = {}
    for entry in (entry for entries in lists for entry in entries):
        found.setdefault((*_facts(entry), entry["name"]), dict(entry))
    return list(found.values())


def of_start(model: ModelConfig) -> list[Entry]:
    """What the weights that a model starts from have seen; nothing where they are random."""
    if model.pretrained:
        import timm

        tag = str(getattr(timm.get_pretrained_cfg(model.name), "tag", None) or "")
        return foreign(f"timm's {model.name.partition('.')[0]}.{tag}" if tag else None, "weights")
    if not model.weights:
        return []
    path = Path(model.weights).expanduser()
    # the file is what is loaded; a card beside it may know more, and one copied beside it may know less
    files = [of_run(path), of_file(RunDir(path).weights)] if path.is_dir() else [of_file(path)]
    known = [entries for entries in files if entries is not None]
    return inherited(merge(*known), "weights") if known else foreign(None, "weights")


def of_run(run_dir: Path) -> list[Entry] | None:
    """What the model of a finished run has seen; None where its card is missing or does not tell."""
    path = RunDir(Path(run_dir)).card
    try:
        if not path.is_file() or path.stat().st_size > _CARD:
            return None
        card = read_json(path)
    except (OSError, ValueError, RecursionError):
        return None
    provenance = card.get("provenance") if isinstance(card, dict) else None
    if not isinstance(provenance, dict):
        return None
    return (checked(provenance[KEY]) if KEY in provenance else _of_older(card, provenance)) or None


def of_file(path: Path) -> list[Entry] | None:
    """What a `model.safetensors` or a checkpoint of ours says; None for any other file."""
    path = Path(path)
    try:
        if not path.is_file():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(KEY)
    except (OSError, safetensors.SafetensorError):
        return _of_pickled(path)
    return None if text is None else from_text(text)


def from_text(text: str) -> list[Entry] | None:
    """The entries of the JSON text in safetensors' metadata; None when it is not such a text."""
    try:
        return (checked(json.loads(text)) or None) if len(text) <= _TEXT else None
    except (ValueError, RecursionError):
        return None


def to_text(entries: Sequence[Entry]) -> str:
    """JSON for safetensors' metadata; the same entries give the same text."""
    return json.dumps(list(entries), allow_nan=False)


def checked(value: object) -> list[Entry] | None:
    """The entries in what was read from a file, without keys that are none of ours; None if malformed."""
    if not isinstance(value, list) or len(value) > _ENTRIES:
        return None
    entries = [_checked_entry(entry) for entry in value]
    return None if None in entries else merge([entry for entry in entries if entry is not None])


class Seen(pl.Callback):
    """Keeps the list in every checkpoint, and takes over what the loaded one says.

    Args:
        entries: what the weights have seen as far as the configuration tells; changed in place when a
            checkpoint is loaded, since that stands for whatever the run has started from.
    """

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries

    @override
    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the list into the checkpoint."""
        checkpoint[KEY] = [dict(entry) for entry in self.entries]

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the checkpoint's list, in its order; one that cannot be read is unknown data."""
        known = checked(checkpoint.get(KEY))
        known = foreign(None, "weights") if known is None else known
        # a folder may have been renamed since: its data are in the list already, under their first name
        told = {_facts(entry) for entry in known}
        self.entries[:] = merge(known, [entry for entry in self.entries if _facts(entry) not in told])


def _entry(name: str | None, data: str | None, images: int | None, epsilon: float | None, via: str) -> Entry:
    return {"name": name, "data": data, "images": images, "epsilon": epsilon, "via": via}


def _facts(entry: Entry) -> tuple[Any, ...]:
    """What was seen and how, whatever it is called; data that nobody knows are told apart by their name."""
    data = entry["data"] if entry["data"] is not None else (entry["name"],)
    return data, entry["epsilon"], entry["via"]


def _clean(name: str) -> str:
    """A name that any terminal, page or file can hold; folders may be called anything."""
    return "".join(letter if letter.isprintable() else "?" for letter in name[:_NAME])


def _checked_entry(value: object) -> Entry | None:
    if not isinstance(value, dict):
        return None
    name, data, images, epsilon, via = (
        value.get(key) for key in ("name", "data", "images", "epsilon", "via")
    )
    named = isinstance(name, str) and name == _clean(name)
    if via not in VIA:
        return None
    if data is None:
        fits = (named or name is None) and images is None and epsilon is None
        if not fits or value.get("declared") is not (name is not None):
            return None
        return foreign(name, via)[0]
    if not named or not isinstance(data, str) or not _FINGERPRINT.fullmatch(data):
        return None
    if type(images) is not int or not 0 <= images < _IMAGES:
        return None
    delta = value.get("delta")
    if epsilon is None:
        return None if delta is not None else _entry(name, data, images, None, via)
    if type(epsilon) not in (int, float) or not 0 <= epsilon <= _EPSILON:
        return None
    if not isinstance(delta, (int, float)) or isinstance(delta, bool) or not 0 <= delta <= 1:
        return None
    return _entry(name, data, images, epsilon, via) | {"delta": delta}


def _of_older(card: dict[str, Any], provenance: dict[str, Any]) -> list[Entry] | None:
    """What a card tells that was written before there were lists: its data, and that there was more."""
    run, data, teacher = card.get("run"), provenance.get("dataset"), provenance.get("teacher")
    if not isinstance(run, dict) or not isinstance(data, dict) or not isinstance(data.get("counts"), dict):
        return None
    own = _entry(data.get("name"), data.get("fingerprint"), data["counts"].get("train"), None, "training")
    taught = teacher is not None and not (isinstance(teacher, dict) and teacher.get("source") == "self")
    return checked(
        [
            own,
            *(foreign(None, "weights") if run.get("weights") is not None else ()),
            *(foreign(None, "teacher") if taught else ()),
        ]
    )


def _of_pickled(path: Path) -> list[Entry] | None:
    try:
        with warnings.catch_warnings(action="ignore"):
            # mapped: only the names and the list are read, not the tensors
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # zip, pickle, EOF: as many errors as ways to be no checkpoint
        return None
    return (checked(content.get(KEY)) or None) if isinstance(content, dict) else None
