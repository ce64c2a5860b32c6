"""Few weights are trained, and what ships is a model like any other."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from effvit_train.errors import UserError
from effvit_train.models.tuning import LowRank, merge, tune

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def made(name: str = "vit_tiny_patch16_224", **kwargs) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **{**SMALL, **kwargs})


def tuned(what: str, model: nn.Module | None = None, rank: int = 4) -> nn.Module:
    model = model or made()
    tune(model, what, rank=rank, example=IMAGES[:1])
    return model


def trained(model: nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(("what", "count"), [
    # head 16 x 5 + 5
    ("head", 85),
    # biases: patches 16; per block norms 32, qkv 48, proj 16, fc1 64, fc2 16; last norm 16
    ("bias", 85 + 16 + 2 * (32 + 48 + 16 + 64 + 16) + 16),
    # rank 4 x (in + out): qkv 16 + 48, proj 16 + 16, fc1 and fc2 16 + 64
    ("lora", 85 + 2 * 4 * (64 + 32 + 80 + 80)),
])  # fmt: skip
def test_so_many_weights_are_trained(what, count):
    assert sum(trained(tuned(what)).values()) == count


def test_all_is_all():
    model = tuned("all")
    assert len(trained(model)) == len(list(model.parameters()))


@pytest.mark.parametrize("what", ["head", "bias", "lora"])
def test_nothing_changes_before_training(what):
    assert torch.equal(tuned(what).eval()(IMAGES), made().eval()(IMAGES))


def test_merged_it_is_the_model_that_was_trained():
    model = tuned("lora").double().eval()
    for module in model.modules():
        if isinstance(module, LowRank):
            nn.init.normal_(module.up.weight)
    before = model(IMAGES.double())
    assert not torch.allclose(before, made().double().eval()(IMAGES.double()), atol=1e-2)
    plain = copy.deepcopy(model)
    merge(plain)
    assert torch.allclose(plain(IMAGES.double()), before, atol=1e-12)
    made().double().load_state_dict(plain.state_dict())  # the very same names and shapes


def test_both_heads_of_a_distilled_model_are_trained():
    model = tuned("head", made("deit_tiny_distilled_patch16_224"))
    assert {name.partition(".")[0] for name in trained(model)} == {"head", "head_dist"}


@pytest.mark.parametrize(("model", "what", "rank", "key", "why"), [
    ("vit_tiny_patch16_224", "lora", 16, "recipe.lora_rank", r"no linear layer is wider \(16\)"),
    ("beit_base_patch16_224", "lora", 4, "recipe.tune", "without calling them"),
])  # fmt: skip
def test_what_cannot_be_tuned_says_why(model, what, rank, key, why):
    with pytest.raises(UserError, match=why) as error:
        tuned(what, made(model), rank)
    assert error.value.key == key


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(UserError, match="which of its layers is the classifier"):
        tune(nn.Linear(3, 2), "head", rank=4, example=torch.zeros(1, 3))
