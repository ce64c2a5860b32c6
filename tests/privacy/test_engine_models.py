"""Every kind of model, through a whole training loss, against a batch-of-one loop."""

from __future__ import annotations

import pytest
import torch
from engine_harness import MODELS, compare, images, label_losses, make_model, median_norm

from effvit_train.privacy.engine import Clip, make_engine
from effvit_train.privacy.engine.bookkeeping import BookKeeping


@pytest.mark.parametrize("kind", MODELS)
def test_bookkeeping_is_exact_in_float64(kind):
    modules, batch = make_model(kind), images(4)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 4))
    assert compare(make_engine("bookkeeping", modules, clip), losses, batch, 4) <= 1e-9


@pytest.mark.parametrize("kind", MODELS)
def test_bookkeeping_in_fp32(kind):
    modules, batch = make_model(kind, torch.float32), images(4, torch.float32)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 4))
    assert compare(make_engine("bookkeeping", modules, clip), losses, batch, 4) <= 1e-5


@pytest.mark.parametrize("path", ["ghost", "instantiate"])
@pytest.mark.parametrize("kind", ["vit", "swin", "mixer"])
def test_both_ways_to_the_norm(kind, path):
    modules, batch = make_model(kind), images(3)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 3))
    engine = BookKeeping(modules, clip, path=path)
    assert compare(engine, losses, batch, 3, micro_batches=(2, 1)) <= 1e-9
