"""What engines do to the modules, what they stand in the way of, and the check against a loop."""

from __future__ import annotations

import copy
import math
import socket

import pytest
import torch
from engine_harness import compare, images, label_losses, loop, make_model, median_norm, take
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.errors import UserError
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import apply, cut_group, drop_block
from effvit_train.privacy.engine import KINDS, Clip, make_engine
from effvit_train.privacy.engine.checks import check

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state_of(modules: nn.Module) -> dict[str, object]:
    """Everything of the modules that an engine may touch."""
    state: dict[str, object] = {}
    for path, module in modules.named_modules():
        for hooks in HOOKS:
            state[f"{path}.{hooks}"] = len(getattr(module, hooks))
        state[f"{path}.own"] = sorted(k for k in module.__dict__ if k not in HOOKS)
        state[f"{path}.training"] = module.training
        for name, parameter in module._parameters.items():
            state[f"{path}.{name}"] = id(parameter)
            if parameter is not None:
                state[f"{path}.{name}.own"] = (
                    sorted(parameter.__dict__),
                    parameter.grad,
                    parameter.requires_grad,
                )
    return state


@pytest.mark.parametrize("model", ["registers", "swin", "map"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_stays_on_the_modules(kind, model):
    if model == "swin" and "opacus" in kind:
        pytest.skip("refused")
    modules, batch = make_model(model), images(2)
    losses, before, keys = label_losses(modules), state_of(modules), list(modules.state_dict())
    expected = losses(batch)
    engine = make_engine(kind, modules, Clip(1.0))
    engine.accumulate(losses, 2, batch)
    assert list(modules.state_dict()) == keys
    if kind in ("bookkeeping", "vmap"):  # between steps too
        assert state_of(modules) == before
    engine.close()
    assert state_of(modules) == before
    assert torch.equal(losses(batch), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_that_fails_leaves_the_modules_whole(kind):
    modules, batch = make_model("vit"), images(2)
    before = state_of(modules)
    engine = make_engine(kind, modules, Clip(1.0))

    def losses(batch) -> Tensor:
        modules["model"](batch[0])
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        engine.accumulate(losses, 2, batch)
    good = label_losses(modules)
    assert compare(engine, good, batch, 2) <= 1e-9
    engine.close()
    assert state_of(modules) == before


def test_gradients_of_others_are_left_alone():
    modules, batch = make_model("vit"), images(2)
    mine = {name: torch.full_like(p, 7.0) for name, p in modules.named_parameters()}
    for name, parameter in modules.named_parameters():
        parameter.grad = mine[name]
    for kind in KINDS:
        engine = make_engine(kind, modules, Clip(1.0))
        engine.accumulate(label_losses(modules), 2, batch)
        engine.close()
    for name, parameter in modules.named_parameters():
        assert parameter.grad is mine[name]
        assert (mine[name] == 7).all()


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_cut(kind):
    modules, batch = make_model("vit"), images(3)
    losses = label_losses(modules)
    engine = make_engine(kind, modules, Clip(math.inf))
    engine.accumulate(losses, 3, batch)
    engine.close()  # no graph and no hook may hold what is cut
    structure = read_structure(modules["model"])
    operations = []
    for name in ("blocks.0.attn.heads", "blocks.0.mlp", "embed"):
        group = structure.groups[name]
        operations += cut_group(structure, group, (torch.arange(structure.size(group) // 2),))
    operations += drop_block(structure, "blocks.1")
    apply(modules["model"], operations)
    engine.refresh()
    assert engine.sums["model.blocks.0.attn.qkv.weight"].shape == (3 * 8, 8)
    assert not any("blocks.1" in name for name in engine.sums)
    assert not any(total.any() for total in engine.sums.values())
    engine.clip = Clip(median_norm(modules, losses, batch, 3))
    assert compare(engine, losses, batch, 3) <= 1e-9
    engine.close()


def test_after_a_cut_of_swin():
    modules, batch = make_model("swin"), images(3)
    losses = label_losses(modules)
    engine = make_engine("bookkeeping", modules, Clip(1.0))
    structure = read_structure(modules["model"])
    for name in ("layers.0.blocks.1.attn.heads", "layers.1.blocks.0.mlp", "layers.0.embed"):
        group = structure.groups[name]
        apply(modules["model"], cut_group(structure, group, (torch.arange(structure.size(group) // 2),)))
    engine.refresh()
    assert compare(engine, losses, batch, 3) <= 1e-9


def test_after_freezing():
    modules, batch = make_model("vit"), images(3)
    engine = make_engine("bookkeeping", modules, Clip(1.0))
    for name, parameter in modules.named_parameters():
        parameter.requires_grad_("norm" in name or "token" in name)
    engine.refresh()
    assert all("norm" in name or "token" in name for name in engine.sums)
    assert compare(engine, label_losses(modules), batch, 3) <= 1e-9


def test_after_thawing():
    modules, batch = make_model("vit"), images(3)
    modules["model"].blocks.requires_grad_(False)
    engine = make_engine("bookkeeping", modules, Clip(1.0))
    modules["model"].blocks.requires_grad_(True)
    engine.refresh()
    assert compare(engine, label_losses(modules), batch, 3) <= 1e-9


@pytest.mark.parametrize("model", ["layer_scale", "swin", "map"])
def test_checkpointed_blocks_count_once(model):
    modules, batch = make_model(model), images(3)
    modules["model"].set_grad_checkpointing()
    losses = label_losses(modules)
    engine = make_engine("bookkeeping", modules, Clip(median_norm(modules, losses, batch, 3)))
    assert compare(engine, losses, batch, 3, micro_batches=(2, 1)) <= 1e-9


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["bookkeeping", "opacus_hooks"])
def test_dropout_and_stochastic_depth(kind, checkpointing):
    """The same draws as without an engine: the sum without a bound is the ordinary gradient."""
    if kind == "opacus_hooks" and checkpointing:
        pytest.skip("Opacus fails there")
    modules, batch = make_model("layer_scale"), images(4)
    for module in modules.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    for block in modules["model"].blocks:
        block.drop_path1 = block.drop_path2 = __import__("timm").layers.DropPath(0.5)
    modules.train()
    modules["model"].set_grad_checkpointing(checkpointing)
    losses = label_losses(modules)
    engine = make_engine(kind, modules, Clip(math.inf))
    torch.manual_seed(5)
    engine.accumulate(losses, 4, batch)
    torch.manual_seed(5)
    losses(batch).sum().backward()
    largest = max(p.grad.abs().max() for p in modules.parameters())
    for name, parameter in modules.named_parameters():
        assert (engine.sums[name] - parameter.grad).abs().max() <= 1e-12 * largest, name


def test_vmap_draws_for_each_sample():
    modules = nn.ModuleDict({"layer": nn.Linear(2, 1, bias=False), "drop": nn.Dropout(0.5)}).double()
    engine = make_engine("vmap", modules, Clip(math.inf))
    torch.manual_seed(0)
    norms = engine.accumulate(
        lambda b: modules["drop"](modules["layer"](b))[:, 0], 16, torch.ones(16, 2).double()
    )
    assert 0 < int((norms == 0).sum()) < 16


def test_wrapped_forward_and_distributed_training(tmp_path):
    """DDP's reducer is never told of a gradient, so it waits for none."""
    modules, batch = make_model("vit"), images(3)
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(modules["model"])

        def losses(batch) -> Tensor:
            return F.cross_entropy(wrapped(batch[0]), batch[1], reduction="none")

        engine = make_engine("bookkeeping", modules, Clip(1.0))
        reference = loop(modules, label_losses(modules), batch, 3, engine.clip)
        for _ in range(2):
            engine.zero()
            norms = engine.accumulate(losses, 3, batch)
            assert torch.allclose(norms, reference.norms)
            for name, total in reference.sums.items():
                assert torch.allclose(engine.sums[name], total)
        assert all(p.grad is None for p in modules.parameters())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("where", ["outside", "inside", "in place"])
@pytest.mark.parametrize("kind", ["bookkeeping", "vmap", "opacus_hooks"])
def test_compiled_modules_run_as_they_are_written(kind, where):
    modules, batch = make_model("vit"), images(2)
    reference = loop(modules, label_losses(modules), batch, 2, Clip(1.0))
    called = modules["model"]

    def never(graph, inputs):
        raise AssertionError("compiled")

    if where == "inside":
        called.blocks[0] = torch.compile(called.blocks[0], backend=never)
    elif where == "in place":
        called.compile(backend=never)
    else:
        called = torch.compile(called, backend=never)
    engine = make_engine(kind, modules, Clip(1.0))

    def losses(batch) -> Tensor:
        return F.cross_entropy(called(batch[0]), batch[1], reduction="none")

    norms = engine.accumulate(losses, 2, batch)
    assert torch.allclose(norms, reference.norms)


def test_dynamic_image_size_is_refused():
    modules = make_model("vit")
    modules["model"].dynamic_img_size = True
    with pytest.raises(UserError, match="fits its position embedding"):
        make_engine("bookkeeping", modules, Clip(1.0))


# --- the check -----------------------------------------------------------------------------------


def of_batch(losses, batch, views: int = 1):
    """What `check` is given: the losses of some samples."""

    def of(samples):
        rows = torch.tensor([k * views + v for k in samples for v in range(views)])
        return losses, torch.utils._pytree.tree_map(lambda tensor: tensor[rows], batch)

    return of


def closed(losses, batch):
    """The same without arguments, as a training step gives it."""

    def of(samples):
        part = torch.utils._pytree.tree_map(lambda tensor: tensor[list(samples)], batch)
        return (lambda: losses(part)), None

    return of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_check_passes_what_is_right(kind, dtype):
    modules, batch = make_model("deit", dtype), images(4, dtype)
    engine = make_engine(kind, modules, Clip(1.0))
    errors = check(engine, of_batch(label_losses(modules), batch), 4)
    assert max(errors.values()) <= (1e-5 if dtype == torch.float32 else 1e-9)
    assert not any(total.any() for total in engine.sums.values())


def test_check_with_views_and_without_arguments():
    modules, batch = make_model("vit"), images(6)
    losses = label_losses(modules)
    check(make_engine("bookkeeping", modules, Clip(1.0), views=2), of_batch(losses, batch, 2), 3)
    check(make_engine("bookkeeping", modules, Clip(1.0)), closed(losses, batch), 3)


def test_check_under_autocast():
    modules, batch = make_model("vit", torch.float32), images(4, torch.float32)
    engine = make_engine("bookkeeping", modules, Clip(1.0))
    with torch.autocast("cpu", torch.bfloat16):
        check(engine, closed(label_losses(modules), batch), 4, dtype=torch.bfloat16)


def test_check_leaves_all_as_it_was():
    modules, batch = make_model("swin"), images(4)
    for module in modules.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.4
    modules["model"].layers[1].blocks[0].eval()
    own, before = label_losses(modules), state_of(modules)

    def losses(batch) -> Tensor:
        torch.rand(1)  # a loss that draws
        return own(batch)

    rates = [m.p for m in modules.modules() if isinstance(m, nn.Dropout)]
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    check(make_engine("bookkeeping", modules, Clip(1.0)), of_batch(losses, batch), 4)
    assert torch.equal(torch.rand(3), expected)
    assert state_of(modules) == before
    assert [m.p for m in modules.modules() if isinstance(m, nn.Dropout)] == rates


class Planted(nn.Module):
    """A model with a mistake that no look at its layers would find."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.first, self.positions, self.last = nn.Linear(6, 4), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, batch) -> Tensor:
        inputs, labels = batch
        tokens = self.first(inputs)  # (B, T, 4)
        if self.mistake == "no batch axis":
            # T = 4 rows of coordinates: as many as there are samples
            tokens = tokens + self.positions(torch.linspace(0, 1, 8, dtype=inputs.dtype).view(4, 2))
        if self.mistake == "used outside":
            tokens = tokens + F.linear(tokens, self.first.weight[:, :4])
        if self.mistake == "samples attend":
            tokens = F.scaled_dot_product_attention(*(tokens.transpose(0, 1),) * 3).transpose(0, 1)
        features = tokens.mean(dim=1)
        losses = F.cross_entropy(self.last(features), labels, reduction="none")
        if self.mistake == "contrast":
            similar = F.normalize(features) @ F.normalize(features).T
            losses = losses + F.cross_entropy(similar * 5, torch.arange(len(similar)), reduction="none")
        if self.mistake == "mean":
            losses = losses + features.mean(dim=0).square().sum()
        if self.mistake == "scaled by the batch":
            losses = losses / len(losses)
        return losses


@pytest.mark.parametrize(
    ("mistake", "named"),
    [
        ("no batch axis", "positions"),
        ("used outside", "first.weight"),
        ("samples attend", "first"),
        ("contrast", ""),
        ("mean", ""),
        ("scaled by the batch", ""),
    ],
)
@pytest.mark.parametrize("clip", [Clip(0.1), Clip(100.0)])
def test_check_finds(mistake, named, clip):
    torch.manual_seed(0)
    batch = torch.randn(4, 4, 6), torch.tensor([0, 1, 2, 0])
    good = Planted("none")
    check(make_engine("bookkeeping", good, clip), of_batch(good, batch), 4)
    bad = Planted(mistake)
    with pytest.raises(UserError, match="of per-sample gradients of") as caught:
        check(make_engine("bookkeeping", bad, clip), of_batch(bad, batch), 4)
    assert f"gradients of {named}" in str(caught.value)
    assert caught.value.key == "privacy.engine"


def test_rows_that_are_no_samples_are_found_at_once():
    bad = Planted("no batch axis")
    engine = make_engine("bookkeeping", bad, Clip(1.0))
    with pytest.raises(UserError, match="positions is given 4 rows, which are not 3 images"):
        engine.accumulate(bad, 3, (torch.randn(3, 4, 6), torch.tensor([0, 1, 2])))


def test_copies_of_a_watched_model_are_whole():
    modules, batch = make_model("registers"), images(2)
    engine = make_engine("bookkeeping", modules, Clip(1.0))
    engine.accumulate(label_losses(modules), 2, batch)
    twin = copy.deepcopy(modules)
    assert torch.equal(label_losses(twin)(batch), label_losses(modules)(batch))
    assert take(batch, 0, 1)[0].shape == (1, 3, 16, 16)
