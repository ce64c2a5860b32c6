"""Kill real training processes at random moments, resume them until done, and compare every byte.

    python scripts/bench/kill_resume.py --kills 30
    python scripts/bench/kill_resume.py --kills 6 --case random bf16 ddp distill workers
    python scripts/bench/kill_resume.py --kills 6 --signal mixed

For each case one run is left alone; another, of the same command, is killed again and again. A third
of the kills come at any moment, the start included; a third after training has begun; a third while a
checkpoint is being written. Equal must be: model.safetensors, metrics.csv, the card's quality
measures and epsilon, and in a stream of tasks (`--case stream`) the matrix of accuracies. The W&B logs
of all starts together must hold each point once, in order. Exit code 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TRAIN = Path(__file__).parents[2] / "train.py"
SMALL = ("model.args.depth=1", "model.args.embed_dim=16", "model.args.num_heads=2")
CASES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "random": (
        "recipe.mixup=0.5", "recipe.cutmix=0.5", "recipe.ema=0.99", "recipe.erasing=0.25", "model.drop_rate=0.1",
        "model.drop_path_rate=0.1", "recipe.randaugment=rand-m9-mstd0.5-inc1", "dataset.num_workers=0",
    ),
    "bf16": ("trainer.precision=bf16-mixed",),
    "ddp": ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"),
    "distill": ("compress=distill", "compress.distill.trained.max_epochs=4", "compress.distill.trained.min_steps=80"),
    "workers": ("dataset.num_workers=0",),
    "merge": ("compress=merge_tokens", "compress.merge_tokens.r=3", "compress.merge_tokens.start=0.3"),
    "lowrank": ("compress=lowrank", "compress.lowrank.energy=0.8", "compress.lowrank.start=0.3", "recipe.ema=0.99"),
    "qat": ("compress=quantize", "compress.quantize.qat=true", "compress.quantize.start=0.3"),
    "resolution": ("compress=resolution", "compress.resolution.sizes=[4,6,8]"),
    "attention": ("model.attention=performer",),
    "stream": ("dataset.stream=class", "continual=derpp", "recipe.ema=0.99"),
    "stream-ewc": ("dataset.stream=class", "continual=ewc", "compress=prune", "compress.prune.end=0.7"),
    "stream-lwf": ("dataset.stream=class", "continual=lwf"),
    # both runs have the secret that the first of them makes
    "dp_sgd": ("privacy=dp_sgd", "privacy.secret=secret", "privacy.accountant=rdp"),
}  # fmt: skip
SIGNALS = {name: signal.Signals[f"SIG{name}"] for name in ("KILL", "TERM", "INT", "USR1", "USR2")}
PATIENCE = 600.0  # seconds until a process counts as hung


@dataclass
class Tally:
    """What the kills of a case met."""

    kills: int = 0
    moments: dict[str, int] = field(default_factory=dict)
    restarts: list[str] = field(default_factory=list)

    def add(self, moment: str) -> None:
        """Count one kill."""
        self.kills += 1
        self.moments[moment] = self.moments.get(moment, 0) + 1


def main() -> None:
    """Run the cases; print a line for each; exit 1 when one differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30, help="kills per case")
    parser.add_argument("--case", nargs="+", default=["plain"], choices=list(CASES), help="default: plain")
    parser.add_argument("--signal", default="KILL", choices=[*SIGNALS, "mixed"], help="default: KILL")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each run")
    parser.add_argument("--small", action="store_true", help="a model that starts and trains in no time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--dir", type=Path, help="keep everything here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = options.dir or Path(temporary)
        equal = [run_case(name, options, directory / name) for name in options.case]
    sys.exit(0 if all(equal) else 1)


def run_case(name: str, options: argparse.Namespace, directory: Path) -> bool:
    """Compare a run that is left alone with one that is killed; returns whether they are equal."""
    directory.mkdir(parents=True, exist_ok=True)
    arguments = [
        *CASES[name], *(SMALL if options.small else ()), f"trainer.max_epochs={options.epochs}",
        "trainer.num_threads=1", "trainer.checkpoint_every=1s", "trainer.progress_bar=false",
    ]  # fmt: skip
    whole, killed = directory / "whole", directory / "killed"
    start = time.monotonic()
    code, output = finish(launch([*arguments, "run_dir=whole", "cache_dir=cache-whole"], directory))
    seconds = time.monotonic() - start
    if code != 0:
        raise SystemExit(f"the run that was left alone ended with {code}:\n{output}")
    draw = random.Random(options.seed)
    tally = Tally()
    command = [*arguments, "run_dir=killed", "cache_dir=cache-killed"]
    while True:
        process = launch(command, directory)
        if tally.kills == options.kills:
            code, output = finish(process)
            if code != 0:
                raise SystemExit(f"the last start ended with {code}:\n{output}")
            break
        signum = SIGNALS[draw.choice(list(SIGNALS)) if options.signal == "mixed" else options.signal]
        moment = strike(process, directory, signum, draw)
        code, output = finish(process)
        if moment is None:
            print(f"  done before kill {tally.kills + 1}: give it more --epochs", flush=True)
            break
        if signum != signal.SIGKILL and code not in (130, -signum):
            raise SystemExit(f"{signum.name} ended a start with {code}:\n{output}")
        tally.add(moment)
        tally.restarts += [
            line for line in output.splitlines() if line.startswith(("checkpoint", "going on"))
        ]
        command = ["resume=killed"] if (killed / "state.json").exists() else command
        if name == "workers":
            command = [*command, f"dataset.num_workers={draw.choice((0, 1, 2))}"]
    result = {what: test(whole, killed) for what, test in CHECKS.items()}
    moments = ", ".join(f"{count} {moment}" for moment, count in sorted(tally.moments.items()))
    verdict = ", ".join(f"{what} {'EQUAL' if same else 'DIFFERENT'}" for what, same in result.items())
    print(
        f"{name}: {tally.kills} x SIG{options.signal} ({moments}); alone {seconds:.0f} s; {verdict}",
        flush=True,
    )
    return all(result.values())


def launch(arguments: list[str], directory: Path) -> subprocess.Popen[str]:
    """Start `train.py` in a process group of its own: a cluster kills all the processes of a job."""
    log = open(directory / "output.txt", "w+")  # noqa: SIM115  # read by `finish`
    environment = {**os.environ, "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments], cwd=directory, env=environment, stdout=log,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    log.close()
    process.args = [str(directory / "output.txt")]
    return process


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end; returns the exit code and what was printed."""
    try:
        code = process.wait(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    return code, Path(process.args[0]).read_text(errors="replace")  # type: ignore[index]


def strike(
    process: subprocess.Popen[str], directory: Path, signum: signal.Signals, draw: random.Random
) -> str | None:
    """Send the signal at a random moment; returns when it came, None when the run was done before."""
    kind = draw.choice(("any", "training", "saving"))
    begun = directory / "killed" / "checkpoints"
    seen = _files(begun)
    if kind == "any":
        _wait(process, draw.uniform(0.0, 12.0), lambda: False)
    else:
        _wait(process, PATIENCE, lambda: _files(begun) != seen)
        wait = draw.uniform(0.0, 3.0) if kind == "training" else draw.uniform(0.0, 1.0)
        _wait(process, wait, lambda: False)
        if kind == "saving":
            _wait(process, 10.0, lambda: any(begun.glob(".*.tmp")))
            time.sleep(draw.uniform(0.0, 0.01))
    if process.poll() is not None:
        return None
    if signum == signal.SIGKILL:
        os.killpg(process.pid, signum)
        process.wait()
        saving = any(begun.glob(".*.tmp"))
    else:
        saving = any(begun.glob(".*.tmp"))
        os.kill(process.pid, signum)
    if saving:
        return "while saving"
    return "in training" if _files(begun) != seen or kind != "any" else "while starting"


def _files(checkpoints: Path) -> set[tuple[str, int]]:
    found = set()
    for path in checkpoints.glob("*.ckpt"):
        try:
            found.add((path.name, path.stat().st_ino))
        except FileNotFoundError:
            continue
    return found


def _wait(process: subprocess.Popen[str], seconds: float, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end and not condition():
        time.sleep(0.0005)


def _same_file(name: str) -> Callable[[Path, Path], bool]:
    return lambda whole, killed: (whole / name).read_bytes() == (killed / name).read_bytes()


def _same_quality(whole: Path, killed: Path) -> bool:
    def quality(run: Path) -> dict[str, float]:
        measures = json.loads((run / "card.json").read_text())["measures"]
        return {key: value for key, value in measures.items() if key.startswith(("quality/", "privacy/"))}

    return quality(whole) == quality(killed)


def _same_matrix(whole: Path, killed: Path) -> bool:
    def matrix(run: Path) -> tuple[Any, Any]:
        found = json.loads((run / "card.json").read_text())["provenance"].get("continual") or {}
        return found.get("accuracy"), found.get("within_task")

    return matrix(whole) == matrix(killed)


def _in_order(whole: Path, killed: Path) -> bool:
    """Whether the W&B logs of all starts hold no point twice and none backwards, and end alike."""
    steps = [step for log in sorted((killed / "wandb").glob("offline-run-*")) for step in _points(log)]
    (log,) = (whole / "wandb").glob("offline-run-*")
    expected = list(_points(log))
    missing = len(set(expected) - set(steps))
    if missing:
        print(f"  W&B: {missing} of {len(expected)} points were not on disk when the process was killed")
    return steps == sorted(set(steps)) and set(steps) <= set(expected) and steps[-1:] == expected[-1:]


def _points(log: Path) -> Iterator[int]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        point = json.loads(line).get("history", {}).get("item", {})
        if "trainer/global_step" in point:
            yield int(point["trainer/global_step"])


CHECKS: dict[str, Callable[[Path, Path], bool]] = {
    "model.safetensors": _same_file("model.safetensors"),
    "metrics.csv": _same_file("metrics.csv"),
    "quality": _same_quality,
    "matrix": _same_matrix,
    "W&B order": _in_order,
}

if __name__ == "__main__":
    main()
