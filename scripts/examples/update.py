"""Five updates of one model: a good one, and four that must not take its place.

    python scripts/examples/update.py DIR

Draws its images into DIR (small ones, half bright, that a tiny model tells apart in seconds), trains the model
that is shipped, and then runs `effvit update` five times: on more of the same (promoted), on images that make it
forget what it knew of the night (held: a group is worse), with a budget of latency and of epsilon that it cannot
keep (held), and on mislabelled images (rolled back). Takes about two minutes on one core.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

_EFFVIT = [
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'effvit'; from effvit_train.cli import main; main()",
]
_SMALL = (
    "model.args.depth=1", "model.args.embed_dim=16", "model.args.num_heads=2", "dataset.image_size=8",
    "dataset.augment.hflip=false", "recipe.batch_size=16", "recipe.lr=0.01", "recipe.label_smoothing=0", "logger=none",
    "audit=quick", "trainer.progress_bar=false",
)  # fmt: skip


def draw(label: str, light: str, rng: np.random.Generator) -> np.ndarray:
    """8x8 pixels. By day the left half is bright in `a`, at night the upper half, and at dusk the lower one."""
    pixels = rng.integers(0, 60, (8, 8), dtype=np.uint8)
    first = (label == "a") != (light in ("dusk", "swapped"))
    half = slice(0, 4) if first else slice(4, 8)
    if light in ("day", "swapped"):
        pixels[:, half] += 180
    else:
        pixels[half] += 180
    return pixels


def write_set(root: Path, parts: dict[tuple[str, str], int], seed: int) -> None:
    """An image folder with a table, from (split, light) -> images of each class."""
    root.mkdir(parents=True)
    rng, rows = np.random.default_rng(seed), [("path", "label", "split", "light")]
    for (split, light), count in parts.items():
        for label in ("a", "b"):
            for number in range(count):
                name = f"{split}-{light}-{label}-{number}.png"
                Image.fromarray(draw(label, light, rng)).save(root / name)
                rows.append((name, label, split, light))
    with open(root / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)


def effvit(where: Path, *arguments: str, show: bool = True) -> int:
    """Run a command; show what an update says of itself."""
    shown = " ".join(f"'{word}'" if set(word) & set("<>") else word for word in arguments)
    if show:
        print(f"\n$ effvit {shown}", flush=True)
    done = subprocess.run([*_EFFVIT, *arguments], cwd=where, capture_output=True, text=True, check=False)
    told = [line for line in done.stdout.splitlines() if line.startswith(("HOLD", "ROLL", "ok ", "verdict"))]
    print("\n".join(told) if show else "", end="\n" if show else "", flush=True)
    if done.returncode not in (0, 1):
        sys.exit(done.stderr)
    if show:
        print(f"exit code {done.returncode}", flush=True)
    return done.returncode


def main() -> None:
    """Run it all; exit 1 if a verdict is not as it should be."""
    where = Path(sys.argv[1] if len(sys.argv) > 1 else "update_example")
    if where.exists():
        sys.exit(f"{where} exists already: give another directory")
    day, night, dusk, swapped = "day", "night", "dusk", "swapped"
    old = {("train", day): 60, ("train", night): 20, ("val", day): 8, ("test", day): 135, ("test", night): 15}
    write_set(where / "old", old, 0)
    write_set(where / "more", {("train", day): 40, ("val", day): 4, ("test", day): 100}, 1)
    at_dusk = {
        ("train", day): 40,
        ("train", dusk): 40,
        ("val", day): 4,
        ("test", day): 30,
        ("test", dusk): 30,
    }
    write_set(where / "dusk", at_dusk, 2)
    write_set(where / "mislabelled", {("train", swapped): 40, ("val", day): 4, ("test", day): 100}, 3)

    print("training the model that is shipped, and a private one ...", flush=True)
    train = ("train", *_SMALL, "dataset=image_folder", "dataset.root=old")
    effvit(where, *train, "trainer.max_epochs=8", "run_dir=shipped", show=False)
    private = ("privacy=dp_sgd", "privacy.epsilon=4", "trainer.max_epochs=4", "run_dir=private")
    effvit(where, *train, *private, show=False)

    codes = [
        effvit(where, "update", "shipped", "dataset.root=more", "trainer.max_epochs=2", "--run-dir", "good",
               "--budget", "cost/latency_ms<=50"),
        effvit(where, "update", "shipped", "dataset.root=dusk", "trainer.max_epochs=4", "--run-dir", "forgets",
               "--tolerance", "0.2"),
        effvit(where, "update", "shipped", "dataset.root=more", "trainer.max_epochs=2", "--run-dir", "slow",
               "--budget", "cost/latency_ms<=0.01"),
        effvit(where, "update", "private", "dataset.root=more", "trainer.max_epochs=2", "--run-dir", "costly",
               "--budget", "privacy/epsilon<=6"),
        effvit(where, "update", "shipped", "dataset.root=mislabelled", "trainer.max_epochs=4", "--run-dir", "wrong"),
    ]  # fmt: skip
    sys.exit(0 if codes == [0, 1, 1, 1, 1] else 1)


if __name__ == "__main__":
    main()
