"""Accuracy at equal cost: dense, pruned by each criterion, designed at that size, and Torch-Pruning; over seeds.

    python scripts/bench/prune_accuracy.py --dataset fashion_mnist --root DIR [--seeds 3] [--fraction 0.185]
        [--arms dense,hessian@0.5,designed@0.5,torch-pruning@0.5,...] [--epochs 30] [--jobs 2]
        [--out runs/prune_accuracy] [--json] [overrides]

An arm is `dense`, or `NAME@FRACTION` of the dense model's MACs, where NAME is an importance (`hessian`; with
words after it such as `hessian-global`, `hessian-uniform`, and `hessian-all` for heads, head widths, MLPs and
the embedding), `designed` (a model of the same depth that is as large from the start), or `torch-pruning`
(see `torch_pruned.py`; it needs `pip install torch-pruning==1.6.1 --no-deps`).

All arms train for the same number of epochs in all, on the same images, views and recipe, with one warm-up and
one cosine over the whole training. Torch-Pruning cuts once, in the middle of the stretch in which ours cuts (0.3
of the training): it recovers as long as ours does on average, and no arm has epochs that another has not. Each
figure is the accuracy on the test images.

Runs that are there are not repeated and those that were stopped go on: the script can be stopped and started
again (a `torch-pruning` run that was stopped starts anew).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arms as experiment

from common import build_run  # isort: skip  # before torchvision, as `effvit_train` itself
import torch

from effvit_train.audit.operations import count_operations
from effvit_train.compress.prune import PruneConfig
from effvit_train.compress.prune.config import CRITERIA
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord

KEY = "compress.prune"
BUDGETS = ("0.5", "0.25")
ARMS = (
    "dense",
    *(f"{name}@{budget}" for budget in BUDGETS for name in ("hessian", "designed", "torch-pruning")),
    *(f"{name}@{budget}" for budget in BUDGETS for name in ("taylor", "magnitude", "variance", "random")),
    "hessian-global@0.5",
    "hessian-uniform@0.5",
)
WORDS = {
    "isomorphic": f"{KEY}.allot=isomorphic",
    "global": f"{KEY}.allot=global",
    "uniform": f"{KEY}.allot=uniform",
    "all": f"{KEY}.kinds=[heads,head_width,mlp,embed]",
}
TOLERANCE = 0.02  # of a designed model's MACs


def main() -> None:
    assert __doc__ is not None
    parser = experiment.parser(__doc__.splitlines()[0], arms=ARMS, fraction=0.185, out="runs/prune_accuracy")
    options = parser.parse_args()
    arms = options.arms.split(",")
    for arm in arms:
        if arm != "dense" and not _is_arm(arm):
            parser.error(f"no such arm: {arm}")
    if any(arm.startswith("torch-pruning") for arm in arms) and not importlib.util.find_spec("torch_pruning"):
        sys.exit("torch-pruning is missing: pip install torch-pruning==1.6.1 --no-deps")
    dense = _record(options)
    macs = count(dense)
    designs = {arm: design(dense, float(arm.partition("@")[2])) for arm in arms if arm.startswith("designed")}
    for arm, chosen in designs.items():
        print(f"{arm}: {chosen.words(macs)}", file=sys.stderr, flush=True)
    rows = experiment.run_all(arms, options, lambda arm, seed: _run(arm, seed, designs, options))
    result = _result(arms, rows, macs, designs, options)
    if options.json:
        print(json.dumps(result))
        return
    print(
        "arm                           accuracy  s.d.    MACs    params   - dense  (s.d.)    - designed  (s.d.)"
    )
    for arm, row in result["arms"].items():
        print(
            f"{arm:28}  {row['mean']:.4f}    {row['sd'] or 0:.4f}  {row['macs']:.3f}  {row['params']:8,.0f}"
            f"  {_gain(row['gain_over_dense'])}  {_gain(row['gain_over_designed'])}"
        )
    for arm, chosen in designs.items():
        print(f"{arm}: {chosen.words(macs)}")


def _is_arm(arm: str) -> bool:
    name, _, budget = arm.partition("@")
    first, *words = name.removeprefix("torch-").split("-")
    try:
        possible = 0 < float(budget) < 1
    except ValueError:
        return False
    if name.startswith("torch-"):
        return possible and first == "pruning" and set(words) <= {"l2", "uniform", "2phase"}
    return possible and (name == "designed" or (first in CRITERIA and set(words) <= set(WORDS)))


def _run(arm: str, seed: int, designs: Mapping[str, Design], options: argparse.Namespace) -> dict[str, float]:
    if arm.startswith("torch-pruning"):
        run = experiment.run_dir(arm, seed, options)
        if not (run / "result.json").exists():
            overrides = [*experiment.common(options), "compress=none", f"seed={seed}"]
            script = str(Path(__file__).with_name("torch_pruned.py"))
            experiment.process(arm, seed, [script, arm, str(run), *overrides])
        return json.loads((run / "result.json").read_text())
    name, _, budget = arm.partition("@")
    if arm == "dense":
        overrides = ["compress=none"]
    elif name == "designed":
        overrides = ["compress=none", *designs[arm].overrides()]
    else:
        importance, *words = name.split("-")
        overrides = ["compress=prune", f"{KEY}.importance={importance}", f"{KEY}.target.macs={budget}"]
        overrides += [WORDS[word] for word in words]
    measures = experiment.train(arm, seed, overrides, options)["measures"]
    return {
        "accuracy": measures["quality/accuracy"], "macs": measures["cost/macs"], "params": measures["cost/params"],
    }  # fmt: skip


def _result(
    arms: Sequence[str],
    rows: Mapping[tuple[str, int], Mapping[str, float]],
    macs: int,
    designs: Mapping[str, Design],
    options: argparse.Namespace,
) -> dict[str, Any]:
    seeds = range(1, options.seeds + 1)

    def gain(arm: str, other: str) -> dict[str, Any] | None:
        if arm == other or other not in arms:
            return None
        gains = [rows[arm, seed]["accuracy"] - rows[other, seed]["accuracy"] for seed in seeds]
        return {"gains": gains, "mean": statistics.mean(gains), "sd": experiment.sd(gains)}

    result: dict[str, Any] = {}
    table: dict[str, dict[str, Any]] = {}
    for arm in arms:
        name, _, budget = arm.partition("@")
        values = [rows[arm, seed]["accuracy"] for seed in seeds]
        table[arm] = {
            "accuracy": values, "mean": statistics.mean(values), "sd": experiment.sd(values),
            "macs": statistics.mean(rows[arm, seed]["macs"] for seed in seeds) / macs,
            "params": statistics.mean(rows[arm, seed]["params"] for seed in seeds),
            "gain_over_dense": gain(arm, "dense"),
            "gain_over_designed": gain(arm, f"designed@{budget}"),
            "gain_over_torch_pruning": gain(arm, f"torch-pruning@{budget}"),
        }  # fmt: skip
        if name == PruneConfig().importance:
            for other in ("dense", "designed", "torch_pruning"):
                found = table[arm][f"gain_over_{other}"]
                result[f"{name}_{budget}_over_{other}"] = found and found["mean"]
    return {
        **result, "arms": table, "dense_macs": macs, "seeds": options.seeds, "epochs": options.epochs,
        "fraction": options.fraction, "dataset": options.dataset, "overrides": options.overrides,
        "designs": {arm: dataclasses.asdict(chosen) for arm, chosen in designs.items()},
    }  # fmt: skip


def _gain(gain: Mapping[str, Any] | None) -> str:
    return f"{gain['mean']:+.4f}  ({gain['sd'] or 0:.4f})" if gain else " " * 17


# --- models ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Design:
    """A ViT of the same depth, as large as a budget allows."""

    embed_dim: int
    num_heads: int
    hidden: int
    macs: int

    def overrides(self) -> list[str]:
        """That build it."""
        return [f"++model.args.{name}={value}" for name, value in self.args().items()]

    def args(self) -> dict[str, Any]:
        """timm's arguments; timm rounds the hidden width down."""
        ratio = round((self.hidden + 0.5) / self.embed_dim, 5)
        return {"embed_dim": self.embed_dim, "num_heads": self.num_heads, "mlp_ratio": ratio}

    def words(self, macs: int) -> str:
        """For the reader."""
        return (
            f"embedding {self.embed_dim}, {self.num_heads} heads of {self.embed_dim // self.num_heads}, "
            f"MLP {self.hidden}: {self.macs / macs:.3f} of the MACs"
        )


def design(dense: ArchitectureRecord, budget: float) -> Design:
    """The model within 2 % of the budget that is most like the dense one in shape.

    Widths are multiples of 8. Alike are the ratio of MLP to embedding and the width of a head; heads are as
    many as that gives.
    """
    with torch.device("meta"):
        model: Any = build(dense)
    try:
        width, heads, hidden = (
            model.embed_dim, model.blocks[0].attn.num_heads, model.blocks[0].mlp.fc1.out_features,
        )  # fmt: skip
    except AttributeError:
        sys.exit("the arms `designed` need a plain ViT")
    target = count(dense) * budget
    found: list[tuple[float, Design]] = []
    for embed in range(8, width + 1, 8):
        for parts in (n for n in range(1, heads + 1) if embed % n == 0):
            low, high = (count(dense, Design(embed, parts, mlp, 0)) for mlp in (8, 16))
            mlp = 8 + 8 * round((target - low) / (high - low))
            if mlp < 8:
                continue
            chosen = Design(embed, parts, mlp, low + (mlp - 8) // 8 * (high - low))
            error = abs(chosen.macs / target - 1)
            unlike = abs(math.log(mlp / embed * width / hidden)) + abs(
                math.log(embed / parts * heads / width)
            )
            if error <= TOLERANCE:
                found.append((unlike + error, chosen))
    best = min(found, key=lambda row: row[0])[1]
    assert count(dense, best) == best.macs
    return best


def count(record: ArchitectureRecord, design: Design | None = None) -> int:
    """MACs of one image."""
    if design is not None:
        record = dataclasses.replace(record, kwargs=record.kwargs | design.args())
    with torch.device("meta"):
        model = build(record)
    return count_operations(model, record.input_shape).macs


def _record(options: argparse.Namespace) -> ArchitectureRecord:
    with tempfile.TemporaryDirectory() as directory:
        return build_run([*experiment.common(options), "compress=none"], directory)[1].record


if __name__ == "__main__":
    main()
