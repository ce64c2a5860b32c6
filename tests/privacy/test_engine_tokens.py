"""Per-sample gradients of models whose tokens are merged or dropped, against a batch-of-one loop."""

from __future__ import annotations

import pytest
from engine_harness import compare, images, label_losses, make_model, median_norm

from effvit_train.models.surgery import apply
from effvit_train.models.tokens.change import Drop, Merge
from effvit_train.privacy.engine import Clip, make_engine

CHANGES = {"merge": Merge({"blocks.0": 5, "blocks.1": 3}), "drop": Drop({"blocks.0": 0.6, "blocks.1": 0.5})}


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["deit", "layer_scale"])
def test_before_and_after_the_change(kind, change, engine):
    modules, batch = make_model(kind), images(4)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 4))
    made = make_engine(engine, modules, clip)
    assert compare(made, losses, batch, 4) <= 1e-9
    apply(modules["model"], [CHANGES[change]])
    made.refresh()
    assert compare(made, losses, batch, 4, micro_batches=(3, 1)) <= 1e-9
