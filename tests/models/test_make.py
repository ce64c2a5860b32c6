"""The parts that are ours: a fixed stem, a head that sees every token."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from effvit_train.errors import UserError
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, load_model, save_model
from effvit_train.models.make import Unsuitable, make

SMALL = {"embed_dim": 16, "depth": 1, "num_heads": 2}
OURS = {"args": {**SMALL, "class_token": False}, "stem": "scattering", "pool": "flat"}


def made(shape=(1, 16, 16), classes=3, **settings):
    config = ModelConfig(**{"args": SMALL, **settings})
    config.validate()
    given = {"classes": [str(k) for k in range(classes)], "mean": [0.5] * shape[0], "std": [0.5] * shape[0]}
    said: list[str] = []
    return (*create(config, input_shape=shape, **given, say=said.append), said)


def test_the_stem_has_one_projection_to_learn():
    model, record, _ = made(stem="scattering", patch_size=4)
    assert model.patch_embed.proj.weight.shape == (16, 81, 1, 1)
    assert record.kwargs["stem"] == "scattering"
    assert not [name for name in model.state_dict() if "scatter" in name]
    images = torch.randn(2, 1, 16, 16)
    coefficients = model.patch_embed.scatter(images)
    flat = coefficients.flatten(2)
    normed = (flat - flat.mean(-1, keepdim=True)) / (flat.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    weight, bias = model.patch_embed.proj.weight[:, :, 0, 0], model.patch_embed.proj.bias
    assert torch.allclose(model.patch_embed(images), normed.transpose(1, 2) @ weight.T + bias, atol=1e-5)


def test_each_token_has_weights_of_its_own():
    model, _, _ = made(**OURS | {"stem": None, "patch_size": 8})
    images = torch.randn(2, 1, 16, 16)
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 4, 16)
    weights = model.head[1].weight.view(3, 4, 16)
    assert torch.allclose(model(images), torch.einsum("bnd,knd->bk", tokens, weights), atol=1e-6)


@pytest.mark.parametrize(("size", "patch"), [(8, 2), (28, 4), (32, 4), (24, 4), (36, 4)])
def test_patches_of_a_stem_are_powers_of_two(size, patch):
    assert made((1, size, size), stem="scattering")[1].kwargs["patch_size"] == patch


def test_the_record_builds_the_same_model(tmp_path: Path):
    model, record, _ = made(**OURS)
    save_model(model, record, tmp_path)
    images = torch.randn(2, 1, 16, 16)
    assert torch.equal(load_model(tmp_path)(images), model.eval()(images))


def test_weights_of_the_same_model_are_taken_and_others_refused(tmp_path: Path):
    model, record, _ = made(**OURS)
    save_model(model, record, tmp_path)
    again, _, _ = made(**OURS, weights=str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    other, _, said = made(**OURS, weights=str(tmp_path), classes=4)
    assert torch.equal(other.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert other.head[1].out_features == 4
    assert "new head" in said[0]
    file = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(made()[0].state_dict(), file)
    with pytest.raises(UserError, match="does not fit the model"):
        made(**OURS, weights=str(file))


@pytest.mark.parametrize(("settings", "key", "why"), [
    ({"stem": "scattering", "patch_size": 8, "shape": (1, 8, 8)}, "model.stem", "two or more patches of 8 pixels"),
    ({"stem": "scattering", "patch_size": 3, "shape": (1, 9, 9)}, "model.stem", "not 3"),
    ({"stem": "scattering", "name": "convnext_atto", "args": {}, "shape": (3, 32, 32)}, "model.stem",
     "convnext_atto has no patch embedding"),
    ({"stem": "scattering", "args": {**SMALL, "dynamic_img_size": True}}, "model.stem", "images of one size"),
    ({"stem": "scattering", "pretrained": True}, "model.pretrained", "timm's weights know nothing"),
    ({"stem": "wavelets"}, "model.stem", "must be one of scattering"),
    ({"pool": "flat", "name": "swin_tiny_patch4_window7_224", "args": {}, "shape": (3, 32, 32)}, "model.pool",
     "only a plain ViT"),
    ({"pool": "mean"}, "model.pool", "must be one of token, avg, map, flat"),
    ({"args": {**SMALL, "global_pool": "avg"}}, "model.args.global_pool", "use model.pool"),
])  # fmt: skip
def test_what_cannot_be_is_refused_by_its_key(settings, key, why):
    with pytest.raises(UserError, match=why) as error:
        made(**settings)
    assert error.value.key == key


def test_a_record_that_cannot_be_built_says_why():
    with pytest.raises(Unsuitable, match="only a plain ViT"):
        make("convnext_atto", {"global_pool": "flat"})
