"""Low rank without runs: settings, which layers, which ranks, what images say, what distillation sees."""

from __future__ import annotations

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_distill_terms import INFO, step_of, teacher, vit
from torch import nn
from torch.nn import functional as F

from effvit_train.audit.operations import count_operations
from effvit_train.compress.distill.config import FeatureConfig, RelationConfig
from effvit_train.compress.distill.targets import LiveTargets
from effvit_train.compress.distill.terms import FeatureTerm, RelationTerm, SelfTerm
from effvit_train.compress.lowrank import LowRankConfig, TargetConfig, looks, plan
from effvit_train.compress.lowrank.allocation import CannotMeetError, Option, allocate
from effvit_train.compress.lowrank.checks import check_optimizer
from effvit_train.compress.lowrank.decompose import Decomposition, decompose
from effvit_train.compress.lowrank.layers import find_layers
from effvit_train.config import RecipeConfig
from effvit_train.data.datamodule import DataModule
from effvit_train.errors import UserError
from effvit_train.models.factored import FactoredLinear, matrix_of
from effvit_train.models.factory import build, count_parameters
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.taps import Taps

MICRO = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
    "num_classes": 3,
}
KINDS = ["qkv", "proj", "fc1", "fc2"]


def record_for(name: str = "vit_tiny_patch16_224", cuts=(), **kwargs) -> ArchitectureRecord:
    sizes = {**MICRO, **kwargs}
    shape = (sizes["in_chans"], sizes["img_size"], sizes["img_size"])
    return ArchitectureRecord(name, sizes, shape, ("a", "b", "c"), (0.5,), (0.5,), list(cuts))


class Images:
    """Stands for a DataModule: random images, of which a few are asked for."""

    def __init__(self, count: int = 60) -> None:
        self.images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        self.asked: list[np.ndarray] = []

    def indices(self, split: str) -> np.ndarray:
        assert split == "val"
        return np.arange(10, len(self.images))

    evenly, first_train_batches = DataModule.evenly, DataModule.first_train_batches

    def train_batches(self, epoch: int) -> list[np.ndarray]:
        return np.split(np.arange(len(self.images)), range(8, len(self.images), 8))

    def augmented_loader(self, batches, epoch):
        self.asked += batches
        return [SimpleNamespace(images=self.images[ids]) for ids in batches]

    def loader_of(self, ids):
        self.asked.append(ids)
        return [SimpleNamespace(images=self.images[ids])]

    def transfer_batch_to_device(self, batch, device, number):
        return batch


def module_for(model: nn.Module, record: ArchitectureRecord):
    return SimpleNamespace(
        model=model, record=record, device="cpu", normalise=lambda x: x, augmented=lambda b, epoch: b.images
    )


def decided(config: LowRankConfig, record: ArchitectureRecord | None = None, seed: int = 0, say=print):
    record = record or record_for()
    torch.manual_seed(seed)
    model = build(record)
    with torch.no_grad():
        for parameter in model.parameters():  # spectra that fall
            if parameter.ndim == 2:
                u, s, v = torch.linalg.svd(torch.randn_like(parameter), full_matrices=False)
                parameter.copy_(u * torch.logspace(0.5, -1.5, len(s)) @ v)
    config.validate()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = plan.decide(config, model, module_for(model, record), Images(), 0, say)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return model, found


# --- which ranks meet a budget ---------------------------------------------------------------------


def options_of(costs, losses) -> list[Option]:
    return [
        Option(None if k == 0 else len(costs) - k, {"macs": float(cost)}, loss)
        for k, (cost, loss) in enumerate(zip(costs, losses, strict=True))
    ]


def test_the_cheapest_losses_go_first_by_hand():
    options = {"a": options_of([10, 8, 4, 2], [0, 1, 3, 9]), "b": options_of([10, 6, 3], [0, 1, 10])}
    # slopes: a 0.5, 0.5, 3; b 0.25, 3
    for budget, wanted in ((16, (10, 6)), (14, (8, 6)), (10, (4, 6)), (8, (2, 6)), (5, (2, 3))):
        chosen = allocate(options, {"macs": 20.0}, {"macs": float(budget)})
        assert tuple(chosen[name].costs["macs"] for name in "ab") == wanted
    assert allocate(options, {"macs": 20.0}, {"macs": 20.0})["a"].rank is None
    with pytest.raises(CannotMeetError, match=r"0\.250"):
        allocate(options, {"macs": 20.0}, {"macs": 4.0})


@pytest.mark.parametrize("seed", range(5))
def test_what_is_chosen_is_the_best_for_what_it_costs(seed):
    rng = np.random.default_rng(seed)
    options, largest = {}, 0.0
    for scale, name in enumerate("abc", 1):
        steps = np.sort(rng.random(5))  # each layer's losses are convex
        options[name] = options_of(scale * np.array([20, 15, 12, 9, 6, 3]), [0, *steps.cumsum()])
        largest = max(largest, steps[-1])
    everything = [
        (sum(o.costs["macs"] for o in combination), sum(o.loss for o in combination))
        for combination in itertools.product(*options.values())
    ]
    exact = 0
    for budget in range(18, 120, 6):
        chosen = allocate(options, {"macs": 120.0}, {"macs": float(budget)})
        cost, lost = (sum(o.costs["macs"] for o in chosen.values()), sum(o.loss for o in chosen.values()))
        assert cost <= budget
        best = min(loss for own, loss in everything if own <= budget)
        assert best - 1e-12 <= lost <= best + largest  # at most one step too many
        exact += lost == pytest.approx(best)
    assert exact >= 9  # of 17


def test_two_budgets_are_both_met():
    options = {
        "wide": [Option(None, {"macs": 10, "params": 90}, 0), Option(1, {"macs": 1, "params": 9}, 1)],
        "long": [Option(None, {"macs": 90, "params": 10}, 0), Option(1, {"macs": 9, "params": 1}, 1)],
    }
    whole = {"macs": 100.0, "params": 100.0}
    for budgets, wanted in (
        ({"macs": 50}, {"long"}),
        ({"params": 50}, {"wide"}),
        ({"macs": 50, "params": 50}, {"wide", "long"}),
    ):
        chosen = allocate(options, whole, budgets)
        assert {name for name, option in chosen.items() if option.rank} == wanted


# --- which layers ------------------------------------------------------------------------------------


def test_layers_of_a_vit_and_what_they_cost():
    found = find_layers(record_for(), KINDS)
    assert [(one.name, one.kind, one.shape, one.positions) for one in found.layers[:4]] == [
        ("blocks.0.attn.qkv", "qkv", (96, 32), 17),
        ("blocks.0.attn.proj", "proj", (32, 32), 17),
        ("blocks.0.mlp.fc1", "fc1", (128, 32), 17),
        ("blocks.0.mlp.fc2", "fc2", (32, 128), 17),
    ]
    assert len(found.layers) == 8
    # r (m + n) < m n: 24 x 128 = 3072 is no less than 96 x 32
    assert [one.highest for one in found.layers[:4]] == [23, 15, 25, 25]
    model = build(record_for())
    assert found.costs == {"macs": count_operations(model, (1, 8, 8)).macs, "params": count_parameters(model)}
    assert [one.name for one in find_layers(record_for(), ["head"]).layers] == ["head"]


def test_kinds_of_other_models():
    swin = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 2, "depth": None}
    record = record_for("swin_tiny_patch4_window7_224", **{k: v for k, v in swin.items() if v is not None})
    for key in ("depth",):
        record.kwargs.pop(key)
    found = {one.name: one for one in find_layers(record, [*KINDS, "other", "head"]).layers}
    assert found["layers.1.downsample.reduction"].kind == "other"
    assert found["head.fc"].kind == "head"
    assert found["layers.0.blocks.0.attn.qkv"].positions == 16
    assert found["layers.1.blocks.0.mlp.fc2"].positions == 4


def test_layers_whose_weights_are_used_without_a_call_are_left_out():
    record = record_for("beit_base_patch16_224")  # computes q, k, v from the weights
    kinds = {one.kind for one in find_layers(record, KINDS).layers}
    assert kinds == {"proj", "fc1", "fc2"}
    with pytest.raises(
        UserError, match=r"compress\.lowrank\.layers=qkv: are not in .* which has fc1, fc2, head, proj"
    ):
        find_layers(record, ["qkv"])


def test_a_layer_that_is_called_and_read_is_refused(monkeypatch):
    from timm.layers import Mlp

    forward = Mlp.forward
    monkeypatch.setattr(Mlp, "forward", lambda self, x: forward(self, x) * self.fc1.weight.shape[0])
    with pytest.raises(UserError, match=r"uses weights of linear layers that it also calls"):
        find_layers(record_for(), ["fc1"])
    assert find_layers(record_for(), ["fc2"]).layers


def test_shared_layers_are_left_out(monkeypatch):
    from effvit_train.compress.lowrank import layers

    def shared(record):
        model = build(record)
        model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
        model.blocks[1].attn.proj = model.blocks[0].attn.proj
        return model

    monkeypatch.setattr(layers, "build", shared)
    names = {one.name for one in find_layers(record_for(), KINDS).layers}
    assert len(names) == 4
    assert "blocks.1.mlp.fc2" in names
    assert not any("fc1" in name or "proj" in name for name in names)


# --- what is decided ---------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["none", "activation"])
def test_by_energy_each_layer_gets_the_lowest_rank_that_keeps_it(weighting):
    model, found = decided(LowRankConfig(energy=0.95, weighting=weighting, round_to=1))
    assert len(found.facts["layers"]) == 8
    for name, row in found.facts["layers"].items():
        assert row["energy"] >= 0.95
        assert row["error"] == pytest.approx((1 - row["energy"]) ** 0.5)
        if weighting == "none":
            values = torch.linalg.svdvals(matrix_of(model.get_submodule(name))) ** 2
            kept = values.cumsum(0) / values.sum()
            assert row["rank"] == int((kept < 0.95).sum()) + 1
            assert row["energy"] == pytest.approx(float(kept[row["rank"] - 1]))
    apply(model, found.operations)
    shapes = {
        name: list(layer.down.weight.shape[:1])
        for name, layer in model.named_modules()
        if isinstance(layer, FactoredLinear)
    }
    assert shapes == {name: [rank] for name, rank in found.entry["layers"].items()}


def test_the_costs_that_are_told_are_counted_ones():
    model, found = decided(LowRankConfig(rank=7, weighting="none", layers="fc1"))
    assert found.entry == {"kind": "lowrank", "layers": {"blocks.0.mlp.fc1": 7, "blocks.1.mlp.fc1": 7}}
    apply(model, found.operations)
    after = {"macs": count_operations(model, (1, 8, 8)).macs, "params": count_parameters(model)}
    assert found.facts["after"] == after
    # by hand: in both blocks 128 x 32 weights became 7 x (128 + 32), applied to 17 tokens
    assert found.facts["before"]["params"] - after["params"] == 2 * (128 * 32 - 7 * 160)
    assert found.facts["before"]["macs"] - after["macs"] == 17 * 2 * (128 * 32 - 7 * 160)
    rebuilt = build(record_for(cuts=[found.entry]))
    assert count_parameters(rebuilt) == after["params"]


@pytest.mark.parametrize("target", [{"macs": 0.6}, {"params": 0.4}, {"macs": 0.5, "params": 0.6}])
def test_a_budget_is_met_and_not_missed_by_far(target):
    _, found = decided(LowRankConfig(target=TargetConfig(**target), weighting="none"))
    shares = {name: found.facts["after"][name] / found.facts["before"][name] for name in target}
    assert all(shares[name] <= value for name, value in target.items())
    assert any(shares[name] > value - 0.02 for name, value in target.items())
    # the lower ranks where spectra fall alike are those of the layers that save more
    lost = {name: 1 - row["energy"] for name, row in found.facts["layers"].items()}
    assert max(lost.values()) < 0.5


def test_ranks_are_multiples_and_narrow_layers_have_finer_ones():
    _, found = decided(LowRankConfig(energy=0.9, weighting="none", round_to=4))
    assert all(row["rank"] % 4 == 0 for row in found.facts["layers"].values())
    steps = {
        one.kind: plan._multiple(LowRankConfig(), one) for one in find_layers(record_for(), KINDS).layers
    }
    assert steps == {"qkv": 2, "proj": 1, "fc1": 2, "fc2": 2}  # an eighth of 23, 15, 25, 25
    wide = find_layers(record_for(embed_dim=192), KINDS).layers
    assert {plan._multiple(LowRankConfig(), one) for one in wide} == {8}


def test_nothing_is_factored_where_nothing_is_saved():
    said: list[str] = []
    torch.manual_seed(0)
    record = record_for()
    model = build(record)
    config = LowRankConfig(energy=1.0, weighting="none")
    assert plan.decide(config, model, module_for(model, record), Images(), 0, said.append) is None
    assert said[0].startswith(
        "lowrank: no layer keeps 1 of its energy at a rank that saves anything; the most"
    )


def test_the_moments_of_inputs_are_those_of_the_calibration_images():
    record, data = record_for(), Images()
    torch.manual_seed(0)
    model = build(record)
    config = LowRankConfig(calibration=20)
    inputs, count = looks.inputs_of(
        model, ["blocks.1.mlp.fc1"], looks.calibration_images(config, module_for(model, record), data, 0)
    )
    found = inputs["blocks.1.mlp.fc1"]
    assert count == 20
    assert [len(ids) for ids in data.asked] == [8, 8, 4]
    seen = []
    model.blocks[1].mlp.fc1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    model.eval()(data.images[:20])
    rows = seen[0].double().flatten(0, 1)
    assert torch.allclose(found.mean, rows.mean(0), atol=1e-6)
    assert torch.allclose(found.covariance, torch.cov(rows.T, correction=0), atol=1e-5)


def test_weighting_by_activations_loses_less_of_the_outputs():
    lost = {}
    for weighting in ("none", "activation"):
        model, found = decided(LowRankConfig(rank=4, weighting=weighting, layers="fc2", calibration=40))
        layer = model.blocks[0].mlp.fc2
        operation = next(f for f in found.operations if f.layer == "blocks.0.mlp.fc2")
        taps = Taps(model, ["blocks.0.mlp.norm"])  # does nothing: its output is what fc2 is given
        with torch.no_grad():
            model.eval()(Images().images[:40])
            x = taps.take()["blocks.0.mlp.norm"]
            lost[weighting] = float((operation.factored(layer)(x) - layer(x)).square().sum())
    assert lost["activation"] < 0.9 * lost["none"]


def test_the_search_measures_what_the_answers_lose():
    _, found = decided(
        LowRankConfig(target=TargetConfig(macs=0.6), search=True, search_images=30, weighting="none")
    )
    tried = found.facts["search"]
    assert (found.facts["search_images"], found.facts["calibration_images"]) == (30, None)
    assert set(tried) == {one.name for one in find_layers(record_for(), KINDS).layers}
    model, _ = decided(LowRankConfig(rank=1, weighting="none"))
    name, ranks = next(iter(tried.items()))
    images = Images().images[np.linspace(10, 59, 30).round().astype(int)]
    for rank, wanted in ranks.items():
        other = copy.deepcopy(model)
        apply(other, [decompose(matrix_of(model.get_submodule(name))).factor(name, int(rank))])
        with torch.no_grad():
            p, q = (F.softmax(one.eval()(images).double(), -1) for one in (model, other))
        assert wanted == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-3, abs=1e-9)
    assert list(map(int, ranks)) == [6, 12, 16, 22]  # of 2, 4 ... 22 about the quarters


def test_losses_between_measured_ranks_follow_the_energy():
    own = Decomposition(torch.tensor([8.0, 4, 2, 1, 1]), torch.eye(5), None)
    lost = {rank: 1 - own.kept(rank) for rank in range(1, 6)}
    found = looks.losses(own, [1, 2, 3, 4], {2: 3 * lost[2], 4: 5 * lost[4]})
    assert found == pytest.approx({1: 3 * lost[1], 2: 3 * lost[2], 3: 4 * lost[3], 4: 5 * lost[4]})


@pytest.mark.parametrize(("settings", "words"), [
    ({"energy": 0.0}, r"compress\.lowrank\.energy=0\.0: must be the share"),
    ({"energy": 1.2}, r"above 0 and up to 1"),
    ({"rank": 0}, r"compress\.lowrank\.rank=0: must be at least 1"),
    ({"target": TargetConfig(macs=1.5)}, r"compress\.lowrank\.target\.macs=1\.5"),
    ({"energy": 0.9, "rank": 4}, r"compress\.lowrank\.energy=0\.9: decides on ranks, and so does compress\.lowrank\.rank"),
    ({"rank": 4, "target": TargetConfig(params=0.5)}, r"and so does compress\.lowrank\.target"),
    ({"search": True}, r"compress\.lowrank\.search=true: finds out where a budget"),
    ({"layers": ["fc3"]}, r"compress\.lowrank\.layers=fc3: must be of qkv, proj.*did you mean"),
    ({"layers": []}, r"names nothing to factor"),
    ({"weighting": "activations"}, r"did you mean 'activation'"),
    ({"start": 1.5}, r"compress\.lowrank\.start=1\.5"),
    ({"round_to": 0}, r"compress\.lowrank\.round_to=0"),
    ({"calibration": 0}, r"compress\.lowrank\.calibration=0"),
    # of the model
    ({"rank": 26}, r"compress\.lowrank\.rank=26: saves nothing in any of 8 layers: the highest rank that does is 25"),
    ({"round_to": 64}, r"compress\.lowrank\.round_to=64: saves nothing"),
    ({"target": TargetConfig(macs=0.05)}, r"compress\.lowrank\.target\.macs=0\.05: cannot be met by factoring qkv"),
    ({"layers": ["patch_embed"]}, r"compress\.lowrank\.layers=patch_embed: are not in vit_tiny_patch16_224, which has fc1"),
])  # fmt: skip
def test_wrong_settings_are_told_in_one_line(settings, words):
    def check() -> None:
        config = LowRankConfig(**settings)
        config.validate()
        plan.check(config, record_for())

    with pytest.raises(UserError, match=words) as caught:
        check()
    assert "\n" not in str(caught.value)


def test_an_optimizer_with_a_state_from_the_start_is_refused():
    check_optimizer(RecipeConfig(optimizer="adafactor"))
    with pytest.raises(UserError, match=r"recipe\.optimizer=adagrad: makes its state before the first step"):
        check_optimizer(RecipeConfig(optimizer="adagrad"))


# --- distillation ------------------------------------------------------------------------------------


def factor_all(model: nn.Module, rank: int) -> list:
    return [
        decompose(matrix_of(layer)).factor(name, rank)
        for name, layer in model.named_modules()
        if type(layer) is nn.Linear and name.startswith("blocks")
    ]


def test_terms_that_look_inside_go_on_after_the_change():
    student, other = vit(seed=0), teacher(vit(seed=1, embed_dim=16))
    targets = LiveTargets([other])
    own = SelfTerm(student, decay=0.5, temperature=1.0, weight=1.0)
    terms = [
        RelationTerm(student, targets, RelationConfig()),
        FeatureTerm(student, targets, INFO, FeatureConfig(), 0),
        own,
    ]
    other.tap({terms[0].teacher_tap, *terms[1].teacher_taps})
    operations = factor_all(student, 8)  # full
    before = [term(step_of(student, terms)) for term in terms]
    apply(student, operations)
    for term in terms:
        term.after_cut(student, operations, None)
    assert isinstance(own.module.average.module.blocks[0].attn.qkv, FactoredLinear)
    for term, wanted in zip(terms, before, strict=True):
        found = term(step_of(student, terms))
        assert torch.allclose(found, wanted, atol=1e-5)
        assert found.requires_grad
    # and from a factored start, on both sides
    apply(other.model, factor_all(other.model, 16))
    again = RelationTerm(student, LiveTargets([other]), RelationConfig())
    other.tap({again.teacher_tap})
    assert again.taps == terms[0].taps
    assert torch.allclose(again(step_of(student, [again])), before[0], atol=1e-4)
