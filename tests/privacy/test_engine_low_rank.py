"""Engines on factored layers, which come in the middle of a training, against a batch-of-one loop."""

from __future__ import annotations

import pytest
import torch
from engine_harness import compare, images, label_losses, make_model, median_norm
from torch import nn

from effvit_train.compress.lowrank.decompose import decompose
from effvit_train.models.factored import matrix_of
from effvit_train.models.surgery import apply
from effvit_train.privacy.engine import Clip, make_engine


def factor(modules: nn.Module, rank: int) -> None:
    model = modules["model"]
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and "head" not in name and name != "patch_embed.proj"
    ]
    apply(model, [decompose(matrix_of(layer)).factor(name, rank) for name, layer in layers])


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
@pytest.mark.parametrize("kind", ["vit", "swin", "deit3"])
def test_gradients_are_exact_before_and_after_the_change(kind, engine):
    modules, batch = make_model(kind), images(4)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 4))
    made = make_engine(engine, modules, clip)
    assert compare(made, losses, batch, 4) <= 1e-9
    whole = set(made.sums)
    factor(modules, 3)
    made.refresh()
    assert compare(made, losses, batch, 4, micro_batches=(3, 1) if engine == "bookkeeping" else ()) <= 1e-9
    new = set(made.sums) - whole
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in new} == {"up", "down"}
    assert all(not total.isnan().any() for total in made.sums.values())


def test_a_factored_layer_is_the_chain_rule_of_the_whole_one():
    # dL/dup = dL/dW down^T, dL/ddown = up^T dL/dW, sample by sample: no rule of its own is needed
    torch.manual_seed(0)
    whole = nn.Linear(6, 4).double()
    parts = decompose(matrix_of(whole)).factor("x", 4).factored(whole)
    x = torch.randn(1, 5, 6, dtype=torch.float64)
    for layer in (whole, parts):
        layer(x).tanh().sum().backward()
    gradient = whole.weight.grad
    assert torch.allclose(parts.up.weight.grad, gradient @ parts.down.weight.T)
    assert torch.allclose(parts.down.weight.grad, parts.up.weight.T @ gradient)
