"""Per-sample gradients of Fourier and wavelet mixers, against a batch-of-one loop."""

from __future__ import annotations

import pytest
import torch
from engine_harness import compare, images, label_losses, median_norm, shake
from torch import nn

from effvit_train.models.make import make
from effvit_train.models.spectral import FNetMixer, FourierMixer, WaveletMixer
from effvit_train.privacy.engine import Clip, make_engine

MIXERS = {"fourier": FourierMixer, "fnet": FNetMixer, "wavelet": WaveletMixer}


def model_with(kind: str, *, prefix: bool = True, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(3)
    tokens = {} if prefix else {"class_token": False, "global_pool": "avg"}
    model = make(
        "vit_tiny_patch16_224",
        {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 5, **tokens},
    )  # fmt: skip
    model.blocks[0].attn = MIXERS[kind](12, model.patch_embed.grid_size, model.num_prefix_tokens)
    return nn.ModuleDict({"model": shake(model).to(dtype).train()})


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
@pytest.mark.parametrize("kind", MIXERS)
def test_gradients_are_exact(kind, engine):
    modules, batch = model_with(kind), images(4)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 4))
    assert compare(make_engine(engine, modules, clip), losses, batch, 4, micro_batches=(3, 1)) <= 1e-9


@pytest.mark.parametrize("kind", MIXERS)
def test_gradients_of_several_views_without_a_class_token(kind):
    modules, batch = model_with(kind, prefix=False), images(6)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 3, views=2))
    assert compare(make_engine("bookkeeping", modules, clip, views=2), losses, batch, 3) <= 1e-9


@pytest.mark.parametrize("kind", ["fourier", "wavelet"])
def test_gradients_in_fp32(kind):
    modules, batch = model_with(kind, dtype=torch.float32), images(4, torch.float32)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 4))
    assert compare(make_engine("bookkeeping", modules, clip), losses, batch, 4) <= 1e-5
