"""One run, from its configuration to its card: build -> fit -> audit -> card -> report."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict, dataclass, field

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console

from effvit_train.audit.continual import KEYS as CONTINUAL
from effvit_train.axes.subject import Subject
from effvit_train.build import Built, build, make_trainer
from effvit_train.card import Card, Measured
from effvit_train.checkpoint_file import Found, find
from effvit_train.checkpoints import CheckpointIO
from effvit_train.config import Config
from effvit_train.data.info import DataInfo
from effvit_train.errors import MachineError, UserError, first_line
from effvit_train.files import FULL, remove_temporaries, write_text
from effvit_train.lock import RunLock
from effvit_train.measuring import measure
from effvit_train.models.factory import count_parameters, save_model
from effvit_train.predictions import Predictions
from effvit_train.progress import ProgressBar
from effvit_train.report.baseline import Baseline, find_baseline
from effvit_train.report.html import write_html
from effvit_train.report.terminal import card_table, next_commands
from effvit_train.report.tracking import Tracker, start
from effvit_train.runs import (
    QUEUED,
    RunDir,
    RunState,
    environment,
    machine,
    resume_command,
    versions,
    write_config,
)
from effvit_train.seen import of_start, to_text
from effvit_train.signals import Interrupted, Stop
from effvit_train.teachers import shadow_trainer, teacher_trainer


@dataclass
class Job:
    """A run to do.

    Attributes:
        config: validated.
        run_dir: where its files go.
        name: shown in the card and in W&B.
        model: the model as the user named it.
        overrides: what the user typed.
        console: where to print.
        stage: word in the progress bar.
        resumed: the directory holds this run: go on from its last good checkpoint, if there is one.
        stop: listens for signals.
    """

    config: Config
    run_dir: RunDir
    name: str
    model: str
    overrides: list[str] = field(default_factory=list)
    console: Console = field(default_factory=Console)
    stage: str = "train"
    resumed: bool = False
    stop: Stop = field(default_factory=Stop)

    def say(self, line: str) -> None:
        """Print one line, on the first process only."""
        if is_first_process():
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


def is_first_process() -> bool:
    """Whether this process writes the files: rank 0, or the only one."""
    return int(getattr(rank_zero_only, "rank", None) or 0) == 0


def run_job(job: Job) -> Card | None:
    """Train, measure and write the card. Returns None on processes other than the first.

    Raises:
        UserError: before anything is trained: the input is at fault, or another process has the run.
        Interrupted: stopped by a signal; state.json says so.
        MachineError: there was no room for a file without which the run is not done.
    """
    with job.stop:
        if not is_first_process():
            return _run(job)
        path = job.run_dir.path
        path.mkdir(parents=True, exist_ok=True)
        try:
            with RunLock(path, job.say):
                remove_temporaries(path)
                remove_temporaries(job.run_dir.last.parent)
                return _run(job)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise MachineError(
                f"{error.filename or path} could not be written ({error.strerror}); "
                f"make room, then: {resume_command(path)}"
            ) from error


def build_only(job: Job) -> Built:
    """Build what a run of this configuration would build, without a run; teachers are trained if need be."""
    return build(job.config, precision=None, train=teacher_trainer(job, run_job), say=job.say)


def _run(job: Job) -> Card | None:
    config, run_dir, first = job.config, job.run_dir, is_first_process()
    before = run_dir.state.read_text() if run_dir.state.exists() else None
    state = _state(job, before is not None)
    job.name, job.model = state.name, state.model
    if first:
        state.write(run_dir.state)
    if first and not job.resumed:
        write_config(run_dir, config, job.overrides)
    tracker = Tracker(None)
    clock = _Clock(state.train_seconds)

    def saved(epochs: int) -> None:
        state.epochs, state.train_seconds = epochs, clock.seconds()
        with contextlib.suppress(OSError):  # the checkpoint is written: that is what counts
            state.write(run_dir.state)

    try:
        found = _checkpoint(job, begun=state.resumes > 0)
        built = build(config, precision=state.precision, train=teacher_trainer(job, run_job), say=job.say)
        _same_data(state, built.data.info)
        if found is not None and built.streaming is not None:
            built.streaming.check(found.content, config.trainer.max_epochs)
        state.precision = built.precision.name
        state.precision_reason = state.precision_reason or built.precision.reason
        bar = ProgressBar(job.console, job.stage)
        trainer = make_trainer(
            config, built, run_dir=run_dir, tracker=tracker, bar=bar, stop=job.stop, found=found,
            saved=saved, say=job.say,
        )  # fmt: skip
        _compare_environment(job, state, trainer, found)
        if first:
            if job.resumed:
                write_config(run_dir, config, job.overrides)
            state.write(run_dir.state)
            tracker.adopt(
                start(
                    config.logger,
                    run_dir=run_dir.path,
                    run_id=state.id,
                    name=job.name,
                    settings=asdict(config),
                    resumed=state.resumes > 0,
                    say=job.say,
                    private=config.privacy.on,
                )
            )
        _announce(job, built, state)
        clock.start()
        path = found.path if found is not None else None
        trainer.fit(built.module, datamodule=built.data, ckpt_path=path, weights_only=True)
        state.epochs, state.train_seconds = trainer.current_epoch, clock.stop()
        card = _finish(job, built, trainer, state, tracker)
    except BaseException as error:
        state.train_seconds = clock.stop()
        _failed(run_dir, state, before, error)
        tracker.finish(failed=True)
        if isinstance(error, Interrupted):
            _leave_group()
        raise
    tracker.finish()
    _leave_group()
    return card


def _state(job: Job, exists: bool) -> RunState:
    if exists and not job.resumed and is_first_process():
        raise UserError(
            "holds a run already", key="run_dir", value=job.run_dir.path,
            remedy=f"go on with resume={job.run_dir.path}, or give another directory",
        )  # fmt: skip
    state = RunState.read(job.run_dir.state) if exists and job.resumed else RunState.new()
    if state.status == QUEUED:
        state.begin()
    else:
        state.resumes += job.resumed and exists
    state.error = None
    state.name, state.model, state.status = state.name or job.name, state.model or job.model, "running"
    return state


def _failed(run_dir: RunDir, state: RunState, before: str | None, error: BaseException) -> None:
    """Leave state.json as it should be found."""
    if not is_first_process():
        return
    interrupted = isinstance(error, Interrupted)
    state.status = "interrupted" if interrupted else "failed"
    state.error = None if interrupted else first_line(error)
    try:
        if not isinstance(error, UserError):
            state.write(run_dir.state)
        elif before is not None:
            write_text(run_dir.state, before)  # nothing has changed
        else:
            run_dir.state.unlink()  # nothing has begun
    except OSError:  # a full disk must not hide the error that we came from; the free lock tells enough
        return


def _leave_group() -> None:
    """End distributed training in order: a process that exits with its threads running aborts."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class _Clock:
    """Seconds spent in `fit`, over all starts of a run."""

    def __init__(self, before: float) -> None:
        self._before = before
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.monotonic()

    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.monotonic() - self._since)

    def stop(self) -> float:
        self._before, self._since = self.seconds(), None
        return self._before


def _checkpoint(job: Job, *, begun: bool) -> Found | None:
    """The checkpoint to go on from; refuses damage beyond help, and one past the end, before anything starts."""
    if not job.resumed:
        return None
    found = find(job.run_dir)
    if found is None:
        if begun:
            job.say("no checkpoint yet: the run starts again in its directory")
        return None
    position = found.content["position"]
    begun = position["epochs"] + (position["batches"] > 0)
    if begun > job.config.trainer.max_epochs:
        raise UserError(
            f"{begun} epochs are trained already, or begun",
            key="trainer.max_epochs",
            value=job.config.trainer.max_epochs,
            remedy=f"at least {begun}",
        )
    for reason in found.passed_over:
        job.say(f"checkpoint {reason}")
    where = f"epoch {position['epochs']}" + (
        f", {position['batches']} batches on" if position["batches"] else ""
    )
    job.say(f"going on from step {position['step']:,} (after {where}; {found.path.name})")
    # the checkpoint replaces what the run started from, which may be gone; an older one does not say what
    # that had seen, so it is told here
    found.content.setdefault("seen", of_start(job.config.model))
    job.config.model.weights, job.config.model.pretrained = None, False
    return found


def _compare_environment(job: Job, state: RunState, trainer: pl.Trainer, found: Found | None) -> None:
    device = trainer.strategy.root_device
    here = environment(
        processes=trainer.world_size,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )
    if found is None:
        state.environment, state.changes = {}, []
    changed = state.enter(here)
    if changed:
        job.say(f"not as it was: {', '.join(changed)}; the result may differ from an uninterrupted run's")


def _same_data(state: RunState, info: DataInfo) -> None:
    if state.data and state.data != info.fingerprint:
        raise UserError(
            f"the data are not those that the run was started on ({info.fingerprint[:20]}, not {state.data[:20]})",
            key="dataset.root",
            remedy="give back the same files, or start a new run",
        )
    state.data = info.fingerprint


def _finish(job: Job, built: Built, trainer: pl.Trainer, state: RunState, tracker: Tracker) -> Card | None:
    predictions = Predictions()
    trainer.callbacks.append(predictions)  # type: ignore[attr-defined]
    built.module.settle()
    built.changes.finish(trainer, built.module, built.data)
    trainer.test(built.module, datamodule=built.data, verbose=False)
    if not trainer.is_global_zero:
        return None
    run_dir, io = job.run_dir, trainer.strategy.checkpoint_io
    assert isinstance(io, CheckpointIO)
    seen = {"seen": to_text(built.provenance["seen"])}
    save_model(built.module.shipped, built.module.record, run_dir.path, metadata=seen)
    predictions.write(run_dir.predictions)
    if io.error is not None:  # told then as a warning; now it is what the run ends with
        raise io.error
    device = _back_on_its_device(built, trainer)
    measured = Measured()
    for technique in built.measured:
        measured.merge(technique())
    if built.streaming is not None:
        measured.merge(built.streaming.measured())
        built.provenance["continual"] = built.streaming.facts()
    else:
        measured.missing |= dict.fromkeys(CONTINUAL, "the data did not come in tasks (dataset.stream=null)")
    for key in ("privacy/epsilon", "privacy/delta"):
        if key not in measured.values:
            measured.missing[key] = "trained without differential privacy (privacy=none)"
    subject = Subject(
        built.module.shipped.eval(), built.module.record, built.module.normalise, built.data, job.config,
        device, predictions.logits, predictions.labels, predictions.index,
        precision=built.precision.name, say=job.say,
    )  # fmt: skip
    found, told = measure(
        subject, built.module, run_dir, delta=measured.values.get("privacy/delta"),
        shadow=shadow_trainer(job, run_job, built.data.info.fingerprint),
    )  # fmt: skip
    measured.merge(found)
    measured.values["cost/train_seconds"] = round(state.train_seconds, 3)
    measured.missing.pop("cost/train_seconds", None)
    built.provenance |= told
    state.status = "done"
    card = _card(job, built, trainer, state, measured)
    card.write(run_dir.card)
    baseline = find_baseline(run_dir.path, card)
    write_html(run_dir.path, baseline=baseline)
    tracker.card(card)
    state.write(run_dir.state)  # last: a run that says "done" has all its files
    if job.stage == "train":
        _show(job, card, baseline)
    return card


def _back_on_its_device(built: Built, trainer: pl.Trainer) -> torch.device:
    """Where the model was trained is where it is measured, as by `effvit audit`; Lightning leaves it on the processor."""
    device = trainer.strategy.root_device
    built.module.to(device)
    if device.type == "cuda":
        torch.use_deterministic_algorithms(False)  # the trainer's; attacks use sums that have no such kernel
    return device


def _card(
    job: Job,
    built: Built,
    trainer: pl.Trainer,
    state: RunState,
    measured: Measured,
) -> Card:
    config, record = job.config, built.module.record
    info: DataInfo = built.data.info
    return Card.of(
        run={
            "name": job.name,
            "id": state.id,
            "run_dir": str(job.run_dir.path),
            "seed": config.seed,
            "status": state.status,
            "model": job.model,
            "dataset": info.name,
            "compress": sorted(config.compress),
            "privacy": config.privacy.mechanism,
            "epochs": state.epochs,
            "precision": state.precision,
            "precision_reason": state.precision_reason,
            "attention": built.attention,
            "device": trainer.strategy.root_device.type,
            "threads": torch.get_num_threads(),
            "processes": trainer.world_size,
            "weights": config.model.weights or ("timm" if config.model.pretrained else None),
            "started": state.started,
            "resumes": state.resumes,
            "overrides": job.overrides,
            "fast_dev_run": config.trainer.fast_dev_run,
        },
        model={
            "name": record.name,
            "input_shape": list(record.input_shape),
            "num_classes": len(record.classes),
            "params": count_parameters(built.module.shipped),
        },
        measured=measured,
        provenance={
            "dataset": info.to_json(),
            **built.provenance,
            "changes": state.changes,
            "versions": versions(),
            "machine": machine(),
        },
    )


def _announce(job: Job, built: Built, state: RunState) -> None:
    info, counts = built.data.info, built.data.info.counts
    model = built.module.model
    size = f"{count_parameters(model) / 1e6:.2f} M parameters"
    if job.config.recipe.tune != "all":
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        size += f", {trained / 1e6:.3f} M of them trained"
    channels, height, width = info.input_shape
    job.say(
        f"{job.stage}: {job.model} ({size}, {state.precision}: {state.precision_reason}) on "
        f"{info.name} ({counts['train']:,} train, {counts['val']:,} val, {counts['test']:,} test images, "
        f"{channels}x{height}x{width}, {len(info.classes)} classes)"
    )


def _show(job: Job, card: Card, baseline: Baseline) -> None:
    job.console.print(card_table(card, baseline))
    job.say(f"card: {os.path.relpath(job.run_dir.html)}")
    for command, why in next_commands(card, baseline)[:1]:
        job.say(f"next: {command}   # {why}")
