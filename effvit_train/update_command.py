"""`effvit update`: a shipped model learns new data, and a verdict says whether it may take the place of the old one."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effvit_train.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from effvit_train.config import Config
    from effvit_train.runs import RunDir

TOLERANCE, LEVEL = 0.02, 0.05
# Of the parent, whatever is typed.
_OF_PARENT = ("model", "experiment", "resume", "hydra")
_OF_STREAM = ("stream", "tasks", "stream_group", "stream_kinds", "stream_severity", "stream_order")
_REFUSED = {
    **{
        f"dataset.{key}": "an update is a stream of its own: the earlier data, then the new ones"
        for key in _OF_STREAM
    },
    "audit.canaries": "no images are planted in an update",
    "audit.shadow_models": "an update trains one model only",
    "trainer.fast_dev_run": "a single batch says nothing about an update",
}
# Of the parent's data set, what the new images are made with too, unless it is typed.
_KEPT = ("augment", "crop_mode", "in_memory", "memory_limit_mb", "num_workers", "max_pixels")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options, and overrides of the configuration.

    Raises:
        UserError: an option cannot be what it is.
    """
    from effvit_train.check_command import add_budget_options, budgets_of

    parser = argparse.ArgumentParser(
        prog="effvit update", allow_abbrev=False,
        usage="effvit update RUN_DIR dataset=NAME [continual=NAME] [key=value ...] [--budget BUDGET ...]\n"
        "       effvit update --resume DIR [--budget BUDGET ...]",
        description="Train the model of a finished run on new data, from its weights and with its settings; test both "
        "models on the old and the new test images, hold the new one against budgets, and say whether it may take the "
        "place of the old one. Exit code 0: promote, 1: hold or roll back, 2: the input is at fault.",
        epilog="examples:  effvit update runs/x/y dataset.root=photos/march continual=replay --budget "
        "'cost/latency_ms<=5'   effvit update runs/x/y dataset=image_folder dataset.root=more privacy=dp_sgd --budget "
        "'privacy/epsilon<=8'",
    )  # fmt: skip
    parser.add_argument("run", metavar="RUN_DIR", nargs="?", help="the shipped model's run")
    add_budget_options(parser, whose="a measure of the new model")
    parser.add_argument(
        "--confident", action="store_true", help="the worse end of a budgeted measure's interval counts"
    )
    parser.add_argument(
        "--tolerance", type=float, metavar="SHARE",
        help=f"loss of accuracy that is accepted, on each test set and in each group (default: {TOLERANCE})",
    )  # fmt: skip
    parser.add_argument("--level", type=float, help=f"of every test (default: {LEVEL})")
    parser.add_argument("--old-root", metavar="DIR", help="where RUN_DIR's data set is now, if it has moved")
    parser.add_argument(
        "--old-images", choices=("auto", "all", "test", "none"), default="auto",
        help="which of its images may be looked at: all, its test images only, or none (default: all that may be)",
    )  # fmt: skip
    parser.add_argument("--run-dir", metavar="DIR", help="the update's run directory")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with an interrupted update, or judge a finished one again"
    )
    options, overrides = parser.parse_known_args(list(argv))
    if options.run is not None and "=" in options.run and not Path(options.run).is_dir():
        overrides, options.run = [options.run, *overrides], None
        named = [item for item in overrides if "=" not in item and not item.startswith("-")]
        if len(named) == 1:  # behind the overrides
            overrides.remove(named[0])
            options.run = named[0]
    for item in overrides:
        if item.startswith("-") or "=" not in item:
            raise UserError(f"{item!r} is no override", remedy="see effvit update --help")
    if options.resume is None and options.run is None:
        raise UserError("no run is named", remedy="effvit update RUN_DIR dataset=NAME, or --resume DIR")
    if options.resume is not None and options.run is not None:
        raise UserError(
            "goes on with the update that is there", key="--resume", value=options.resume,
            remedy="leave out RUN_DIR",
        )  # fmt: skip
    options.budgets = [budget.text for budget in budgets_of(options)]
    return options, overrides


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `UserError` for what is the shipped model's, or no part of an update."""
    from effvit_train.compose import parse_overrides

    new = False
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if any(key == name or key.startswith(f"{name}.") for name in _OF_PARENT):
            raise UserError(
                "is the shipped model's", key=key, value=override.value(),
                remedy="an update takes dataset, continual, compress, recipe, trainer, privacy, audit, logger",
            )  # fmt: skip
        if key in _REFUSED or key.startswith("update."):
            why = _REFUSED.get(key, "is an option of effvit update")
            raise UserError(why, key=key, value=override.value(), remedy="see effvit update --help")
        if override.is_sweep_override() or override.is_delete() or override.is_add():
            raise UserError(f"{override.input_line!r} is for a single run", remedy="write key=value")
        new = new or key == "dataset" or key in ("dataset.root", "dataset.labels_csv", "dataset.name")
    if not new:
        raise UserError("no new data are named", key="dataset", remedy="dataset=NAME, or dataset.root=DIR")


def prepare(options: argparse.Namespace, cfg: DictConfig, overrides: list[str]) -> RunDir:
    """Write the run directory of an update that is still to be trained.

    Args:
        options: of the command line.
        cfg: Hydra's composition of the overrides.
        overrides: what was typed, as overrides.

    Raises:
        UserError: RUN_DIR is no finished run, or the settings cannot be.
    """
    from effvit_train.compose import load
    from effvit_train.runs import QUEUED, RunDir, RunState, ensure_writable, write_config
    from effvit_train.updating import open_parent

    parent, card, record = open_parent(options.run)
    merged = _merged(parent, cfg, overrides, record.input_shape, str(card.run.get("name") or "model"))
    for key, value in _settings(options).items():
        merged["update"][key] = value
    merged["update"].after = str(parent.path.resolve())
    merged["update"].earlier = merged["update"].asked = options.old_images
    merged.model.weights, merged.model.pretrained = str(parent.path.resolve()), False
    _check_privacy(merged)
    config = load(merged, overrides, print, stored=True)
    if not config.continual and not config.privacy.on:
        print("nothing works against forgetting (continual=none); e.g. continual=replay")
    run_dir = RunDir(Path(config.run_dir).expanduser().resolve())
    if run_dir.path.exists() and any(run_dir.path.iterdir()):
        raise UserError(
            "holds files already", key="--run-dir", value=run_dir.path,
            remedy=f"give another directory, or go on with --resume {run_dir.path}",
        )  # fmt: skip
    ensure_writable(run_dir.path, key="--run-dir")
    config.run_dir = str(run_dir.path)
    write_config(run_dir, config, [item for item in overrides if not item.startswith(("run_dir=", "name="))])
    state = RunState.new()
    state.status, state.name, state.model, state.slurm_job = QUEUED, config.name, str(card.run["model"]), None
    state.write(run_dir.state)
    return run_dir


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for of the verdict."""
    given = {
        "root": options.old_root, "tolerance": options.tolerance, "level": options.level,
        "budgets": options.budgets or None, "confident": options.confident or None,
    }  # fmt: skip
    return {key: value for key, value in given.items() if value is not None}


# `cfg["update"]`, not `cfg.update`: that is a method of every mapping.
def _merged(
    parent: RunDir, composed: DictConfig, overrides: Sequence[str], shape: tuple[int, int, int], name: str
) -> DictConfig:
    """The parent's configuration with what was typed on top."""
    from omegaconf import OmegaConf

    from effvit_train.compose import GROUPS, load_resumed, parse_overrides

    try:
        cfg, _ = load_resumed(parent, [])
    except UserError as error:
        raise UserError(error.problem, key="RUN_DIR", value=parent.path, remedy=error.remedy) from None
    typed = [override.key_or_group for override in parse_overrides(overrides)]
    before = OmegaConf.to_container(cfg)
    assert isinstance(before, dict)
    cfg.compress = cfg.continual = {}  # the parent's have done their work
    cfg.resume, cfg["update"], cfg.audit.ensemble = None, composed["update"], []
    cfg.audit.canaries = cfg.audit.shadow_models = 0
    cfg.audit.shadow = cfg.privacy.secret = None
    cfg.trainer.fast_dev_run = False
    for key in (*_OF_STREAM, "labels_csv", "num_classes"):
        cfg.dataset[key] = None
    for group in (key for key in typed if key in GROUPS):
        cfg[group] = composed[group]
    if "dataset" in typed:
        for key in _KEPT:
            cfg.dataset[key] = before["dataset"][key]
    if "trainer" in typed:
        cfg.trainer.max_epochs = before["trainer"]["max_epochs"]
    for key in typed:
        if key not in GROUPS and not any(key.startswith(f"{many}.") for many in ("compress", "continual")):
            OmegaConf.update(cfg, key, OmegaConf.select(composed, key))
    channels, size, _ = shape
    for key, value in (("image_size", size), ("channels", channels)):
        if f"dataset.{key}" not in typed:
            cfg.dataset[key] = value
    if "name" not in typed:
        cfg.name = name if name.endswith("-update") else f"{name}-update"
    if "run_dir" not in typed:
        given = Path(composed.run_dir)
        cfg.run_dir = str(given.parent.with_name(cfg.name.replace("/", "_")) / given.name)
    return cfg


def _check_privacy(cfg: DictConfig) -> None:
    if cfg.privacy.mechanism != "none" and cfg.continual:
        raise UserError(
            "is for updates without privacy: a private one is trained on the new images alone, all at once",
            key="continual", value=",".join(cfg.continual), remedy="leave it out, or privacy=none",
        )  # fmt: skip
    if cfg.privacy.mechanism != "none" and cfg["update"].earlier == "all":
        raise UserError(
            "a private update is trained on the new images alone", key="--old-images", value="all",
            remedy="--old-images test",
        )  # fmt: skip


def carry_out(run_dir: RunDir, train: Callable[[Sequence[str]], None], overrides: Sequence[str] = ()) -> int:
    """Train a prepared update, unless its plan breaks a budget already; returns the exit code of its verdict.

    Args:
        run_dir: of the update.
        train: trains, as `effvit train` does with these arguments, and judges the result (`conclude`).
        overrides: that a resumed run takes.
    """
    held = _held_by_plan(run_dir)
    if held:
        return _told(held, run_dir)
    try:
        train([f"resume={json.dumps(str(run_dir.path))}", *overrides])
    except SystemExit as ended:
        if ended.code not in (0, None):
            if ended.code != 130:
                _forget_unbegun(run_dir)
            raise
    return _exit_code(run_dir)


def go_on(
    options: argparse.Namespace, overrides: Sequence[str], train: Callable[[Sequence[str]], None]
) -> int:
    """Go on with an interrupted update, or judge a finished one again; returns the exit code of its verdict.

    Raises:
        UserError: there is no update.
    """
    from effvit_train.compose import load, load_resumed
    from effvit_train.runs import RunDir, RunState, write_config

    run_dir = RunDir(Path(options.resume).expanduser().resolve())
    for option, default in (("old_images", "auto"), ("run_dir", None)):
        if getattr(options, option) != default:
            raise UserError(
                "cannot change in a resumed run", key=f"--{option.replace('_', '-')}", value=getattr(options, option),
                remedy="start a new update",
            )  # fmt: skip
    cfg, first = load_resumed(run_dir, list(overrides))
    if cfg["update"].after is None:
        raise UserError(
            "is no update",
            key="--resume",
            value=options.resume,
            remedy=f"python train.py resume={options.resume}",
        )
    stored, _ = load_resumed(run_dir, [])
    for key, value in _settings(options).items():
        cfg["update"][key] = stored["update"][key] = value
    config = load(cfg, first, print, stored=True)
    trained = cfg.trainer.max_epochs == stored.trainer.max_epochs
    if RunState.read(run_dir.state).status == "done" and trained:
        write_config(run_dir, config, first)
        conclude(config, run_dir)
        return _exit_code(run_dir)
    # the other overrides are written when the training has taken them
    write_config(run_dir, load(stored, first, lambda line: None, stored=True), first)
    return carry_out(run_dir, train, overrides)


def conclude(config: Config, run_dir: RunDir) -> None:
    """Judge a finished update, write its files and say the verdict."""
    from effvit_train.update_files import said
    from effvit_train.update_judge import judge

    def say(line: str) -> None:
        print(line, flush=True)

    result = judge(config, run_dir, say)
    for line in said(result):
        say(line)
    say(f"update: {run_dir.path / 'update.html'}")


def _exit_code(run_dir: RunDir) -> int:
    from effvit_train.update_files import read_result

    return 0 if read_result(run_dir)["verdict"] == "promote" else 1


def _told(result: dict[str, Any], run_dir: RunDir) -> int:
    from effvit_train.update_files import said

    for line in said(result):
        print(line)
    print(f"nothing was trained; to train it: effvit update --resume {run_dir.path} with other budgets")
    return 1


def _held_by_plan(run_dir: RunDir) -> dict[str, Any] | None:
    """What the verdict is before any training, where privacy alone decides it; None where nothing does."""
    from effvit_train.budgets import parse_budgets
    from effvit_train.compose import load, load_resumed
    from effvit_train.seen import of_start
    from effvit_train.update_files import held_before
    from effvit_train.updating import spent_before

    cfg, first = load_resumed(run_dir, [])
    config = load(cfg, first, print, stored=True)
    planned = config.privacy.target
    if not config.privacy.on or planned is None:
        return None
    if config.privacy.max_epsilon is not None:
        planned = min(planned, config.privacy.max_epsilon)
    before = spent_before(of_start(config.model))
    spent = 0.0 if before is None else float(before["epsilon"])
    for budget in parse_budgets(config.update.budgets):
        if budget.key == "privacy/epsilon" and budget.sign in ("<", "<=") and not budget.met(spent + planned):
            text = (
                f"privacy/epsilon: the shipped model has spent {spent:.4g} and this training may spend {planned:g}: "
                f"{spent + planned:.4g} breaks the budget {budget.sign} {budget.limit:g}"
            )
            return held_before(config.update, run_dir, text)
    return None


def _forget_unbegun(run_dir: RunDir) -> None:
    """Remove the directory of an update in which nothing was trained."""
    with contextlib.suppress(OSError):
        if {entry.name for entry in run_dir.path.iterdir()} <= {".hydra", "state.json", "run.lock"}:
            shutil.rmtree(run_dir.path)


def exit_with(code: int) -> None:
    """Exit; `effvit update` that promotes ends as any command."""
    if code:
        sys.exit(code)
