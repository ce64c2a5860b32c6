"""Images per second of the in-memory loader against per-sample PIL transforms, paired.

    python scripts/bench/input_pipeline.py [--json] [--pairs 7] [--images 20000] [--workers 0 2]

The same synthetic images (32x32x3), crop with shifts of 4 pixels and horizontal mirror, batches of 128.
Ours: `DataModule`, in memory, in this process. Theirs: torchvision's RandomCrop(32, padding=4),
RandomHorizontalFlip and PILToTensor on one PIL image at a time in a DataLoader; both yield uint8 batches.
Whole epochs in turn and in alternating order, one process; the figure is the median ratio over pairs.
Worker processes are started before the clock, as they are from the second epoch on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import effvit_train  # noqa: F401  isort: skip
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from effvit_train.data.config import AugmentConfig, DatasetConfig
from effvit_train.data.datamodule import DataModule

_BATCH = 128


class _PerSample(Dataset):
    """One PIL image at a time, as most training scripts do it."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self._images = [Image.fromarray(np.ascontiguousarray(x.permute(1, 2, 0).numpy())) for x in images]
        self._labels = labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="of the PIL loader")
    parser.add_argument("--threads", type=int, default=1, help="torch threads of this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, images, labels = _ours(options.images)
    results = [_compare(ours, images, labels, workers, options.pairs) for workers in options.workers]
    if options.json:
        print(json.dumps({"pairs": options.pairs, "images": len(labels), "against": results}))
        return
    for result in results:
        print(
            f"in memory {result['ours_per_s']:,.0f} images/s, PIL with {result['workers']} workers "
            f"{result['pil_per_s']:,.0f}: ratio {result['ratio']:.1f} (median of {options.pairs} pairs, "
            f"{result['min']:.1f} to {result['max']:.1f})"
        )


def _ours(count: int) -> tuple[DataLoader, torch.Tensor, torch.Tensor]:
    config = DatasetConfig(
        name="synthetic", image_size=32, channels=3, num_classes=10, num_samples=count,
        augment=AugmentConfig(shift=4, hflip=True),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        data = DataModule(config, batch_size=_BATCH, seed=0, cache_dir=Path(directory))
    batches = list(data.eval_dataloader("train"))
    return (
        data.train_dataloader(),
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
    )


def _compare(
    ours: DataLoader, images: torch.Tensor, labels: torch.Tensor, workers: int, pairs: int
) -> dict[str, float]:
    theirs = DataLoader(
        _PerSample(images, labels), batch_size=_BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    speeds: list[tuple[float, float]] = []
    for pair in range(pairs + 1):
        found = {}
        for which in ("ours", "theirs") if pair % 2 else ("theirs", "ours"):
            found[which] = _images_per_second(ours if which == "ours" else theirs, pair)
        if pair:  # the first pair warms caches and starts the workers
            speeds.append((found["ours"], found["theirs"]))
    ratios = [a / b for a, b in speeds]
    return {
        "workers": workers, "ratio": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        "ours_per_s": statistics.median(a for a, _ in speeds),
        "pil_per_s": statistics.median(b for _, b in speeds),
    }  # fmt: skip


def _images_per_second(loader: DataLoader, epoch: int) -> float:
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)
    start = time.perf_counter()
    count = sum(len(batch[0]) for batch in loader)
    return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
