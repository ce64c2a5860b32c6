"""What an update starts from: a shipped model, its data where they may be looked at, and its lineage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from effvit_train.card import Card
from effvit_train.data.joined import Earlier
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.parts import EARLIER_IMAGES
from effvit_train.runs import RunDir, RunState
from effvit_train.seen import Entry

if TYPE_CHECKING:
    from torch import nn

    from effvit_train.config import Config
    from effvit_train.data.datamodule import DataModule
    from effvit_train.models.config import ModelConfig

COMPOSED = (
    "the sum over all trainings (basic composition), which bounds what a person loses whose images were in each "
    "of them"
)


def open_parent(path: str | Path) -> tuple[RunDir, Card, ArchitectureRecord]:
    """The shipped model that an update starts from.

    Raises:
        UserError: there is none.
    """
    run = RunDir(Path(path).expanduser())
    if not run.path.is_dir():
        raise UserError("is no directory", key="RUN_DIR", value=path, remedy="give a run directory")
    state = RunState.read(run.state)
    if state.status != "done":
        raise UserError(
            f"is not a finished run, it is {state.status}", key="RUN_DIR", value=path,
            remedy=f"finish it first: python train.py resume={path}",
        )  # fmt: skip
    return run, Card.read(run.card), ArchitectureRecord.read(run.record)


def earlier(config: Config, say: Callable[[str], None]) -> Earlier:
    """The model that an update starts from, with as much of its data as may be looked at.

    `update.earlier=auto` is replaced, in the configuration, by what is found.

    Raises:
        UserError: there is no such run, or images are asked for that cannot be had.
    """
    from effvit_train.finished import open_data

    update = config.update
    assert update.after is not None
    run, card, record = open_parent(update.after)
    data = card.provenance.get("dataset") or {}
    told = Earlier(
        str(data.get("name") or card.run.get("dataset")), record.classes, record.input_shape, record.mean,
        record.std, str(data.get("fingerprint")),
    )  # fmt: skip
    if update.earlier == "none":
        return replace(told, why_not="they were not to be used (--old-images none)")
    overrides = ["dataset.num_workers=0"]
    if update.root is not None:
        overrides.append(f"dataset.root={json.dumps(update.root)}")
    try:
        of_parent, opened = open_data(run.path, say, overrides=overrides)
    except UserError as error:
        if update.earlier != "auto":
            raise
        update.earlier = "none"
        say(f"the data of {run.path} are not at hand: {error}")
        return replace(told, why_not=str(error))
    why_not = _why_not(config, of_parent)
    if update.earlier == "all" and why_not:
        raise UserError(why_not, key="--old-images", value="all", remedy="--old-images test")
    if update.earlier == "auto":
        update.earlier = "test" if why_not else "all"
        if why_not:
            say(f"earlier training images are left out: {why_not}")
    train = update.earlier == "all"
    why_not = "" if train else why_not or "they were not to be used (--old-images test)"
    return replace(told, data=opened.prepared, train=train, why_not=why_not)


def _why_not(config: Config, parent: Config) -> str:
    """Why training images of the parent must not be trained on again; empty where they may."""
    if config.privacy.on:
        return "a private update is trained on the new images alone"
    if parent.privacy.on:
        return "they are private (privacy=dp_sgd), and this training would not account for them"
    if parent.audit.canaries:
        return "mislabelled images are planted among them (audit.canaries)"
    return ""


def check_strategies(config: Config, active: Sequence[ModuleType], data: DataModule) -> None:
    """Raise `UserError` for a technique that needs training images which may not be looked at."""
    for technique in active:
        part = technique.PART
        if EARLIER_IMAGES in part.does and config.update.earlier != "all":
            why = data.after.why_not if data.after is not None else ""
            raise UserError(
                f"looks at earlier training images, and these may not be used: {why}", key=part.key, value=part.name,
                remedy="a strategy that needs none, e.g. continual=lwf or naive; --old-root DIR where the data have moved",
            )  # fmt: skip


def starting_model(config: Config, wanted: ModelConfig) -> tuple[nn.Module, ArchitectureRecord]:
    """What the parent shipped, cuts included, to be trained on.

    Args:
        config: of the update.
        wanted: the model that the configured techniques ask for.

    Raises:
        UserError: they ask for another one.
    """
    from effvit_train.models.factory import load_model

    assert config.update.after is not None
    record = ArchitectureRecord.read(RunDir(Path(config.update.after)).record)
    if wanted.name not in (config.model.name, record.name):
        raise UserError(
            f"is trained as {wanted.name}, and an update starts from {record.name}", key="compress",
            value=",".join(config.compress), remedy="leave it out, or train anew",
        )  # fmt: skip
    return load_model(config.update.after).train(), record


def lineage(config: Config, data: DataModule, seen: Sequence[Entry]) -> dict[str, Any]:
    """What the card says of where the model came from: `provenance.lineage`.

    Args:
        config: of the update.
        data: of the update.
        seen: what its weights have seen.
    """
    assert config.update.after is not None
    assert data.joined is not None
    run, card, _ = open_parent(config.update.after)
    before = card.provenance.get("lineage") or {}
    ancestors = [*before.get("ancestors", []), before["parent"]] if before.get("parent") else []
    of_data = card.provenance.get("dataset") or {}
    return {
        "parent": {
            "id": card.run.get("id"), "name": card.run.get("name"), "run_dir": str(run.path),
            "started": card.run.get("started"), "card": digest(run.card), "weights": digest(run.weights),
            "data": {"name": of_data.get("name"), "fingerprint": of_data.get("fingerprint")},
        },
        "ancestors": ancestors,
        "new_data": {
            "name": data.joined.new.name,
            # sealed on a private card, where it would tell who has these data that they were trained on
            "fingerprint": None if config.privacy.on else data.joined.new.fingerprint,
        },
        "earlier_images": config.update.earlier,
        "epsilon_before": spent_before(seen),
    }  # fmt: skip


def spent_before(seen: Sequence[Entry]) -> dict[str, Any] | None:
    """Epsilon and delta of the private trainings that weights at the start came from; None where there were none."""
    private = [entry for entry in seen if entry["via"] != "training" and entry["epsilon"] is not None]
    if not private:
        return None
    return {
        "epsilon": sum(entry["epsilon"] for entry in private),
        "delta": sum(entry["delta"] for entry in private),
        "trainings": len(private), "composition": COMPOSED,
    }  # fmt: skip


def digest(path: Path) -> str | None:
    """`sha256:` and the SHA-256 of a file; None where there is none."""
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" if path.is_file() else None
