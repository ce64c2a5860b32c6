"""Average accuracy and forgetting of strategies on a stream of tasks, over several orders of the classes.

    python scripts/bench/continual.py [--dataset digits] [--orders 3] [--epochs 30] [--jobs 2] [--arms naive,joint]
    python scripts/bench/continual.py --dataset fashion_mnist --root DIR --epochs 5
    python scripts/bench/continual.py --stream domain --group exposure --dataset image_folder --root DIR [overrides]

`--epochs` are those of each task. Order k is run with seed k (`dataset.stream_order=k seed=k`): a difference between
arms is one of strategies, on the same tasks. Means and standard deviations are over orders. Runs that are there are not
repeated, and those that were stopped go on.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import arms as experiment

ARMS: dict[str, tuple[str, ...]] = {
    "naive": ("continual=naive",),
    "ewc": ("continual=ewc",),
    "lwf": ("continual=lwf",),
    "ncm": ("continual=ncm",),
    "lda": ("continual=ncm", "continual.ncm.classifier=lda"),
    "replay": ("continual=replay",),
    "derpp": ("continual=derpp",),
    "joint": ("continual=joint",),
}
MEASURES = {
    "average": "continual/average_accuracy", "incremental": "continual/average_incremental_accuracy",
    "forgetting": "continual/forgetting", "backward": "continual/backward_transfer",
    "within": "continual/task_incremental_accuracy", "memory_mb": "continual/kept_mb",
    "seconds": "continual/seconds_per_task",
}  # fmt: skip


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--dataset", default="digits", choices=["digits", "fashion_mnist", "cifar10", "image_folder"]
    )
    parser.add_argument("--root", type=Path)
    parser.add_argument("--stream", default="class", choices=["class", "domain", "data"])
    parser.add_argument("--group", help="column of the domains")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument(
        "--arm", action="append", default=[], metavar="NAME=OVERRIDE ...", help="one of your own"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/continual"))
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    own = dict(arm.split("=", 1) for arm in options.arm)
    arms = {name: ARMS[name] for name in options.arms.split(",") if name}
    arms |= {name: tuple(words.split()) for name, words in own.items()}
    options.seeds = options.orders

    def run(name: str, order: int) -> dict[str, Any]:
        return card(name, order, arms[name], options)

    runs = experiment.run_all(list(arms), options, run)
    rows = {name: row([runs[name, order] for order in range(1, options.orders + 1)]) for name in arms}
    if options.json:
        print(json.dumps({"rows": rows, "arms": arms, "overrides": common(options)}))
    else:
        show(rows)


def common(options: argparse.Namespace) -> list[str]:
    """Overrides of every run."""
    return [
        f"dataset={options.dataset}", *([] if options.root is None else [f"dataset.root={options.root.resolve()}"]),
        f"dataset.stream={options.stream}", f"dataset.tasks={options.tasks}",
        *([] if options.group is None else [f"dataset.stream_group={options.group}"]),
        f"trainer.max_epochs={options.tasks * options.epochs}", f"trainer.check_val_every_n_epoch={options.epochs}",
        "trainer.num_threads=1", "logger=none", "audit=none", "trainer.progress_bar=false", *options.overrides,
    ]  # fmt: skip


def card(name: str, order: int, words: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The card of a run, which is trained, or goes on, where it is not there."""
    run = options.out / f"{options.dataset}-{options.stream}" / f"{name}-{order}"
    if not (run / "card.json").exists():
        arguments = [
            *common(options), *words, f"dataset.stream_order={order}", f"seed={order}", f"run_dir={run}",
        ]  # fmt: skip
        if (run / "state.json").exists():  # stopped on the way
            arguments = [f"resume={run}"]
        experiment.process(name, order, [str(experiment.ROOT / "train.py"), *arguments])
    found: dict[str, Any] = json.loads((run / "card.json").read_text())
    return found


def row(cards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over orders; what is lost of each task's name, where names stay the same."""
    found: dict[str, Any] = {}
    for short, key in MEASURES.items():
        values = [card["measures"][key] for card in cards]
        complete = all(value is not None for value in values)
        found[short] = statistics.mean(values) if complete else None
        found[f"{short}_sd"] = experiment.sd(values) if complete else None
    lost: dict[str, list[float]] = {}
    for card in cards:
        facts = card["provenance"]["continual"]
        matrix, last = facts["accuracy"], len(facts["tasks"]) - 1
        for j, task in enumerate(facts["tasks"][:last]):
            lost.setdefault(task["name"], []).append(matrix[j][j] - matrix[last][j])
    found["lost"] = {name: statistics.mean(values) for name, values in lost.items()}
    return found


def show(rows: Mapping[str, Mapping[str, Any]]) -> None:
    """A table."""
    print("strategy  average %       incremental %   forgetting %    task told %     memory MB  s per task")
    for name, found in rows.items():
        cells = [
            percent(found[short], found[f"{short}_sd"])
            for short in ("average", "incremental", "forgetting", "within")
        ]
        print(f"{name:8}  {'  '.join(cells)}  {found['memory_mb']:9.2f}  {found['seconds']:10.1f}")


def percent(mean: float | None, sd: float | None) -> str:
    """A cell."""
    if mean is None:
        return "–".ljust(14)
    return f"{100 * mean:6.2f}{'' if sd is None else f' ± {100 * sd:4.2f}'}".ljust(14)


if __name__ == "__main__":
    main()
