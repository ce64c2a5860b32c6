"""ViTs of several sizes and patches: positions and patches by hand, against timm, per sample, from the record."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import resample_abs_pos_embed
from timm.layers.patch_embed import resample_patch_embed
from torch import nn
from torch.nn import functional as F

from effvit_train import load_model
from effvit_train.audit.operations import count_operations
from effvit_train.models.factory import build, save_model
from effvit_train.models.flexible import cut_into
from effvit_train.models.make import make
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.resample import interpolation, patch_inverse, recut, resample_grid, resize
from effvit_train.models.resolution import entry_of, operations_of, recorded, why_not
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import apply
from effvit_train.privacy.engine import Clip, make_engine

sys.path.insert(0, str(Path(__file__).parent.parent / "privacy"))
from engine_harness import compare, images, label_losses, median_norm, shake

SHAPE = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
KINDS = {
    "vit": ("vit_tiny_patch16_224", SHAPE),
    "deit": ("deit_tiny_distilled_patch16_224", SHAPE),
    "deit3": ("deit3_small_patch16_224", SHAPE),
    "registers": ("vit_tiny_patch16_224", {**SHAPE, "reg_tokens": 3, "pre_norm": True}),
    "average": ("vit_tiny_patch16_224", {**SHAPE, "class_token": False, "global_pool": "avg"}),
    "no_position": ("vit_tiny_patch16_224", {**SHAPE, "pos_embed": "none"}),
}
ENTRY = entry_of([8, 12, 16], [2, 4, 8])


def plain(kind: str = "vit", dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(5)
    return shake(make(*KINDS[kind])).to(dtype).eval()


def flexible(kind: str = "vit", dtype: torch.dtype = torch.float64) -> nn.Module:
    model = plain(kind, dtype)
    apply(model, operations_of(model, ENTRY))
    return model


def pixels(size: int, count: int = 3, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(
        count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).to(dtype)


# --- resampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [(7, 4), (4, 7), (14, 9), (3, 1), (5, 5), (2, 16)])
def test_interpolation_is_torchs(old, new):
    # columns of the Kronecker product: what torch makes of each unit image
    units = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    wanted = F.interpolate(units, (new, new), mode="bicubic", antialias=True).flatten(1).T
    one = interpolation(old, new)
    assert torch.allclose(torch.kron(one, one), wanted, atol=1e-7)


def test_each_copy_of_a_position_embedding_is_resampled_by_itself():
    copies = torch.randn(4, 12, 6)
    rows, columns = interpolation(3, 2).float(), interpolation(4, 5).float()
    together = resample_grid(copies, (3, 4), rows, columns)
    assert together.shape == (4, 10, 6)
    for one, wanted in zip(together, copies, strict=True):
        assert torch.allclose(
            one[None], resample_abs_pos_embed(wanted[None], [2, 5], [3, 4], num_prefix_tokens=0), atol=1e-6
        )


@pytest.mark.parametrize("kind", ["vit", "deit", "deit3"])
@pytest.mark.parametrize("grid", [(2, 2), (3, 3), (6, 2)])
def test_positions_are_timms(kind, grid):
    model: Any = flexible(kind, torch.float32)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    wanted = resample_abs_pos_embed(model.pos_embed, list(grid), [4, 4], num_prefix_tokens=prefix)
    assert torch.allclose(model._positions(grid), wanted, atol=1e-6)


@pytest.mark.parametrize("patch", [2, 3, 8])
def test_cutting_into_other_patches_is_equation_4_of_flexivit(patch):
    """(B^T)^+ w with the whole matrix B of torch's resizing, and timm's function."""
    weight, bias = torch.randn(6, 3, 4, 4, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    picture = pixels(3 * patch)
    units = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
    resizing = (
        F.interpolate(units, (patch, patch), mode="bicubic", antialias=True).flatten(1).T
    )  # B: (p p, 16)
    other = (torch.linalg.pinv(resizing.T) @ weight.flatten(2).transpose(1, 2)).transpose(1, 2)
    wanted = F.conv2d(picture, other.reshape(6, 3, patch, patch), bias, stride=patch)
    found = F.conv2d(recut(picture, patch_inverse(4, patch)), weight, bias, stride=4)
    assert torch.allclose(found, wanted, atol=1e-9)
    timms = resample_patch_embed(weight.float(), [patch, patch]).double()
    assert torch.allclose(found, F.conv2d(picture, timms, bias, stride=patch), atol=1e-4)


def test_an_enlarged_patch_gives_the_very_same_tokens():
    # <B x, (B^T)^+ w> = <x, w> for every x where p >= P (Beyer et al. 2023, section 3.4)
    weight, small = torch.randn(6, 3, 4, 4, dtype=torch.float64), pixels(8)
    patches = small.unfold(2, 4, 4).unfold(3, 4, 4)  # (B, C, 2, 2, 4, 4)
    large = F.interpolate(patches.reshape(-1, 1, 4, 4), (7, 7), mode="bicubic", antialias=True)
    large = large.view(3, 3, 2, 2, 7, 7).transpose(3, 4).reshape(3, 3, 14, 14)
    found = F.conv2d(recut(large, patch_inverse(4, 7)), weight, stride=4)
    assert torch.allclose(found, F.conv2d(small, weight, stride=4), atol=1e-9)


def test_images_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"patches of 7 pixels do not divide images of 16x16"):
        recut(pixels(16), patch_inverse(4, 7))


def test_resizing_averages_what_becomes_one_pixel():
    # antialiased bilinear from 4 to 2: weights 1/8 3/8 3/8 1/8 inside, brought to sum 1 at the border
    row = torch.tensor([1.0, 2.0, 4.0, 8.0]).expand(1, 1, 4, 4)
    wanted = torch.tensor([(3 * 1 + 3 * 2 + 4) / 7, (2 + 3 * 4 + 3 * 8) / 7])
    assert torch.allclose(resize(row, 2)[0, 0, 0], wanted)
    assert resize(row, 4) is row


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_at_its_own_size_it_is_the_model_that_it_was(kind):
    before, model = plain(kind), flexible(kind)
    assert torch.equal(model(pixels(16)), before(pixels(16)))
    assert list(model.state_dict()) == list(before.state_dict())
    for size in (8, 12, 16, 20):  # 20 was not named: its resampling is made when it comes
        assert model(pixels(size)).shape == (3, 5)


@pytest.mark.parametrize(("kind", "size"), [("vit", 12), ("deit3", 8), ("deit", 12)])
def test_at_another_size_it_is_timms_model_of_that_size(kind, size):
    model: Any = flexible(kind)
    name, kwargs = KINDS[kind]
    other: Any = make(name, {**kwargs, "img_size": size}).double().eval()
    state = {key: value for key, value in model.state_dict().items() if key != "pos_embed"}
    other.load_state_dict(state, strict=False)
    other.pos_embed.data = model._positions((size // 4, size // 4)).detach()
    assert torch.allclose(model(pixels(size)), other(pixels(size)), atol=1e-9)


def test_parameters_stay_and_so_does_what_an_optimizer_keeps():
    model = plain()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(model.parameters())
    average = copy.deepcopy(model)
    for each, its in ((model, optimizer), (average, None)):
        apply(each, operations_of(each, ENTRY), its)
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    assert torch.equal(average(pixels(12)), model(pixels(12)))
    model(pixels(12)).sum().backward()
    assert parameters["pos_embed"].grad.abs().sum() > 0


def test_what_can_be_cut_stays_known():
    before, after = read_structure(plain()), read_structure(flexible())
    assert after.axes == before.axes
    assert list(after.groups) == list(before.groups)


@pytest.mark.parametrize(("size", "patch"), [(8, 4), (12, 4), (16, 4), (16, 8), (16, 2)])
def test_macs_equal_the_hand_formula(size, patch):
    """Patches, blocks of N tokens, head; resampled positions; recut patches."""
    model = flexible()
    cut_into(model, patch)
    side, width = size // patch, 16
    patches = side * side
    tokens = patches + 1
    wanted = (
        patches * 3 * 4 * 4 * width + 2 * (tokens * width * width * 12 + 2 * tokens**2 * width) + width * 5
    )
    if side != 4:
        wanted += width * (side * 4 * 4 + side * side * 4)
    if patch != 4:
        wanted += patches * 3 * patch * 4 * (patch + 4)
    operations = count_operations(model, (3, size, size))
    assert operations.macs == wanted
    assert not operations.uncounted


# --- the record ----------------------------------------------------------------------------------


def record_of(kind: str = "vit") -> ArchitectureRecord:
    name, kwargs = KINDS[kind]
    return ArchitectureRecord(name, kwargs, (3, 16, 16), tuple("abcde"), (0.5,) * 3, (0.25,) * 3, [ENTRY])


def test_what_ships_takes_every_size(tmp_path):
    model, record = flexible(dtype=torch.float32), record_of()
    save_model(model, record, tmp_path)
    loaded = load_model(tmp_path)
    for size in (8, 12, 16):
        assert torch.equal(
            loaded(pixels(size, dtype=torch.float32)), model(pixels(size, dtype=torch.float32))
        )
    for one in (model, loaded):
        cut_into(one, 8)
    assert torch.equal(loaded(pixels(16, dtype=torch.float32)), model(pixels(16, dtype=torch.float32)))
    cut_into(loaded)
    cut_into(model)
    assert torch.equal(loaded(pixels(16, dtype=torch.float32)), model(pixels(16, dtype=torch.float32)))


def test_the_record_can_say_which_patch_is_cut():
    record = dataclasses.replace(record_of(), cuts=[{**ENTRY, "patch": 8}])
    with torch.device("meta"):
        model: Any = build(record)
    assert model.patch_embed.cut == 8
    assert model(torch.empty(2, 3, 16, 16, device="meta")).shape == (2, 5)
    assert json.loads(json.dumps(record.to_json()))["cuts"][0]["patch"] == 8


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"patches": [4]}, "does not tell its sizes"),
        ({"sizes": [8, "x"], "patches": [4]}, "does not tell its sizes"),
        ({"sizes": [8], "patches": []}, "does not tell its patches"),
        ({"sizes": [8], "patches": [4], "patch": "7"}, "patches of '7' pixels"),
    ],
)
def test_a_damaged_entry_is_refused(entry, words):
    with pytest.raises(ValueError, match=words):
        recorded(plain(), entry)


def test_an_entry_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"a model that is no plain ViT"):
        recorded(nn.Linear(2, 2), ENTRY)


# --- which models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("swin_tiny_patch4_window7_224", {}, "attends within windows"),
        ("vit_tiny_patch16_224", {**SHAPE, "stem": "scattering"}, "has a stem (ScatteringEmbed)"),
        (
            "vit_tiny_patch16_224", {**SHAPE, "class_token": False, "global_pool": "flat"},
            "gives every token weights of its own",
        ),
        ("mixer_s16_224", {}, "is no plain ViT"),
        ("test_efficientnet", {}, "is no plain ViT"),
    ],
)  # fmt: skip
def test_models_of_one_size_are_refused(name, kwargs, words):
    with torch.device("meta"):
        assert words in why_not(make(name, kwargs))


def test_a_module_can_say_that_it_works_on_one_grid():
    model: Any = plain()
    assert why_not(model) == ""
    model.blocks[1].attn.any_grid = False
    assert why_not(model) == "has Attention (blocks.1.attn), which is made for one grid of patches"


# --- private training ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample_at_a_smaller_size(kind, size):
    modules = nn.ModuleDict({"model": flexible(kind).train()})
    if kind == "deit":
        modules["model"].set_distilled_training(True)
    losses, batch = label_losses(modules), images(4, size=size)
    clip = Clip(median_norm(modules, losses, batch, 4))
    assert compare(make_engine("bookkeeping", modules, clip), losses, batch, 4) <= 1e-9


def test_the_engine_that_maps_takes_it_too():
    modules = nn.ModuleDict({"model": flexible().train()})
    losses, batch = label_losses(modules), images(4, size=12)

    def of_one(batch):
        return losses((batch[0], batch[1]))

    clip = Clip(median_norm(modules, losses, batch, 4))
    assert compare(make_engine("vmap", modules, clip), of_one, batch, 4) <= 1e-9
