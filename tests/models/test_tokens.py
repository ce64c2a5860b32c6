"""Merged and dropped tokens against steps done by hand, and against slow models that share no code with ours."""

from __future__ import annotations

import copy
import dataclasses
import json
import math

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from effvit_train.audit.operations import count_operations
from effvit_train.compress.prune import costs
from effvit_train.models.changes import rebuild
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import apply, cut_group, first_units
from effvit_train.models.tokens.change import Drop, Merge, blocks_of, why_not
from effvit_train.models.tokens.steps import Tokens, choose, drop, match, merge, sources, to_grid
from effvit_train.taps import Taps

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 5}
MODELS = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "deit": ("deit_tiny_distilled_patch16_224", SMALL),
    "deit3": ("deit3_small_patch16_224", SMALL),
    "registers": ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 3}),
    "average": ("vit_tiny_patch16_224", {**SMALL, "class_token": False, "global_pool": "avg"}),
}  # fmt: skip
MERGED = {"blocks.0": 3, "blocks.1": 5, "blocks.2": 2}
DROPPED = {"blocks.0": 0.7, "blocks.1": 0.5}
PATCHES = 16


def record_for(name: str, **kwargs) -> ArchitectureRecord:
    model, given = MODELS[name]
    return ArchitectureRecord(model, {**given, **kwargs}, (3, 32, 32), tuple("abcde"), (0.5,) * 3, (0.5,) * 3)


def make(name: str, *operations, **kwargs) -> nn.Module:
    """A model in float64 without the zeros and ones that parameters start with."""
    torch.manual_seed(0)
    model = build(record_for(name, **kwargs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    apply(model, operations)
    return model.double().eval()


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def outputs_of(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tokens]]:
    taps = Taps(model, blocks_of(model))
    with torch.no_grad():
        model(x)
    return taps.take()


# --- by hand --------------------------------------------------------------------------------------


def test_one_step_of_merging_by_hand():
    # class token, then four patches: in turn, the class token counted, patches 1 and 3 look for a partner
    # among 0 and 2. cos(1, 0) = 0.6, cos(1, 2) = 0.8; cos(3, 0) = 0, cos(3, 2) = 1: one merge is 3 into 2.
    keys = torch.tensor([[[1.0, 0.0], [0.6, 0.8], [0.0, 2.0], [0.0, 5.0]]])
    step = match(keys, 1, prefix=1)
    # what is left of the first set (1), then the second set (0, 2); 3 went to the last of these places
    assert step.kept.tolist() == [[1, 0, 2]]
    assert (step.gone.tolist(), step.into.tolist(), step.after) == ([[3]], [[2]], 3)
    x = torch.tensor([[[7.0], [1.0], [2.0], [3.0], [9.0]]])
    merged, tokens = merge(x, Tokens(1, 4), step)
    assert merged.flatten().tolist() == [7, 2, 1, 6]  # (3 + 9) / 2
    assert tokens.sizes.tolist() == [[1, 1, 1, 2]]
    assert sources(tokens, x).tolist() == [[1, 0, 2, 2]]
    # again: now places 0 (patch 1) and 2 (patches 2, 3) stand second and fourth; place 1 (patch 0) alone looks
    again, tokens = merge(merged, tokens, match(torch.tensor([[[1.0], [1.0], [1.0]]]), 1, prefix=1))
    assert again.flatten().tolist() == [7, 1.5, 6]  # a tie goes to the first: (2 + 1) / 2
    assert tokens.sizes.tolist() == [[1, 2, 2]]
    assert sources(tokens, x).tolist() == [[0, 0, 1, 1]]
    assert to_grid(again, tokens).flatten().tolist() == [7, 1.5, 1.5, 6, 6]
    # a mean weighted by sizes: 1.5 of two and 6 of two patches
    last, tokens = merge(again, tokens, match(torch.ones(1, 2, 1), 1, prefix=1))
    assert last.flatten().tolist() == [7, 3.75]
    assert last[0, 1, 0].item() == pytest.approx((1 + 2 + 3 + 9) / 4)


def test_sizes_weigh_a_token_of_three_against_one_of_one():
    step = match(torch.tensor([[[1.0, 0.0], [1.0, 0.1]]]), 1, prefix=0)
    tokens = Tokens(0, 2, sizes=torch.tensor([[3.0, 1.0]]))
    merged, tokens = merge(torch.tensor([[[4.0], [8.0]]]), tokens, step)
    assert merged.item() == 5  # (3 * 4 + 8) / 4
    assert tokens.sizes.tolist() == [[4]]


def test_one_step_of_dropping_by_hand():
    attention = torch.tensor([[0.1, 0.4, 0.05, 0.3]])
    step = choose(attention, 0.5, fuse=True)
    assert step.kept.tolist() == [[1, 3]]
    x = torch.tensor([[[7.0], [10.0], [20.0], [30.0], [40.0]]])
    left, tokens = drop(x, Tokens(1, 4), step, attention)
    torch.testing.assert_close(left.flatten(), torch.tensor([7.0, 20, 40, 0.1 * 10 + 0.05 * 30]))
    assert sources(tokens, x).tolist() == [[2, 0, 2, 1]]
    left, tokens = drop(x, Tokens(1, 4), choose(attention, 0.5, fuse=False), attention)
    assert left.flatten().tolist() == [7, 20, 40]
    assert sources(tokens, x).tolist() == [[-1, 0, -1, 1]]
    assert to_grid(left, tokens).flatten().tolist() == [7, 0, 20, 0, 40]
    # a patch that is lost stays lost
    left, tokens = drop(left, tokens, choose(torch.tensor([[0.2, 0.1]]), 0.5, fuse=False), attention)
    assert sources(tokens, x).tolist() == [[-1, 0, -1, -1]]


# --- slow models that share no code ---------------------------------------------------------------


def slow_logits(
    model: nn.Module, image: Tensor, *, r=None, keep=None, fuse=True, proportional=True
) -> Tensor:
    """One image through a plain timm model, token by token; tokens are (vector, patches) in Python lists."""
    prefix = model.num_prefix_tokens
    x = model.norm_pre(model._pos_embed(model.patch_embed(image[None])))[0]
    vectors, members = list(x), [[] for _ in range(prefix)] + [[k] for k in range(len(x) - prefix)]
    for k, block in enumerate(model.blocks):
        attention, x = block.attn, torch.stack(vectors)
        q, key, v = attention.qkv(block.norm1(x)).view(len(x), 3, attention.num_heads, -1).unbind(1)
        logits = torch.einsum("ihd,jhd->hij", q, key) / math.sqrt(q.shape[-1])
        if proportional and r is not None:
            logits = logits + torch.tensor([max(1, len(m)) for m in members]).double().log()
        probabilities = logits.softmax(-1)
        mixed = torch.einsum("hij,jhd->ihd", probabilities, v).flatten(1)
        vectors = list(x + block.ls1(attention.proj(mixed)))
        if r is not None and r.get(f"blocks.{k}"):
            vectors, members = slow_merge(vectors, members, key.mean(1), r[f"blocks.{k}"], prefix)
        if keep is not None and k in keep:
            scores = probabilities[:, 0].mean(0)[prefix:].tolist()
            order = sorted(range(len(scores)), key=lambda i: -scores[i])
            stay = sorted(order[: math.ceil(keep[k] * len(scores))])
            others = [i for i in range(len(scores)) if i not in stay]
            fused = sum(scores[i] * vectors[prefix + i] for i in others)
            vectors = vectors[:prefix] + [vectors[prefix + i] for i in stay] + ([fused] if fuse else [])
            members = [[]] * len(vectors)
        x = torch.stack(vectors)
        vectors = list(x + block.ls2(block.mlp(block.norm2(x))))
    x = model.norm(torch.stack(vectors))
    if model.global_pool == "avg":
        rows = [x[i] for i, group in enumerate(members) for _ in group]  # every patch once
        return model.head(model.fc_norm(torch.stack(rows).mean(0)))
    if hasattr(model, "head_dist"):
        return (model.head(x[0]) + model.head_dist(x[1])) / 2
    return model.head(model.fc_norm(x[0]))


def slow_merge(vectors, members, keys, r, prefix):
    first = [i for i in range(len(vectors)) if i % 2 == 0 and i >= prefix]
    second = [i for i in range(len(vectors)) if i % 2 == 1 and i >= prefix]
    edges = []
    for i in first:
        similar = [float(torch.cosine_similarity(keys[i], keys[j], dim=0)) for j in second]
        best = max(range(len(second)), key=similar.__getitem__)
        edges.append((similar[best], i, second[best]))
    sums = {j: (vectors[j] * len(members[j]), list(members[j])) for j in second}
    gone = sorted(edges, key=lambda edge: -edge[0])[:r]
    for _, i, j in gone:
        total, group = sums[j]
        sums[j] = total + vectors[i] * len(members[i]), group + members[i]
    left = [i for i in first if i not in {i for _, i, _ in gone}]
    return (
        vectors[:prefix] + [vectors[i] for i in left] + [sums[j][0] / len(sums[j][1]) for j in second],
        members[:prefix] + [members[i] for i in left] + [sums[j][1] for j in second],
    )


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("proportional", [True, False])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_merging_equals_a_slow_model(name, proportional, fused):
    model, x = make(name, Merge(MERGED, proportional)), images()
    for block in model.blocks:
        block.attn.fused_attn = fused
    slow = torch.stack([slow_logits(make(name), one, r=MERGED, proportional=proportional) for one in x])
    torch.testing.assert_close(model(x), slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", ["vit", "deit", "deit3", "registers"])
@torch.no_grad()
def test_dropping_equals_a_slow_model(name, fuse):
    model, x = make(name, Drop(DROPPED, fuse)), images()
    slow = [slow_logits(make(name), one, keep={0: 0.7, 1: 0.5}, fuse=fuse) for one in x]
    torch.testing.assert_close(model(x), torch.stack(slow), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_nothing_merged_and_nothing_dropped_is_the_model_itself(name):
    x = images()
    plain = make(name)(x)
    torch.testing.assert_close(make(name, Merge({}))(x), plain, rtol=0, atol=1e-12)
    if name != "average":
        torch.testing.assert_close(make(name, Drop({"blocks.1": 1.0}))(x), plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pool", ["token", "avg", "map", "flat"])
@torch.no_grad()
def test_merging_patches_that_are_equal_changes_nothing(pool):
    # pairs of equal neighbours without positions have equal keys: eight merges, and proportional attention, are exact
    more = {"class_token": pool == "token", "global_pool": pool, "pos_embed": "none"}
    half = images()[..., :16].unflatten(3, (2, 8)).repeat_interleave(2, dim=3).flatten(3, 4)
    plain, merged = make("vit", **more), make("vit", Merge({"blocks.0": 8}), **more)
    torch.testing.assert_close(merged(half), plain(half), rtol=1e-9, atol=1e-9)
    forgetful = make("vit", Merge({"blocks.0": 4}, proportional=False), **more)  # so only sizes make it so
    assert (forgetful(half) - plain(half)).abs().max() > 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_no_patch_is_lost_or_counted_twice(name):
    model, x = make(name, Merge({**MERGED, "blocks.2": 99})), images()
    prefix, left = model.num_prefix_tokens, PATCHES
    for block, (out, tokens) in outputs_of(model, x).items():
        left -= min({**MERGED, "blocks.2": 99}[block], left // 2)
        assert out.shape[1] == prefix + left == prefix + tokens.left
        assert tokens.sizes[:, prefix:].sum(dim=1).tolist() == [PATCHES] * len(x)
        assert bool((tokens.sizes[:, :prefix] == 1).all())
        where = sources(tokens, x)
        for k in range(len(x)):
            assert torch.bincount(where[k], minlength=left).tolist() == tokens.sizes[k, prefix:].tolist()
    assert left == 4  # 16 - 3 - 5, and half of 8


# --- costs ------------------------------------------------------------------------------------------


def by_hand(given, *, prefix, width=24, heads=4, classes=5, head_count=1):
    """MACs of SMALL with (tokens in attention, tokens in MLP, judging) for each block."""
    total = PATCHES * 3 * 64 * width + head_count * width * classes
    for attention, mlp, judging in given:
        n, m = attention + prefix, mlp + prefix
        total += 4 * n * width**2 + 2 * n * n * width + 8 * m * width**2 + judging
    return total


@pytest.mark.parametrize(("name", "prefix", "heads"), [("vit", 1, 1), ("deit", 2, 2), ("average", 0, 1)])
def test_merged_macs_are_the_hand_formula(name, prefix, heads):
    model = make(name, Merge(MERGED)).to("meta")
    width = 24 // 4
    # 16 -> 13 -> 8 -> 6; half of the tokens against the other half, once, in the width of a head
    given = [(16, 13, 8 * 8 * width), (13, 8, 6 * 7 * width), (8, 6, 4 * 4 * width)]
    counted = count_operations(model, (3, 32, 32))
    assert counted.macs == by_hand(given, prefix=prefix, head_count=heads)
    assert not counted.uncounted


def test_dropped_macs_are_the_hand_formula():
    counted = count_operations(make("vit", Drop(DROPPED)).to("meta"), (3, 32, 32))
    # keeps ceil(0.7 * 16) = 12 and one, ceil(0.5 * 13) = 7 and one; the class token against all, in all heads
    given = [(16, 13, 17 * 24), (13, 8, 14 * 24), (8, 8, 0)]
    assert counted.macs == by_hand(given, prefix=1)
    assert not counted.uncounted


@pytest.mark.parametrize("change", [Merge(MERGED), Drop(DROPPED)])
def test_pruning_knows_what_a_model_with_fewer_tokens_costs(change):
    kind, named = ("merge_tokens", "r") if isinstance(change, Merge) else ("drop_tokens", "keep")
    switch = {"proportional": True} if kind == "merge_tokens" else {"fuse": True}
    entry = {"kind": kind, named: dict(getattr(change, named)), **switch}
    record = dataclasses.replace(record_for("vit"), cuts=[entry])
    model = build(record).eval()
    structure = read_structure(model)
    assert {group.kind for group in structure.groups.values()} == {"heads", "head_width", "mlp", "embed"}
    assert structure.blocks == ([] if kind == "merge_tokens" else ["blocks.2"])  # without others, more tokens
    cost = costs.macs(record, structure)
    assert cost.total(structure.sizes, frozenset()) == count_operations(model, (3, 32, 32)).macs
    for name, width in (("blocks.0.attn.heads", 3), ("blocks.1.attn.head_width", 4), ("blocks.2.mlp", 40)):
        group = structure.groups[name]
        apply(model, cut_group(structure, group, first_units(structure, group, width)))
    assert cost.total(structure.sizes, frozenset()) == count_operations(model, (3, 32, 32)).macs


@torch.no_grad()
def test_a_hidden_unit_that_is_cut_is_one_that_was_zero():
    model, x = make("deit3", Merge(MERGED)), images()
    structure = read_structure(model)
    group = structure.groups["blocks.1.mlp"]
    masked = copy.deepcopy(model)
    masked.blocks[1].mlp.fc2.weight[:, 50:] = 0
    apply(model, cut_group(structure, group, (torch.arange(50),)))
    torch.testing.assert_close(model(x), masked(x), rtol=1e-12, atol=1e-12)


# --- what follows a model -----------------------------------------------------------------------


ENTRIES = (
    {"kind": "merge_tokens", "r": MERGED, "proportional": True},
    {"kind": "drop_tokens", "keep": DROPPED, "fuse": False},
)


@pytest.mark.parametrize("entry", ENTRIES)
@torch.no_grad()
def test_a_record_gives_the_same_model_and_takes_plain_weights(entry):
    operation = Merge(MERGED) if entry["kind"] == "merge_tokens" else Drop(DROPPED, fuse=False)
    model, plain = make("deit", operation), make("deit")
    again = make("deit")
    rebuild(again, json.loads(json.dumps([entry])))
    assert list(again.state_dict()) == list(plain.state_dict()) == list(model.state_dict())
    again.load_state_dict(plain.state_dict())
    assert torch.equal(again(images()), model(images()))
    assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]


def test_parameters_and_their_order_stay():
    model = make("deit3")
    optimizer = create_optimizer_v2(model, opt="adamw", layer_decay=0.8)
    model(images()).sum().backward()
    optimizer.step()
    before = [id(p) for group in optimizer.param_groups for p in group["params"]]
    apply(model, [Merge(MERGED)], optimizer)
    fresh = create_optimizer_v2(model, opt="adamw", layer_decay=0.8)
    assert [id(p) for group in fresh.param_groups for p in group["params"]] == before
    assert len(optimizer.state) == len(before)
    assert model.blocks[1].attn.qkv.weight.grad is not None


def test_another_r_takes_the_place_of_the_first():
    model = make("vit", Merge(MERGED), Merge({"blocks.1": 1}))
    assert [block.r for block in model.blocks] == [0, 1, 0]
    torch.testing.assert_close(model(images()), make("vit", Merge({"blocks.1": 1}))(images()))


@pytest.mark.parametrize("change", [Merge(MERGED), Drop(DROPPED)])
@torch.no_grad()
def test_images_do_not_see_one_another_and_any_batch_can_be_exported(change):
    model, x = make("deit", change).float(), images(5).float()
    each = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(model(x), each, rtol=1e-5, atol=1e-5)
    exported = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(exported.module()(x), model(x))
    torch.testing.assert_close(exported.module()(x[:1]), model(x[:1]))


def test_compiled_it_is_one_graph():
    model, x = make("vit", Merge(MERGED)), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("change", [Merge(MERGED), Drop(DROPPED)])
def test_under_autocast_and_for_other_image_sizes(change):
    model, x = make("vit", change, dynamic_img_size=True).float(), images().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(x).float() - model(x)).abs().max() < 1
        model.train()(x).float().sum().backward()
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)  # four patches: at most half merge
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


# --- what cannot be -------------------------------------------------------------------------------


def test_models_that_cannot():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1), num_heads=(2, 4))
    assert why_not(swin, "merge_tokens") == "attends within windows, which need a full grid of tokens"
    assert "plain vision transformer" in why_not(timm.create_model("resnet10t"), "drop_tokens")
    assert why_not(make("average"), "merge_tokens") is None
    assert "no class token" in why_not(make("average"), "drop_tokens")
    flat = make("vit", global_pool="flat")
    assert why_not(flat, "merge_tokens") is None
    assert "weights for every patch" in why_not(flat, "drop_tokens")
    assert "drop_tokens already" in why_not(make("vit", Drop(DROPPED)), "merge_tokens")
    assert "merge_tokens already" in why_not(make("vit", Merge(MERGED)), "drop_tokens")
    differential = timm.create_model("vit_tiny_patch16_224", depth=1, attn_layer="diff")
    assert "blocks.0.attn is a DiffAttention" in why_not(differential, "merge_tokens")


@pytest.mark.parametrize("entry", [
    {"kind": "merge_tokens", "r": {"blocks.9": 1}, "proportional": True},
    {"kind": "merge_tokens", "r": {"blocks.0": -1}, "proportional": True},
    {"kind": "merge_tokens", "r": {"blocks.0": True}, "proportional": True},
    {"kind": "merge_tokens", "r": {"blocks.0": 1}},
    {"kind": "drop_tokens", "keep": {"blocks.0": 0}, "fuse": True},
    {"kind": "drop_tokens", "keep": [0.5], "fuse": True},
])  # fmt: skip
def test_records_that_cannot_be(entry):
    with pytest.raises(ValueError, match="tokens"):
        rebuild(make("vit"), [entry])
