"""`effvit audit`: measure a finished run again, on as many axes as one likes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console

from effvit_train.audit.membership import BOUND
from effvit_train.axes.subject import Subject
from effvit_train.build import check_device
from effvit_train.card import Card, Measured
from effvit_train.compose import conf_dir, group_options, parse_overrides
from effvit_train.errors import UserError, did_you_mean
from effvit_train.finished import Finished, open_finished
from effvit_train.job import Job, run_job
from effvit_train.lock import RunLock
from effvit_train.measuring import measure
from effvit_train.predictions import Predictions, predict
from effvit_train.report.publish import publish
from effvit_train.report.terminal import card_table
from effvit_train.runs import machine, versions
from effvit_train.signals import Stop
from effvit_train.teachers import shadow_trainer

_ALLOWED = ("audit", "dataset.root", "dataset.num_workers", "trainer.accelerator", "trainer.num_threads")


def audit_run(path: Path, overrides: Sequence[str], stop: Stop) -> None:
    """Measure a finished run, and write its card again.

    Args:
        path: of the run.
        overrides: `audit=LEVEL`, `audit.*`, and where the data are.
        stop: listens for signals; parts that are done by then are not measured again.

    Raises:
        UserError: it is not a finished run, or an override that would change what was trained.
    """
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    settings, device_settings = _expanded(overrides)
    run = open_finished(path, say, overrides=settings)
    for key, value in device_settings.items():
        setattr(run.config.trainer, key, value)
    if run.config.audit.level == "none":
        run.config.audit.level = "quick"
    run.config.trainer.fast_dev_run = False
    with stop, RunLock(run.run_dir.path, say):
        card = _measure(run, console, stop)
    baseline = publish(run.run_dir, card, run.config, say)
    console.print(card_table(card, baseline))
    console.print(f"card: {os.path.relpath(run.run_dir.html)}", highlight=False, soft_wrap=True)


def _expanded(overrides: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """`audit=LEVEL` as the values of its file; what says where to compute goes apart."""
    settings: list[str] = []
    device: dict[str, object] = {}
    for override in parse_overrides(list(overrides)):
        key, value = override.key_or_group, override.value()
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in _ALLOWED):
            raise UserError(
                "cannot change what was trained", key=key, value=value,
                remedy=did_you_mean(key, _ALLOWED) or f"an audit takes {', '.join(_ALLOWED)}",
            )  # fmt: skip
        if key == "audit":
            options = group_options("audit")
            if value not in options:
                raise UserError(f"must be one of {', '.join(options)}", key=key, value=value,
                                remedy=did_you_mean(str(value), options) or "e.g. audit=full")  # fmt: skip
            chosen = OmegaConf.load(conf_dir() / "audit" / f"{value}.yaml")
            settings = [f"audit.{name!s}={setting}" for name, setting in chosen.items()] + settings
        elif key.startswith("trainer."):
            device[key.removeprefix("trainer.")] = value
        else:
            settings.append(str(override.input_line))
    return settings, device


def _measure(run: Finished, console: Console, stop: Stop) -> Card:
    config, before = run.config, run.card
    if config.trainer.num_threads is not None:
        torch.set_num_threads(config.trainer.num_threads)
    device = torch.device(check_device(config))
    module = run.module().to(device)
    precision = str(before.run.get("precision", "32-true"))
    predictions = Predictions()
    predictions.logits, predictions.labels, predictions.index = predict(
        module.model, module.normalise, run.data.eval_dataloader("test"), device, precision
    )
    job = Job(
        config,
        run.run_dir,
        str(before.run["name"]),
        str(before.run["model"]),
        run.overrides,
        console,
        stop=stop,
    )
    subject = Subject(
        module.model.eval(), run.record, module.normalise, run.data, config, device, predictions.logits,
        predictions.labels, predictions.index, precision=precision, say=job.say,
    )  # fmt: skip
    measured, told = measure(
        subject, module, run.run_dir, delta=before.measures.get("privacy/delta"),
        shadow=shadow_trainer(job, run_job, run.data.info.fingerprint),
    )  # fmt: skip
    measured.missing.pop("cost/train_seconds", None)  # that of the training stays
    card = Card.of(
        run=before.run, model=before.model, measured=_with_what_was(before, measured),
        provenance={
            **before.provenance, **told, "audit": {**before.provenance.get("audit", {}), **told["audit"]},
            "audited": {"level": config.audit.level, "versions": versions(), "machine": machine()},
        },
    )  # fmt: skip
    predictions.write(run.run_dir.predictions)
    card.write(run.run_dir.card)
    return card


def _with_what_was(before: Card, measured: Measured) -> Measured:
    """What this audit has not measured stays as it is on the card."""
    for key, value in before.measures.items():
        if (
            value is not None
            and key not in measured.values
            and (key not in measured.missing or _later(measured, key))
        ):
            measured.values[key] = value
            measured.missing.pop(key, None)
        elif value is None and key not in measured.values:
            measured.missing.setdefault(key, before.missing[key])
    return measured


def _later(measured: Measured, key: str) -> bool:
    return measured.missing[key].startswith("not measured (") and key != BOUND
