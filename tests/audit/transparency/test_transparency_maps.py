"""Explanations by hand, against loops, and against what their papers promise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from effvit_train.audit.transparency.attention import read_attention
from effvit_train.audit.transparency.maps import (
    coarser,
    explain,
    integrated_gradients,
    random_map,
    reason_against,
    relevance,
    rollout,
)

SMALL: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 5,
}  # fmt: skip
VIT = "vit_tiny_patch16_224"
# name, arguments, prefix tokens, tokens that are read
MODELS: dict[str, tuple[str, dict[str, Any], int, list[int]]] = {
    "vit": (VIT, {}, 1, [0]),
    "deit": ("deit_tiny_distilled_patch16_224", {}, 2, [0, 1]),
    "registers": (VIT, {"reg_tokens": 2}, 3, [0]),
    "average": (VIT, {"global_pool": "avg", "class_token": False}, 0, list(range(16))),
}


def make(kind: str) -> nn.Module:
    torch.manual_seed(0)
    name, arguments, _, _ = MODELS[kind]
    return timm.create_model(name, **SMALL, **arguments).eval()


def pictures(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def matrices(heads: tuple[int, ...], tokens: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(2, h, tokens, tokens, generator=generator).softmax(dim=3).double() for h in heads]


def test_rollout_of_two_layers_and_two_tokens_by_hand() -> None:
    first, second = [[0.5, 0.5], [0.2, 0.8]], [[0.6, 0.4], [0.0, 1.0]]
    # halves with the identity: [[.75, .25], [.1, .9]] and [[.8, .2], [0, 1]]; second times first:
    # [.8 x .75 + .2 x .1, .8 x .25 + .2 x .9] = [.62, .38]; [.1, .9]
    layers = [torch.tensor([[matrix]]).double() for matrix in (first, second)]
    for start, expected in (([1.0, 0.0], [0.62, 0.38]), ([0.0, 1.0], [0.1, 0.9]), ([0.5, 0.5], [0.36, 0.64])):
        assert rollout(layers, torch.tensor([start]).double())[0].tolist() == pytest.approx(expected)


def test_rollout_averages_heads_and_shares_everything_out() -> None:
    layers = matrices((3, 2))
    alone = [layer.mean(dim=1, keepdim=True) for layer in layers]
    start = torch.eye(5).double()[:2]
    assert torch.allclose(rollout(layers, start), rollout(alone, start))
    assert torch.allclose(rollout(layers, start).sum(dim=1), torch.ones(2).double())


def test_relevance_of_one_layer_by_hand() -> None:
    # two heads; grad x A without what is negative: [.5 x 2, 0] and [.25 x 4, .75 x 4]; mean [1, 1.5]
    matrix = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]], [[0.25, 0.75], [0.5, 0.5]]]])
    gradient = torch.tensor([[[[2.0, -2.0], [9.0, 9.0]], [[4.0, 4.0], [9.0, 9.0]]]])
    assert relevance([matrix], [gradient], torch.tensor([[1.0, 0.0]])).tolist() == [[1.0, 1.5]]


def loop(attention: list[Tensor], gradients: list[Tensor]) -> np.ndarray:
    """R (B, N, N) as the paper writes it, number by number, from the first block to the last."""
    batch, tokens = attention[0].shape[0], attention[0].shape[-1]
    result = []
    for b in range(batch):
        r = np.eye(tokens)
        for matrix, gradient in zip(attention, gradients, strict=True):
            mean = np.zeros((tokens, tokens))
            for h in range(matrix.shape[1]):
                for i in range(tokens):
                    for j in range(tokens):
                        mean[i, j] += max(0.0, float(matrix[b, h, i, j] * gradient[b, h, i, j]))
            r = r + mean / matrix.shape[1] @ r
        result.append(r)
    return np.stack(result)


def test_relevance_against_a_loop() -> None:
    layers = matrices((3, 1, 2))  # blocks of a pruned model differ in their heads
    generator = torch.Generator().manual_seed(3)
    gradients = [torch.randn(layer.shape, generator=generator).double() for layer in layers]
    whole = loop(layers, gradients)
    for start in ([1.0, 0, 0, 0, 0], [0.2] * 5):
        rows = torch.tensor([start, start]).double()
        expected = np.einsum("n,bnm->bm", start, whole - np.eye(5))
        assert np.allclose(relevance(layers, gradients, rows), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_maps_of_models_against_the_loop(kind: str) -> None:
    model, classes = make(kind), torch.tensor([0, 3, 4])
    _, _, prefix, read = MODELS[kind]
    attention = read_attention(model, pictures(), classes)
    whole = loop(attention.matrices, attention.gradients)
    whole -= np.eye(whole.shape[1])
    expected = whole[:, read].mean(axis=1)[:, prefix:].reshape(3, 4, 4)
    assert np.allclose(explain("chefer", model, pictures(), classes), expected, rtol=1e-4, atol=0)
    shares = np.eye(whole.shape[1])
    for matrix in attention.matrices:
        shares = (matrix.mean(dim=1).numpy() + np.eye(whole.shape[1])) / 2 @ shares
    expected = shares[:, read].mean(axis=1)[:, prefix:].reshape(3, 4, 4)
    assert np.allclose(explain("rollout", model, pictures(), classes), expected, rtol=1e-4, atol=0)


def test_small_gradients_are_not_lost_where_all_tokens_are_pooled() -> None:
    layer = matrices((2,))[0].float()
    gradient = torch.rand(layer.shape, generator=torch.Generator().manual_seed(4))
    start = torch.full((2, 5), 0.2)
    large, small = (relevance([layer], [gradient * size], start) for size in (1.0, 1e-12))
    assert torch.equal(large.argsort(dim=1), small.argsort(dim=1))


class Quadratic(nn.Module):
    """Logits (B, 2): the sum of w x, and of x squared."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack(
            [(images * self.weight).flatten(1).sum(1), images.square().flatten(1).sum(1)], dim=1
        )


def test_integrated_gradients_are_exact_on_lines_and_parabolas() -> None:
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(5)).double()
    weight = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(6)).double()
    model = Quadratic(weight)
    linear = integrated_gradients(model, images, torch.zeros(4, dtype=torch.long), steps=1)
    assert torch.allclose(linear, (weight * images).sum(dim=1))
    square = integrated_gradients(model, images, torch.ones(4, dtype=torch.long), steps=2)
    assert torch.allclose(square, images.square().sum(dim=1))


@pytest.mark.parametrize("kind", ["vit", "deit", "swin"])
def test_integrated_gradients_are_complete(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "swin":
        model = timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=16, patch_size=2, window_size=4, embed_dim=8, depths=(2,),
            num_heads=(2,), num_classes=5,
        )  # fmt: skip
        nn.init.normal_(model.head.fc.weight)  # as timm builds it, its logits hardly differ
    else:
        model = make(kind)
        nn.init.normal_(model.get_parameter("head.weight"))
    model, images, classes = model.eval().double(), pictures().double(), torch.tensor([0, 3, 4])
    with torch.no_grad():
        due = (model(images) - model(torch.zeros_like(images)))[torch.arange(3), classes]
    scale = float(due.abs().max())
    assert scale > 0.1
    # few steps come near, more are exact
    near, exact = (integrated_gradients(model, images, classes, steps=n).sum(dim=(1, 2)) for n in (16, 64))
    assert torch.allclose(near, due, rtol=0, atol=0.1 * scale)
    assert torch.allclose(exact, due, rtol=0, atol=0.001 * scale)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", ["chefer", "rollout", "integrated_gradients"])
def test_no_image_sees_another(method: str) -> None:
    model, images = make("vit"), pictures(35)  # more than are taken at once
    classes = torch.arange(35) % 5
    together = explain(method, model, images, classes)
    alone = torch.cat([explain(method, model, images[k : k + 1], classes[k : k + 1]) for k in (0, 34)])
    assert together.dtype == torch.float32
    assert torch.allclose(together[[0, 34]], alone, rtol=1e-3, atol=1e-7)


def test_a_random_map_is_the_samples_own() -> None:
    ids = np.array([5, 2, 900])
    numbers = random_map(1, ids, (4, 3))
    assert numbers.shape == (3, 4, 3)
    assert np.array_equal(random_map(1, ids[::-1], (4, 3)), numbers[::-1])
    assert np.array_equal(random_map(1, ids[:1], (4, 3)), numbers[:1])
    assert not np.isclose(random_map(2, ids, (4, 3)), numbers).any()
    assert len(np.unique(numbers)) == 36
    many = random_map(1, np.arange(500), (4, 4))
    assert 0 <= many.min() < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.02)  # 8,000 uniform numbers: standard error 0.003


def test_averages_by_hand() -> None:
    fine = torch.tensor([[[1.0, 3, 0, 0], [5, 7, 0, 0], [2, 2, 1, 1], [2, 2, 1, 5]]])
    assert coarser(fine, (2, 2)).tolist() == [[[4.0, 0.0], [2.0, 2.0]]]
    assert coarser(fine, (4, 4)) is fine


def test_which_method_applies() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(768, 5))
    assert reason_against("integrated_gradients", flat, pictures()) is None
    assert reason_against("chefer", flat, pictures()) == "it is not a plain vision transformer"
    assert reason_against("chefer", make("vit"), pictures()) is None
    with pytest.raises(ValueError, match="'gradcam' is not one of chefer, rollout"):
        reason_against("gradcam", flat, pictures())
