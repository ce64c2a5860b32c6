"""Attention matrices and their gradients against the formula, on models of every kind that is cut or built here."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from effvit_train.audit.transparency.attention import (
    NoAttentionError,
    plain_attention,
    queries,
    read_attention,
    unsupported,
)
from effvit_train.models.mode import evaluating
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import apply, cut_group, drop_block, first_units

SMALL: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 5,
}  # fmt: skip
VIT = "vit_tiny_patch16_224"
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": (VIT, {}),
    "deit": ("deit_tiny_distilled_patch16_224", {}),
    "deit3": ("deit3_small_patch16_224", {}),
    "registers": (VIT, {"reg_tokens": 3}),
    "average": (VIT, {"global_pool": "avg", "class_token": False}),
    "qk_norm": (VIT, {"qk_norm": True}),
}
TOKENS = {"vit": 17, "deit": 18, "deit3": 17, "registers": 20, "average": 16, "qk_norm": 17}
SWIN: dict[str, Any] = {
    "img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,),
    "num_classes": 5,
}  # fmt: skip


def make(kind: str) -> Any:
    torch.manual_seed(0)
    name, arguments = MODELS[kind]
    return timm.create_model(name, **SMALL, **arguments).eval()


def pictures(count: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def cut() -> nn.Module:
    """Two of four heads in the first block, none of the second block, heads half as wide in the third."""
    model = make("vit")
    for name, width in (("blocks.0.attn.heads", 2), ("blocks.2.attn.head_width", 3), ("embed", 20)):
        structure = read_structure(model)
        group = structure.groups[name]
        apply(model, cut_group(structure, group, first_units(structure, group, width)))
    apply(model, drop_block(read_structure(model), "blocks.1"))
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_the_fused_kernel_computes_the_same(kind: str) -> None:
    model = make(kind)
    assert all(block.attn.fused_attn for block in model.blocks)
    with torch.no_grad():
        fused = model(pictures())
    attention = read_attention(model, pictures())
    assert torch.allclose(fused, attention.logits, atol=1e-6)
    assert [tuple(m.shape) for m in attention.matrices] == [(3, 4, TOKENS[kind], TOKENS[kind])] * 3
    assert all(torch.allclose(m.sum(dim=3), torch.ones(()), atol=1e-5) for m in attention.matrices)
    assert attention.gradients == []
    assert all(block.attn.fused_attn for block in model.blocks)


def test_the_first_matrix_is_the_formula() -> None:
    model = make("vit")
    with torch.no_grad():
        tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(pictures())))
        weight, bias = model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.bias
        for head in range(4):
            rows = slice(6 * head, 6 * head + 6)  # 24 wide, 4 heads: 6 each; queries, then keys 24 rows below
            query = tokens @ weight[:24][rows].T + bias[:24][rows]
            key = tokens @ weight[24:48][rows].T + bias[24:48][rows]
            expected = (query @ key.transpose(1, 2) / 6**0.5).softmax(dim=2)
            assert torch.allclose(read_attention(model, pictures()).matrices[0][:, head], expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["vit", "deit", "average"])
def test_gradients_against_a_nudge(kind: str) -> None:
    model, images, classes = make(kind).double(), pictures().double(), torch.tensor([0, 3, 4])
    attention = read_attention(model, images, classes)
    for k, gradient in enumerate(attention.gradients):
        nudge = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(k)).double()
        logits = []
        for size in (1e-5, -1e-5):
            dropout = model.blocks[k].attn.attn_drop
            hook = dropout.register_forward_hook(lambda m, i, output, by=size * nudge: output + by)
            with plain_attention(model), torch.no_grad():
                logits.append(model(images)[torch.arange(3), classes])
            hook.remove()
        slope = (logits[0] - logits[1]) / 2e-5
        assert torch.allclose((gradient * nudge).sum(dim=(1, 2, 3)), slope, rtol=1e-5, atol=1e-9)


def test_a_cut_model_has_the_heads_and_blocks_that_are_left() -> None:
    model = cut()
    attention = read_attention(model, pictures(), torch.tensor([0, 1, 2]))
    assert [m.shape[1] for m in attention.matrices] == [2, 4]
    assert [g.shape for g in attention.gradients] == [m.shape for m in attention.matrices]
    with torch.no_grad():
        assert torch.allclose(model(pictures()), attention.logits, atol=1e-6)


def test_frozen_parameters_and_no_gradient_left_behind() -> None:
    model = make("vit").requires_grad_(False)
    classes = torch.tensor([0, 1, 2])
    frozen = read_attention(model, pictures(), classes).gradients
    model.requires_grad_(True)
    free = read_attention(model, pictures(), classes).gradients
    assert all(torch.equal(one, other) for one, other in zip(frozen, free, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_the_classifier_reads() -> None:
    read = {kind: list(range(TOKENS[kind]))[queries(make(kind))] for kind in MODELS}
    assert read["vit"] == read["deit3"] == read["registers"] == [0]
    assert read["deit"] == [0, 1]
    assert read["average"] == list(range(16))
    pooled = timm.create_model(
        VIT, global_pool="avg", reg_tokens=2, **SMALL
    )  # class token and registers left out
    assert list(range(19))[queries(pooled)] == list(range(3, 19))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", **SWIN), "within windows"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), "not a plain vision transformer"),
        (lambda: timm.create_model(VIT, global_pool="map", class_token=False, **SMALL), "its pooling"),
        (lambda: timm.create_model(VIT, attn_layer="diff", **SMALL), "difference of two"),
    ],
)
def test_models_whose_attention_cannot_be_followed(model: Any, reason: str) -> None:
    built = model().eval()
    assert reason in (unsupported(built, pictures()) or "")
    with pytest.raises(NoAttentionError, match=reason):
        read_attention(built, pictures())


def test_a_model_without_blocks_left() -> None:
    model = make("vit")
    for k in range(3):
        apply(model, drop_block(read_structure(model), f"blocks.{k}"))
    assert unsupported(model, pictures()) == "none of its blocks is left"


def test_attention_that_is_none() -> None:
    model = make("vit")
    model.blocks[1].attn.attn_drop.register_forward_hook(lambda m, i, output: 2 * output)
    assert unsupported(model, pictures()) == "its attention does not sum to one"
    model.blocks[1].attn.attn_drop.register_forward_hook(lambda m, i, output: output[:, :, 1:, 1:])
    with pytest.raises(RuntimeError):  # the model itself fails
        unsupported(model, pictures())
    assert all(block.attn.fused_attn for block in model.blocks)


def test_everything_is_as_it_was_even_after_a_failure() -> None:
    model = make("vit")
    model.train()
    model.blocks[1].eval()
    model.blocks[2].attn.fused_attn = False
    modes = [module.training for module in model.modules()]
    seen = []
    model.patch_embed.register_forward_pre_hook(lambda m, i: seen.extend(x.training for x in model.modules()))
    with pytest.raises(RuntimeError), evaluating(model):
        read_attention(model, torch.zeros(1, 2, 16, 16))  # two channels: the model fails
    assert seen
    assert not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert [block.attn.fused_attn for block in model.blocks] == [True, True, False]
    assert not any(module._forward_hooks for module in model.modules())
