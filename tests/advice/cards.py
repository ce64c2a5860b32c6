"""Cards with planted effects: what advice is made from, by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from made import make_run

from effvit_train.collect import Entry, collect

PRUNE = "compress.prune.target.macs"


def plant(
    root: Path,
    arms: Iterable[Mapping[str, object]],
    *,
    seeds: Iterable[int] = (1, 2, 3),
    noise: float = 0.0005,
) -> list[Entry]:
    """One run per arm and seed.

    An arm has `compress`, `overrides`, `privacy`, `model`, and means of `accuracy`, `macs`, ... Accuracies get `noise`
    that differs from run to run, on top of a part that all runs with one seed share.
    """
    for number, arm in enumerate(arms):
        for seed in seeds:
            # no generator: between -1 and 1 in an order that differs from arm to arm
            own = ((number * 37 + seed * 101 + number * seed * 17) % 11 - 5) / 5 * noise
            accuracy = float(arm["accuracy"]) + 0.01 * (seed % 2) + own  # type: ignore[arg-type]
            macs = float(arm.get("macs", 4e6))  # type: ignore[arg-type]
            compress = list(arm.get("compress", ()))  # type: ignore[call-overload]
            switched = (
                [f"compress=[{','.join(compress)}]"]
                if len(compress) > 1
                else [f"compress={n}" for n in compress]
            )
            make_run(
                root / f"{number}-{seed}", seed=seed, compress=compress, curves=False,
                privacy=arm.get("privacy", "none"), model=arm.get("model", "vit_micro"),
                overrides=["logger=none", *switched, *arm.get("overrides", ()), f"seed={seed}"],  # type: ignore[misc]
                values={
                    "quality/accuracy": accuracy, "cost/macs": macs, "cost/latency_ms": 1.0 + own,
                    **({"privacy/epsilon": arm["epsilon"]} if "epsilon" in arm else {}),
                },
                started=f"2026-01-{number + 1:02}T00:00:0{seed}",
            )  # fmt: skip
    return collect([root]).entries


# distil +2 points, prune -1.5 and half the MACs, both +1.5: one point more than the sum.
PLAIN = {"accuracy": 0.90}
DISTILL = {"accuracy": 0.92, "compress": ["distill"]}
PRUNED = {"accuracy": 0.885, "macs": 2e6, "compress": ["prune"], "overrides": [f"{PRUNE}=0.5"]}
BOTH = {"accuracy": 0.915, "macs": 2e6, "compress": ["distill", "prune"], "overrides": [f"{PRUNE}=0.5"]}
SQUARE = (PLAIN, DISTILL, PRUNED, BOTH)
