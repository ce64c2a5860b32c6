"""What a ViT reaches with differential privacy, and what each lever of the recipe brings.

    python scripts/bench/dp_accuracy.py --root DIR [--seeds 3] [--arms best,best_8,...] [--jobs 2]
        [--out runs/dp_accuracy] [--json] [overrides]

`best` is `experiment=dp_fashion_mnist` (epsilon 3, delta 1e-5), `best_8` the same at epsilon 8; every other arm takes
one lever away from it, or adds one. Each run is a `train.py` process on one thread, and its figure is the accuracy on
its card. Runs that are there are not repeated and those that were stopped go on. Search is not accounted for, as in
the papers that it is compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics

import arms as experiment

ARMS: dict[str, list[str]] = {
    "best": [],
    "best_8": ["privacy.epsilon=8"],
    "not private": ["privacy=none"],
    "learnt patches": ["model.stem=null"],
    "average pooling": ["model.pool=avg"],
    "batch 512": ["recipe.batch_size=512", "recipe.lr=2.5e-3"],
    "batch 1024": ["recipe.batch_size=1024", "recipe.lr=5e-3"],
    "no averaged weights": ["recipe.ema=0"],
    "narrow": ["model.args.embed_dim=32"],
    "wide": ["model.args.embed_dim=128"],
    "two blocks": ["model.args.depth=2"],
    "one view": ["dataset.augment.shift=2", "dataset.augment.hflip=true"],
    "two views": ["dataset.augment.shift=2", "dataset.augment.hflip=true", "privacy.multiplicity=2"],
    "automatic clipping": ["privacy.clipping=automatic"],
    "ordinary ViT": ["model=vit_micro"],
    # a teacher at epsilon 2 and a student at epsilon 1 spend 3 together
    "teacher": ["privacy.epsilon=2", "privacy.delta=5e-6"],
    "taught": [
        "compress=distill",
        "compress.distill.kinds=[soft]",
        "privacy.epsilon=1",
        "privacy.delta=5e-6",
    ],
}
# Tramer & Boneh 2021, "Differentially private learning needs better features", table 1: epsilon 3, delta 1e-5
PUBLISHED = {"end-to-end CNN": 0.860, "CNN on ScatterNet": 0.890, "linear on ScatterNet": 0.897}


def main() -> None:
    parser = experiment.parser(
        __doc__.splitlines()[0],
        arms=[arm for arm in ARMS if arm != "teacher"],
        fraction=1.0,
        out="runs/dp_accuracy",
    )
    parser.set_defaults(epochs=6)
    options = parser.parse_args()
    arms = options.arms.split(",")
    cards = experiment.run_all(arms, options, lambda arm, seed: _run(arm, seed, options))
    result = {}
    for arm in arms:
        found = [cards[arm, seed] for seed in range(1, options.seeds + 1)]
        values = [card["measures"]["quality/accuracy"] for card in found]
        gains = [
            value - cards["best", seed]["measures"]["quality/accuracy"]
            for seed, value in enumerate(values, 1)
            if ("best", seed) in cards
        ]
        result[arm] = {
            "accuracy": values, "mean": statistics.mean(values), "sd": experiment.sd(values),
            "against_best": statistics.mean(gains) if gains else None, "against_best_sd": experiment.sd(gains),
            "epsilon": found[0]["measures"]["privacy/epsilon"], "delta": found[0]["measures"]["privacy/delta"],
            "params": found[0]["model"]["params"],
            "noise_multiplier": (found[0]["provenance"]["privacy"] or {}).get("noise_multiplier"),
        }  # fmt: skip
    if options.json:
        print(json.dumps({"arms": result, "published": PUBLISHED}))
        return
    print("arm                   mean    s.d.    against best  s.d.    epsilon  parameters")
    for arm, row in result.items():
        gain, spread, epsilon = (
            "-" if row[key] is None else form.format(row[key])
            for key, form in (
                ("against_best", "{:+.4f}"),
                ("against_best_sd", "{:.4f}"),
                ("epsilon", "{:.3f}"),
            )
        )
        print(
            f"{arm:20}  {row['mean']:.4f}  {row['sd'] or 0:.4f}  {gain:>12}  {spread:>6}  {epsilon:>7}  {row['params']:>10,}"
        )


def _run(arm: str, seed: int, options: argparse.Namespace) -> dict:
    overrides = ["experiment=dp_fashion_mnist", *ARMS[arm]]
    if arm == "taught":
        _run("teacher", seed, options)
        overrides.append(f"compress.distill.teacher={experiment.run_dir('teacher', seed, options)}")
    return experiment.train(arm.replace(" ", "_"), seed, overrides, options)


if __name__ == "__main__":
    main()
