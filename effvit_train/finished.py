"""A finished run, opened again: its configuration, data and model, for what is done after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

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
from effvit_train.predictions import normaliser
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


def open_finished(path: Path, say: Callable[[str], None], *, overrides: Sequence[str] = ()) -> Finished:
    """Open a finished run.

    Args:
        path: its directory.
        say: prints one line.
        overrides: of what a resume may change, such as `dataset.root=DIR`, if its data have moved.

    Raises:
        UserError: it is not a finished run, or the data are not those that it was trained on.
    """
    run_dir = RunDir(Path(path).expanduser().resolve())
    card = Card.read(run_dir.card)
    config, first = _config(run_dir, overrides, say)
    record = ArchitectureRecord.read(run_dir.record)
    model = load_model(run_dir.path)
    return Finished(run_dir, config, first, card, record, model, _data(run_dir, card, config, path, say))


def open_data(
    path: Path, say: Callable[[str], None], *, overrides: Sequence[str] = ()
) -> tuple[Config, DataModule]:
    """The configuration and data of a finished run, split as then; arguments and errors are `open_finished`'s."""
    run_dir = RunDir(Path(path).expanduser().resolve())
    card = Card.read(run_dir.card)
    config, _ = _config(run_dir, overrides, say)
    return config, _data(run_dir, card, config, path, say)


def _config(
    run_dir: RunDir, overrides: Sequence[str], say: Callable[[str], None]
) -> tuple[Config, list[str]]:
    cfg, first = load_resumed(run_dir, list(overrides))
    return load(cfg, first, say, stored=True), first


def _data(run_dir: RunDir, card: Card, config: Config, path: Path, say: Callable[[str], None]) -> DataModule:
    data = build_data(config, AugmentStream(config.seed), say)
    trained_on = fingerprint_of(run_dir.path) or (card.provenance.get("dataset") or {}).get("fingerprint")
    if data.info.fingerprint != trained_on:
        raise UserError(
            f"the data are not those that {path} was trained on", key="dataset.root", value=config.dataset.root,
            remedy="give back the same files",
        )  # fmt: skip
    if data.stream is not None:
        data.join_tasks()
    return data


def open_model(path: str, *, like: ArchitectureRecord) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The model of a finished run, on the CPU, and what makes uint8 images into what it sees.

    Raises:
        UserError: it is no finished run, or its images or classes are not those of `like`.
    """
    run = RunDir(Path(path).expanduser())
    record = ArchitectureRecord.read(run.record)
    if (record.input_shape, record.classes) != (like.input_shape, like.classes):
        raise UserError(
            "takes other images or knows other classes", key="audit.ensemble", value=path,
            remedy="give runs of the same data set",
        )  # fmt: skip
    return load_model(run.path), normaliser(record)
