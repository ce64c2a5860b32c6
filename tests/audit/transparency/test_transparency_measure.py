"""The axis as a whole: the model is as it was, numbers are found again, controls know nothing."""

from __future__ import annotations

import base64
import copy
import io
import json
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from effvit_train.audit.transparency.measure import KEYS, cells, measure_transparency

SMALL: dict[str, Any] = {
    "img_size": 8, "patch_size": 2, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5,
}  # fmt: skip
VIT = "vit_tiny_patch16_224"


def normalise(images: Tensor) -> Tensor:
    return images.float() / 255 - 0.5


def pictures(count: int, channels: int = 1, size: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def make(channels: int = 1, **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(VIT, in_chans=channels, **SMALL | arguments).eval()
    images = normalise(pictures(20, channels, model.patch_embed.img_size[0]))
    with torch.no_grad():  # so that the class depends on the patches
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.patch_embed.proj.weight.normal_()
        model.head.bias -= model(images).mean(dim=0)
    return model


class Corner(nn.Module):
    """Says class 1 for a bright upper left quarter, class 0 else; blind to the rest."""

    def forward(self, images: Tensor) -> Tensor:
        half = images.shape[-1] // 2
        quarter = images[:, :, :half, :half].mean(dim=(1, 2, 3))
        return torch.stack([-20 * quarter, 20 * quarter], dim=1)


def test_the_model_is_left_as_it_was_found() -> None:
    model = make(attn_drop_rate=0.1, proj_drop_rate=0.1).train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    model.blocks[1].attn.fused_attn = False
    model.norm.weight.grad = torch.ones(24)
    modes = [module.training for module in model.modules()]
    learns = [parameter.requires_grad for parameter in model.parameters()]
    weights = copy.deepcopy(model.state_dict())
    generator, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    measure_transparency(model, normalise, pictures(3), torch.arange(3), seed=1, steps=2)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learns
    assert [block.attn.fused_attn for block in model.blocks] == [True, False]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.norm.weight.grad, torch.ones(24))
    assert [p.grad is None for p in model.parameters()].count(False) == 1
    assert torch.equal(torch.get_rng_state(), generator)
    assert np.random.get_state()[1].tolist() == numpy_state
    assert not any(module._forward_hooks for module in model.modules())


def test_the_same_numbers_twice_and_in_training_mode() -> None:
    first, second = (
        measure_transparency(
            model, normalise, pictures(5), np.arange(5), seed=1, steps=4
        )
        for model in (make(attn_drop_rate=0.5), make(attn_drop_rate=0.5).train())
    )  # fmt: skip
    assert first == second
    assert set(first[0].values) == set(KEYS)
    other = measure_transparency(make(), normalise, pictures(5), np.arange(5), seed=2, steps=4)
    assert other[1]["methods"]["chefer"]["insertion_auc"] == first[1]["methods"]["chefer"]["insertion_auc"]
    assert other[1]["methods"]["random"] != first[1]["methods"]["random"]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_whatever_the_caller_is_in(mode: Any) -> None:
    model, images = make(), pictures(3)
    expected = measure_transparency(model, normalise, images, np.arange(3), seed=1, steps=2)
    with mode():
        found = measure_transparency(model, normalise, pictures(3), np.arange(3), seed=1, steps=2)
    assert found == expected


def test_one_method_stands_for_the_model_whatever_is_shown_beside_it() -> None:
    few, all_ = (
        measure_transparency(make(), normalise, pictures(4), np.arange(4), seed=1, steps=4, **more)
        for more in ({"methods": ()}, {})
    )
    assert few[0] == all_[0]
    assert list(few[1]["methods"]) == ["chefer", "random", "randomised_weights"]
    assert list(all_[1]["methods"]) == [
        "chefer", "rollout", "integrated_gradients", "random", "randomised_weights",
    ]  # fmt: skip
    assert all_[1]["completeness_gap"] < 0.5
    for key in ("insertion_auc", "deletion_auc", "perturbation_auc", "randomised_similarity"):
        assert all_[0].values[f"transparency/{key}"] == all_[1]["methods"]["chefer"][key]["value"]
        low, high = all_[1]["intervals"][f"transparency/{key}"]
        assert low < all_[0].values[f"transparency/{key}"] < high


def test_an_explanation_that_is_true_beats_chance() -> None:
    # no parameters: the copy that has unlearnt is the model itself
    measured, facts = measure_transparency(Corner(), normalise, pictures(40), np.arange(40), seed=1)
    assert facts["method"] == "integrated_gradients"
    assert measured.values["transparency/randomised_similarity"] == pytest.approx(1)
    assert facts["better_than"]["random"]["insertion_auc"]["interval"][0] > 0.02
    assert facts["better_than"]["random"]["deletion_auc"]["interval"][0] > 0.02
    assert facts["better_than"]["randomised_weights"]["insertion_auc"]["value"] == 0
    assert facts["completeness_gap"] < 1e-5  # the model is linear
    assert facts["shares"] == {"cells": [k / 64 for k in range(0, 65, 4)]}
    assert measured.missing == {"transparency/perturbation_auc": "no tokens can be taken out of this model"}
    curve = facts["curves"]["integrated_gradients"]["insertion"]
    assert curve[0] == 0.5  # a grey image says nothing
    assert curve[-1] == pytest.approx(facts["confidence"]["whole"], abs=1e-4)


def test_tokens_that_are_taken_away_by_hand() -> None:
    # no blocks: the mean of the patches' brightness, whose sign is the class
    model: Any = timm.create_model(
        VIT, in_chans=1, global_pool="avg", class_token=False, final_norm=False,
        **SMALL | {"num_classes": 2, "depth": 1},
    )  # fmt: skip
    model.blocks[0] = nn.Identity()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.patch_embed.proj.weight[0] = 0.25
        model.head.weight[:, 0] = torch.tensor([-1.0, 1.0])
    images = pictures(20)
    measured, facts = measure_transparency(model, normalise, images, np.arange(20), seed=1)
    assert facts["unsupported"]["chefer"] == "none of its blocks is left"
    assert facts["shares"]["tokens"] == [k / 16 for k in (0, 1, 3, 4, 6, 8, 9, 11, 12, 14)]
    gaps = []
    for image in normalise(images)[:, 0].double().numpy():
        patches = image.reshape(4, 2, 4, 2).mean(axis=(1, 3)).flatten()
        speaks = np.sort(patches * np.sign(patches.sum()))  # for the class that the model says; least first
        gone = [16 * tenth // 10 for tenth in range(10)]
        least = [float(speaks[k:].sum() > 0) for k in gone]
        most = [float(speaks[: 16 - k].sum() > 0) for k in gone]
        gaps.append((np.trapezoid(least, gone) - np.trapezoid(most, gone)) / gone[-1])
    assert min(gaps) > 0.3
    assert measured.values["transparency/perturbation_auc"] == pytest.approx(np.mean(gaps))
    assert facts["better_than"]["random"]["perturbation_auc"]["interval"][0] > 0


def test_windows_take_integrated_gradients() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=1, window_size=4, embed_dim=8, depths=(1,),
        num_heads=(2,), num_classes=5,
    )  # fmt: skip
    measured, facts = measure_transparency(swin, normalise, pictures(2, 3, 32), np.arange(2), seed=1, steps=2)
    assert facts["method"] == "integrated_gradients"
    assert facts["cells"] == [16, 16]
    assert facts["unsupported"]["chefer"] == "it attends within windows, which no product of matrices joins"
    assert list(measured.missing) == ["transparency/perturbation_auc"]


@pytest.mark.parametrize(
    ("channels", "size", "patch", "grid"), [(1, 8, 2, [4, 4]), (3, 8, 4, [2, 2]), (3, 224, 16, [14, 14])]
)
def test_small_and_large_images(channels: int, size: int, patch: int, grid: list[int]) -> None:
    model = make(channels, img_size=size, patch_size=patch)
    images = pictures(7 if size == 8 else 2, channels, size)
    ids = torch.arange(len(images)) + 100
    measured, facts = measure_transparency(model, normalise, images, ids, seed=1, methods=(), steps=4)
    assert set(measured.values) == set(KEYS)
    assert facts["cells"] == grid
    json.dumps(facts, allow_nan=False)
    assert [example["id"] for example in facts["examples"]] == list(range(100, 100 + min(6, len(images))))
    picture = Image.open(io.BytesIO(base64.b64decode(facts["examples"][0]["image"])))
    assert picture.mode == ("L" if channels == 1 else "RGB")
    assert picture.size == (min(size, 96), min(size, 96))
    if channels == 1:
        assert np.array_equal(np.asarray(picture), images[0, 0].numpy())
    shown = Image.open(io.BytesIO(base64.b64decode(facts["examples"][0]["maps"]["chefer"])))
    assert [shown.height, shown.width] == grid
    assert shown.getextrema() == (0, 255)


def test_what_cannot_be_measured_says_why() -> None:
    def reasons(model: nn.Module, count: int = 2) -> set[str]:
        measured, facts = measure_transparency(
            model, normalise, pictures(count), np.arange(count), seed=1, steps=2
        )
        assert not measured.values
        assert facts == {}
        assert set(measured.missing) == set(KEYS)
        return set(measured.missing.values())

    assert reasons(make(), 0) == {"there are no images to explain"}
    assert reasons(make(patch_size=8)) == {"the model sees a single patch, where nothing can be ranked"}
    assert reasons(make(num_classes=1)) == {"a model with one output says nothing about classes"}
    broken = make()
    nn.init.constant_(broken.head.bias, float("nan"))
    assert reasons(broken) == {"the model's outputs are not finite numbers"}


def test_a_single_image_has_no_interval() -> None:
    measured, facts = measure_transparency(make(), normalise, pictures(1), np.arange(1), seed=1, steps=2)
    assert set(measured.values) == set(KEYS)
    assert set(facts["intervals"].values()) == {None}


def test_cells_are_few_whatever_the_model() -> None:
    assert cells((14, 14)) == (14, 14)
    assert cells((56, 56)) == cells((224, 224)) == cells((28, 28)) == (14, 14)
    assert cells((32, 16)) == (16, 8)
    assert cells((27, 27)) == (27, 27)  # does not come apart


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.arange(3)}, "do not match"),
        ({"steps": 1}, "less than two"),
        ({"methods": ("gradcam",)}, "'gradcam' is not one of"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"ids": np.arange(2), "seed": 1} | change
    with pytest.raises(ValueError, match=message):
        measure_transparency(make(), normalise, pictures(2), **arguments)
