"""`effvit cost`: what a model would cost on this machine, without training it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from effvit_train.audit.cost import measure_cost
from effvit_train.card import Card
from effvit_train.config import Config, DatasetConfig
from effvit_train.errors import UserError
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.resolve import check_name, resolve
from effvit_train.report.terminal import cost_table
from effvit_train.techniques import techniques

# (image size, channels, classes) of the sets that are known without their files
_KNOWN = {"digits": (8, 1, 10), "fashion_mnist": (28, 1, 10), "cifar10": (32, 3, 10)}


def print_cost(config: Config, *, as_json: bool, native: bool = False) -> None:
    """Measure and print `cost/*` of an untrained model; `as_json` prints one JSON object.

    `native` takes the image size and the classes that timm publishes the model for.
    """
    channels, height, width, classes = _native(config.model.name) if native else _shape(config)
    record = resolve(
        config.model,
        input_shape=(channels, height, width),
        classes=[str(k) for k in range(classes)],
        mean=[0.5] * channels,
        std=[0.5] * channels,
    )
    record = _changed(config, record)
    device = "cpu" if config.trainer.accelerator == "cpu" else None
    measured, conditions = measure_cost(
        record, config.audit, num_threads=config.trainer.num_threads, device=device
    )
    measured.missing["cost/train_seconds"] = "nothing was trained"
    whole = Card.of(run={}, model={}, measured=measured, provenance={})
    costs = {key: value for key, value in whole.measures.items() if key.startswith("cost/")}
    missing = {key: reason for key, reason in whole.missing.items() if key in costs}
    model: dict[str, Any] = {"name": record.name, "input_shape": list(record.input_shape)}
    if as_json:
        model["kwargs"] = record.kwargs
        print(json.dumps({"model": model, "measures": costs, "missing": missing, "conditions": conditions}))
    else:
        card = Card(run={}, model=model, measures=costs, missing=missing, provenance={})
        Console().print(cost_table(card, record.kwargs, conditions))


def _changed(config: Config, record: ArchitectureRecord) -> ArchitectureRecord:
    """The record with the changes of those techniques that make them whatever the weights are (`entry_for`)."""
    for name in config.compress:
        entry_for = getattr(techniques()[name], "entry_for", None)
        entry = None if entry_for is None else entry_for(config, record)
        if entry is not None:
            record = dataclasses.replace(record, cuts=[*record.cuts, entry])
    return record


def _native(name: str) -> tuple[int, int, int, int]:
    import timm

    check_name(name)
    published = timm.get_pretrained_cfg(name)
    channels, height, width = published.input_size if published else (3, 224, 224)
    return channels, height, width, (published.num_classes if published else 0) or 1000


def _shape(config: Config) -> tuple[int, int, int, int]:
    dataset = config.dataset
    size, channels, classes = _KNOWN.get(dataset.name, (None, None, None))
    size = dataset.image_size or size or (224 if dataset.name == "image_folder" else None)
    channels, classes = dataset.channels or channels, dataset.num_classes or classes
    if size is None or channels is None or classes is None:
        return _from_data(dataset, config)
    return channels, size, size, classes


def _from_data(dataset: DatasetConfig, config: Config) -> tuple[int, int, int, int]:
    if dataset.name == "image_folder" and dataset.root is None:
        raise UserError(
            "is needed to know the model's input and output", key="dataset.num_classes", value=None,
            remedy="give dataset.num_classes and dataset.channels, or dataset.root",
        )  # fmt: skip
    from effvit_train.data.datamodule import DataModule

    data = DataModule(dataset, batch_size=1, seed=config.seed, cache_dir=Path(config.cache_dir))
    return (*data.info.input_shape, len(data.info.classes))
