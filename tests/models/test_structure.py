"""Cuts of less common ViTs, whole plans at once, and what an optimizer keeps; see also `test_surgery`."""

from __future__ import annotations

import copy
import json
from functools import partial

import pytest
import timm
import torch
from test_surgery import (
    MODELS,
    SMALL,
    blocks_of,
    fresh_losses,
    images,
    make,
    mask_embed_swin,
    mask_embed_vit,
    mask_head_width,
    mask_heads,
    mask_mlp,
    masked_norm,
    random_plan,
    record_for,
    steps,
)
from timm.layers import Attention, GluMlp, HybridEmbed, Mlp, SwiGLU
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from effvit_train.compress.prune.importance import calibrate
from effvit_train.compress.prune.plan import operations_of, record_of
from effvit_train.compress.prune.solver import Plan
from effvit_train.errors import UserError
from effvit_train.models.changes import rebuild, recorded_operations
from effvit_train.models.factory import build, embed_width, inspect_model, load_model, save_model
from effvit_train.models.make import make as make_architecture
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import Structure, read_structure
from effvit_train.models.surgery import CUT, Operation, Scale, apply, cut_group

# --- a whole plan against masks -------------------------------------------------------------------


def best(scores: Tensor, count: int) -> Tensor:
    return scores.topk(count).indices.sort().values


def attention_of(group: str) -> str:
    return group.rpartition(".")[0]


def mask_plan(masked: nn.Module, structure: Structure, plan: Plan, scores) -> None:
    """Zero in a dense model what a plan cuts: units are numbered as in the dense model."""
    blocks = blocks_of(masked)
    embeds: dict[str, Tensor] = {}
    for name, width in plan.widths.items():
        kind = structure.groups[name].kind
        if kind == "head_width":
            mask_head_width(masked.get_submodule(attention_of(name)), *(best(s, width) for s in scores[name]))
        elif kind == "heads":
            mask_heads(masked.get_submodule(attention_of(name)), best(scores[name][0], width))
        elif kind == "mlp":
            mask_mlp(masked.get_submodule(name), best(scores[name][0], width))
        else:
            embeds[name] = best(scores[name][0], width)
    if "embed" in embeds:
        for norm in (masked.patch_embed.norm, masked.norm_pre):
            masked_norm(norm, embeds["embed"])
        mask_embed_vit(masked, embeds["embed"])
    elif embeds:
        mask_embed_swin(masked, embeds)
    for name in plan.blocks:  # the last word: after all that is done to what the block gives
        blocks[name].register_forward_hook(lambda module, inputs, output: inputs[0])


def plan_for(structure: Structure, kinds, seed: int = 0) -> tuple[Plan, dict[str, tuple[Tensor, ...]]]:
    """About 0.6 of every group of these kinds, by random importance, and no second block."""
    generator = torch.Generator().manual_seed(seed)
    plan = Plan(blocks=structure.blocks[1:2] if "blocks" in kinds else [])
    scores = {}
    for name, group in structure.groups.items():
        size = structure.size(group)
        shape: tuple[int, ...] = (size,)
        if group.kind == "head_width":
            shape = (structure.sizes[structure.attention[attention_of(name)][0]], size)
        scores[name] = tuple(torch.rand(shape, generator=generator) for _ in group.factors)
        if group.kind in kinds and group.block not in plan.blocks:
            plan.widths[name] = max(1, round(size * 0.6))
    return plan, scores


ALL = ("heads", "head_width", "mlp", "embed", "blocks")


def cut_like_masked(dense: nn.Module, kinds, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    masked, cut = copy.deepcopy(dense), copy.deepcopy(dense)
    structure = read_structure(dense)
    plan, scores = plan_for(structure, kinds, seed)
    mask_plan(masked, structure, plan, scores)
    apply(cut, operations_of(cut, structure, plan, scores))
    left = read_structure(cut)
    assert {name: left.size(left.groups[name]) for name in plan.widths} == plan.widths
    return cut, masked


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kinds", [ALL, ("heads", "head_width")], ids=["all", "attention"])
def test_one_plan_of_all_kinds_is_the_masked_model(name, kinds):
    cut, masked = cut_like_masked(make(name), kinds)
    with torch.no_grad():
        assert torch.allclose(cut(images()), masked(images()), rtol=1e-9, atol=1e-9)


# --- less common ViTs -----------------------------------------------------------------------------

VITS = {
    "registers, norm before the blocks, average": {
        "reg_tokens": 2, "pre_norm": True, "class_token": False, "global_pool": "avg"},
    "average over patches, positions without the class": {
        "reg_tokens": 1, "no_embed_class": True, "global_pool": "avg", "fc_norm": True, "init_values": 0.1},
    "norm of patches, no biases": {
        "embed_norm_layer": partial(nn.LayerNorm, eps=1e-6), "qkv_bias": False, "proj_bias": False},
    "norms of queries and keys": {"qk_norm": True},
    "gated heads of another width": {"attn": partial(Attention, 24, 4, 5, qkv_bias=True, gated=True)},
    "gated mlp": {"mlp_layer": SwiGLU},
    "packed gated mlp": {"mlp_layer": partial(GluMlp, act_layer=nn.SiLU)},
    "stem without a projection": {
        "patch_size": 1,
        "embed_layer": lambda **kwargs: HybridEmbed(nn.Conv2d(3, 24, 8, 8), proj=False, **kwargs)},
}  # fmt: skip


def other_vit(attn=None, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(**{**SMALL, **kwargs})
    for block in model.blocks if attn else ():
        block.attn = attn()
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize("kind", [*ALL, "all"])
@pytest.mark.parametrize("vit", VITS)
def test_less_common_vits_are_cut_like_masked_ones(vit, kind):
    dense = other_vit(**VITS[vit])
    offered = {group.kind for group in read_structure(dense).groups.values()} | {"blocks"}
    missing = {"norms of queries and keys": {"head_width"}, "stem without a projection": {"embed"}}
    assert offered == set(ALL) - missing.get(vit, set())
    kinds = ALL if kind == "all" else (kind,)
    if not offered & set(kinds):
        return
    cut, masked = cut_like_masked(dense, kinds)
    with torch.no_grad():
        assert torch.allclose(cut(images()), masked(images()), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(cut(images()), dense(images()), atol=1e-3)


@pytest.mark.parametrize("kind", [*ALL, "all"])
def test_a_fixed_stem_and_a_head_of_all_tokens_are_cut_like_masked_ones(kind):
    torch.manual_seed(0)
    ours = {"stem": "scattering", "global_pool": "flat", "class_token": False}
    dense = make_architecture("vit_tiny_patch16_224", {**SMALL, **ours}).double().eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    assert {group.kind for group in read_structure(dense).groups.values()} | {"blocks"} == set(ALL)
    cut, masked = cut_like_masked(dense, ALL if kind == "all" else (kind,))
    with torch.no_grad():
        assert torch.allclose(cut(images()), masked(images()), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(cut(images()), dense(images()), atol=1e-3)


@pytest.mark.parametrize(("name", "kwargs", "kinds"), [
    ("vit_tiny_patch16_224", {**SMALL, "scale_attn_norm": True}, {"mlp"}),
    ("vit_tiny_patch16_224", {**SMALL, "scale_mlp_norm": True}, {"heads", "head_width"}),
    ("vit_tiny_patch16_224", {**SMALL, "attn_layer": "diff"}, {"mlp"}),
    ("vit_tiny_patch16_224", {**SMALL, "norm_layer": "rmsnorm"}, {"heads", "head_width", "mlp"}),
    ("vit_tiny_patch16_224", {**SMALL, "global_pool": "map", "class_token": False},
     {"heads", "head_width", "mlp"}),
    ("convnext_atto", {}, {"mlp"}),
    ("test_resnet", {}, set()),
])  # fmt: skip
def test_what_is_not_understood_is_not_offered(name, kwargs, kinds):
    with torch.device("meta"):
        model = timm.create_model(name, **kwargs)
    assert {group.kind for group in read_structure(model).groups.values()} == kinds


# --- what goes without a trace --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize("what", ["heads", "values"])
def test_copies_of_heads_and_values_are_stood_in_for(name, what):
    model = make(name)
    structure = read_structure(model)
    plan, scores = Plan(), {}
    with torch.no_grad():
        for attention in (module for module in model.modules() if hasattr(module, "qkv")):
            heads = attention.num_heads
            rows = attention.qkv.weight.view(3, heads, -1, attention.qkv.in_features)
            bias = attention.qkv.bias.view(3, heads, -1)
            half = rows.shape[2] // 2
            if what == "heads":
                rows[:, heads // 2 :], bias[:, heads // 2 :] = (
                    rows[:, : heads // 2].clone(), bias[:, : heads // 2].clone())  # fmt: skip
                table = getattr(attention, "relative_position_bias_table", None)
                if table is not None:
                    table[:, heads // 2 :] = table[:, : heads // 2].clone()
            else:
                rows[2, :, half:], bias[2, :, half:] = rows[2, :, :half].clone(), bias[2, :, :half].clone()
                rows[:2, :, half:], bias[:2, :, half:] = 0, 0  # queries and keys there are nothing
        for group in structure.groups.values():
            if group.kind == {"heads": "heads", "values": "head_width"}[what]:
                size = structure.size(group)
                order = torch.arange(size, 0, -1).double()
                if what == "values":
                    order = order.expand(
                        structure.sizes[structure.attention[attention_of(group.name)][0]], -1
                    )
                plan.widths[group.name] = size // 2
                scores[group.name] = (order,) * len(group.factors)
        found = calibrate(
            model, [images(8)], fresh_losses(model), structure, ["heads", "head_width"],
            gradients=False, products=True,
        )  # fmt: skip
        seen, fresh = images(8), torch.randn(4, 3, 32, 32, dtype=torch.float64)
        before = model(seen), model(fresh)
        bare = copy.deepcopy(model)
        apply(bare, operations_of(bare, structure, plan, scores))
        assert not torch.allclose(bare(fresh), before[1], atol=1e-2)
        apply(
            model,
            operations_of(model, structure, plan, scores, compensate="least_squares", calibration=found),
        )
        assert torch.allclose(model(seen), before[0], atol=1e-5)
        assert torch.allclose(model(fresh), before[1], atol=1e-5)


def test_copies_in_an_mlp_of_convolutions_are_stood_in_for():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("mlp", Mlp(4, 8, use_conv=True).double())
    structure = read_structure(model)
    x, fresh = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        model.mlp.fc1.weight[4:], model.mlp.fc1.bias[4:] = (
            model.mlp.fc1.weight[:4] * 1,
            model.mlp.fc1.bias[:4] * 1,
        )
        found = calibrate(
            model, [x], lambda batch: model(batch).sum(dim=(1, 2, 3)), structure, ["mlp"],
            gradients=False, products=True,
        )  # fmt: skip
        before = model(fresh)
        plan, scores = Plan(widths={"mlp": 4}), {"mlp": (torch.arange(8, 0, -1),)}
        apply(
            model,
            operations_of(model, structure, plan, scores, compensate="least_squares", calibration=found),
        )
        assert (model.mlp.fc1.out_channels, model.mlp.fc2.in_channels) == (4, 4)
        assert torch.allclose(model(fresh), before, atol=1e-9)


# --- training goes on -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds", [("heads",), ("mlp",), ("embed",), ("heads", "mlp", "embed", "blocks")], ids="+".join
)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_and_moments_stay_with_their_entries(name, kinds):
    model = make(name)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    steps(model, optimizer, 1)
    for parameter in model.parameters():  # every entry can be told from what is kept of it
        state = optimizer.state[parameter]
        parameter.grad = 2 * parameter.detach()
        for power, key in enumerate(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), start=3):
            state[key].copy_(power * parameter.detach())
    identity = {key: id(parameter) for key, parameter in model.named_parameters()}
    structure = read_structure(model)
    before = sum(parameter.numel() for parameter in model.parameters())
    apply(model, operations_of(model, structure, *plan_for(structure, kinds)), optimizer)
    assert sum(parameter.numel() for parameter in model.parameters()) < before
    assert set(optimizer.state) == set(model.parameters())
    for key, parameter in model.named_parameters():
        assert id(parameter) == identity[key]
        state = optimizer.state[parameter]
        assert torch.equal(parameter.grad, 2 * parameter), key
        for power, moment in enumerate(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), start=3):
            assert torch.equal(state[moment], power * parameter), (key, moment)


def without_half(model: nn.Module, kinds) -> list[Operation]:
    """Make half of the units nothing; the operations that take them away."""
    structure = read_structure(model)
    operations: list[Operation] = []
    with torch.no_grad():
        for group in list(structure.groups.values()):
            size = structure.size(group)
            half = size // 2
            keep = (torch.arange(half),)
            if group.kind not in kinds:
                continue
            if group.kind == "mlp":
                model.get_submodule(group.name).fc2.weight[:, half:] = 0
            elif group.kind == "heads":
                proj = model.get_submodule(attention_of(group.name)).proj
                proj.weight[:, proj.in_features // 2 :] = 0
            else:
                attention = model.get_submodule(attention_of(group.name))
                heads = attention.num_heads
                attention.qkv.weight.view(3, heads, size, -1)[:, :, half:] = 0
                attention.qkv.bias.view(3, heads, size)[:, :, half:] = 0
                keep = (torch.arange(half).expand(heads, -1),) * 2
            operations += cut_group(structure, group, keep)
    return operations


def states(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[tuple[str, str], Tensor]:
    return {
        (name, key): value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    }


@pytest.mark.parametrize("kind", ["heads", "head_width", "mlp"])
@pytest.mark.parametrize(
    "opt",
    [
        "sgd",
        "adamw",
        "lion",
        "nadamw",
        "radam",
        "adamax",
        "adagrad",
        "adabelief",
        "adan",
        "sgdp",
        "rmsprop",
        "mars",
    ],
)
def test_cutting_and_training_can_change_places(opt, kind):
    """Units that are nothing: the moments after training and a cut are those after the cut and training.

    The learning rate is next to none, so that nothing else changes.
    """
    first, second = make("vit"), make("vit")
    operations = without_half(first, (kind,))
    without_half(second, (kind,))
    ours = create_optimizer_v2(first, opt=opt, lr=1e-14, weight_decay=0.0)
    steps(first, ours, 3)
    apply(first, operations, ours)
    apply(second, operations)
    theirs = create_optimizer_v2(second, opt=opt, lr=1e-14, weight_decay=0.0)
    steps(second, theirs, 3)
    mine, wanted = states(first, ours), states(second, theirs)
    assert mine.keys() == wanted.keys()
    skip = {"rmsprop": ("momentum_buffer",), "mars": ("exp_avg", "exp_avg_sq")}.get(
        opt, ()
    )  # not of gradients
    for (name, key), value in wanted.items():
        if key not in skip:
            assert torch.allclose(mine[name, key], value, rtol=1e-5, atol=1e-13), (name, key)
    assert any(isinstance(operation, Scale) for operation in operations) == (kind == "head_width")


ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.05)


@pytest.mark.parametrize(("name", "optimizer"), [
    ("vit", partial(ADAMW, foreach=True)), ("vit", partial(ADAMW, foreach=False)),
    ("vit", partial(ADAMW, fused=True)), ("deit", ADAMW), ("deit3", ADAMW),
    ("deit3", partial(torch.optim.SGD, lr=1e-2, momentum=0.9, nesterov=True)),
], ids=["vit-foreach", "vit-loop", "vit-fused", "deit", "deit3", "deit3-sgd"])  # fmt: skip
def test_every_step_after_a_cut_is_that_of_the_masked_model(name, optimizer):
    cut, masked = make(name), make(name)
    ours, theirs = optimizer(cut.parameters()), optimizer(masked.parameters())
    steps(cut, ours, 3)
    steps(masked, theirs, 3)
    structure = read_structure(cut)
    plan, scores = plan_for(structure, ("heads", "mlp"))
    mask_plan(masked, structure, plan, scores)
    apply(cut, operations_of(cut, structure, plan, scores), ours)
    forgetful = copy.deepcopy(cut)
    fresh = optimizer(forgetful.parameters())
    x = images()
    for k in range(3, 9):
        steps(cut, ours, 1, start=k)
        steps(masked, theirs, 1, start=k)
        assert torch.allclose(cut(x), masked(x), rtol=1e-7, atol=1e-7), k
        if k == 3:  # an optimizer without a memory would be noticed
            steps(forgetful, fresh, 1, start=k)
            assert not torch.allclose(forgetful(x), masked(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("layer_decay", [None, 0.75])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_an_optimizer_of_the_rebuilt_model_takes_over(name, layer_decay):
    def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
        return create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=layer_decay)

    model, record = make(name), record_for(name)
    optimizer = optimizer_of(model)
    steps(model, optimizer, 2)
    structure = read_structure(model)
    plan, scores = plan_for(structure, ALL)
    apply(model, operations_of(model, structure, plan, scores), optimizer)
    record.cuts.append(record_of(plan))
    again = build(record).double().eval()
    again.load_state_dict(model.state_dict())
    other = optimizer_of(again)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # tensors would be shared
    assert all(group["params"] for group in optimizer.param_groups)
    mine, wanted = states(again, other), states(model, optimizer)
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[key], wanted[key]) for key in wanted)
    steps(model, optimizer, 3, start=2)
    steps(again, other, 3, start=2)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_what_modules_say_agrees_with_their_tensors(name):
    for trial in range(5):
        generator = torch.Generator().manual_seed(100 + trial)
        model = make(name, double=False)
        structure = read_structure(model)
        plan, scores = random_plan(structure, generator)
        apply(model, operations_of(model, structure, plan, scores))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                assert (module.out_features, module.in_features) == tuple(module.weight.shape)
            elif isinstance(module, nn.LayerNorm):
                assert module.normalized_shape == tuple(module.weight.shape) == tuple(module.bias.shape)
            elif hasattr(module, "qkv"):
                width = round(module.scale**-2)
                assert module.qkv.weight.shape[0] == 3 * module.num_heads * width
                assert module.proj.in_features == module.num_heads * width
                if hasattr(module, "head_dim"):
                    assert (module.head_dim, module.attn_dim) == (width, module.num_heads * width)
                if hasattr(module, "relative_position_bias_table"):
                    assert module.relative_position_bias_table.shape[1] == module.num_heads
        final, maps = model.forward_intermediates(images(1, double=False))
        assert [entry["num_chs"] for entry in model.feature_info] == [m.shape[1] for m in maps]
        width = final.shape[-1] if final.ndim == 3 or name == "swin" else final.shape[1]
        assert embed_width(model) == model.num_features == width
        model.reset_classifier(7)
        assert model(images(1, double=False)).shape == (1, 7)


def test_model_json_alone_tells_every_shape(tmp_path):
    model, record = make("swin", double=False), record_for("swin")
    for seed in range(2):
        structure = read_structure(model)
        plan, scores = plan_for(structure, ("heads", "head_width", "mlp", "embed"), seed)
        plan.blocks = structure.blocks[:1]  # in the end a stage without blocks
        plan.widths = {n: w for n, w in plan.widths.items() if structure.groups[n].block not in plan.blocks}
        apply(model, operations_of(model, structure, plan, scores))
        record.cuts.append(record_of(plan, epoch=seed))
    assert not list(blocks_of(model.layers[0]))
    save_model(model, record, tmp_path)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    text = (tmp_path / "model.json").read_text()
    assert json.loads(text)["cuts"] == record.cuts
    again = build(ArchitectureRecord.from_json(json.loads(text)))
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    inspected = inspect_model(tmp_path)  # without memory
    assert {key: value.shape for key, value in inspected.state_dict().items()} == shapes
    x = images(2, double=False)
    assert torch.equal(load_model(tmp_path)(x), model(x))


@pytest.mark.parametrize("cut", [
    {"kind": CUT},
    {"kind": CUT, "blocks": []},
    {"kind": CUT, "widths": {}},
    {"kind": CUT, "blocks": [], "widths": ["blocks.0.mlp"]},
    {"kind": CUT, "blocks": None, "widths": {}},
    {"kind": CUT, "blocks": [["blocks.0"]], "widths": {}},
    {"kind": CUT, "blocks": ["blocks.0", "blocks.0"], "widths": {}},
    {"kind": CUT, "blocks": ["blocks.0"], "widths": {"blocks.0.mlp": 5}},
    {"kind": CUT, "blocks": [], "widths": {"blocks.0.mlp": "5"}},
    {"kind": CUT, "blocks": [], "widths": {"blocks.0.mlp": -1}},
    {"kind": CUT, "blocks": [], "widths": {"blocks.0.attn.heads": None}},
    {"kind": [CUT], "blocks": [], "widths": {}},
    "prune",
    None,
])  # fmt: skip
def test_damaged_cuts_are_refused_in_one_line(cut, tmp_path):
    model, record = make("vit", double=False), record_for("vit")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^.+$"):
        rebuild(model, [cut])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(ValueError, match=r"^.+$"):
        recorded_operations(model, cut)
    record.cuts.append(cut)
    save_model(model, record, tmp_path)
    with pytest.raises(UserError) as caught:
        load_model(tmp_path)
    words = ("architecture record;", "cannot be cut to", "no block", "does not tell its blocks and widths;")
    assert any(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) == 1


def test_a_cut_swin_is_exported():
    model, _ = cut_like_masked(make("swin"), ALL)
    model, x = model.float(), images(2, double=False)
    with torch.no_grad():
        program = torch.export.export(model, (x,))
        assert torch.allclose(program.module()(x), model(x), atol=1e-6)


def test_units_of_each_head_are_its_own():
    """Two heads of width three: which entries of the fused projection are left, by hand."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("attn", Attention(6, num_heads=2, qkv_bias=True))
    weight = model.attn.qkv.weight.detach().clone()
    structure = read_structure(model)
    qk, v = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[0, 1], [0, 2]])
    apply(model, cut_group(structure, structure.groups["attn.head_width"], (qk, v)))
    # rows: queries of head 0 (0-2) and 1 (3-5), keys (6-8, 9-11), values (12-14, 15-17)
    rows = torch.tensor([0, 2, 4, 5, 6, 8, 10, 11, 12, 13, 15, 17])
    expected = weight[rows]
    expected[:4] *= (2 / 3) ** 0.5
    assert torch.allclose(model.attn.qkv.weight, expected)
