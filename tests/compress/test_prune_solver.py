"""Costs against counting; plans against budgets and against choices made by hand."""

from __future__ import annotations

import copy
import dataclasses
import functools
import random

import pytest
import torch

from effvit_train.audit.operations import count_operations
from effvit_train.compress.prune import costs
from effvit_train.compress.prune.config import KINDS, PruneConfig, TargetConfig
from effvit_train.compress.prune.costs import Product, Products
from effvit_train.compress.prune.plan import record_of
from effvit_train.compress.prune.pruner import Pruner
from effvit_train.compress.prune.solver import (
    Budget,
    CannotMeetError,
    Plan,
    chunk_worth,
    keep_best,
    sizes_after,
    solve,
)
from effvit_train.models.changes import rebuild
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import Group, Structure, read_structure
from effvit_train.models.surgery import apply

WIDTHS = ("heads", "head_width", "mlp", "embed")


def structure_of(record: ArchitectureRecord) -> Structure:
    with torch.device("meta"):
        return read_structure(build(record))


def record(name: str, **kwargs) -> ArchitectureRecord:
    kwargs = {"img_size": 32, "num_classes": 5, **kwargs}
    side = kwargs["img_size"]
    return ArchitectureRecord(name, kwargs, (3, side, side), tuple("abcde"), (0.5,) * 3, (0.2,) * 3)


TINY = {"embed_dim": 24, "depth": 3, "num_heads": 3, "patch_size": 8}
SWIN = {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3), "patch_size": 2, "window_size": 4}
RECORDS = {
    "vit": record("vit_tiny_patch16_224", **TINY),
    "deit": record("deit_tiny_distilled_patch16_224", **TINY),
    "deit3": record("deit3_small_patch16_224", **TINY),
    "swin": record("swin_tiny_patch4_window7_224", img_size=32, **SWIN),
    "swin_padded": record("swin_tiny_patch4_window7_224", **SWIN | {"img_size": 36, "window_size": 5}),
    "gated": record("vit_giant_patch14_dinov2", **TINY),
    "registers": record("vit_tiny_patch16_224", **TINY, reg_tokens=2, pre_norm=True, global_pool="avg"),
    "qk_norm": record("vit_tiny_patch16_224", **TINY, qk_norm=True),
    "scale_norms": record("vit_tiny_patch16_224", **TINY, scale_attn_norm=True, scale_mlp_norm=True),
    "differential": record("vit_tiny_patch16_224", **TINY, attn_layer="diff"),
}  # fmt: skip


@functools.cache
def known(name: str) -> tuple[torch.nn.Module, Structure, Products, Products]:
    """A tiny model, its structure, its MACs and its parameters."""
    one = RECORDS[name]
    model, structure = build(one), structure_of(one)
    return model, structure, costs.macs(one, structure), costs.parameters(model, structure)


def counted(model: torch.nn.Module, side: int) -> tuple[int, int]:
    """MACs and parameters as they are."""
    return count_operations(model, (3, side, side)).macs, sum(p.numel() for p in model.parameters())


def random_plan(structure: Structure, draw: random.Random) -> Plan:
    blocks = [block for block in structure.blocks if draw.random() < 0.25][: len(structure.blocks) - 1]
    names = [g.name for g in structure.groups.values() if g.block not in blocks and draw.random() < 0.6]
    return Plan({name: draw.randint(1, structure.size(structure.groups[name])) for name in names}, blocks)


# --- costs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECORDS)
def test_costs_are_what_is_counted(name):
    model, structure, *of_costs = known(name)
    side = RECORDS[name].input_shape[1]
    expected = {"qk_norm": {"heads", "mlp", "embed"}, "scale_norms": set(), "differential": {"mlp"}}
    assert {group.kind for group in structure.groups.values()} == expected.get(name, set(WIDTHS))
    assert tuple(cost.total(structure.sizes) for cost in of_costs) == counted(model, side)
    draw = random.Random(name)
    for _ in range(12):
        plan = random_plan(structure, draw)
        cut = copy.deepcopy(model)
        rebuild(cut, [record_of(plan)])
        truth = counted(cut, side)
        sizes, dropped = sizes_after(structure, plan), frozenset(plan.blocks)
        assert tuple(cost.total(sizes, dropped) for cost in of_costs) == truth


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_saving_is_the_difference_of_totals(name):
    _, structure, *of_costs = known(name)
    draw = random.Random(name)
    for cost in of_costs:
        sizes, dropped, total = dict(structure.sizes), frozenset(), cost.total(structure.sizes)
        order = [*structure.groups, *structure.blocks[1:]]
        draw.shuffle(order)
        for change in order:  # one after another, down to almost nothing
            if change in structure.blocks:
                saved = cost.saving(sizes, dropped, {}, change)
                dropped |= {change}
            else:
                group = structure.groups[change]
                smaller = dict.fromkeys(group.factors, draw.randint(1, sizes[group.factors[0]]))
                saved = cost.saving(sizes, dropped, smaller, None)
                sizes |= smaller
                if group.block in dropped:
                    assert saved == 0
            assert saved == total - cost.total(sizes, dropped)
            total -= saved


def test_costs_of_a_vit_by_hand():
    """Three blocks of width 24, 17 tokens; what a hidden unit, a head and a block are worth."""
    _, structure, macs, parameters = known("vit")
    sizes, tokens = structure.sizes, 17
    assert macs.saving(sizes, frozenset(), {"blocks.0.mlp": 95}) == 2 * 24 * tokens
    assert parameters.saving(sizes, frozenset(), {"blocks.0.mlp": 95}) == 2 * 24 + 1
    head = 4 * 24 * 8 * tokens + 2 * 8 * tokens**2
    assert macs.saving(sizes, frozenset(), {"blocks.1.attn.heads": 2}) == head
    assert parameters.saving(sizes, frozenset(), {"blocks.1.attn.heads": 2}) == 4 * 24 * 8 + 3 * 8
    assert macs.saving(sizes, frozenset(), {}, "blocks.2") == 3 * head + 96 * 2 * 24 * tokens
    assert macs.constant == 0


# --- budgets of a real model -------------------------------------------------------------------


@functools.cache
def small() -> tuple[Structure, Products, Products]:
    """ViT-S/16, without weights."""
    one = ArchitectureRecord("vit_small_patch16_224", {"num_classes": 100}, (3, 224, 224), (), (), ())
    structure = structure_of(one)
    with torch.device("meta"):
        parameters = costs.parameters(build(one), structure)
    return structure, costs.macs(one, structure), parameters


def random_scores(structure: Structure, kinds, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name, group in structure.groups.items():
        if group.kind not in kinds:
            continue
        shapes = [(structure.sizes[factor],) for factor in group.factors]
        if group.kind == "head_width":
            heads = structure.sizes[structure.attention[name.rpartition(".")[0]][0]]
            shapes = [(heads, *shape) for shape in shapes]
        scores[name] = tuple(torch.rand(shape, generator=generator) ** 3 for shape in shapes)
    blocks = structure.blocks if "blocks" in kinds else []
    return scores, {block: torch.rand(1, generator=generator).item() for block in blocks}


def solved(structure: Structure, budgets: list[Budget], kinds, *, seed: int = 0, **kwargs) -> Plan:
    scores, blocks = random_scores(structure, kinds, seed)
    return solve(structure, scores, blocks, budgets, kinds=kinds, **{"round_to": 64, **kwargs})


def budget(name: str, cost: Products, structure: Structure, fraction: float) -> Budget:
    return Budget(name, cost, fraction * cost.total(structure.sizes))


def check_widths(structure: Structure, plan: Plan, round_to: int) -> None:
    for name, width in plan.widths.items():
        group = structure.groups[name]
        assert 1 <= width < structure.size(group)
        assert width % (1 if group.kind == "heads" else round_to) == 0
        assert group.block not in plan.blocks
    assert len(set(plan.blocks)) == len(plan.blocks) < max(1, len(structure.blocks))


@pytest.mark.parametrize("fraction", [0.75, 0.5, 0.25])
@pytest.mark.parametrize("allot", ["uniform", "isomorphic", "global"])
def test_a_budget_is_met_within_one_percent(allot, fraction):
    structure, macs, _ = small()
    plan = solved(structure, [budget("macs", macs, structure, fraction)], ("heads", "mlp"), allot=allot)
    share = macs.total(sizes_after(structure, plan)) / macs.total(structure.sizes)
    assert fraction * 0.99 <= share <= fraction
    assert plan.costs == {"macs": pytest.approx(share * macs.total(structure.sizes))}
    assert plan.missed == []
    check_widths(structure, plan, 64)


@pytest.mark.parametrize("allot", ["uniform", "isomorphic", "global"])
@pytest.mark.parametrize("fraction", [0.6, 0.2])
def test_all_kinds_together(allot, fraction):
    structure, macs, parameters = small()
    both = [budget("macs", macs, structure, fraction), budget("params", parameters, structure, fraction)]
    plan = solved(structure, both, KINDS, allot=allot, seed=1, round_to=32)
    check_widths(structure, plan, 32)
    sizes, dropped = sizes_after(structure, plan), frozenset(plan.blocks)
    shares = [
        cost.total(sizes, dropped) / cost.total(structure.sizes, frozenset()) for cost in (macs, parameters)
    ]
    assert max(shares) <= fraction
    if not plan.missed:
        assert max(shares) >= fraction * 0.99
    cut = {structure.groups[name].kind for name in plan.widths}
    assert cut >= {"heads", "mlp", "embed"}
    assert "head_width" in cut or allot != "isomorphic"  # a step of it is half of all


@pytest.mark.parametrize("allot", ["uniform", "isomorphic", "global"])
@pytest.mark.parametrize(("macs_left", "params_left"), [(0.5, 0.8), (0.8, 0.5), (0.4, 0.4)])
def test_several_budgets_are_all_met(allot, macs_left, params_left):
    structure, macs, parameters = small()
    both = [budget("macs", macs, structure, macs_left), budget("params", parameters, structure, params_left)]
    plan = solved(structure, both, ("heads", "mlp"), allot=allot, round_to=64)
    sizes = sizes_after(structure, plan)
    shares = [
        macs.total(sizes) / (macs_left * macs.total(structure.sizes)),
        parameters.total(sizes) / (params_left * parameters.total(structure.sizes)),
    ]
    assert max(shares) <= 1
    assert max(shares) >= 0.99  # and no more is cut than has to be


def test_a_swin_meets_its_budget():
    one = record("swin_tiny_patch4_window7_224", img_size=224)
    structure = structure_of(one)
    macs = costs.macs(one, structure)
    for kinds in (("heads", "mlp"), ("embed", "head_width"), KINDS):
        plan = solved(structure, [budget("macs", macs, structure, 0.5)], kinds, allot="isomorphic")
        check_widths(structure, plan, 64)
        share = macs.total(sizes_after(structure, plan), frozenset(plan.blocks)) / macs.total(structure.sizes)
        assert 0.5 * 0.99 <= share <= 0.5 or plan.missed
        assert share > 0.35


@pytest.mark.parametrize("round_to", [1, 7, 8, 50])
def test_widths_end_at_multiples(round_to):
    """Also where the width that it starts from is none."""
    structure, macs, _ = small()
    kinds = ("mlp",) if round_to == 1 else ("mlp", "embed", "head_width")
    fraction = 0.995 if round_to == 1 else 0.9
    plan = solved(
        structure, [budget("macs", macs, structure, fraction)], kinds, allot="isomorphic", round_to=round_to
    )
    assert plan.widths
    check_widths(structure, plan, round_to)


# --- allotments --------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.75, 0.5, 0.25])
def test_uniform_takes_the_same_share_of_every_group(fraction):
    structure, macs, _ = small()
    for kinds, step in ((("mlp",), 64 / 1536), (("heads", "mlp"), 1 / 6)):
        share = 0.5 if kinds == ("mlp",) else fraction
        plan = solved(structure, [budget("macs", macs, structure, share)], kinds, allot="uniform")
        sizes = sizes_after(structure, plan)
        gone = [
            1 - sizes[group.factors[0]] / structure.size(group)
            for group in structure.groups.values()
            if group.kind in kinds
        ]
        assert max(gone) - min(gone) <= step + 1e-9


def test_isomorphic_takes_the_same_share_of_every_kind():
    structure, macs, _ = small()
    plan = solved(
        structure, [budget("macs", macs, structure, 0.5)], ("heads", "mlp"), allot="isomorphic", round_to=16
    )
    sizes = sizes_after(structure, plan)
    left = dict.fromkeys(("heads", "mlp"), 0)
    for group in structure.groups.values():
        if group.kind in left:
            left[group.kind] += sizes[group.factors[0]]
    assert left["heads"] / 72 == pytest.approx(left["mlp"] / (12 * 1536), abs=1 / 72)
    widths = {sizes[f"blocks.{k}.mlp"] for k in range(12)}
    assert len(widths) > 1


def pair(sizes=(16, 16), price=(1, 1), *, constant: int = 0) -> tuple[Structure, Products]:
    """Two MLPs `a` and `b` in blocks of their own, and what their units cost."""
    structure = Structure(blocks=["x", "y"])
    terms = []
    for name, block, size, cost in zip("ab", "xy", sizes, price, strict=True):
        structure.sizes[name] = size
        structure.groups[name] = Group(name, "mlp", (name,), block)
        terms.append(Product(cost, (((name,),),), block))
    return structure, Products(terms, constant)


def solved_pair(
    structure, cost, target, scores, *, allot="isomorphic", round_to=4, kinds=("mlp",), blocks=None
):
    return solve(
        structure, {name: (torch.tensor(score),) for name, score in scores.items()}, blocks or {},
        [Budget("macs", cost, target)], kinds=kinds, allot=allot, round_to=round_to,
    )  # fmt: skip


def test_isomorphic_takes_the_least_important_units_wherever_they_are():
    structure, cost = pair()
    scores = {"a": [1.0] * 16, "b": [10.0] * 16}
    assert solved_pair(structure, cost, 24, scores).widths == {"a": 8}
    assert solved_pair(structure, cost, 20, scores).widths == {"a": 4}  # four always stay
    assert solved_pair(structure, cost, 16, scores).widths == {"a": 4, "b": 12}
    # of a, four units matter and four are worthless, whatever order they stand in
    scores = {"a": [0.0, 30.0] * 4 + [30.0] * 8, "b": [10.0] * 16}
    assert solved_pair(structure, cost, 20, scores).widths == {"a": 12, "b": 8}


def test_isomorphic_compares_units_not_chunks():
    """Two units down to the next multiple are no cheaper than four that matter less."""
    structure, cost = pair((18, 16))
    assert solved_pair(structure, cost, 30, {"a": [1.0] * 18, "b": [0.6] * 16}).widths == {"b": 12}
    assert solved_pair(structure, cost, 32, {"a": [0.6] * 18, "b": [1.0] * 16}).widths == {"a": 16}
    # the other way round: four units of little importance are no dearer than one of more
    structure, cost = pair((16, 17))
    assert solved_pair(structure, cost, 29, {"a": [1.0] * 16, "b": [3.0] * 17}).widths == {"a": 12}


def test_isomorphic_does_not_compare_kinds_with_one_another():
    structure, cost = pair()
    structure.groups["b"] = dataclasses.replace(structure.groups["b"], kind="embed")
    scores = {"a": [1.0] * 16, "b": [1000.0] * 16}
    plan = solved_pair(structure, cost, 16, scores, kinds=("mlp", "embed"))
    assert plan.widths == {"a": 8, "b": 8}


def test_global_takes_what_is_cheapest_for_what_it_saves():
    structure, cost = pair(price=(1, 4))  # 80 in all
    scores = {"a": [1.0] * 16, "b": [2.0] * 16}  # 1 and 0.5 for a unit of cost
    assert solved_pair(structure, cost, 48, scores, allot="global").widths == {"b": 8}
    scores = {"a": [1.0] * 16, "b": [5.0] * 16}  # 1 and 1.25
    assert solved_pair(structure, cost, 72, scores, allot="global").widths == {"a": 8}


def test_global_against_a_greedy_loop():
    draw = random.Random(0)
    for trial in range(10):
        price = (draw.randint(1, 5), draw.randint(1, 5))
        structure, cost = pair((24, 40), price)
        scores = {name: [draw.random() for _ in range(n)] for name, n in (("a", 24), ("b", 40))}
        taken = {"a": 0, "b": 0}
        ordered = {name: sorted(score) for name, score in scores.items()}
        sizes = {"a": 24, "b": 40}
        cuts = draw.randint(1, 10)
        for _ in range(cuts):
            asked = {
                name: sum(ordered[name][taken[name] : taken[name] + 4]) / (4 * price[k])
                for k, name in enumerate("ab")
                if sizes[name] - taken[name] > 4
            }
            taken[min(asked, key=asked.get)] += 4
        left = {name: sizes[name] - taken[name] for name in taken}
        plan = solved_pair(structure, cost, cost.total(left), scores, allot="global")
        assert plan.widths == {name: width for name, width in left.items() if taken[name]}, trial


def test_a_block_that_is_gone_is_no_part_of_its_kind():
    structure, _ = pair()
    structure.sizes["e"] = 16
    structure.groups["e"] = Group("e", "embed", ("e",))
    cost = Products([Product(1, (((n,),),), b) for n, b in (("a", "x"), ("b", "y"), ("e", None))], 0)
    scores = {"a": [1.0] * 16, "b": [10.0] * 16, "e": [5.0] * 16}
    # a to 4 and e to 12: 12 of 32 and 4 of 16 units; then half of the blocks, which here is worthless
    kinds = ("mlp", "embed", "blocks")
    plan = solved_pair(structure, cost, 28, scores, kinds=kinds, blocks={"x": 0.0, "y": 1.0})
    assert (plan.blocks, plan.widths) == (["x"], {"e": 12})
    # of the MLPs that are left nothing is gone yet: b before e
    plan = solved_pair(structure, cost, 24, scores, kinds=kinds, blocks={"x": 0.0, "y": 1.0})
    assert (plan.blocks, plan.widths) == (["x"], {"b": 12, "e": 12})


@pytest.mark.parametrize("allot", ["uniform", "isomorphic"])
def test_what_earlier_cuts_took_counts(allot):
    structure, cost = pair((8, 16))
    structure.groups["b"] = dataclasses.replace(structure.groups["b"], kind="embed")
    scores = {"a": (torch.ones(8),), "b": (torch.ones(16) * 9,)}
    options = {"kinds": ("mlp", "embed"), "allot": allot, "round_to": 4}
    budgets = [Budget("macs", cost, 16)]
    assert solve(structure, scores, {}, budgets, **options).widths == {"a": 4, "b": 12}
    assert solve(structure, scores, {}, budgets, original={"a": 16, "b": 16}, **options).widths == {"b": 8}


def test_global_looks_at_the_budgets_that_are_not_met():
    structure, params = pair(price=(1, 4))
    macs = Products([Product(100, ((("a",),),), "x"), Product(1, ((("b",),),), "y")], 0)
    scores = {"a": (torch.ones(16),), "b": (torch.ones(16) * 2,)}
    budgets = [Budget("macs", macs, 1700), Budget("params", params, 64)]
    plan = solve(structure, scores, {}, budgets, kinds=("mlp",), allot="global", round_to=4)
    assert plan.widths == {"b": 12}
    budgets = [Budget("macs", macs, 1216), Budget("params", params, 80)]
    plan = solve(structure, scores, {}, budgets, kinds=("mlp",), allot="global", round_to=4)
    assert plan.widths == {"a": 12}


def test_blocks_go_least_important_first_and_one_stays():
    structure, cost = pair()
    chosen = solved_pair(structure, cost, 16, {}, kinds=("blocks",), blocks={"x": 2.0, "y": 1.0})
    assert (chosen.blocks, chosen.widths) == (["y"], {})
    assert solved_pair(structure, cost, 16, {}, kinds=("blocks",), blocks={"x": 2.0}).blocks == ["x"]
    with pytest.raises(CannotMeetError, match=r"macs comes down to 0\.500"):
        solved_pair(structure, cost, 8, {}, kinds=("blocks",), blocks={"x": 2.0, "y": 1.0})
    # with widths: a falls to 4, three eighths of its kind; to half of it b would have to, or x goes; and then
    # nothing is gone of what there is left, so that b goes on
    plan = solved_pair(
        structure, cost, 12, {"a": [1.0] * 16, "b": [10.0] * 16}, kinds=("mlp", "blocks"),
        blocks={"x": 1.0, "y": 2.0},
    )  # fmt: skip
    assert (plan.blocks, plan.widths, plan.costs) == (["x"], {"b": 12}, {"macs": 12})


# --- what cannot be had ------------------------------------------------------------------------


def test_a_budget_that_cannot_be_met_says_how_low_it_goes():
    structure, cost = pair(constant=8)  # 40 in all; 4 + 4 + 8 have to stay
    scores = {"a": [1.0] * 16, "b": [2.0] * 16}
    for allot in ("uniform", "isomorphic", "global"):
        with pytest.raises(CannotMeetError, match=r"macs comes down to 0\.400 of"):
            solved_pair(structure, cost, 15, scores, allot=allot)
        assert solved_pair(structure, cost, 16, scores, allot=allot).widths == {"a": 4, "b": 4}


def test_the_budget_that_is_missed_most_is_named():
    structure, cost = pair()
    double = Products(
        [dataclasses.replace(term, coefficient=2) for term in cost.terms], 64
    )  # 128 in all, 80 at the least: 0.625
    scores = {name: (torch.ones(16),) for name in "ab"}
    budgets = [Budget("params", cost, 8.0), Budget("macs", double, 40.0)]
    with pytest.raises(CannotMeetError, match=r"macs comes down to 0\.625 of"):
        solve(structure, scores, {}, budgets, kinds=("mlp",), allot="uniform", round_to=4)


def test_a_model_that_is_small_enough_is_left_alone():
    structure, cost = pair()
    scores = {"a": [1.0] * 16, "b": [2.0] * 16}
    for target in (32, 32.0, 33):
        plan = solved_pair(structure, cost, target, scores)
        assert (plan.widths, plan.blocks, plan.missed) == ({}, [], [])


def test_a_step_too_far_is_told():
    structure, cost = pair((100, 100))
    scores = {"a": [1.0] * 100, "b": [2.0] * 100}
    plan = solved_pair(structure, cost, 190, scores, round_to=50)
    assert (plan.widths, plan.costs, plan.missed) == ({"a": 50}, {"macs": 150}, ["macs"])
    # of several steps that are all too far the smallest is made
    structure, cost = pair((100, 30))
    plan = solved_pair(structure, cost, 125, {"a": [1.0] * 100, "b": [2.0] * 30}, round_to=20)
    assert (plan.widths, plan.missed) == ({"b": 20}, ["macs"])


def test_solving_changes_nothing():
    structure, cost = pair()
    before = dict(structure.sizes)
    scores = {"a": (torch.arange(16.0),), "b": (torch.arange(16.0),)}
    solve(structure, scores, {}, [Budget("macs", cost, 16)], kinds=("mlp",), allot="global", round_to=4)
    assert structure.sizes == before
    assert structure.blocks == ["x", "y"]
    assert torch.equal(scores["a"][0], torch.arange(16.0))


# --- units -------------------------------------------------------------------------------------


def test_keep_best_keeps_order_and_the_first_of_equals():
    (kept,) = keep_best((torch.tensor([3.0, 1.0, 2.0, 5.0]),), 3)
    assert kept.tolist() == [0, 2, 3]
    (kept,) = keep_best((torch.tensor([2.0, 7.0, 2.0, 2.0]),), 2)
    assert kept.tolist() == [0, 1]
    (kept,) = keep_best((torch.zeros(1000),), 400)
    assert kept.tolist() == list(range(400))


def test_each_head_keeps_its_own_dimensions():
    qk = torch.tensor([[1.0, 2.0, 3.0], [9.0, 7.0, 8.0]])
    v = torch.tensor([[5.0, 0.0, 5.0], [0.0, 6.0, 6.0]])
    kept_qk, kept_v = keep_best((qk, v), 2)
    assert kept_qk.tolist() == [[1, 2], [0, 2]]
    assert kept_v.tolist() == [[0, 2], [1, 2]]
    # the least of each head, of queries and of values: 1 + 7 + 0 + 0, then 2 + 8 + 5 + 6, then the rest
    assert chunk_worth((qk, v)).tolist() == [0, 8, 29, 52]
    assert chunk_worth((torch.tensor([3.0, 1.0, 2.0]),)).tolist() == [0, 1, 3, 6]


# --- cut after cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("allot", ["uniform", "isomorphic", "global"])
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_successive_cuts_only_shrink(name, allot):
    config = PruneConfig(
        target=TargetConfig(macs=0.3, params=0.4), kinds=list(KINDS), importance="random", allot=allot,
        round_to=2, cuts=4,
    )  # fmt: skip
    one = RECORDS[name]
    pruner = Pruner(config, one)
    pruner.check()
    model = build(one)
    before = read_structure(model)
    for number in range(1, 5):
        decision = pruner.decide(model, None, number, 4, seed=number)
        assert decision is not None
        apply(model, decision.operations)
        after = read_structure(model)
        assert set(after.blocks) == set(before.blocks) - set(decision.plan.blocks)
        assert set(after.groups) <= set(before.groups)
        for group in after.groups.values():
            width = decision.plan.widths.get(group.name, before.size(before.groups[group.name]))
            assert after.size(group) == width <= before.size(before.groups[group.name])
        truth = counted(model, one.input_shape[1])
        told = pruner.costs_after(decision.structure, decision.plan)
        assert (told["macs"], told["params"]) == truth
        rest = (1 - number / 4) ** 3
        assert truth[0] <= pruner.start["macs"] * (0.3 + 0.7 * rest)
        assert truth[1] <= pruner.start["params"] * (0.4 + 0.6 * rest)
        before = after
    assert pruner.decide(model, None, 4, 4, seed=9) is None  # it is small enough


@pytest.mark.parametrize("kept", [["blocks.0", "blocks.2"], ["blocks.1"]])
def test_blocks_that_somebody_looks_at_stay(kept):
    config = PruneConfig(target=TargetConfig(macs=0.75), kinds=["blocks"], importance="magnitude")
    model = build(RECORDS["vit"])
    decision = Pruner(config, RECORDS["vit"]).decide(model, None, 1, 1, seed=0, keep_blocks=kept)
    assert decision is not None
    assert len(decision.plan.blocks) == 1
    assert not set(decision.plan.blocks) & set(kept)
