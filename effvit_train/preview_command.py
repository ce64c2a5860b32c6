"""`dry_run`: what techniques would do, shown instead of done (see `parts.Attachment.preview`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from rich.console import Console

from effvit_train.build import check_device
from effvit_train.config import Config
from effvit_train.job import Job, build_only
from effvit_train.runs import RunDir


def show_previews(config: Config) -> None:
    """Build what a run would build, and print the tables; raises `UserError` as a run would."""
    console = Console()
    with tempfile.TemporaryDirectory() as nowhere:  # nothing of this is a run
        job = Job(config, RunDir(Path(nowhere)), config.name, config.model.name, console=console)
        built = build_only(job)
    module = built.module.to(torch.device(check_device(config)))
    for preview in built.previews:
        console.print(preview(module, built.data))
