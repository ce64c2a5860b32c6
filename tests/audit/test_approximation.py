"""Errors of layers and ranks of matrices that are known by hand."""

from __future__ import annotations

import copy
import json
import math

import pytest
import timm
import torch
from torch import nn

from effvit_train.audit.approximation import (
    ATTENTION,
    OUTPUT,
    RANK,
    attention_errors,
    compare_layers,
    measure_approximation,
    replaced_attention,
)
from effvit_train.audit.low_rank import attention_ranks, weight_ranks
from effvit_train.audit.matrices import effective_rank, rank_at, rank_error, singular_values, stable_rank

IMAGES = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def vit(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 10}
    return timm.create_model("vit_tiny_patch16_224", in_chans=1, **{**sizes, **kwargs})


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Chain(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class PlusAttention(nn.Module):
    """x + c, in the place of an attention."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.c


class Holder(nn.Module):
    def __init__(self, c: float) -> None:
        super().__init__()
        self.attn = PlusAttention(c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x)


def test_errors_add_up_on_the_way() -> None:
    layers, output = compare_layers(Chain(Times(2), Times(3)), Chain(Times(2.2), Times(3.3)), IMAGES)
    assert [layer.name for layer in layers] == ["blocks.0", "blocks.1"]
    assert [layer.local for layer in layers] == pytest.approx([0.1, 0.1])
    assert [layer.propagated for layer in layers] == pytest.approx([0.1, 0.21])  # 1.1 x 1.1
    assert output == pytest.approx(0.21)


def test_a_layer_that_is_right_gets_the_wrong_input() -> None:
    layers, output = compare_layers(Chain(Times(2), Times(3)), Chain(Times(2.2), Times(3)), IMAGES)
    assert [layer.local for layer in layers] == pytest.approx([0.1, 0])
    assert [layer.propagated for layer in layers] == pytest.approx([0.1, 0.1])
    assert output == pytest.approx(0.1)


def test_layers_of_another_width_have_a_reason() -> None:
    exact = Chain(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4))
    other = Chain(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 4))
    layers, output = compare_layers(exact, other, IMAGES)
    assert (layers[0].local, layers[0].propagated) == (0, 0)
    assert (layers[1].local, layers[1].propagated) == (None, None)
    assert layers[1].reason == "it gives (6,), the exact one (8,)"
    assert layers[2].local is None
    assert layers[2].reason.startswith("it does not take the same input")
    assert layers[2].propagated is not None
    assert output == layers[2].propagated


def test_attention_is_compared_on_what_the_replacement_receives() -> None:
    ones = torch.ones(3, 1, 2, 2)
    exact = Chain(Times(1), Holder(0))
    other = Chain(Times(2), Holder(1))
    assert replaced_attention(exact, other) == ["blocks.1.attn"]
    # on twos: twos by the exact one, threes by the other
    errors, _ = attention_errors(exact, other, ones, ["blocks.1.attn"])
    assert errors == {"blocks.1.attn": 0.5}
    assert compare_layers(exact, other, ones, ["blocks.1.attn"])[0][0].local == 1  # on ones


def test_a_vit_with_one_attention_replaced() -> None:
    exact = vit()
    other = copy.deepcopy(exact)
    with torch.no_grad():
        other.blocks[1].attn.proj.weight.mul_(0.9)
        other.blocks[1].attn.proj.bias.mul_(0.9)
    measured, facts = measure_approximation(other, IMAGES, exact=exact)
    assert measured.values[ATTENTION] == pytest.approx(
        0.1, rel=1e-5
    )  # all of its output is 0.9 times as large
    assert list(facts["attention_errors"]) == ["blocks.1.attn"]
    by_name = {layer["name"]: layer for layer in facts["layers"]}
    assert (by_name["blocks.0"]["local"], by_name["blocks.0"]["propagated"]) == (0, 0)
    assert 0 < by_name["blocks.1"]["local"] == by_name["blocks.1"]["propagated"] < 0.1
    assert 0 < measured.values[OUTPUT] < 0.1
    json.dumps(facts, allow_nan=False)


def test_nothing_replaced_is_a_reason() -> None:
    model = vit()
    measured, _ = measure_approximation(model, IMAGES[:2])
    assert set(measured.missing) == {ATTENTION, OUTPUT}
    assert measured.missing[ATTENTION] == "the model has no replaced parts"
    twin = copy.deepcopy(model)
    twin.blocks[0].attn.fused_attn = not twin.blocks[0].attn.fused_attn  # the same function
    measured, _ = measure_approximation(twin, IMAGES[:2], exact=model)
    assert measured.missing == {ATTENTION: "the model has no replaced attention"}
    assert measured.values[OUTPUT] < 1e-6


def test_a_ruined_model_is_a_reason() -> None:
    model = vit()
    with torch.no_grad():
        model.head.weight[0, 0] = math.nan
    measured, _ = measure_approximation(model, IMAGES[:2], exact=vit())
    assert set(measured.missing) == {ATTENTION, OUTPUT, RANK}
    assert not measured.values


def test_models_are_left_as_found() -> None:
    exact, other = vit(), vit(depth=2)
    other.blocks[0].eval()
    other.blocks[0].attn.fused_attn = False
    modes = [module.training for module in other.modules()]
    measure_approximation(other, IMAGES[:2], exact=exact)
    assert [module.training for module in other.modules()] == modes
    assert other.blocks[0].attn.fused_attn is False
    for module in [*exact.modules(), *other.modules()]:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_ranks_by_hand() -> None:
    values = torch.tensor([4.0, 3.0, 0.0], dtype=torch.float64)  # energies 16 and 9 of 25
    assert [rank_at(values, energy) for energy in (0.5, 0.64, 0.65, 1.0)] == [1, 1, 2, 2]
    assert [rank_error(values, rank) for rank in (0, 1, 2)] == [1, 3 / 5, 0]
    assert stable_rank(values) == 25 / 16
    assert effective_rank(torch.ones(5, dtype=torch.float64)) == pytest.approx(5)
    assert effective_rank(torch.tensor([2.0, 0.0])) == 1
    assert rank_at(torch.zeros(3), 0.9) == effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 6, 4)])
def test_singular_values_against_a_decomposition(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = torch.linalg.svdvals(matrix)
    assert torch.allclose(singular_values(matrix), expected, atol=1e-7)


def test_the_best_approximation_is_as_far_as_it_says() -> None:
    linear = nn.Linear(12, 8)
    (row,) = weight_ranks(linear, energies=(0.9,))
    left, values, right = torch.linalg.svd(linear.weight.detach().double())
    rank = row["rank"]["0.9"]
    near = left[:, :rank] * values[:rank] @ right[:rank]
    weight = linear.weight.detach().double()
    error = (weight - near).norm() / weight.norm()
    assert row["error"]["0.9"] == pytest.approx(float(error))
    assert row["error"]["0.9"] <= math.sqrt(1 - 0.9)
    assert row["pays_below"] == 12 * 8 / 20


def test_ranks_of_a_grouped_convolution_are_those_of_its_blocks() -> None:
    convolution = nn.Conv2d(4, 4, 3, groups=4)
    (row,) = weight_ranks(convolution)
    assert (row["shape"], row["full_rank"]) == ([4, 36], 4)  # four filters, each a block of one row


@pytest.mark.parametrize("fused", [True, False])
def test_attention_to_everything_alike_has_rank_one(fused: bool) -> None:
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = fused
        nn.init.zeros_(block.attn.qkv.weight)
    rows = attention_ranks(model, IMAGES[:2])
    assert [row["name"] for row in rows] == ["blocks.0.attn", "blocks.1.attn"]
    for row in rows:
        assert (row["tokens"], row["matrices"]) == ([17, 17], 8)  # two images, four heads
        assert row["effective_rank"] == pytest.approx(1, abs=1e-5)
        assert row["rank"] == {"0.9": 1, "0.99": 1}


def test_attention_to_oneself_has_full_rank() -> None:
    class SelfAttention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sharp = torch.eye(6).expand(len(x), 2, 6, 6) * 100
            return nn.functional.scaled_dot_product_attention(sharp, sharp, sharp)

    (row,) = attention_ranks(Chain(SelfAttention()), IMAGES[:1])
    assert (row["name"], row["matrices"]) == ("blocks.0", 2)
    assert row["effective_rank"] == pytest.approx(6)
    assert row["rank"] == {"0.9": 6, "0.99": 6}  # 5 of 6 equal values are 0.83 of the energy


def test_a_mask_is_seen() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            same = torch.ones(1, 1, 6, 4)
            mask = torch.eye(6, dtype=torch.bool)  # alike, but each may only look at itself
            return nn.functional.scaled_dot_product_attention(same, same, same, attn_mask=mask)

    (row,) = attention_ranks(Chain(Masked()), IMAGES[:1])
    assert row["effective_rank"] == pytest.approx(6)
