"""Norms and the bound of networks small enough for paper and pencil."""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
from timm.layers import LayerScale
from torch import nn

from effvit_train.audit.spectral import (
    LOG_BOUND,
    STABLE_RANK,
    log_complexity,
    margins_from,
    measure_spectral,
    norms,
    thinned,
)

ONE = torch.ones(4)


def linear(*diagonal: float) -> nn.Linear:
    layer = nn.Linear(len(diagonal), len(diagonal), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.diag(torch.tensor(diagonal)))
    return layer


def test_two_diagonal_layers_by_hand() -> None:
    model = nn.Sequential(linear(3, 4), linear(2, 2))
    measured, facts = measure_spectral(model, torch.tensor([0.1, 0.5, 3.0]), train_images=100)
    first, second = facts["layers"]
    assert (first["spectral"], first["frobenius"], first["two_one"]) == pytest.approx((4, 5, 7))
    assert (second["spectral"], second["frobenius"], second["two_one"]) == pytest.approx((2, math.sqrt(8), 4))
    assert (first["stable_rank"], second["stable_rank"]) == pytest.approx((25 / 16, 2))
    assert measured.values[STABLE_RANK] == pytest.approx((25 / 16 + 2) / 2)
    # product 4 x 2, sum (7/4)^(2/3) + (4/2)^(2/3); median margin 0.5; root of 100 images
    complexity = 8 * ((7 / 4) ** (2 / 3) + 2 ** (2 / 3)) ** 1.5
    assert facts["log10_complexity"] == pytest.approx(math.log10(complexity))
    assert measured.values[LOG_BOUND] == pytest.approx(math.log10(complexity / 0.5 / 10))
    assert (facts["covered_parameters"], facts["margins"]["of"]) == (1, "test images")
    json.dumps(facts, allow_nan=False)


def test_rows_are_outputs() -> None:
    layer = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))
    assert norms(nn.Sequential(layer))[0].two_one == 5  # by inputs it would be 7


def test_what_one_layer_gives_another_may_take() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    before = measure_spectral(model, ONE, train_images=10)[0].values
    with torch.no_grad():
        model[0].weight.mul_(7.0)
        model[0].bias.mul_(7.0)
        model[2].weight.div_(7.0)  # the same function: ReLU lets factors through
    after = measure_spectral(model, ONE, train_images=10)[0].values
    assert after == pytest.approx(before, rel=1e-6)


def test_margin_images_and_inputs_in_the_bound() -> None:
    model = nn.Sequential(linear(2, 1))
    base = measure_spectral(model, ONE, train_images=10)[0].values[LOG_BOUND]

    def bound(**changed: object) -> float:
        settings = {"margins": ONE, "train_images": 10, **changed}
        return measure_spectral(model, **settings)[0].values[LOG_BOUND]  # type: ignore[arg-type]

    assert bound(margins=ONE / 10) == pytest.approx(base + 1)
    assert bound(train_images=1000) == pytest.approx(base - 1)
    assert bound(input_norm=10.0) == pytest.approx(base + 1)
    spread = torch.arange(1.0, 12.0)  # 1 to 11: the 10th percentile is 2, the median 6
    assert bound(margins=spread, quantile=0.1) == pytest.approx(base - math.log10(2))
    assert bound(margins=spread) == pytest.approx(base - math.log10(6))


def test_margins_by_hand() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 6.5], [1.0, 1.0, 0.0]])
    assert margins_from(logits, torch.tensor([0, 1, 1])).tolist() == [1.0, -1.5, 0.0]


@pytest.mark.parametrize(
    ("model", "margins", "reason"),
    [
        (nn.Sequential(linear(1, 1)), -ONE, "the margin at quantile 0.5 is -1, not positive"),
        (nn.Sequential(linear(1, 1)), ONE * math.nan, "the margin at quantile 0.5 is nan, not positive"),
        (nn.Sequential(linear(1, 1)), torch.empty(0), "there are no margins"),
        (nn.Sequential(linear(0, 0)), ONE, "the model has no layers, or one whose weights are all zero"),
        (nn.Flatten(), ONE, "the model has no layers, or one whose weights are all zero"),
        (nn.Sequential(linear(math.inf, 0)), ONE, "the model has weights that are not finite numbers"),
    ],
)
def test_no_bound_without_a_reason(model: nn.Module, margins: torch.Tensor, reason: str) -> None:
    measured, facts = measure_spectral(model, margins, train_images=10)
    assert measured.missing[LOG_BOUND] == reason
    assert LOG_BOUND not in measured.values
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("wrong", [{"quantile": 2.0}, {"train_images": 0}, {"input_norm": 0.0}])
def test_numbers_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        measure_spectral(nn.Flatten(), ONE, **{"train_images": 10, **wrong})  # type: ignore[arg-type]


def unrolled(layer: nn.Conv2d, side: int) -> torch.Tensor:
    """The matrix that a convolution is on a whole image."""
    image = torch.zeros(layer.in_channels, side, side)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x[None])[0].flatten(), image)
    return jacobian.flatten(1)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_patch_embedding_is_exact(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 6, 2, 2, groups=groups)
    (found,) = norms(nn.Sequential(layer))
    assert found.stretch == 1
    assert found.shape == (6, 2 * 2 * 2)
    assert found.spectral == pytest.approx(float(torch.linalg.svdvals(unrolled(layer, 6))[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "patches"), [(3, 1, 1, 9), (3, 2, 1, 4), (3, 1, 2, 9), (1, 2, 1, 1)]
)
def test_a_convolution_stretches_by_its_overlap(
    kernel: int, stride: int, dilation: int, patches: int
) -> None:
    layer = nn.Conv2d(1, 1, kernel, stride, dilation=dilation, bias=False)
    nn.init.ones_(layer.weight)  # positive: patches add up, and the bound is nearly met
    (found,) = norms(nn.Sequential(layer))
    assert found.stretch == pytest.approx(math.sqrt(patches))
    true = float(torch.linalg.svdvals(unrolled(layer, 15))[0])
    assert true <= found.spectral * found.stretch * (1 + 1e-6)
    assert true > found.spectral * found.stretch * 0.8
    assert log_complexity([found]) >= math.log10(true)


def test_scales_are_diagonal_matrices() -> None:
    norm, scale, batch = nn.LayerNorm(3), LayerScale(3), nn.BatchNorm1d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 2.0]))
        scale.gamma.fill_(0.5)
        batch.weight.copy_(torch.tensor([4.0, 1.0]))
        batch.running_var.fill_(4 - batch.eps)
    found = norms(nn.Sequential(norm, scale, batch, nn.LayerNorm(3, elementwise_affine=False)))
    assert [(n.spectral, n.two_one, n.diagonal) for n in found] == [
        (2, 5, True),
        (0.5, 1.5, True),
        (pytest.approx(2), pytest.approx(2.5), True),
    ]


def test_singular_values_for_a_drawing() -> None:
    assert thinned(torch.arange(3.0)) == [0, 1, 2]
    assert thinned(torch.arange(101.0), 5) == [0, 25, 50, 75, 100]


def test_a_vit_is_covered_and_left_alone() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measured, facts = measure_spectral(model, ONE, train_images=100, margins_of="public images")
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # patches, 2 x (qkv, proj, fc1, fc2), head; 2 x 2 + 1 norms
    assert len(facts["layers"]) == 1 + 8 + 1 + 5
    hidden = sum(
        p.numel()
        for n, p in model.named_parameters()
        if n.endswith("bias") or n in ("cls_token", "pos_embed")
    )
    total = sum(p.numel() for p in model.parameters())
    assert facts["covered_parameters"] == pytest.approx(1 - hidden / total)
    assert facts["margins"]["of"] == "public images"
    assert measured == measure_spectral(model, ONE, train_images=100)[0]
