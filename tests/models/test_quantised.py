"""Layers with fewer bits: against whole-number arithmetic by hand, their files, and how they train."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from effvit_train.audit.matrices import weight_matrices
from effvit_train.audit.operations import count_operations
from effvit_train.models.changes import rebuild
from effvit_train.models.factory import load_model, save_model
from effvit_train.models.few_bits import (
    DYNAMIC,
    STATIC,
    WEIGHT_ONLY,
    Bf16Linear,
    FakeQuantLinear,
    Int8Linear,
    token_scales,
    weight_scales,
)
from effvit_train.models.quantised import Replace, input_ranges, linear_layers, signal_to_noise
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply

KWARGS = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 24, "depth": 2, "num_heads": 2,
}  # fmt: skip


def layer(rows: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    made = nn.Linear(len(rows[0]), len(rows), bias=bias is not None)
    made.weight.data = torch.tensor(rows)
    if bias is not None:
        made.bias.data = torch.tensor(bias)
    return made


def vit(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", **KWARGS).eval()


def replaced(model: nn.Module, mode: str = DYNAMIC, *, fake: bool = False, dtype: str = "int8") -> Replace:
    names = linear_layers(model, torch.zeros(1, 1, 16, 16)).called
    scales = dict.fromkeys(names)
    if mode == STATIC:
        scales = input_ranges(model, names, [torch.rand(4, 1, 16, 16)], percentile=100.0)
    return Replace(fake, dtype, mode, True, scales)


def test_a_matrix_by_hand():
    made = Int8Linear.of(
        layer([[1.27, -0.5, 0.0], [0.02, 0.254, 0.1]], [0.5, -1.0]),
        mode=DYNAMIC,
        per_channel=True,
        input_scale=None,
    )
    assert made.scale.view(-1).tolist() == pytest.approx([0.01, 0.002])
    assert made.weight.tolist() == [[127, -50, 0], [10, 127, 50]]
    x = torch.tensor([[2.54, 0.0, -1.0], [0.127, 0.05, 0.01]])
    # scales 0.02 and 0.001: whole numbers [127, 0, -50] and [127, 50, 10]
    whole = [[127 * 127, 127 * 10 - 50 * 50], [127 * 127 - 50 * 50, 127 * 10 + 50 * 127 + 10 * 50]]
    wanted = [
        [whole[0][0] * 0.02 * 0.01 + 0.5, whole[0][1] * 0.02 * 0.002 - 1],
        [whole[1][0] * 0.001 * 0.01 + 0.5, whole[1][1] * 0.001 * 0.002 - 1],
    ]
    with torch.no_grad():
        assert torch.allclose(made(x), torch.tensor(wanted), atol=1e-6)


def test_a_static_range_is_kept_and_clips():
    made = Int8Linear.of(
        layer([[1.27, 0.0]]), mode=STATIC, per_channel=True, input_scale=torch.tensor([0.01])
    )
    with torch.no_grad():
        # 1.0 -> 100, 5.0 -> clipped to 127
        assert made(torch.tensor([[1.0, 0.0], [5.0, 0.0]])).view(-1).tolist() == pytest.approx(
            [1.27, 1.27 * 1.27]
        )


def test_ranges_by_hand():
    model = nn.Sequential(layer([[1.0, 1.0]]))
    batches = [torch.tensor([[1.0, -2.54], [0.5, 0.1]]), torch.tensor([[1.27, 0.0], [0.0, 0.0]])]
    assert input_ranges(model, ["0"], batches, percentile=100)["0"].item() == pytest.approx(0.02)
    # 3 of 4 values of the first batch are up to 1.0, of the second 0: the larger one
    assert input_ranges(model, ["0"], batches, percentile=75)["0"].item() == pytest.approx(1 / 127)


@pytest.mark.parametrize("mode", [DYNAMIC, STATIC, WEIGHT_ONLY])
def test_the_product_is_exact_and_near_the_layer_within_its_scales(mode):
    torch.manual_seed(0)
    dense, x = nn.Linear(40, 24), torch.randn(5, 7, 40)
    scale = (x.abs().max() / 127).view(1) if mode == STATIC else None
    made = Int8Linear.of(dense, mode=mode, per_channel=True, input_scale=scale)
    with torch.no_grad():
        found = made(x)
        step = torch.zeros(1) if mode == WEIGHT_ONLY else token_scales(x) if mode == DYNAMIC else scale
        whole = x if mode == WEIGHT_ONLY else (x / step).round() * step
        exact = (whole.double() @ made.effective_weight().double().T + dense.bias.double()).float()
        assert torch.allclose(found, exact, atol=1e-5)
        # |W x - W' x'| <= sum |w| s_x / 2 + |x| s_w / 2 + s_x s_w / 4
        half_x, half_w = step / 2, weight_scales(dense.weight, per_channel=True).T / 2
        bound = (
            dense.weight.abs().sum(1) * half_x + x.abs().sum(-1, keepdim=True) * half_w + 40 * half_x * half_w
        )
        assert ((found - dense(x)).abs() <= bound + 1e-5).all()


def test_a_scale_for_each_channel_saves_small_ones_from_a_large_one():
    torch.manual_seed(0)
    dense = nn.Linear(32, 8)
    dense.weight.data[0] *= 100
    each, one = (signal_to_noise(dense, dtype="int8", per_channel=per) for per in (True, False))
    small = [
        (dense.weight[1:] - Int8Linear.of(dense, mode=DYNAMIC, per_channel=per, input_scale=None).effective_weight()[1:]).norm()
        for per in (True, False)
    ]  # fmt: skip
    assert small[0] < small[1] / 20
    assert each > one


def test_a_tokens_result_does_not_depend_on_others():
    torch.manual_seed(0)
    made = Int8Linear.of(nn.Linear(16, 8), mode=DYNAMIC, per_channel=True, input_scale=None)
    x = torch.randn(6, 5, 16)
    with torch.no_grad():
        together = made(x * torch.tensor([1, 1000, 1, 1, 1, 1.0]).view(6, 1, 1))
        assert torch.equal(together[0], made(x[:1])[0])


@pytest.mark.parametrize("mode", [DYNAMIC, STATIC, WEIGHT_ONLY])
def test_training_sees_what_ships(mode):
    model = vit()
    fake = replaced(model, mode, fake=True)
    x = torch.rand(3, 1, 16, 16)
    apply(model, [fake])
    with torch.no_grad():
        seen = model(x)
    trained = model(x).detach()  # with the graph of a training step
    apply(model, [Replace(False, "int8", mode, True, fake.layers)])
    with torch.no_grad():
        assert torch.equal(model(x), seen)
        assert torch.allclose(seen, trained, atol=1e-5)
    # attacks and explanations go the differentiable way, and see the same values
    asked = model(x.requires_grad_())
    assert torch.allclose(asked, seen, atol=1e-5)
    asked.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_many_tokens_give_what_each_gives_alone():
    torch.manual_seed(0)
    made = Int8Linear.of(nn.Linear(33, 17), mode=DYNAMIC, per_channel=True, input_scale=None)
    x = torch.randn(7, 101, 33)  # 707 tokens: more than are multiplied at a time
    with torch.no_grad():
        alone = torch.stack([torch.stack([made(token) for token in image]) for image in x])
        assert torch.equal(made(x), alone)


def test_layers_by_kind_and_those_whose_weights_are_only_read():
    model, x = vit(), torch.rand(1, 1, 16, 16)
    of_mlp = linear_layers(model, x, ["fc1", "fc2"]).called
    assert of_mlp == [f"blocks.{block}.mlp.{part}" for block in range(2) for part in ("fc1", "fc2")]
    assert linear_layers(model, x, ["head"]).called == ["head"]
    assert linear_layers(model, x, ["patch_embed"]).called == []  # a convolution
    torch.manual_seed(0)
    beit = timm.create_model("beit_base_patch16_224", **KWARGS).eval()
    found = linear_layers(beit, x)
    assert found.read == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]  # F.linear(x, self.qkv.weight, ...)
    with torch.no_grad():
        before = beit(x)
        apply(beit, [Replace(False, "int8", DYNAMIC, True, dict.fromkeys(found.called))])
        assert torch.allclose(beit(x), before, atol=0.05)


def test_the_gradient_goes_straight_through():
    fake = FakeQuantLinear(
        layer([[1.27, -0.5]]), mode=STATIC, per_channel=True, input_scale=torch.tensor([0.01])
    )
    x = torch.tensor([[1.004, 3.0]], requires_grad=True)  # 100.4 -> 100; 300 -> clipped to 127
    fake(x).sum().backward()
    assert fake.weight.grad is not None
    assert fake.weight.grad.tolist()[0] == pytest.approx([1.0, 1.27])
    assert x.grad is not None
    assert x.grad.tolist()[0] == pytest.approx([1.27, 0.0])  # the rounded weights; nothing beyond the range


def test_parameters_that_train_keep_their_identity():
    model = vit()
    before = {name: id(p) for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters())
    apply(model, [replaced(model, fake=True)], optimizer)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize(
    ("mode", "dtype"), [(DYNAMIC, "int8"), (STATIC, "int8"), (WEIGHT_ONLY, "int8"), (DYNAMIC, "bf16")]
)
def test_files_hold_few_bytes_and_rebuild_the_same(mode, dtype, tmp_path):
    model = vit()
    change = replaced(model, mode, dtype=dtype)
    record = ArchitectureRecord("vit_tiny_patch16_224", KWARGS, (1, 16, 16), ("a", "b", "c"), (0.5,), (0.5,))
    save_model(model, record, tmp_path)
    dense = (tmp_path / "model.safetensors").stat().st_size
    apply(model, [change])
    save_model(model, record.__class__(**{**record.__dict__, "cuts": [change.entry()]}), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < (0.65 if dtype == "bf16" else 0.45) * dense
    again, x = load_model(tmp_path), torch.rand(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    kinds = {type(again.get_submodule(name)) for name in change.layers}
    assert kinds == {Bf16Linear if dtype == "bf16" else Int8Linear}
    assert json.loads((tmp_path / "model.json").read_text())["cuts"][0]["layers"] == list(change.layers)


def test_operations_and_parameters_count_as_before():
    with torch.device("meta"):
        dense, small = (timm.create_model("vit_tiny_patch16_224", **KWARGS).eval() for _ in range(2))
    change = Replace(
        False,
        "int8",
        DYNAMIC,
        True,
        dict.fromkeys(linear_layers(dense, torch.zeros(1, 1, 16, 16, device="meta")).called),
    )
    rebuild(small, [change.entry()])
    found = count_operations(small, (1, 16, 16))
    assert found.macs == count_operations(dense, (1, 16, 16)).macs
    assert not found.uncounted
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in dense.parameters())


def test_spectra_are_those_of_the_rounded_weights():
    model = vit()
    apply(model, [replaced(model)])
    found = {matrix.name: matrix.values for matrix in weight_matrices(model)}
    name = "blocks.0.mlp.fc1"
    assert torch.equal(found[name], model.get_submodule(name).effective_weight().double())


@pytest.mark.parametrize("change", [
    {"layers": ["blocks.9.mlp.fc1"]}, {"layers": ["norm"]}, {"mode": "sometimes"}, {"dtype": "int3"}, {"layers": 3},
])  # fmt: skip
def test_records_of_other_models_are_refused(change):
    entry = {
        "kind": "quantize",
        "dtype": "int8",
        "mode": DYNAMIC,
        "per_channel": True,
        "layers": ["blocks.0.mlp.fc1"],
    }
    with pytest.raises(ValueError, match="architecture record"):
        rebuild(vit(), [entry | change])


@pytest.mark.parametrize(("mode", "dtype"), [(DYNAMIC, "int8"), (STATIC, "int8"), (DYNAMIC, "bf16")])
def test_export_with_any_batch(mode, dtype):
    model = vit()
    apply(model, [replaced(model, mode, dtype=dtype)])
    x = torch.rand(2, 1, 16, 16)
    program = torch.export.export(
        model, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    more = torch.rand(5, 1, 16, 16)
    with torch.no_grad():
        found, wanted = program.module()(more), model(more)
    # whole numbers are exact in floating point, too; bf16 is rounded after a sum in another order
    assert torch.allclose(found, wanted, atol=1e-5 if dtype == "int8" else 2e-2)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.float16])
def test_bf16_weights_stay_whatever_type_the_model_is_brought_to(kind):
    made = Bf16Linear(torch.tensor([[1e-6, 70000.0]]), None)  # fp16 would hold neither
    before = made.weight.detach().clone()
    made = made.to(kind)
    assert made.weight.dtype == torch.bfloat16
    assert torch.equal(made.weight, before)


def test_the_bf16_layer_multiplies_in_bf16():
    dense, x = nn.Linear(8, 4), torch.randn(3, 8)
    made = Bf16Linear(dense.weight.detach(), dense.bias.detach())
    with torch.no_grad():
        wanted = F.linear(x.bfloat16(), dense.weight.bfloat16(), dense.bias.bfloat16()).float()
        assert torch.equal(made(x), wanted)
