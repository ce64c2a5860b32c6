"""`effvit cache`: what a technique can do ahead of the training, done (see `parts.Ahead`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from effvit_train.build import check_device
from effvit_train.config import Config
from effvit_train.errors import MachineError, UserError
from effvit_train.job import Job, build_only
from effvit_train.runs import RunDir
from effvit_train.signals import Stop

_KEY = "compress.distill.cache.epochs"


def build_cache(config: Config, stop: Stop) -> None:
    """Judge every view of every training image that has not been judged yet.

    Batches are those of the training, in its order: what is kept is bit for bit what a run with the same
    seed and batch size would have kept.

    Raises:
        UserError: the configuration has nothing that can be done ahead.
    """
    if "distill" not in config.compress:
        raise UserError("has no teacher to ask", key="compress", value=",".join(config.compress) or "none",
                        remedy=f"add compress=distill {_KEY}=N")  # fmt: skip
    views = config.compress["distill"].cache.epochs
    if views is None:
        raise UserError(
            "is needed: how many views of each image the teacher is to judge",
            key=_KEY, value=None, remedy=f"e.g. {_KEY}={min(10, config.trainer.max_epochs)}",
        )  # fmt: skip
    console = Console()
    with tempfile.TemporaryDirectory() as nowhere:  # nothing of this is a run; its teacher is, elsewhere
        job = Job(config, RunDir(Path(nowhere)), config.name, config.model.name, console=console, stop=stop)
        built = build_only(job)
    (ahead,) = built.ahead
    device = torch.device(check_device(config))
    module = built.module.to(device)
    total = len(built.data.indices("train")) * views
    with Progress(
        TextColumn("cache"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        disable=not (config.trainer.progress_bar and console.is_terminal),
    ) as progress:  # fmt: skip
        bar = progress.add_task("", total=total)
        new = 0
        for view in range(views):
            batches = built.data.train_batches(view)
            missing = [ids for ids in batches if ahead.missing(ids, view).any()]
            progress.advance(bar, sum(map(len, batches)) - sum(map(len, missing)))
            for batch in built.data.augmented_loader(missing, view):
                stop.check()
                images = module.augmented(batch._replace(images=batch.images.to(device)), view)
                ids = batch.index.numpy()
                new += int(ahead.missing(ids, view).sum())
                ahead.fill(images, ids, view)
                progress.advance(bar, len(ids))
            ahead.finish()
            lost = sum(int(ahead.missing(ids, view).sum()) for ids in missing)
            if lost:
                raise MachineError(
                    f"{lost:,} records could not be kept; make room, then the same command again"
                )
    job.say(f"teacher cache: complete, {total:,} records, {new:,} of them new")
