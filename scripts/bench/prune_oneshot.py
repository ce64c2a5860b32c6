"""What a cut costs before any fine-tuning: a share of all MLP units, in one shot, by criterion and compensation.

    python scripts/bench/prune_oneshot.py --run RUN_DIR [--fraction 0.3] [--images 1024] [--seeds 3]
        [--data-root DIR] [--json]

RUN_DIR is a finished dense run. Its model loses this share of the hidden units of its MLPs: of each MLP
(`uniform`), or the least important of all MLPs (`isomorphic`). Importance and compensation look at training
images, as they do in training. The figure is the accuracy on the test images that is lost; with `random` the
mean over seeds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import effvit_train  # noqa: F401  isort: skip
from torch import Tensor, nn

from effvit_train.compress.prune import PruneConfig
from effvit_train.compress.prune.config import CRITERIA
from effvit_train.compress.prune.importance import Calibration, calibrate, importances
from effvit_train.compress.prune.plan import operations_of
from effvit_train.compress.prune.pruner import batches
from effvit_train.compress.prune.solver import Budget, Plan, Scores, solve
from effvit_train.finished import Finished, open_finished
from effvit_train.models.structure import Structure, read_structure
from effvit_train.models.surgery import apply
from effvit_train.predictions import predict

ALLOTS = ("uniform", "isomorphic")
COMPENSATE = ("none", "mean", "least_squares")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--fraction", type=float, default=0.3)
    parser.add_argument("--images", type=int, default=1024, help="for importance and compensation")
    parser.add_argument("--seeds", type=int, default=3, help="of importance=random")
    parser.add_argument("--data-root", help="where the run's data are now, if they have moved")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run = open_finished(options.run, lambda line: None, data_root=options.data_root)
    structure = read_structure(run.model)
    seen = _seen(run, structure, options.images)
    dense = accuracy(run, run.model)
    rows = []
    for allot in ALLOTS:
        for criterion in CRITERIA:
            seeds = range(options.seeds) if criterion == "random" else range(1)
            for compensate in COMPENSATE:
                found, removed = [], 0.0
                for seed in seeds:
                    scores, _ = importances(criterion, run.model, structure, seen, ["mlp"], seed=seed)
                    plan = plan_of(structure, scores, options.fraction, allot)
                    removed = _removed(structure, plan)
                    found.append(
                        dense - accuracy(run, cut(run.model, structure, plan, scores, compensate, seen))
                    )
                rows.append(
                    {
                        "allot": allot, "importance": criterion, "compensate": compensate,
                        "lost": statistics.mean(found), "lost_each": found, "removed": removed,
                    }
                )  # fmt: skip
    if options.json:
        result = {
            f"lost_{row['importance']}_{row['compensate']}": row["lost"] for row in rows if row["allot"] == "uniform"
        }  # fmt: skip
        print(
            json.dumps(
                {**result, "dense": dense, "fraction": options.fraction, "images": seen.samples, "rows": rows}
            )
        )
        return
    print(f"accuracy {dense:.4f}; lost without {options.fraction:.0%} of the MLP units:")
    print("allotment   importance  " + "".join(f"{name:>15}" for name in COMPENSATE) + "   removed")
    for start in range(0, len(rows), len(COMPENSATE)):
        three = rows[start : start + len(COMPENSATE)]
        lost = "".join(f"{row['lost']:15.4f}" for row in three)
        print(f"{three[0]['allot']:10}  {three[0]['importance']:10}  {lost}   {three[0]['removed']:.3f}")


def plan_of(structure: Structure, scores: Scores, fraction: float, allot: str) -> Plan:
    """Which widths are left when a share of all units goes: of each MLP, or of all together."""
    groups = {name: group for name, group in structure.groups.items() if group.kind == "mlp"}
    if allot == "uniform":
        sizes = {name: structure.size(group) for name, group in groups.items()}
        return Plan({name: size - round(fraction * size) for name, size in sizes.items()})
    total = sum(structure.size(group) for group in groups.values())
    budget = Budget("units", _Units([group.factors[0] for group in groups.values()]), (1 - fraction) * total)
    return solve(structure, scores, {}, [budget], kinds=["mlp"], allot=allot, round_to=1)


class _Units:
    """A cost that counts units."""

    def __init__(self, factors: list[str]) -> None:
        self.factors = factors

    def total(self, sizes: dict[str, int], dropped: frozenset[str]) -> float:
        return sum(sizes[factor] for factor in self.factors)

    def saving(
        self, sizes: dict[str, int], dropped: frozenset[str], change: dict[str, int], block: str | None
    ) -> float:
        return sum(sizes[factor] - size for factor, size in change.items())


def cut(
    model: nn.Module, structure: Structure, plan: Plan, scores: Scores, compensate: str, seen: Calibration
) -> nn.Module:
    """A copy of the model that is cut."""
    copied = copy.deepcopy(model)
    apply(
        copied,
        operations_of(copied, structure, plan, scores, compensate=compensate, calibration=seen),
    )
    return copied


def accuracy(run: Finished, model: nn.Module) -> float:
    """On the test images."""
    logits, labels, _ = predict(model, run.module().normalise, run.data.eval_dataloader("test"))
    right: Tensor = logits.argmax(dim=-1) == labels
    return right.double().mean().item()


def _seen(run: Finished, structure: Structure, images: int) -> Calibration:
    """What training images show of the model, for all criteria at once."""
    module = run.module()
    config = PruneConfig(importance="hessian", calibration=images)
    found: Any = batches(config, module, run.data)
    model = run.model.train()  # as in training; dropout is off
    seen = calibrate(model, found.batches(), found.losses, structure, ["mlp"], gradients=True, products=True)
    model.eval()
    return seen


def _removed(structure: Structure, plan: Plan) -> float:
    before = sum(structure.size(group) for group in structure.groups.values() if group.kind == "mlp")
    return sum(structure.size(structure.groups[name]) - width for name, width in plan.widths.items()) / before


if __name__ == "__main__":
    main()
