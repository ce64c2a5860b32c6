"""The verdict on a finished update: both models on both test sets, groups, budgets; `update.json` and its page."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from effvit_train.audit.quality import measure_quality
from effvit_train.axes.parts import PARTS
from effvit_train.axes.run import audit, wanted
from effvit_train.axes.subject import Subject
from effvit_train.budgets import parse_budgets
from effvit_train.build import build_data, check_device
from effvit_train.card import Card, Measured
from effvit_train.check_command import lines
from effvit_train.collect import Entry
from effvit_train.config import Config
from effvit_train.data.datamodule import DataModule
from effvit_train.keys import AugmentStream
from effvit_train.models.factory import load_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.module import VisionModule
from effvit_train.paired import Table
from effvit_train.report.ab.rows import quantile
from effvit_train.runs import RunDir
from effvit_train.update_files import NEW, OLD, SCHEMA, SHIPPED, UPDATED, write_result
from effvit_train.verdict import Pair, Rule, corrected, decide, pair_of

# Parts of an audit that depend on the test images and that a model can lose by learning something else.
_ON_IMAGES = ("calibration", "fairness", "corruptions", "adversarial")

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Tested:
    """A model on a test set.

    Attributes:
        right: (N,) whether it gets each image right, in the order of the ids.
        measured: what was measured.
    """

    right: Bools
    measured: Measured


def judge(config: Config, run_dir: RunDir, say: Callable[[str], None]) -> dict[str, Any]:
    """Test both models on both test sets, decide, and write `update.json` and `update.html`.

    Args:
        config: of the update, which is finished.
        run_dir: its directory.
        say: prints one line.

    Returns:
        The content of `update.json`.

    Raises:
        UserError: the new data, or one of the models, cannot be read any more.
    """
    assert config.update.after is not None
    shipped, updated = RunDir(Path(config.update.after)), run_dir
    config = copy.deepcopy(config)
    # what may be tested on now, whatever was trained on
    config.update.earlier = "none" if config.update.asked == "none" else "auto"
    cards = {SHIPPED: Card.read(shipped.card), UPDATED: Card.read(updated.card)}
    data = build_data(config, AugmentStream(config.seed), say)
    assert data.joined is not None
    assert data.after is not None
    sets: dict[str, DataModule | str] = {
        OLD: data.part(old=True) if data.after.data is not None else data.after.why_not,
        NEW: data.part(old=False),
    }
    say("update: testing both models on the old and the new test images ...")
    tested = {
        which: {
            name: _test(run, cards[which], part, config, updated, say)
            for name, part in sets.items()
            if not isinstance(part, str)
        }
        for which, run in ((SHIPPED, shipped), (UPDATED, updated))
    }
    rule = Rule(config.update.tolerance, config.update.level)
    z = quantile(rule.level)
    compared: dict[str, Pair | str] = {}
    groups: dict[str, list[Pair]] = {}
    small: dict[str, int] = {}
    for name, part in sets.items():
        if isinstance(part, str):
            compared[name] = part
            continue
        a, b = tested[SHIPPED][name].right, tested[UPDATED][name].right
        compared[name] = pair_of(name, _table(a, b), z=z)
        groups[name], small[name] = _groups(part, a, b, config.audit, z)
    entry = Entry(updated.path, cards[UPDATED])
    held = lines(entry, parse_budgets(config.update.budgets), confident=config.update.confident)
    added = data.info.classes[len(data.after.classes) :]
    word, findings = decide(
        sets=compared,
        groups=groups,
        budgets=held,
        added=added,
        missing=_unmeasured(cards[UPDATED]),
        rule=rule,
    )
    result = {
        "schema": SCHEMA,
        "verdict": word,
        "trained": True,
        "reasons": [finding.text for finding in findings if finding.verdict == word],
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "rule": {"tolerance": rule.tolerance, "level": rule.level, "confident": config.update.confident},
        "compared": {
            name: {"missing": found} if isinstance(found, str) else found.to_json()
            for name, found in compared.items()
        },
        "groups": {name: [pair.to_json() for pair in found] for name, found in groups.items()},
        "groups_too_small": small,
        "budgets": [line.to_json() for line in held],
        "models": {
            which: _told(which, run, cards[which], tested[which], sets)
            for which, run in ((SHIPPED, shipped), (UPDATED, updated))
        },
        "lineage": cards[UPDATED].provenance.get("lineage"),
    }
    write_result(result, run_dir)
    return result


def _test(
    run: RunDir, card: Card, data: DataModule, config: Config, kept: RunDir, say: Callable[[str], None]
) -> Tested:
    record = ArchitectureRecord.read(run.record)
    device = torch.device(check_device(config))
    module = VisionModule(
        load_model(run.path), record, config.recipe, total_steps=lambda world: 1, seed=config.seed
    ).to(device)
    subject = Subject(
        module.model.eval(), record, module.normalise, data, config, device, torch.empty(0), torch.empty(0),
        torch.empty(0), precision=str(card.run.get("precision") or "32-true"), say=say,
    )  # fmt: skip
    subject.logits, subject.labels, subject.ids = subject.outputs(data.eval_dataloader("test"))
    finite = subject.logits.isfinite().all(dim=1)
    right = (finite & (subject.logits.argmax(dim=1) == subject.labels)).numpy()
    return Tested(right, _measure(subject, right, kept))


def _measure(subject: Subject, right: Bools, kept: RunDir) -> Measured:
    """Quality, calibration, fairness and, as far as the audit asks for it, robustness on the test images."""
    known = len(subject.record.classes)
    strange = np.setdiff1d(subject.labels.numpy(), np.arange(known))
    if len(strange):
        names = [subject.data.info.classes[k] for k in strange.tolist()]
        reason = f"the model does not know the class{'es' * (len(names) > 1)} {', '.join(names)}"
        measured = Measured(
            {
                "quality/accuracy": float(right.mean()),
                "quality/balanced_accuracy": _balanced(right, subject.labels),
            }
        )
        others = [key for name in _ON_IMAGES for key in PARTS[name].keys]
        measured.missing = dict.fromkeys(["quality/top5", "quality/nll", *others], reason)
        return measured
    measured = measure_quality(subject.logits, subject.labels)
    settings = subject.config.audit
    parts = [name for name in _ON_IMAGES if wanted(PARTS[name], subject)]
    subject.config = dataclasses.replace(
        subject.config, audit=dataclasses.replace(settings, parts=parts, ensemble=[])
    )
    found, _ = audit(subject, kept.path)
    for name in _ON_IMAGES:
        for key in PARTS[name].keys:
            if key in found.values:
                measured.values[key] = found.values[key]
            else:
                measured.missing[key] = found.missing[key]
    return measured


def _balanced(right: Bools, labels: Tensor) -> float:
    """Mean of the accuracies of the classes that have images."""
    truth = labels.numpy()
    return float(np.mean([right[truth == label].mean() for label in np.unique(truth)]))


def _groups(data: DataModule, a: Bools, b: Bools, settings: Any, z: float) -> tuple[list[Pair], int]:
    """The classes and the groups of each column, as far as they are large enough; and how many are not."""
    names = data.info.classes
    columns = {"class": [names[k] for k in data.labels_of(data.indices("test"))]}
    columns |= data.groups("test", settings.groups)
    pairs, small = [], 0
    for column, values in columns.items():
        found = np.array(values, dtype=str)
        for value in np.unique(found[found != ""]).tolist():
            members = found == value
            if members.sum() < settings.min_cell:
                small += 1
                continue
            pairs.append(pair_of(f"{column}={value}", _table(a[members], b[members]), z=z))
    return sorted(corrected(pairs), key=lambda pair: pair.difference), small


def _table(a: Bools, b: Bools) -> Table:
    return Table(int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum()))


def _unmeasured(card: Card) -> list[str]:
    """Where privacy was promised and its cost is not known."""
    if card.run.get("privacy", "none") == "none" or card.measures.get("privacy/epsilon") is not None:
        return []
    return [f"privacy/epsilon: not known ({card.missing.get('privacy/epsilon', 'not measured')})"]


def _told(
    which: str, run: RunDir, card: Card, tested: dict[str, Tested], sets: dict[str, DataModule | str]
) -> dict[str, Any]:
    measures: dict[str, Any] = {}
    for name, part in sets.items():
        if isinstance(part, str):
            measures[name] = {"measures": {}, "missing": {"quality/accuracy": part}}
            continue
        found = tested[name].measured
        measures[name] = {
            "measures": found.values,
            "missing": found.missing,
            "images": len(tested[name].right),
        }
    of_model = ("cost/", "privacy/")
    return {
        "which": which,
        "id": card.run.get("id"),
        "name": card.run.get("name"),
        "run_dir": str(run.path),
        "classes": list(ArchitectureRecord.read(run.record).classes),
        "of_model": {key: value for key, value in card.measures.items() if key.startswith(of_model)},
        "test": measures,
    }
