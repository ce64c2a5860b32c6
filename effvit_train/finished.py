"""A finished run, opened again: its configuration, data and model, for what is done after training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from effvit_train.build import build_data
from effvit_train.card import Card
from effvit_train.compose import load, load_resumed
from effvit_train.config import Config
from effvit_train.data.datamodule import DataModule
from effvit_train.errors import UserError
from effvit_train.keys import AugmentStream
from effvit_train.models.factory import load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.module import VisionModule
from effvit_train.runs import RunDir, fingerprint_of


@dataclass
class Finished:
    """A finished run.

    Attributes:
        run_dir: where it lies.
        config: as it was trained.
        overrides: what the user had typed.
        card: its card.
        record: of the model that it shipped.
        model: that model, in evaluation mode, on the CPU.
        data: its data, split as then.
    """

    run_dir: RunDir
    config: Config
    overrides: list[str]
    card: Card
    record: ArchitectureRecord
    model: nn.Module
    data: DataModule

    def module(self) -> VisionModule:
        """What computes the labels' loss of its images, for importance: per sample, as it was trained."""
        return VisionModule(
            self.model, self.record, self.config.recipe, total_steps=lambda world: 1, seed=self.config.seed
        )


def open_finished(path: Path, say: Callable[[str], None], *, data_root: str | None = None) -> Finished:
    """Open a finished run.

    Args:
        path: its directory.
        say: prints one line.
        data_root: where its data are now, if they have moved.

    Raises:
        UserError: it is not a finished run, or the data are not those that it was trained on.
    """
    run_dir = RunDir(Path(path).expanduser().resolve())
    card = Card.read(run_dir.card)
    cfg, overrides = load_resumed(run_dir, [f"dataset.root={data_root}"] if data_root else [])
    config = load(cfg, overrides, say, stored=True)
    record = ArchitectureRecord.read(run_dir.record)
    model = load_model(run_dir.path)
    data = build_data(config, AugmentStream(config.seed), say)
    trained_on = fingerprint_of(run_dir.path) or (card.provenance.get("dataset") or {}).get("fingerprint")
    if data.info.fingerprint != trained_on:
        raise UserError(
            f"the data are not those that {path} was trained on", key="dataset.root", value=config.dataset.root,
            remedy="give back the same files",
        )  # fmt: skip
    return Finished(run_dir, config, overrides, card, record, model, data)
