"""An audit: part after part, each kept when it is there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

from effvit_train import __version__
from effvit_train.axes.memory import FOLDER, Found, Memory
from effvit_train.axes.parts import PARTS, AuditPart
from effvit_train.axes.subject import Subject
from effvit_train.card import Measured
from effvit_train.errors import UserError, first_line
from effvit_train.models.factory import hash_state

LATER = "not measured (audit={level}); effvit audit RUN_DIR audit=full measures it"
LEFT_OUT = "not measured (not among audit.parts)"


def audit(subject: Subject, run_dir: Path) -> tuple[Measured, dict[str, Any]]:
    """Measure what `audit.level` asks for.

    A part that cannot be measured is null with the reason; one that fails too, so that no training is lost for it.

    Args:
        subject: the model and its data.
        run_dir: where parts are kept while others are still to be measured.

    Returns:
        The measures, and for the card's `provenance.audit` what each part tells.

    Raises:
        UserError: a setting of the audit is at fault.
    """
    settings = subject.config.audit
    measured, told = Measured(), {}
    base = ""
    for part in PARTS.values():
        if not part.wanted(settings):
            continue
        if not wanted(part, subject):
            reason = LATER.format(level=settings.level) if settings.parts is None else LEFT_OUT
            measured.missing |= dict.fromkeys(part.keys, reason)
            continue
        base = base or _digest(subject)
        memory = Memory(run_dir / FOLDER / f"{part.name}.json", _key(part, base, subject))
        found = memory.found
        if found is None:
            found = _measured(part, subject, memory)
            memory.done(found)
        measured.merge(found[0])
        if part.keys or found[1]:  # a part without measures may have nothing to tell of this model
            told[part.name] = found[1]
    forget(run_dir)
    return measured, told


def wanted(part: AuditPart, subject: Subject) -> bool:
    """Whether the settings ask for the part: by its name, or else by the level."""
    settings = subject.config.audit
    if settings.level == "none" or subject.config.trainer.fast_dev_run:
        return False
    if settings.parts is not None:
        return part.name in settings.parts
    return part.quick or settings.level == "full"


def forget(run_dir: Path) -> None:
    """Remove what was kept: all of it is on the card."""
    folder = run_dir / FOLDER
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


def _measured(part: AuditPart, subject: Subject, memory: Memory) -> Found:
    if not part.quick:
        subject.say(f"audit: {part.name} ...")
    begun = time.monotonic()
    try:
        found, facts = part.measure(subject, memory)
    except UserError:
        raise
    except Exception as error:
        reason = f"the measure failed: {type(error).__name__}: {first_line(error)}"
        subject.say(f"audit: {part.name}: {reason}")
        found, facts = Measured(missing=dict.fromkeys(part.keys, reason)), {}
    for key, value in list(found.values.items()):
        if not math.isfinite(value):
            found.missing[key] = f"not a finite number: {found.values.pop(key)}"
    seconds = time.monotonic() - begun
    if not part.quick and seconds > 1:
        subject.say(f"audit: {part.name}: {seconds:.0f} s")
    return found, facts


def _digest(subject: Subject) -> str:
    digest = hashlib.sha256(f"{__version__} {subject.data.info.fingerprint} {subject.config.seed}".encode())
    hash_state(digest, subject.model)
    return digest.hexdigest()


def _key(part: AuditPart, base: str, subject: Subject) -> str:
    settings = {name: getattr(subject.config.audit, name) for name in part.settings}
    return hashlib.sha256(json.dumps([base, part.name, settings]).encode()).hexdigest()
