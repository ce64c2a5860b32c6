"""Clipping, views, micro-batches and precision: cases that can be computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from engine_harness import compare, images, label_losses, loop, make_model, median_norm, take
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.privacy.engine import KINDS, Clip, bookkeeping, make_engine
from effvit_train.privacy.engine.base import squared_norms
from effvit_train.privacy.engine.bookkeeping import BookKeeping
from effvit_train.privacy.engine.tape import LinearCall

ENGINES = [kind for kind in KINDS if kind != "opacus_ghost"]
EVERY = pytest.mark.parametrize("kind", KINDS)


def one_layer() -> tuple[nn.Module, Tensor]:
    """y = w x without bias: the gradient of the loss y is x itself, here (3, 4) and (0.3, 0.4)."""
    layer = nn.Linear(2, 1, bias=False).double()
    return nn.ModuleDict({"layer": layer}), torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)


def losses_of(modules):
    return lambda batch: modules["layer"](batch)[:, 0]


@EVERY
def test_flat(kind):
    # norms 5 and 0.5, C = 1: a fifth of the first and all of the second
    modules, batch = one_layer()
    engine = make_engine(kind, modules, Clip(1.0))
    norms = engine.accumulate(losses_of(modules), 2, batch)
    assert torch.allclose(norms, torch.tensor([5.0, 0.5], dtype=torch.float64))
    assert torch.allclose(engine.sums["layer.weight"], torch.tensor([[0.9, 1.2]], dtype=torch.float64))


@EVERY
def test_automatic(kind):
    # C / (||g|| + 0.01): 2 / 5.01 and 2 / 0.51
    modules, batch = one_layer()
    engine = make_engine(kind, modules, Clip(2.0, "automatic"))
    engine.accumulate(losses_of(modules), 2, batch)
    first = 3 * 2 / 5.01 + 0.3 * 2 / 0.51
    expected = torch.tensor([[first, first * 4 / 3]], dtype=torch.float64)
    assert torch.allclose(engine.sums["layer.weight"], expected)


@pytest.mark.parametrize("kind", ENGINES)
def test_per_layer(kind):
    # two layers, C = sqrt(2): each is clipped to 1. First weights' gradients are a x, second's w x + b
    modules = nn.ModuleDict({"first": nn.Linear(2, 1), "second": nn.Linear(1, 1, bias=False)}).double()
    with torch.no_grad():
        modules["first"].weight.copy_(torch.tensor([[1.0, 0.0]]))
        modules["first"].bias.fill_(-2.0)
        modules["second"].weight.fill_(3.0)
    batch = torch.tensor([[2.5, 0.0]], dtype=torch.float64)
    engine = make_engine(kind, modules, Clip(math.sqrt(2), "per_layer"))
    norms = engine.accumulate(lambda b: modules["second"](modules["first"](b))[:, 0], 1, batch)
    # first: (7.5, 0) and 3 for the bias, norm 8.078; second: 0.5, below its bound
    assert norms.item() == pytest.approx(math.sqrt(7.5**2 + 3**2 + 0.5**2))
    layer = math.sqrt(7.5**2 + 3**2)
    expected = torch.tensor([[7.5 / layer, 0.0]], dtype=torch.float64)
    assert torch.allclose(engine.sums["first.weight"], expected)
    assert engine.sums["first.bias"].item() == pytest.approx(3 / layer)
    assert engine.sums["second.weight"].item() == pytest.approx(0.5)


@pytest.mark.parametrize("kind", ENGINES)
def test_views_are_averaged_before_clipping(kind):
    # views (6, 0) and (0, 8) of one sample: mean (3, 4), norm 5, though each view alone has norm 6 and 8
    modules, _ = one_layer()
    batch = torch.tensor([[6.0, 0.0], [0.0, 8.0], [0.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    engine = make_engine(kind, modules, Clip(1.0), views=2)
    norms = engine.accumulate(losses_of(modules), 2, batch)
    assert torch.allclose(norms, torch.tensor([5.0, 0.5], dtype=torch.float64))
    assert torch.allclose(engine.sums["layer.weight"], torch.tensor([[0.9, 1.2]], dtype=torch.float64))


@pytest.mark.parametrize("mode", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("kind", KINDS)
def test_engines_agree_on_a_model(kind, mode):
    if kind == "opacus_ghost" and mode == "per_layer":
        pytest.skip("refused, see below")
    modules, batch = make_model("deit"), images(4)
    losses = label_losses(modules)
    engine = make_engine(kind, modules, Clip(median_norm(modules, losses, batch, 4), mode))
    assert compare(engine, losses, batch, 4, micro_batches=(1, 3)) <= 1e-9


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize(("kind", "model"), [(k, "layer_scale") for k in ENGINES] + [("bookkeeping", "swin")])
def test_views_of_a_model(kind, model, views):
    modules, batch = make_model(model), images(2 * views)
    losses = label_losses(modules)
    clip = Clip(median_norm(modules, losses, batch, 2, views))
    assert compare(make_engine(kind, modules, clip, views=views), losses, batch, 2) <= 1e-9


@pytest.mark.parametrize("model", ["vit", "swin", "mixer"])
def test_without_a_bound_the_sum_is_the_ordinary_gradient(model):
    modules, batch = make_model(model), images(4)
    losses = label_losses(modules)
    engine = make_engine("bookkeeping", modules, Clip(math.inf))
    engine.accumulate(losses, 4, batch)
    losses(batch).sum().backward()
    largest = max(p.grad.abs().max() for p in modules.parameters())
    for name, parameter in modules.named_parameters():
        assert (engine.sums[name] - parameter.grad).abs().max() <= 1e-12 * largest


def test_vmap_chunks_make_no_difference(monkeypatch):
    monkeypatch.setattr("effvit_train.privacy.engine.mapped.CHUNK", 2)
    modules, batch = make_model("vit"), images(5)
    losses = label_losses(modules)
    engine = make_engine("vmap", modules, Clip(median_norm(modules, losses, batch, 5)))
    assert compare(engine, losses, batch, 5) <= 1e-9
    assert all(square.shape == (5,) for square in engine.squares.values())


def test_chunks_of_temporary_tensors_make_no_difference(monkeypatch):
    monkeypatch.setattr("effvit_train.privacy.engine.tape.BUDGET", 1)
    modules, batch = make_model("swin"), images(3)
    losses = label_losses(modules)
    engine = make_engine("bookkeeping", modules, Clip(median_norm(modules, losses, batch, 3)))
    assert compare(engine, losses, batch, 3) <= 1e-9


@EVERY
def test_no_sample_leaves_nothing(kind):
    modules, batch = one_layer()
    engine = make_engine(kind, modules, Clip(1.0))
    assert not engine.sums["layer.weight"].any()
    engine.accumulate(losses_of(modules), 2, batch)
    before = engine.sums["layer.weight"]
    engine.zero()
    assert engine.sums["layer.weight"] is before
    assert not before.any()


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("value", [math.inf, math.nan, 1e200])
def test_a_gradient_that_is_not_finite_gives_nothing(kind, value):
    # 1e200 is finite, the square of its norm is not
    modules, batch = one_layer()
    engine = make_engine(kind, modules, Clip(1.0))
    batch[0, 0] = value
    norms = engine.accumulate(losses_of(modules), 2, batch)
    assert not norms[0].isfinite()
    assert torch.allclose(engine.sums["layer.weight"], torch.tensor([[0.3, 0.4]], dtype=torch.float64))


@pytest.mark.parametrize("mode", ["flat", "per_layer"])
def test_a_model_that_overflows_gives_nothing(mode):
    modules, batch = make_model("vit", torch.float32), images(4, torch.float32)
    losses = label_losses(modules)
    clip = Clip(1.0, mode)
    good = loop(modules, losses, take(batch, 1, 4), 3, clip)
    batch[0][0] = 1e38
    engine = make_engine("bookkeeping", modules, clip)
    norms = engine.accumulate(losses, 4, batch)
    assert not norms[0].isfinite()
    for name, total in good.sums.items():
        assert (engine.sums[name] - total).abs().max() <= 1e-5


# --- precision -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", ["vit", "qk_norm", "swin", "mixer"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16 weights"])
def test_no_sample_gives_more_than_the_bound(precision, model, seed):
    """The clipped sum of one sample, in float64: at most C, up to the rounding of fp32 sums."""
    dtype = torch.bfloat16 if precision == "bf16 weights" else torch.float32
    modules = make_model(model, dtype)
    pixels, labels = images(3 * 4, dtype)
    batch = (pixels[seed::3] * 2, labels[seed::3])
    losses = label_losses(modules)
    bound = 0.1
    engine = make_engine("bookkeeping", modules, Clip(bound))
    for k in range(4):
        engine.zero()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            norms = engine.accumulate(losses, 1, take(batch, k, k + 1))
        assert norms.item() > bound
        assert norms.dtype == torch.float32
        assert all(total.dtype == torch.float32 for total in engine.sums.values())
        given = math.sqrt(sum(float(total.double().square().sum()) for total in engine.sums.values()))
        assert given == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("mode", ["flat", "per_layer"])
@pytest.mark.parametrize("shift", [0.0, 300.0, 1e4])
def test_a_ghost_norm_that_cancels_out_is_not_believed(shift, mode):
    """Tokens that are nearly alike, with weights that add up to nothing, as gradients of keys do."""
    layer = nn.Linear(64, 32, bias=False)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 8, 64, generator=generator)
    tokens[1] += shift  # one of the samples
    signs = torch.tensor([1.0, -1.0]).repeat(4)[None, :, None]
    engine = BookKeeping(layer, Clip(0.1, mode), path="ghost")
    norms = engine.accumulate(lambda: (layer(tokens) * signs).sum(dim=(1, 2)), 4)
    # g = sum_t sign_t (1 ... 1)^T A_t
    exact = (tokens.double() * signs).sum(dim=1).norm(dim=1) * math.sqrt(32)
    assert torch.allclose(norms.double(), exact, rtol=1e-6)
    given = engine.sums["weight"].double().norm()
    whole = ((0.1 / exact)[:, None] * (tokens.double() * signs).sum(dim=1)).sum(dim=0).norm() * math.sqrt(32)
    assert given == pytest.approx(whole.item(), rel=1e-4)


def test_bf16_is_near_the_loop():
    modules, batch = make_model("vit", torch.float32), images(4, torch.float32)
    losses = label_losses(modules)
    engine = make_engine("bookkeeping", modules, Clip(median_norm(modules, losses, batch, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        assert compare(engine, losses, batch, 4) <= 0.03


def test_low_precision_of_matrix_products_is_not_for_the_engine(monkeypatch):
    """Neither TF32 and its like nor autocast reach what the engine multiplies; the model keeps them."""
    modules, batch = make_model("vit", torch.float32), images(4, torch.float32)
    losses = label_losses(modules)
    seen = []

    def state(where: str) -> None:
        seen.append((where, torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu")))

    finish, record = bookkeeping.finish, LinearCall.__init__
    monkeypatch.setattr(bookkeeping, "finish", lambda *a: (state("sums"), finish(*a))[1])
    monkeypatch.setattr(LinearCall, "__init__", lambda *a: (state("backward"), record(*a))[1])

    def watched(batch) -> Tensor:
        state("model")
        return losses(batch)

    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            make_engine("bookkeeping", modules, Clip(0.1)).accumulate(watched, 4, batch)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {
        ("model", "medium", True),
        ("backward", "highest", False),
        ("sums", "highest", False),
    }


def test_autocast_inputs_are_kept_as_they_are_multiplied(monkeypatch):
    """In bf16: half the memory, and the operand itself."""
    modules, batch = make_model("vit", torch.float32), images(2, torch.float32)
    kept, record = [], LinearCall.__init__
    monkeypatch.setattr(
        LinearCall, "__init__", lambda self, *a: (kept.append(a[0].dtype), record(self, *a))[1]
    )
    with torch.autocast("cpu", torch.bfloat16):
        make_engine("bookkeeping", modules, Clip(0.1)).accumulate(label_losses(modules), 2, batch)
    assert set(kept) == {torch.bfloat16}


def test_squares_of_many_entries_are_added_precisely():
    entries = torch.rand(2, 3_000_000, generator=torch.Generator().manual_seed(0))
    exact = entries.double().square().sum(dim=1)
    assert ((squared_norms(entries).double() - exact).abs() / exact).max() < 1e-6


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clip", "said"),
    [
        (lambda: Clip(0.0), "privacy.max_grad_norm=0.0: must be positive"),
        (lambda: Clip(math.nan), "privacy.max_grad_norm=nan"),
        (lambda: Clip(math.inf, "automatic"), "privacy.max_grad_norm=inf"),
        (lambda: Clip(1.0, "flatt"), "did you mean 'flat'?"),
    ],
)
def test_bounds_that_bound_nothing(clip, said):
    with pytest.raises(UserError) as caught:
        clip()
    assert said in str(caught.value)


def test_unknown_kind():
    with pytest.raises(UserError, match=r"privacy\.engine=opacus: must be one of bookkeeping"):
        make_engine("opacus", nn.Linear(2, 2), Clip(1.0))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_have_to_be_one_for_each_sample(kind):
    modules, batch = one_layer()
    engine = make_engine(kind, modules, Clip(1.0))
    with pytest.raises(UserError, match=r"losses have the shape"):
        engine.accumulate(lambda b: modules["layer"](b)[:, 0].mean(), 2, batch)
    with pytest.raises(UserError, match=r"losses have the shape"):
        engine.accumulate(lambda b: modules["layer"](b), 2, batch)
    assert not engine.sums["layer.weight"].any()


def test_ghost_refuses_what_it_cannot():
    modules, _ = one_layer()
    with pytest.raises(UserError, match="several views"):
        make_engine("opacus_ghost", modules, Clip(1.0), views=2)
    with pytest.raises(UserError, match="clipped by themselves"):
        make_engine("opacus_ghost", modules, Clip(1.0, "per_layer"))
    engine = make_engine("opacus_ghost", modules, Clip(1.0))
    with pytest.raises(UserError, match="called twice"):
        engine.accumulate(lambda b: (modules["layer"](b) + modules["layer"](b))[:, 0], 2, one_layer()[1])


@pytest.mark.parametrize("kind", ["opacus_hooks", "opacus_ghost"])
def test_opacus_takes_windows_for_samples(kind):
    with pytest.raises(UserError, match=r"WindowAttention\), for which Opacus has no sampler"):
        make_engine(kind, make_model("swin"), Clip(1.0))
