"""Training step with torch's fused attention against materialised attention, on this processor, paired.

    python scripts/bench/attention.py [--json] [--pairs 8] [--threads N]

Forward and backward of timm ViTs (4 blocks) at several widths and numbers of tokens, the two kernels
in turn and in alternating order; the figure is the median ratio plain / fused (below 1: plain is
faster). The rule in `effvit_train/kernels.py` rests on this table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import effvit_train  # noqa: F401  isort: skip
import timm
import torch
from torch import nn
from torch.nn import functional as F

# width, heads, image, patch, batch, bf16
CASES = (
    (64, 4, 8, 2, 32, False), (64, 4, 28, 4, 128, False), (192, 3, 32, 4, 64, True), (384, 6, 8, 2, 64, True),
    (384, 6, 32, 4, 32, True), (384, 6, 224, 16, 8, True), (384, 6, 384, 16, 4, True),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for width, heads, image, patch, batch, bf16 in CASES:
        models = {fused: _model(width, heads, image, patch, fused) for fused in (True, False)}
        images, labels = torch.randn(batch, 3, image, image), torch.randint(0, 10, (batch,))
        for model in models.values():
            _seconds(model, images, labels, bf16)
        ratios = []
        for pair in range(options.pairs):
            order = (True, False) if pair % 2 else (False, True)
            times = {fused: _seconds(models[fused], images, labels, bf16) for fused in order}
            ratios.append(times[False] / times[True])
        row = {
            "width": width, "tokens": (image // patch) ** 2 + 1, "batch": batch, "bf16": bf16,
            "plain_over_fused": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        }  # fmt: skip
        rows.append(row)
        if not options.json:
            print(
                f"width {width:4}  tokens {row['tokens']:4}  batch {batch:4}  {'bf16' if bf16 else 'fp32'}  "
                f"plain / fused = {row['plain_over_fused']:.2f} ({row['min']:.2f} to {row['max']:.2f})"
            )
    if options.json:
        print(json.dumps({"threads": options.threads, "pairs": options.pairs, "rows": rows}))


def _model(width: int, heads: int, image: int, patch: int, fused: bool) -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=image,
        patch_size=patch,
        embed_dim=width,
        depth=4,
        num_heads=heads,
        num_classes=10,
    )
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    return model


def _seconds(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> float:
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    F.cross_entropy(logits.float(), labels).backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
