"""The run directory: its files, its state, and what was there when it was made. Needs no torch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import secrets
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json, write_text

PACKAGES = (
    "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf",
    "wandb", "opacus", "numpy", "pillow",
)  # fmt: skip
QUEUED = "queued"
_NOT_ENTERED = {"checkpoints", "wandb", "__pycache__"}


@dataclass(frozen=True)
class RunDir:
    """Names of the files of a run (contract C2)."""

    path: Path

    @property
    def card(self) -> Path:
        """`card.json`."""
        return self.path / "card.json"

    @property
    def html(self) -> Path:
        """`card.html`."""
        return self.path / "card.html"

    @property
    def metrics(self) -> Path:
        """`metrics.csv`."""
        return self.path / "metrics.csv"

    @property
    def weights(self) -> Path:
        """`model.safetensors`."""
        return self.path / "model.safetensors"

    @property
    def record(self) -> Path:
        """`model.json`."""
        return self.path / "model.json"

    @property
    def predictions(self) -> Path:
        """`predictions.npz`: logits, labels and ids of the test images."""
        return self.path / "predictions.npz"

    @property
    def last(self) -> Path:
        """`checkpoints/last.ckpt`."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """`checkpoints/previous.ckpt`: the one before, in case that the last is damaged."""
        return self.path / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        """`checkpoints/best.ckpt`."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def state(self) -> Path:
        """`state.json`."""
        return self.path / "state.json"

    @property
    def config(self) -> Path:
        """`.hydra/config.yaml`."""
        return self.path / ".hydra" / "config.yaml"


@dataclass
class RunState:
    """`state.json`: where the run stands, and choices that a resume must repeat.

    Attributes:
        status: queued (a job of a sweep, not begun) | running | interrupted | abandoned (by a search) | failed |
            done.
        id: short id of the run, also its W&B id.
        started: UTC time of the first start, ISO 8601.
        resumes: how often the run was resumed.
        epochs: epochs trained so far.
        train_seconds: wall-clock seconds in `fit` so far.
        name, model: the run's name, and the model as the user named it.
        data: fingerprint of the data set that it is trained on.
        precision: what `trainer.precision=auto` chose.
        precision_reason: why.
        environment: what the promise of equal bytes depends on, as it was last (see `environment`).
        changes: what of it changed from one start to the next.
        slurm_job: the Slurm job that started it, which is to find it again when it is requeued.
        made_by: the command that made it of another run; None for a training.
        error: the one line that the last start ended with; None where it did not fail.
    """

    status: str
    id: str
    started: str
    resumes: int = 0
    epochs: int = 0
    train_seconds: float = 0.0
    name: str = ""
    model: str = ""
    data: str = ""
    precision: str | None = None
    precision_reason: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    slurm_job: str | None = None
    made_by: str | None = None
    error: str | None = None

    @classmethod
    def new(cls) -> RunState:
        """The state of a run that starts now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls("running", secrets.token_hex(4), now, slurm_job=slurm_job())

    def begin(self) -> None:
        """A queued run starts now, in the Slurm job that we run in, if any."""
        self.started, self.slurm_job = datetime.now(UTC).isoformat(timespec="seconds"), slurm_job()

    def enter(self, environment: dict[str, Any]) -> list[str]:
        """Take over where this start runs; returns what differs from the start before, in words."""
        before, self.environment = self.environment, environment
        changed = [
            f"{name} {before[name]} -> {value}"
            for name, value in environment.items()
            if name in before and before[name] != value
        ]
        self.changes += changed
        return changed

    @classmethod
    def read(cls, path: Path) -> RunState:
        """Read `state.json`; `UserError` when it is missing or is not one."""
        try:
            return cls(**read_json(path))
        except FileNotFoundError:
            raise UserError(
                f"no run at {path.parent}", remedy="give a run directory (it holds state.json)"
            ) from None
        except (TypeError, ValueError):
            raise UserError(f"{path} is not the state of a run", remedy="give a run directory") from None

    def write(self, path: Path) -> None:
        """Write `state.json` atomically."""
        write_json(path, asdict(self))


def fingerprint_of(run_dir: Path) -> str | None:
    """Fingerprint of the data that a run was trained on; None where its state does not tell.

    A private run's card has a sealed one, which nobody but its owner can compare.
    """
    try:
        return RunState.read(RunDir(run_dir).state).data or None
    except UserError:
        return None


def run_directories(directory: Path) -> Iterator[Path]:
    """The run directories at and below `directory`: those that hold a `state.json` or a card."""
    for top, names, files in os.walk(directory):
        if "state.json" in files or "card.json" in files:
            names.clear()
            yield Path(top)
        names[:] = sorted(name for name in names if name not in _NOT_ENTERED and not name.startswith("."))


def ensure_writable(path: Path, key: str = "run_dir") -> None:
    """`UserError` unless files can be made in the directory `path` (made if needed)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})",
            key=key,
            value=path,
            remedy=f"e.g. {key}=DIR, a directory of yours",
        ) from None


def write_config(run_dir: RunDir, config: Any, overrides: list[str]) -> None:
    """Store the configuration as it is in force, and what the user typed: a resume needs no more."""
    from omegaconf import OmegaConf

    write_text(run_dir.config, OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    write_text(run_dir.path / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(OmegaConf.create(overrides)))


def discard(path: Path) -> None:
    """Remove a run directory in which nothing has started, and parents that it leaves empty.

    A directory that holds anything but Hydra's files, or a `state.json`, is left alone.
    """
    if RunDir(path).state.exists() or not path.is_dir():
        return
    if {entry.name for entry in path.iterdir()} - {".hydra", "multirun.yaml"}:
        return
    shutil.rmtree(path)
    # Only directories of our own layout, runs/<name>[/<sweep>]: an empty directory of the user's stays.
    layout = list(path.parents)[:3]
    top = next((depth for depth, parent in enumerate(layout) if parent.name == "runs"), -1)
    for parent in layout[: top + 1]:
        with contextlib.suppress(OSError):
            if [entry.name for entry in parent.iterdir()] == ["multirun.yaml"]:
                (parent / "multirun.yaml").unlink()
            parent.rmdir()
            continue
        break


def program() -> str:
    """How the user started us: what commands that we print must begin with."""
    return "effvit train" if Path(sys.argv[0]).name in ("effvit", "effvit.exe") else "python train.py"


def training_command() -> list[str]:
    """How to start a training in a process of its own, as this process was started."""
    script = Path(sys.argv[0])
    if not script.is_file():
        script = Path(shutil.which("effvit") or "") if script.name == "effvit" else Path()
    if not script.is_file():
        return [sys.executable, "-u", "-c", "from effvit_train.cli import train; train()"]
    command = [sys.executable, "-u", str(script.resolve())]
    return [*command, "train"] if script.stem == "effvit" else command


def resume_command(run_dir: Path) -> str:
    """The command that goes on with a run."""
    return f"{program()} resume={shlex.quote(str(run_dir))}"


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those it stands on."""
    found = {"python": platform.python_version()}
    from effvit_train._version import __version__

    found["effvit_train"] = __version__
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def environment(*, processes: int, threads: int, device: str) -> dict[str, Any]:
    """What equal bytes depend on beside the configuration and the seed (contract C6)."""
    found = versions()
    numeric = ("effvit_train", "torch", "timm", "numpy", "pytorch-lightning", "pillow")
    return {
        "processor": processor(), "device": device, "processes": processes, "threads": threads,
        **{name: found[name] for name in numeric if name in found},
    }  # fmt: skip


def slurm_job() -> str | None:
    """Id of the Slurm job that we run in; the same after it was requeued."""
    return os.environ.get("SLURM_JOB_ID")


def machine() -> dict[str, Any]:
    """The processor, cores and system that ran this."""
    return {
        "processor": processor(), "cores": os.cpu_count(), "system": platform.system(),
        "architecture": platform.machine(),
    }  # fmt: skip


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
