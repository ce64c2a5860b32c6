"""Private gradients of layers that train for int8: book-keeping against a loop over the images."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from effvit_train.models.quantised import Replace, input_ranges, linear_layers
from effvit_train.models.surgery import apply
from effvit_train.privacy.engine import Clip, make_engine

KWARGS = {"img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 24, "depth": 2, "num_heads": 2}  # fmt: skip


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only"])
def test_each_images_gradient_is_its_own(mode):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **KWARGS)
    for block in model.blocks:
        block.attn.fused_attn = False
    images, labels = torch.randn(4, 1, 16, 16), torch.tensor([0, 1, 2, 0])
    names = linear_layers(model, images).called
    scales = (
        input_ranges(model, names, [images / 2], percentile=100) if mode == "static" else dict.fromkeys(names)
    )
    apply(model, [Replace(True, "int8", mode, True, scales)])
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(image[None]), label[None]).backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
        for name, p in model.named_parameters():
            wanted[name] += p.grad * min(1.0, 0.5 / float(norm))
    model.zero_grad()
    engine = make_engine("bookkeeping", torch.nn.ModuleDict({"model": model}), Clip(0.5))
    engine.accumulate(lambda: F.cross_entropy(model(images), labels, reduction="none"), 4)
    for name, total in engine.sums.items():
        assert torch.allclose(total, wanted[name.removeprefix("model.")], atol=1e-5), name
    engine.close()
