"""What each kind of distillation is worth: plain against kinds and mixes, over seeds, equal recipe and epochs.

    python scripts/bench/distill_kinds.py --dataset fashion_mnist --root DIR [--seeds 3] [--arms plain,soft,...]
        [--fraction 0.1] [--epochs 30] [--jobs 2] [--out runs/distill_kinds] [--json] [overrides]

Each run is a `train.py` process on one thread, and its figure is the accuracy on its card. Teachers are
trained once. Runs that are there are not repeated and those that were stopped go on: the script can be
stopped and started again. `cifar10` takes the set's own files, or a folder of images (`image_folder`).
"""

from __future__ import annotations

import argparse
import json
import statistics

import arms as experiment

KIND = "compress.distill.kinds"
# a cached teacher where a cache can serve: every epoch's views are its own, so nothing is reused
ARMS: dict[str, list[str]] = {
    "plain": ["compress=none"],
    "soft": ["compress=distill", f"{KIND}=[soft]"],
    "hard+token": ["compress=distill", f"{KIND}=[hard,token]"],
    "feature": ["compress=distill", f"{KIND}=[feature]"],
    "relation": ["compress=distill", f"{KIND}=[relation]"],
    "self": ["compress=distill", f"{KIND}=[self]"],
    "soft+token": ["compress=distill", f"{KIND}=[soft,token]"],
    "soft+feature": ["compress=distill", f"{KIND}=[soft,feature]"],
    "soft+token+feature": ["compress=distill", f"{KIND}=[soft,token,feature]"],
    "soft+self": ["compress=distill", f"{KIND}=[soft,self]"],
    "soft+relation": ["compress=distill", f"{KIND}=[soft,relation]"],
}
_LIVE = ("feature", "relation")
_DEFAULT = ("plain", "soft", "hard+token", "feature", "relation")


def main() -> None:
    parser = experiment.parser(__doc__.splitlines()[0], arms=_DEFAULT, fraction=0.1, out="runs/distill_kinds")
    options = parser.parse_args()
    arms = options.arms.split(",")
    cards = experiment.run_all(arms, options, lambda arm, seed: _run(arm, seed, options))
    result = {}
    for arm in arms:
        values = [cards[arm, seed]["measures"]["quality/accuracy"] for seed in range(1, options.seeds + 1)]
        gains = [
            value - cards["plain", seed]["measures"]["quality/accuracy"]
            for seed, value in enumerate(values, 1)
            if ("plain", seed) in cards
        ]
        teacher = cards[arm, 1]["provenance"]["teacher"] or {}
        result[arm] = {
            "accuracy": values, "mean": statistics.mean(values), "sd": experiment.sd(values),
            "gain": statistics.mean(gains) if gains else None, "gain_sd": experiment.sd(gains),
            "teacher": teacher.get("name"), "teacher_accuracy": teacher.get("accuracy"),
        }  # fmt: skip
    if options.json:
        print(json.dumps(result))
        return
    print("kinds                 mean    s.d.    gain    s.d. of gains  teacher")
    for arm, row in result.items():
        gain, gain_sd = (f"{v:+.4f}" if v is not None else "      " for v in (row["gain"], row["gain_sd"]))
        teacher = f"{row['teacher']} {row['teacher_accuracy']:.4f}" if row["teacher_accuracy"] else ""
        print(f"{arm:20}  {row['mean']:.4f}  {row['sd'] or 0:.4f}  {gain}  {gain_sd}        {teacher}")


def _run(arm: str, seed: int, options: argparse.Namespace) -> dict:
    overrides = [*ARMS[arm]]
    if arm != "plain" and not any(kind in arm for kind in _LIVE) and arm != "self":
        overrides.append(f"compress.distill.cache.epochs={options.epochs}")
    return experiment.train(arm, seed, overrides, options)


if __name__ == "__main__":
    main()
