"""Cuts against masks: a dense model in which what is cut is zeroed by hooks computes the same.

The masks are written without `structure`: they know timm's modules, not our description of them.
"""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.compress.prune.importance import calibrate
from effvit_train.compress.prune.plan import operations_of, record_of
from effvit_train.compress.prune.solver import Plan
from effvit_train.errors import UserError
from effvit_train.models.changes import rebuild
from effvit_train.models.factory import build, load_model, save_model
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import CUT, apply, cut_group, drop_block

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 5}
MODELS = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "deit": ("deit_tiny_distilled_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224", SMALL),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2),
         "num_heads": (2, 4), "num_classes": 5},
    ),
}  # fmt: skip
KINDS = ("heads", "head_width", "mlp", "embed", "blocks")


def record_for(name: str) -> ArchitectureRecord:
    model, kwargs = MODELS[name]
    return ArchitectureRecord(model, dict(kwargs), (3, 32, 32), tuple("abcde"), (0.5,) * 3, (0.5,) * 3)


def make(name: str, seed: int = 0, *, double: bool = True) -> nn.Module:
    """A model without the zeros and ones that parameters start with."""
    torch.manual_seed(seed)
    model = build(record_for(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return (model.double() if double else model).eval()


def images(count: int = 3, *, double: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(
        count, 3, 32, 32, generator=generator, dtype=torch.float64 if double else torch.float32
    )


def choose(size: int, kept: int, *per: int) -> Tensor:
    """Random units, in their order; within each of `per` its own."""
    rows = [torch.randperm(size)[:kept].sort().values for _ in range(per[0] if per else 1)]
    return torch.stack(rows) if per else rows[0]


# --- the second implementation: masks -------------------------------------------------------------


def mask_of(size: int, kept: Tensor) -> Tensor:
    mask = torch.zeros(size, dtype=torch.float64)
    mask[kept] = 1
    return mask


def mask_heads(attention: nn.Module, kept: Tensor) -> None:
    mask = mask_of(attention.num_heads, kept)

    def before(module, inputs):
        x = inputs[0]
        return (x.unflatten(-1, (len(mask), -1)) * mask.to(x.dtype)[:, None]).flatten(-2)

    attention.proj.register_forward_pre_hook(before)


def mask_head_width(attention: nn.Module, qk: Tensor, v: Tensor) -> None:
    heads = attention.num_heads
    width = attention.qkv.out_features // 3 // heads
    masks = torch.stack([
        torch.stack([mask_of(width, kept[h]) for h in range(heads)]) for kept in (qk, qk, v)
    ])  # fmt: skip

    def after(module, inputs, output):
        return (output.unflatten(-1, (3, heads, width)) * masks).flatten(-3)

    attention.qkv.register_forward_hook(after)


def mask_mlp(mlp: nn.Module, kept: Tensor) -> None:
    mask = mask_of(mlp.fc2.in_features, kept)
    mlp.fc2.register_forward_pre_hook(lambda module, inputs: inputs[0] * mask.to(inputs[0].dtype))


def masked_norm(norm: nn.Module, kept: Tensor) -> None:
    """Statistics over what is kept; elsewhere zeros."""
    if isinstance(norm, nn.Identity):
        return

    def after(module, inputs, output):
        x = inputs[0][..., kept]
        result = torch.zeros_like(output)
        result[..., kept] = F.layer_norm(x, (len(kept),), module.weight[kept], module.bias[kept], module.eps)
        return result

    norm.register_forward_hook(after)


def mask_stream(blocks, kept: Tensor, size: int) -> None:
    """What blocks add to the embedding, and how they normalise it."""
    mask = mask_of(size, kept)
    for block in blocks:
        for part in (block.attn.proj, block.mlp.fc2):
            part.register_forward_hook(lambda module, inputs, output: output * mask)
        masked_norm(block.norm1, kept)
        masked_norm(block.norm2, kept)


def mask_embed_vit(model: nn.Module, kept: Tensor) -> None:
    mask = mask_of(model.embed_dim, kept)
    model.pos_drop.register_forward_hook(lambda module, inputs, output: output * mask)
    mask_stream(model.blocks, kept, model.embed_dim)
    for norm in (model.norm, model.fc_norm):
        masked_norm(norm, kept)


def mask_embed_swin(model: nn.Module, kept: dict[str, Tensor]) -> None:
    sizes = [stage.blocks[0].norm1.normalized_shape[0] for stage in model.layers]
    masked_norm(model.patch_embed.norm, kept["layers.0.embed"])
    for k, stage in enumerate(model.layers):
        own = kept[f"layers.{k}.embed"]
        if k:
            before = kept[f"layers.{k - 1}.embed"]
            copies = torch.cat([before + c * sizes[k - 1] for c in range(4)])
            masked_norm(stage.downsample.norm, copies)
            mask = mask_of(sizes[k], own)
            stage.downsample.reduction.register_forward_hook(lambda m, i, output, mask=mask: output * mask)
        mask_stream(stage.blocks, own, sizes[k])
    masked_norm(model.norm, kept[f"layers.{len(sizes) - 1}.embed"])


def blocks_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "norm1")}


# --- every kind of cut ----------------------------------------------------------------------------


def cut_and_masked(name: str, kinds: tuple[str, ...], seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """The same random cut, made and masked."""
    dense = make(name, seed)
    masked, cut = copy.deepcopy(dense), copy.deepcopy(dense)
    structure = read_structure(cut)
    blocks = blocks_of(masked)
    operations = []
    if "blocks" in kinds:
        gone = list(blocks)[1]
        operations += drop_block(structure, gone)
        masked.get_submodule(gone).register_forward_hook(lambda module, inputs, output: inputs[0])
    embeds: dict[str, Tensor] = {}
    for kind in ("heads", "head_width", "mlp", "embed"):
        for group in [g for g in structure.groups.values() if g.kind == kind and kind in kinds]:
            size = structure.size(group)
            kept = max(1, round(size * 0.6))
            if kind == "head_width":
                heads = structure.sizes[structure.attention[group.name.rpartition(".")[0]][0]]
                keep = (choose(size, kept, heads), choose(size, kept, heads))
                if "heads" not in kinds:
                    mask_head_width(masked.get_submodule(group.name.rpartition(".")[0]), *keep)
            else:
                keep = (choose(size, kept),)
                if kind == "heads":
                    mask_heads(masked.get_submodule(group.name.rpartition(".")[0]), keep[0])
                elif kind == "mlp":
                    mask_mlp(masked.get_submodule(group.name), keep[0])
                else:
                    embeds[group.name] = keep[0]
            operations += cut_group(structure, group, keep)
    if embeds and name == "swin":
        mask_embed_swin(masked, embeds)
    elif embeds:
        mask_embed_vit(masked, embeds["embed"])
    apply(cut, operations)
    return cut, masked


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_cut_model_is_the_masked_one(name, kind):
    cut, masked = cut_and_masked(name, (kind,))
    x = images()
    with torch.no_grad():
        for fused in (False, True):
            for module in [*cut.modules(), *masked.modules()]:
                if hasattr(module, "fused_attn"):
                    module.fused_attn = fused
            assert torch.allclose(cut(x), masked(x), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(cut(x), make(name)(x), atol=1e-3)  # it is not the dense one


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_all_kinds_at_once(name, seed):
    cut, masked = cut_and_masked(name, ("heads", "mlp", "embed", "blocks"), seed)
    with torch.no_grad():
        assert torch.allclose(cut(images()), masked(images()), rtol=1e-9, atol=1e-9)


def test_both_heads_of_a_distilled_model():
    cut, masked = cut_and_masked("deit", ("heads", "mlp", "embed"))
    for model in (cut, masked):
        model.set_distilled_training(True)
        model.train()
    for own, wanted in zip(cut(images()), masked(images()), strict=True):
        assert torch.allclose(own, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_zero_units_go_without_a_trace(name):
    model = make(name, double=False)
    structure = read_structure(model)
    operations = []
    with torch.no_grad():
        for group in list(structure.groups.values()):
            size = structure.size(group)
            half = size // 2
            if group.kind == "mlp":
                model.get_submodule(group.name).fc2.weight[:, half:] = 0
                keep = (torch.arange(half),)
            elif group.kind == "heads":
                proj = model.get_submodule(group.name.rpartition(".")[0]).proj
                proj.weight[:, proj.weight.shape[1] // 2 :] = 0
                keep = (torch.arange(half),)
            elif group.kind == "head_width":
                attention = model.get_submodule(group.name.rpartition(".")[0])
                heads = structure.sizes[structure.attention[group.name.rpartition(".")[0]][0]]
                rows = attention.qkv.weight.view(3, attention.num_heads, size, -1)
                bias = attention.qkv.bias.view(3, attention.num_heads, size)
                rows[:, :, half:] = 0
                bias[:, :, half:] = 0
                keep = (torch.arange(half).expand(heads, -1),) * 2
            else:
                continue
            operations += cut_group(structure, group, keep)
        x = images(double=False)
        before = model(x)
        apply(model, operations)
        assert torch.allclose(model(x), before, atol=1e-5)
    assert structure.sizes == read_structure(model).sizes


def fresh_losses(model: nn.Module):
    return lambda batch: F.cross_entropy(
        model(batch), torch.zeros(len(batch), dtype=torch.long), reduction="none"
    )


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_duplicated_units_are_stood_in_for(name):
    model = make(name)
    structure = read_structure(model)
    plan, scores = Plan(), {}
    with torch.no_grad():
        for group in structure.groups.values():
            if group.kind == "mlp":
                mlp, size = model.get_submodule(group.name), structure.size(group)
                half = size // 2
                mlp.fc1.weight[half:], mlp.fc1.bias[half:] = (
                    mlp.fc1.weight[:half] * 1,
                    mlp.fc1.bias[:half] * 1,
                )
                plan.widths[group.name] = half
                scores[group.name] = (torch.arange(size, 0, -1).double(),)
        found = calibrate(
            model, [images(8)], fresh_losses(model), structure, ["mlp"], gradients=False, products=True
        )
        fresh = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        before = model(fresh)
        cut = copy.deepcopy(model)
        apply(cut, operations_of(cut, structure, plan, scores))
        assert not torch.allclose(cut(fresh), before, atol=1e-2)
        operations = operations_of(
            model, structure, plan, scores, compensate="least_squares", calibration=found
        )
        apply(model, operations)
        assert torch.allclose(model(fresh), before, atol=1e-5)


def test_a_constant_unit_becomes_a_bias():
    model = make("vit")
    structure = read_structure(model)
    group = structure.groups["blocks.1.mlp"]
    size = structure.size(group)
    with torch.no_grad():
        mlp = model.get_submodule(group.name)
        mlp.fc1.weight[-5:] = 0  # what they give is gelu of their bias, for every image
        found = calibrate(model, [images()], fresh_losses(model), structure, ["mlp"], gradients=False)
        scores = {group.name: (torch.arange(size, 0, -1).double(),)}
        before = model(images())
        plan = Plan(widths={group.name: size - 5})
        apply(model, operations_of(model, structure, plan, scores, compensate="mean", calibration=found))
        assert torch.allclose(model(images()), before, atol=1e-9)


# --- training goes on -----------------------------------------------------------------------------

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.05),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
}


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int, start: int = 0) -> None:
    for k in range(start, start + count):
        torch.manual_seed(k)
        x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.randint(0, 5, (4,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_the_optimizer_goes_on_as_if_the_rest_were_masked(name, optimizer):
    cut, masked = make(name), make(name)
    ours, theirs = (OPTIMIZERS[optimizer](model.parameters()) for model in (cut, masked))
    steps(cut, ours, 3)
    steps(masked, theirs, 3)
    identity = [id(parameter) for parameter in cut.parameters()]
    structure = read_structure(cut)
    kept_rows: dict[str, Tensor] = {}
    operations = []
    for group in list(structure.groups.values()):
        if group.kind in ("heads", "mlp"):
            kept = choose(structure.size(group), max(1, structure.size(group) // 2))
            if group.kind == "heads":
                mask_heads(masked.get_submodule(group.name.rpartition(".")[0]), kept)
            else:
                mask_mlp(masked.get_submodule(group.name), kept)
                kept_rows[f"{group.name}.fc1.weight"] = kept
            operations += cut_group(structure, group, (kept,))
    stale = copy.deepcopy((cut, ours.state_dict()))
    apply(cut, operations, ours)
    assert [id(parameter) for parameter in cut.parameters()] == identity
    for parameter_name, kept in kept_rows.items():
        mine, full = (
            ours.state[cut.get_parameter(parameter_name)],
            theirs.state[masked.get_parameter(parameter_name)],
        )
        for key, value in full.items():
            if value.ndim:
                assert torch.equal(mine[key], value[kept]), (parameter_name, key)
    steps(cut, ours, 6, start=3)
    steps(masked, theirs, 6, start=3)
    x = images()
    assert torch.allclose(cut(x), masked(x), rtol=1e-7, atol=1e-7)
    for parameter_name, kept in kept_rows.items():
        assert torch.allclose(
            cut.get_parameter(parameter_name), masked.get_parameter(parameter_name)[kept], rtol=1e-7, atol=1e-9
        )  # fmt: skip
    # moments of the wrong units would be noticed
    wrong, state = stale
    bad = OPTIMIZERS[optimizer](wrong.parameters())
    bad.load_state_dict(state)
    apply(wrong, operations, bad)
    for one in bad.state.values():
        for key, value in one.items():
            if value.ndim == 2:
                one[key] = value.flip(0)
    steps(wrong, bad, 6, start=3)
    assert not torch.allclose(wrong(x), masked(x), rtol=1e-4, atol=1e-4)


def test_moments_of_rescaled_queries_are_those_of_rescaled_gradients():
    model = make("vit")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    steps(model, optimizer, 3)
    structure = read_structure(model)
    group = structure.groups["blocks.0.attn.head_width"]
    weight = model.get_parameter("blocks.0.attn.qkv.weight")
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    rows = weight.detach().clone().view(3, 4, 6, 24)
    keep = torch.arange(3).expand(4, -1)
    apply(model, cut_group(structure, group, (keep, keep)), optimizer)
    scale = 0.5**0.5  # half the width
    queries = torch.arange(12)
    assert torch.allclose(weight[queries], rows[0, :, :3].reshape(12, 24) * scale)
    assert torch.equal(weight[12:24], rows[1, :, :3].reshape(12, 24))
    first, second = (
        before[key].view(3, 4, 6, 24)[:, :, :3].reshape(36, 24) for key in ("exp_avg", "exp_avg_sq")
    )
    state = optimizer.state[weight]
    assert torch.allclose(state["exp_avg"][:12], first[:12] / scale)
    assert torch.allclose(state["exp_avg_sq"][:12], second[:12] / scale**2)
    assert torch.equal(state["exp_avg"][12:], first[12:])


def test_a_stale_number_of_heads_would_be_noticed():
    model = make("vit")
    structure = read_structure(model)
    apply(model, cut_group(structure, structure.groups["blocks.0.attn.heads"], (torch.tensor([0, 2]),)))
    model(images())
    attention = model.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.attn_dim) == (2, 6, 12)
    attention.num_heads = 4
    with pytest.raises(RuntimeError):
        model(images())


def test_a_dropped_block_leaves_the_optimizer():
    model = make("vit")
    groups = [
        {"params": list(model.blocks[1].parameters()), "lr": 1e-3},
        {"params": [p for n, p in model.named_parameters() if not n.startswith("blocks.1.")], "lr": 1e-2},
    ]
    optimizer = torch.optim.AdamW(groups)
    steps(model, optimizer, 2)
    apply(model, drop_block(read_structure(model), "blocks.1"), optimizer)
    assert len(optimizer.param_groups) == 1
    assert set(optimizer.state) == set(model.parameters())
    again = torch.optim.AdamW([{"params": list(model.parameters()), "lr": 1e-2}])
    again.load_state_dict(optimizer.state_dict())
    steps(model, optimizer, 2)


# --- records --------------------------------------------------------------------------------------


def random_plan(structure, generator: torch.Generator) -> tuple[Plan, dict[str, tuple[Tensor, ...]]]:
    """Random widths of random groups, sometimes without a block, and random importances."""

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    plan, scores = Plan(), {}
    if number(0, 2) == 0 and len(structure.blocks) > 1:
        plan.blocks = [structure.blocks[number(0, len(structure.blocks) - 1)]]
    for name, group in structure.groups.items():
        size = structure.size(group)
        shape = (size,)
        if group.kind == "head_width":
            shape = (structure.sizes[structure.attention[name.rpartition(".")[0]][0]], size)
        scores[name] = tuple(torch.rand(shape, generator=generator) for _ in group.factors)
        if group.block not in plan.blocks and number(0, 1):
            plan.widths[name] = number(1, size)
    return plan, scores


@pytest.mark.parametrize("name", MODELS)
def test_twenty_random_plans_are_rebuilt_from_their_record(name, tmp_path):
    x = images(2, double=False)
    for trial in range(20):
        generator = torch.Generator().manual_seed(trial)
        model, record = make(name, trial, double=False), record_for(name)
        for _ in range(1 + trial % 2):  # some are cut twice
            structure = read_structure(model)
            plan, scores = random_plan(structure, generator)
            apply(model, operations_of(model, structure, plan, scores))
            record.cuts.append(record_of(plan, step=trial))
        save_model(model, record, tmp_path)
        again = load_model(tmp_path)
        with torch.no_grad():
            assert torch.equal(again(x), model(x)), trial
        assert json.loads((tmp_path / "model.json").read_text())["cuts"] == record.cuts
        for own, other in zip(model.modules(), again.modules(), strict=True):
            assert type(own) is type(other)
            for attribute in ("num_heads", "head_dim", "attn_dim", "scale", "dim", "in_features", "out_features",
                              "normalized_shape", "embed_dim", "num_features", "head_hidden_size"):  # fmt: skip
                assert getattr(own, attribute, None) == getattr(other, attribute, None), attribute
        assert model.feature_info == again.feature_info
        assert again.num_features == again.norm.normalized_shape[0]


def test_a_cut_model_is_exported_and_compiled():
    model = cut_and_masked("deit3", ("heads", "head_width", "mlp", "embed", "blocks"))[0].float()
    x = images(2, double=False)
    program = torch.export.export(model, (x,))
    with torch.no_grad():
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)
        assert torch.allclose(torch.compile(model, backend="eager")(x), model(x), atol=1e-6)


@pytest.mark.parametrize(("cut", "words"), [
    ({"kind": "quantised", "blocks": [], "widths": {}}, "unknown change"),
    ({"kind": CUT, "blocks": ["blocks.9"], "widths": {}}, "no block 'blocks.9'"),
    ({"kind": CUT, "blocks": [], "widths": {"blocks.0.mpl": 3}}, "'blocks.0.mpl' cannot be cut"),
    ({"kind": CUT, "blocks": [], "widths": {"blocks.0.mlp": 0}}, "cannot be cut to 0"),
    ({"kind": CUT, "blocks": [], "widths": {"blocks.0.mlp": 97}}, "cannot be cut to 97"),
    ({"kind": CUT, "blocks": [], "widths": {"blocks.0.mlp": 3.0}}, "cannot be cut to 3.0"),
    ({"kind": CUT, "blocks": [], "widths": {"blocks.0.mlp": True}}, "cannot be cut to True"),
    ({"kind": CUT}, "blocks"),
])  # fmt: skip
def test_a_record_of_another_model(cut, words, tmp_path):
    model, record = make("vit", double=False), record_for("vit")
    with pytest.raises(ValueError, match=words):
        rebuild(model, [cut])
    record.cuts.append(cut)
    save_model(model, record, tmp_path)
    with pytest.raises(UserError, match="cannot rebuild the model"):
        load_model(tmp_path)


# --- what cannot be cut ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kinds"), [
    ("resnet18", set()),
    ("beit_base_patch16_224", {"mlp"}),
    ("vit_small_patch14_dinov2", {"heads", "head_width", "mlp", "embed"}),
    ("mixer_s32_224", {"mlp"}),
])  # fmt: skip
def test_what_can_be_cut_of_a_model(name, kinds):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert {group.kind for group in read_structure(model).groups.values()} == kinds


def test_norms_over_heads_are_left_whole():
    normed = timm.create_model("vit_tiny_patch16_224", **SMALL, qk_norm=True)
    assert "head_width" not in {group.kind for group in read_structure(normed).groups.values()}
    for attention in (m for m in normed.modules() if isinstance(m, Attention)):
        attention.norm = nn.LayerNorm(24)
    assert {group.kind for group in read_structure(normed).groups.values()} == {"mlp"}
