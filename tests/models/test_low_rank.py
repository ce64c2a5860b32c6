"""Linear layers as products of two: the same function, the same optimizer, the same cuts, the same cost."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from test_structure import ALL, cut_like_masked, other_vit
from test_surgery import MODELS, OPTIMIZERS, images, make, record_for, steps
from timm.layers import SwiGLU
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from effvit_train.audit.operations import count_operations
from effvit_train.compress.lowrank.decompose import Inputs, decompose, decompose_on
from effvit_train.models.changes import rebuild, recorded_operations
from effvit_train.models.factored import FactoredLinear, is_linear, matrix_of
from effvit_train.models.factory import build, load_model, save_model
from effvit_train.models.low_rank import Factor, record_of
from effvit_train.models.make import make as make_architecture
from effvit_train.models.surgery import Fold, apply

# --- the approximation -----------------------------------------------------------------------------

SHAPES = [(5, 9), (9, 5), (6, 6)]


def random_layer(out: int, into: int, seed: int = 0) -> tuple[nn.Linear, Tensor]:
    """A layer, and inputs (n, in) of unlike directions, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(into, out).double()
    mix = torch.randn(into, into, generator=generator, dtype=torch.float64)
    x = torch.randn(200, into, generator=generator, dtype=torch.float64) @ mix + 2
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer, x


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_is_the_truncated_svd(shape):
    layer, _ = random_layer(*shape)
    matrix = matrix_of(layer)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = decompose(matrix)
    assert torch.allclose(found.energies, s**2)
    for rank in range(1, min(shape) + 1):
        ours = matrix_of(found.factor("x", rank).factored(layer))
        assert torch.allclose(ours, u[:, :rank] * s[:rank] @ v[:rank], atol=1e-10)
        assert found.kept(rank) == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()))


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_by_the_inputs_is_the_whitened_svd(shape):
    # by a Cholesky factor S = L L^T of the second moment, as SVD-LLM writes it: W' = (W L)_r L^-1
    layer, x = random_layer(*shape)
    matrix, moment = matrix_of(layer), x.T @ x / len(x)
    lower = torch.linalg.cholesky(moment)
    u, s, v = torch.linalg.svd(matrix @ lower, full_matrices=False)
    found = decompose(matrix, moment)
    plain = decompose(matrix)
    for rank in range(1, min(shape)):
        ours = matrix_of(found.factor("x", rank).factored(layer))
        wanted = torch.linalg.solve_triangular(lower.T, (u[:, :rank] * s[:rank] @ v[:rank]).T, upper=True).T
        assert torch.allclose(ours, wanted, rtol=1e-3, atol=1e-3)  # but for the floor under the moment
        error = ((x @ (matrix - ours).T) ** 2).sum()
        assert float(error) == pytest.approx(float(len(x) * (s[rank:] ** 2).sum()), rel=1e-4)
        other = matrix_of(plain.factor("x", rank).factored(layer))
        assert error < ((x @ (matrix - other).T) ** 2).sum()


@pytest.mark.parametrize("shape", SHAPES)
def test_with_a_bias_only_what_varies_is_kept(shape):
    # the best low-rank outputs are the principal components of the outputs, found here from the outputs themselves
    layer, x = random_layer(*shape)
    outputs = layer(x).detach()
    spread = torch.linalg.svdvals(outputs - outputs.mean(0))
    found = decompose_on(matrix_of(layer), Inputs(x.mean(0), x.T @ x / len(x)), biased=True)
    for rank in range(1, min(shape)):
        ours = found.factor("x", rank).factored(layer)(x).detach()
        assert torch.allclose(ours.mean(0), outputs.mean(0), atol=1e-9)
        assert float(((ours - outputs) ** 2).sum()) == pytest.approx(
            float((spread[rank:] ** 2).sum()), rel=1e-4
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_another_model_is_written_in_the_same_basis(shape, weighted):
    layer, x = random_layer(*shape)
    other, _ = random_layer(*shape, seed=1)
    moment = x.T @ x / len(x) if weighted else None
    found = decompose(matrix_of(layer), moment)
    ours, theirs = (found.factor("x", 3).factored(one) for one in (layer, other))
    narrow = shape[0] <= shape[1]
    assert torch.equal(ours.up.weight, theirs.up.weight) == narrow
    assert torch.equal(ours.down.weight, theirs.down.weight) != narrow
    # the factor that is free is the best one for the other's weights: the error is orthogonal to the basis
    error = matrix_of(other) - matrix_of(theirs)
    if narrow:
        assert (theirs.up.weight.T @ error).abs().max() < 1e-9
        assert torch.allclose(ours.up.weight.T @ ours.up.weight, torch.eye(3, dtype=torch.float64))
    else:
        weight = torch.eye(shape[1], dtype=torch.float64) if moment is None else moment
        rows = ours.down.weight.detach()
        assert (error @ weight @ rows.T).abs().max() < 1e-3
        assert torch.allclose(rows @ weight @ rows.T, torch.eye(3, dtype=torch.float64), atol=1e-4)
    full = found.factor("x", min(shape)).factored(other)
    assert torch.allclose(matrix_of(full), matrix_of(other), atol=1e-9)


def test_inputs_that_no_image_has_shown_do_no_harm():
    layer, x = random_layer(9, 5)
    x[:, 3:] = 0
    for moment in (x.T @ x / len(x), torch.zeros(5, 5, dtype=torch.float64)):
        found = decompose(matrix_of(layer), moment)
        assert torch.allclose(matrix_of(found.factor("x", 5).factored(layer)), matrix_of(layer), atol=1e-6)
        assert found.basis.isfinite().all()


# --- models ------------------------------------------------------------------------------------------

OTHERS = {
    "swiglu": lambda: other_vit(mlp_layer=SwiGLU),
    "convnext": lambda: timm.create_model(
        "convnext_tiny", num_classes=5, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)
    ),
    "scatter": lambda: make_architecture(
        "vit_tiny_patch16_224",
        {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 4,
            "num_classes": 5,
            "stem": "scattering",
            "global_pool": "flat",
            "class_token": False,
        },
    ),
}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = make(name) if name in MODELS else OTHERS[name]()
    return model.float().eval()


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if is_linear(module)}


def factors(model: nn.Module, rank: int | None = None, *, weighted: bool = False) -> list[Factor]:
    """Of every linear layer, of its full rank where no other is given."""
    operations = []
    generator = torch.Generator().manual_seed(1)
    for name, layer in linear_layers(model).items():
        matrix = matrix_of(layer)
        moment = None
        if weighted:
            x = torch.randn(300, matrix.shape[1], generator=generator, dtype=torch.float64)
            moment = (x * torch.logspace(-2, 2, matrix.shape[1])).T @ x / 300
            moment = moment @ moment.T
        operations.append(decompose(matrix, moment).factor(name, rank or min(matrix.shape)))
    return operations


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
def test_full_rank_equals_the_original(name, weighted):
    model = model_of(name)
    factored = copy.deepcopy(model)
    operations = factors(model, weighted=weighted)
    assert len(operations) > 4
    apply(factored, operations)
    with torch.no_grad():
        before, after = model(images(double=False)), factored(images(double=False))
    assert not any(
        type(m) is nn.Linear for n, m in factored.named_modules() if n.split(".")[-1] not in ("up", "down")
    )
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()


def test_a_layer_of_lower_rank_can_be_cut_again():
    model = model_of("vit")
    apply(model, factors(model, 6))
    layer = model.blocks[0].mlp.fc1
    assert isinstance(layer, FactoredLinear)
    whole = nn.Linear(24, 96)
    whole.weight.data, whole.bias.data = matrix_of(layer).float(), layer.bias.data.clone()
    apply(model, [decompose(matrix_of(layer)).factor("blocks.0.mlp.fc1", 3)])
    again = model.blocks[0].mlp.fc1
    assert again.rank == 3
    assert torch.linalg.matrix_rank(matrix_of(again), rtol=1e-5) == 3
    u, s, v = torch.linalg.svd(whole.weight.detach().double())
    assert torch.allclose(matrix_of(again), u[:, :3] * s[:3] @ v[:3], atol=1e-5)


def test_the_macs_are_those_of_the_formula():
    model = build(record_for("vit"))
    tokens, width, hidden, depth = 17, 24, 96, 3
    ranks = {"attn.qkv": 4, "attn.proj": 3, "mlp.fc1": 5, "mlp.fc2": 6}
    change = record_of({f"blocks.{k}.{name}": rank for k in range(depth) for name, rank in ranks.items()})
    rebuild(model, [change])
    shapes = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (hidden, width),
        "mlp.fc2": (width, hidden),
    }
    block = sum(ranks[name] * (out + into) * tokens for name, (out, into) in shapes.items())
    patches = 16 * width * 3 * 8 * 8
    wanted = patches + depth * (block + 2 * tokens**2 * width) + width * 5
    found = count_operations(model, (3, 32, 32))
    assert found.macs == wanted
    assert not found.uncounted


# --- the optimizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_decay", [None, 0.7])
@pytest.mark.parametrize("name", ["vit", "deit3", "swin", "convnext"])
def test_groups_are_those_of_a_fresh_optimizer(name, layer_decay):
    model = model_of(name)

    def optimizer_of() -> torch.optim.Optimizer:
        return create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=layer_decay)

    optimizer = optimizer_of()
    layers = [layer for layer in linear_layers(model) if not layer.startswith("head")]
    apply(model, [f for f in factors(model, 3) if f.layer in layers], optimizer)
    fresh = optimizer_of()
    ours, theirs = ([[id(p) for p in g["params"]] for g in o.param_groups] for o in (optimizer, fresh))
    assert ours == theirs
    for own, other in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        assert own["weight_decay"] == other["weight_decay"]
        assert own.get("lr_scale") == other.get("lr_scale")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on(optimizer):
    model = make("vit")
    own = OPTIMIZERS[optimizer](model.parameters())
    steps(model, own, 2)
    bias, other = model.blocks[0].mlp.fc1.bias, model.blocks[0].norm1.weight
    weight = model.blocks[0].mlp.fc1.weight
    kept = {p: copy.deepcopy(own.state[p]) for p in (bias, other)}
    apply(model, [f for f in factors(model, 4) if f.layer == "blocks.0.mlp.fc1"], own)
    assert model.blocks[0].mlp.fc1.bias is bias
    assert weight not in own.state
    for parameter, state in kept.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(own.state[parameter][key]), torch.as_tensor(value))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    steps(model, own, 2, start=2)
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert len(own.state_dict()["state"]) == len(list(model.parameters()))


def test_frozen_layers_stay_frozen():
    model = model_of("vit").requires_grad_(False)
    model.head.requires_grad_(True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    apply(model, factors(model, 3), optimizer)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"head.down.weight", "head.up.weight", "head.up.bias"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 3


@pytest.mark.slow
def test_a_compiled_model_follows():
    model = model_of("vit")
    compiled = torch.compile(model, backend="eager")
    x = images(double=False)
    with torch.no_grad():
        compiled(x)
        apply(model, factors(model, 3))
        assert torch.allclose(compiled(x), model(x), atol=1e-6)


def test_it_is_exported_with_a_batch_of_any_size():
    model = model_of("vit")
    apply(model, factors(model, 3))
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(model, (images(2, double=False),), dynamic_shapes=({0: batch},))
        x = images(5, double=False)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)


# --- the record --------------------------------------------------------------------------------------


def test_a_record_rebuilds_it(tmp_path):
    record = record_for("swin")
    model = make("swin", double=False)
    ranks = dict.fromkeys(linear_layers(model), 2)
    apply(model, factors(model, 2))
    changed = record.from_json({**record.to_json(), "cuts": [json.loads(json.dumps(record_of(ranks)))]})
    save_model(model, changed, tmp_path)
    assert torch.equal(load_model(tmp_path)(images(double=False)), model(images(double=False)))
    with torch.device("meta"):
        assert {n: p.shape for n, p in build(changed).named_parameters()} == {
            n: p.shape for n, p in model.named_parameters()
        }


@pytest.mark.parametrize("layers", [
    None, [], {"blocks.9.mlp.fc1": 2}, {"blocks.0.norm1": 2}, {"blocks.0": 2}, {"blocks.0.mlp.fc1": 0},
    {"blocks.0.mlp.fc1": 25}, {"blocks.0.mlp.fc1": True}, {"blocks.0.mlp.fc1": 2.0},
])  # fmt: skip
def test_another_record_is_refused(layers):
    with pytest.raises(ValueError, match=r"record|factored|rank"):
        recorded_operations(build(record_for("vit")), {"kind": "lowrank", "layers": layers})


# --- and pruning -------------------------------------------------------------------------------------


def factored_model(name: str) -> nn.Module:
    """In double precision, without the zeros and ones that parameters start with."""
    model = other_vit(mlp_layer=SwiGLU) if name == "swiglu" else make(name)
    layers = (
        {"head", "head.fc", "head_dist"} if name == "deit" else set()
    )  # all else; of this one also its heads
    apply(model, [f for f in factors(model, 5) if layers or not f.layer.startswith("head")])
    return model


@pytest.mark.parametrize("kinds", [*((kind,) for kind in ALL), ALL], ids=[*ALL, "all"])
@pytest.mark.parametrize("name", ["vit", "deit", "swin", "swiglu"])
def test_a_factored_model_is_cut_like_a_masked_one(name, kinds):
    dense = factored_model(name)
    cut, masked = cut_like_masked(dense, kinds)
    with torch.no_grad():
        assert torch.allclose(cut(images()), masked(images()), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(cut(images()), dense(images()), atol=1e-3)


def test_a_cut_model_is_factored():
    cut, _ = cut_like_masked(make("vit"), ("heads", "mlp"))
    whole = copy.deepcopy(cut)
    apply(cut, factors(cut))
    with torch.no_grad():
        assert torch.allclose(cut(images()), whole(images()), atol=1e-9)


def test_what_stands_in_for_removed_units_does_so_in_a_product():
    layer, x = random_layer(6, 8)
    new = decompose(matrix_of(layer)).factor("x", 6).factored(layer)
    generator = torch.Generator().manual_seed(0)
    fold = Fold(
        "x", torch.tensor([0, 1, 2, 4]), torch.tensor([3, 5, 6, 7]),
        torch.randn(4, 4, generator=generator, dtype=torch.float64), torch.ones(4, dtype=torch.float64),
    )  # fmt: skip
    holders = [nn.ModuleDict({"x": one}) for one in (layer, new)]
    for holder in holders:
        apply(holder, [fold])
    assert torch.allclose(holders[0]["x"](x), holders[1]["x"](x), atol=1e-8)


def test_latencies_of_a_factored_model_are_measured(monkeypatch):
    from effvit_train.compress.prune import latency
    from effvit_train.models.structure import read_structure

    @torch.inference_mode()
    def run(works, device):
        return [float(work() is not None) for work in works]

    monkeypatch.setattr(latency, "_medians", run)
    model = factored_model("vit").float()
    structure = read_structure(model)
    table = latency.measure(model, structure, (3, 32, 32), ["heads", "head_width", "mlp", "embed"])
    assert set(table.modules) == {f"blocks.{k}.{part}" for k in range(3) for part in ("attn", "mlp")}
