"""Latencies: interpolation by hand, a table of a clock that counts arithmetic, a budget met by it."""

from __future__ import annotations

import copy
import dataclasses
import json
import random

import pytest
import torch
from torch import nn

from effvit_train.audit.operations import count_operations
from effvit_train.compress.prune import latency
from effvit_train.compress.prune.config import PruneConfig, TargetConfig
from effvit_train.compress.prune.latency import Grid, Latency, Table, measure
from effvit_train.compress.prune.pruner import Pruner
from effvit_train.errors import UserError
from effvit_train.models.changes import rebuild
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import Group, Structure, read_structure
from effvit_train.models.surgery import apply


def record(name: str, **kwargs) -> ArchitectureRecord:
    kwargs = {"img_size": 16, "num_classes": 5, **kwargs}
    return ArchitectureRecord(name, kwargs, (3, 16, 16), tuple("abcde"), (0.5,) * 3, (0.2,) * 3)


VIT = record("vit_tiny_patch16_224", embed_dim=16, depth=3, num_heads=4, patch_size=4)
SWIN = record("swin_tiny_patch4_window7_224", embed_dim=8, depths=(2, 2), num_heads=(2, 4), patch_size=2, window_size=4)  # fmt: skip


# --- interpolation -----------------------------------------------------------------------------


def test_a_grid_of_one_width():
    grid = Grid([[2, 4, 8]], [1.0, 3.0, 4.0])
    assert [grid.at([w]) for w in (2, 4, 8)] == [1, 3, 4]
    assert [grid.at([w]) for w in (3, 6, 5)] == [2, 3.5, 3.25]
    assert [grid.at([w]) for w in (1, 12)] == [0, 5]  # the ends go on
    assert [Grid([[4]], [2.0]).at([w]) for w in (4, 2, 6)] == [2, 1, 3]  # through zero: one point only


def test_a_grid_of_two_widths():
    grid = Grid([[1, 3], [10, 20, 40]], [1.0, 2.0, 4.0, 5.0, 6.0, 10.0])
    assert grid.at([1, 10]) == 1
    assert grid.at([3, 40]) == 10
    assert grid.at([2, 20]) == 4
    assert grid.at([3, 15]) == 5.5
    assert grid.at([2, 30]) == (3 + 8) / 2
    assert grid.at([5, 10]) == 9
    assert grid.at([1, 50]) == 5


def test_a_grid_of_no_width_is_a_number():
    assert Grid([], [0.25]).at([]) == 0.25


def test_interpolation_of_a_product_is_exact():
    widths = [[2, 5, 7], [1, 8], [3, 4, 9, 11]]
    values = [float(a * b * c + 2 * a + c) for a in widths[0] for b in widths[1] for c in widths[2]]
    grid = Grid(widths, values)
    for a, b, c in ((2, 1, 3), (3, 4, 10), (1, 9, 12), (6, 2, 5)):
        assert grid.at([a, b, c]) == pytest.approx(a * b * c + 2 * a + c)


# --- totals ------------------------------------------------------------------------------------


def two_blocks() -> tuple[Latency, Structure]:
    """Of 10 ms two MLPs of 8 units take 2 ms each, an attention of 2 heads 3 ms."""
    structure = Structure(sizes={"x.mlp": 8, "y.mlp": 8, "x.attn.heads": 2}, blocks=["x", "y"])
    for name in ("x.mlp", "y.mlp"):
        structure.groups[name] = Group(name, "mlp", (name,), name[0])
    grids = [Grid([[4, 8]], [1.5, 2.0]), Grid([[1, 2]], [2.0, 3.0])]
    modules = {"x.mlp": (0, ["x.mlp"]), "y.mlp": (0, ["y.mlp"]), "x.attn": (1, ["x.attn.heads"])}
    return Latency(Table(10.0, grids, modules), structure), structure


def test_totals_and_savings_by_hand():
    cost, structure = two_blocks()
    sizes, none = structure.sizes, frozenset()
    assert cost.total(sizes) == 10
    assert cost.total({**sizes, "x.mlp": 4}) == 9.5
    assert cost.total({**sizes, "x.mlp": 4, "y.mlp": 6, "x.attn.heads": 1}) == 8.25
    assert cost.total(sizes, frozenset({"x"})) == 5
    assert cost.total(sizes, frozenset({"x", "y"})) == 3  # whatever else there is
    assert cost.saving(sizes, none, {"y.mlp": 6}) == 0.25
    assert cost.saving(sizes, none, {}, "x") == 5
    assert cost.saving({**sizes, "x.mlp": 4}, none, {}, "x") == 4.5
    assert cost.saving(sizes, frozenset({"x"}), {"x.mlp": 4}) == 0
    assert cost.saving(sizes, none, {"unknown": 3}) == 0


def test_a_table_survives_json():
    cost, structure = two_blocks()
    table = cost._table
    again = Table.from_json(json.loads(json.dumps(table.to_json())))
    assert again == table
    assert Latency(again, structure).total({**structure.sizes, "x.mlp": 5}) == 9.625
    for broken in ({}, {"whole_ms": 1.0, "grids": [{}], "modules": {}}, {"whole_ms": "x"}):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Table.from_json(broken)


# --- measuring ---------------------------------------------------------------------------------

SCALE = 1e-6  # milliseconds for a multiply-accumulate


class _Run(nn.Module):
    def __init__(self, work) -> None:
        super().__init__()
        self._work = work

    def forward(self, image: torch.Tensor) -> None:
        self._work()


@pytest.fixture
def arithmetic(monkeypatch) -> list[int]:
    """A clock that shows how much is computed; lists how many works each table has run."""
    numbers: list[int] = []

    def medians(works, device: torch.device) -> list[float]:
        numbers.append(len(works))
        return [count_operations(_Run(work), (1, 1, 1)).macs * SCALE for work in works]

    monkeypatch.setattr(latency, "_medians", medians)
    return numbers


def table_of(one: ArchitectureRecord, kinds) -> tuple[nn.Module, Structure, Table]:
    model = build(one)
    structure = read_structure(model)
    return model, structure, measure(model, structure, one.input_shape, kinds)


def macs(model: nn.Module) -> float:
    return count_operations(model, (3, 16, 16)).macs * SCALE


@pytest.mark.parametrize("one", [VIT, SWIN], ids=["vit", "swin"])
@pytest.mark.parametrize(
    "kinds", [["heads", "mlp", "blocks"], ["head_width", "mlp"], ["heads", "head_width"]]
)
def test_totals_are_those_of_the_cut_model(one, kinds, arithmetic):
    """Arithmetic is linear in each width: at all of them, not only at those that were measured."""
    model, structure, table = table_of(one, kinds)
    cost = Latency(table, structure)
    assert cost.total(structure.sizes) == pytest.approx(macs(model))
    draw = random.Random(0)
    for _ in range(6):
        blocks = [b for b in structure.blocks[1:] if "blocks" in kinds and draw.random() < 0.4]
        widths = {
            name: draw.randint(1, structure.size(group))
            for name, group in structure.groups.items()
            if group.kind in kinds and group.block not in blocks
        }
        cut = copy.deepcopy(model)
        rebuild(cut, [{"kind": "prune", "blocks": blocks, "widths": widths}])
        sizes, dropped = {**structure.sizes, **read_structure(cut).sizes}, frozenset(blocks)
        assert cost.total(sizes, dropped) == pytest.approx(macs(cut), rel=1e-9)
        saved = sum(cost.saving(structure.sizes, frozenset(), {}, block) for block in blocks)
        change = {f: w for name, w in widths.items() for f in structure.groups[name].factors}
        saved += cost.saving(structure.sizes, dropped, change)
        assert cost.total(structure.sizes) - saved == pytest.approx(macs(cut), rel=1e-9)


@pytest.mark.parametrize("kinds", [["heads", "mlp"], ["blocks"], ["head_width", "mlp", "blocks"]])
def test_what_modules_do_not_show_alone_is_scaled(kinds, monkeypatch):
    """A machine on which modules are 1.25 times as slow within a model as by themselves."""

    def medians(works, device: torch.device) -> list[float]:
        times = [count_operations(_Run(work), (1, 1, 1)).macs * SCALE for work in works]
        return times[:-2] + [1.25 * time for time in times[-2:]]

    monkeypatch.setattr(latency, "_medians", medians)
    model, structure, table = table_of(VIT, kinds)
    assert table.scale == pytest.approx(1.25)
    cost = Latency(table, structure)
    cut = copy.deepcopy(model)
    widths = {name: 3 for name, group in structure.groups.items() if group.kind == "mlp" and "mlp" in kinds}
    blocks = structure.blocks[:1] if "blocks" in kinds else []
    widths = {name: width for name, width in widths.items() if structure.groups[name].block not in blocks}
    rebuild(cut, [{"kind": "prune", "blocks": blocks, "widths": widths}])
    sizes = {**structure.sizes, **read_structure(cut).sizes}
    assert cost.total(sizes, frozenset(blocks)) == pytest.approx(1.25 * macs(cut), rel=1e-9)
    change = {f: w for name, w in widths.items() for f in structure.groups[name].factors}
    saved = sum(cost.saving(structure.sizes, frozenset(), {}, block) for block in blocks)
    saved += cost.saving(structure.sizes, frozenset(blocks), change)
    assert cost.total(structure.sizes) - saved == pytest.approx(1.25 * macs(cut), rel=1e-9)
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


@pytest.mark.parametrize("one", [VIT, SWIN], ids=["vit", "swin"])
def test_the_embedding_is_seen_by_all_that_read_it(one, arithmetic):
    model, structure, table = table_of(one, ["embed", "mlp", "heads"])
    cost = Latency(table, structure)
    draw = random.Random(0)
    inside = [name for name in (*structure.attention, *structure.groups) if name in table.modules]
    assert len(inside) == 2 * len(structure.blocks)
    rest = macs(model) - sum(_alone(model, name) for name in inside)
    for _ in range(4):
        widths = {
            name: draw.randint(1, structure.size(group))
            for name, group in structure.groups.items()
            if group.kind != "head_width"
        }
        cut = copy.deepcopy(model)
        rebuild(cut, [{"kind": "prune", "blocks": [], "widths": widths}])
        sizes = {**structure.sizes, **read_structure(cut).sizes}
        expected = rest + sum(_alone(cut, name) for name in inside)
        assert cost.total(sizes) == pytest.approx(expected, rel=1e-9)


def _alone(model: nn.Module, name: str) -> float:
    """What one module of a model computes for an image."""
    found = []
    module = model.get_submodule(name)
    hook = module.register_forward_hook(lambda m, inputs, output: found.append(inputs))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 16, 16))
    hook.remove()
    return count_operations(_Run(lambda: module(*found[0])), (1, 1, 1)).macs * SCALE


def test_modules_that_are_alike_share_a_grid(arithmetic):
    model, _, table = table_of(VIT, ["heads", "mlp"])
    assert len(table.grids) == 2
    assert set(table.modules) == {f"blocks.{k}.{part}" for k in range(3) for part in ("attn", "mlp")}
    assert table.grids[0].widths == [[1, 2, 3, 4]]  # of four heads, without doubles
    assert table.grids[1].widths == [[8, 16, 24, 32, 40, 48, 56, 64]]
    assert arithmetic == [4 + 8 + 2]  # and the whole model, uncut and at half
    assert table.whole_ms == pytest.approx(macs(model))
    _, _, table = table_of(SWIN, ["heads", "mlp"])
    assert len(table.grids) == 4  # each stage has two
    _, _, table = table_of(VIT, ["heads"])
    assert set(table.modules) == {f"blocks.{k}.attn" for k in range(3)}
    _, _, table = table_of(VIT, ["blocks"])
    assert [grid.widths for grid in table.grids] == [[], []]
    assert len(table.modules) == 6


def test_modules_of_like_shape_but_unlike_heads_do_not(arithmetic):
    """Two heads of 4 and four heads of 2 have weights of the same shapes."""
    widths = {"blocks.0.attn.heads": 2, "blocks.1.attn.head_width": 2, "blocks.2.attn.heads": 2}
    one = dataclasses.replace(VIT, cuts=[{"kind": "prune", "blocks": [], "widths": widths}])
    model, structure, table = table_of(one, ["heads", "mlp"])
    cost = Latency(table, structure)
    assert cost.total(structure.sizes) == pytest.approx(macs(model))
    for block, heads in ((0, 1), (1, 3), (1, 2)):
        name = f"blocks.{block}.attn.heads"
        cut = copy.deepcopy(model)
        rebuild(cut, [{"kind": "prune", "blocks": [], "widths": {name: heads}}])
        assert cost.total({**structure.sizes, name: heads}) == pytest.approx(macs(cut))


def test_measuring_leaves_the_model_alone(arithmetic):
    model = build(VIT).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    structure = read_structure(model)
    sizes = dict(structure.sizes)
    measure(model, structure, VIT.input_shape, ["heads", "mlp", "embed", "head_width", "blocks"])
    assert structure.sizes == sizes
    assert all(module.training for module in model.modules())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_median_of_turns(monkeypatch):
    """A disturbance falls on a turn, and is not seen; every work is run before it is timed."""
    now, calls = [0.0], []
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def work(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            disturbed = calls.count(name) // 2 % 3 == 0  # the first too, which is not timed
            now[0] += seconds * (10 if disturbed else 1)

        return run

    found = latency._medians([work("a", 2e-3), work("b", 5e-3)], torch.device("cpu"))
    assert found == pytest.approx([2.0, 5.0])
    assert calls[:10] == ["a", "b", *"aabb", *"bbaa"]  # in turn, and back
    assert len(calls) == 2 * (2 * latency._ROUNDS + 1)


def test_a_real_clock_gives_a_table():
    _, structure, table = table_of(SWIN, ["heads", "mlp"])
    assert table.whole_ms > 0
    assert all(value > 0 for grid in table.grids for value in grid.milliseconds)
    assert Latency(table, structure).total(structure.sizes) == pytest.approx(table.whole_ms)


# --- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("one", [VIT, SWIN], ids=["vit", "swin"])
def test_a_latency_budget_is_met_within_five_percent(one, arithmetic):
    whole, _, table = table_of(one, ["heads", "mlp"])
    target = 0.6 * table.whole_ms
    for allot in ("uniform", "isomorphic", "global"):
        config = PruneConfig(
            target=TargetConfig(latency_ms=target), importance="magnitude", allot=allot, round_to=2, cuts=3
        )
        pruner = Pruner(config, one, table)
        assert pruner.ready
        pruner.check()
        model = copy.deepcopy(whole)
        for number in range(1, 4):
            decision = pruner.decide(model, None, number, 3, seed=0)
            if decision is None:  # the cut before went as far, in steps of two units
                continue
            assert not decision.plan.missed
            apply(model, decision.operations)
            told = pruner.costs_after(decision.structure, decision.plan)["latency_ms"]
            assert told == pytest.approx(macs(model), rel=1e-9)  # cut after cut, from the first table
        assert 0.95 * target <= macs(model) <= target


def test_a_latency_that_cannot_be_had_is_refused(arithmetic):
    _, _, table = table_of(VIT, ["heads", "mlp"])
    config = PruneConfig(target=TargetConfig(latency_ms=0.05 * table.whole_ms))
    unmeasured = Pruner(config, VIT)
    assert not unmeasured.ready
    unmeasured.check()  # nothing can be said yet
    with pytest.raises(UserError, match=r"compress\.prune\.target\.latency_ms.* comes down to 0\.\d+"):
        Pruner(config, VIT, table).check()
