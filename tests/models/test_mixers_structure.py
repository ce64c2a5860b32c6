"""Pruning models with mixers: cuts against masks (as `test_surgery`)."""

from __future__ import annotations

import copy

import pytest
import torch
from test_mixers import vit
from test_surgery import choose, images, mask_of, masked_norm
from timm.optim import create_optimizer_v2

from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import apply, cut_group, drop_block


def shaken(kind: str, **kwargs):
    model = vit(2, kind, **kwargs).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("tokens", [{}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("kind", ["fourier", "haar"])
def test_a_cut_embedding_is_a_masked_one(kind, tokens):
    model = shaken(kind, **tokens)
    masked, kept = copy.deepcopy(model), choose(24, 16)
    mask = mask_of(24, kept)
    masked.pos_drop.register_forward_hook(lambda module, inputs, output: output * mask)
    for block in masked.blocks:
        mixes = hasattr(block.attn, "filter")
        for part in (block.attn if mixes else block.attn.proj, block.mlp.fc2):
            part.register_forward_hook(lambda module, inputs, output: output * mask)
        masked_norm(block.norm1, kept)
        masked_norm(block.norm2, kept)
    masked_norm(masked.norm, kept)
    masked_norm(masked.fc_norm, kept)
    structure = read_structure(model)
    apply(model, cut_group(structure, structure.groups["embed"], (kept,)))
    assert model.blocks[0].attn.filter.weight.shape[2] == 16
    assert torch.allclose(model(images()), masked(images()), rtol=0, atol=1e-9)
    read_structure(model)  # what it says of the cut model is true


def test_an_optimizer_goes_on_after_a_cut():
    model = vit(2, "fourier")
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    structure = read_structure(model)
    kept = torch.arange(0, 24, 2)
    before = optimizer.state[model.blocks[0].attn.filter.weight]["exp_avg"].clone()
    apply(model, cut_group(structure, structure.groups["embed"], (kept,)), optimizer)
    assert torch.equal(optimizer.state[model.blocks[0].attn.filter.weight]["exp_avg"], before[:, :, kept])
    weight = model.blocks[0].attn.filter.weight.detach().clone()
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.blocks[0].attn.filter.weight, weight)


def test_what_can_be_cut():
    found = read_structure(vit(3, "fourier"))
    assert {"embed", "blocks.0.mlp", "blocks.1.attn.heads"} <= set(found.groups)
    assert "blocks.0.attn.heads" not in found.groups  # there are none
    # a transform over channels needs all of them
    assert "embed" not in read_structure(vit(3, "fnet")).groups
    assert read_structure(vit(3, "fnet")).blocks == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_mixing_block_can_be_left_out():
    model = vit(2, "haar")
    apply(model, drop_block(read_structure(model), "blocks.0"))
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
