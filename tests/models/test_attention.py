"""Each kind of attention by itself: against the exact one where they agree, and against a reference by hand.

The references are written from the papers' formulas, with full matrices; the modules are those that ship.
"""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.audit.operations import OperationCounter
from effvit_train.models.attention.base import Site, rectangles
from effvit_train.models.attention.linear import Linear, Performer, orthogonal
from effvit_train.models.attention.linformer import Linformer, averages
from effvit_train.models.attention.nystrom import Nystrom, pseudo_inverse
from effvit_train.models.attention.pooled import Pooled
from effvit_train.models.attention.window import Window

HEADS, WIDTH = 2, 6
DIM = HEADS * WIDTH


def exact(*, seed: int = 0, **more) -> Attention:
    torch.manual_seed(seed)
    attention = Attention(DIM, num_heads=HEADS, qkv_bias=True, **more).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.normal_(std=0.4)
    return attention.eval()


def site(grid=(4, 6), prefix: int = 1, block: int = 0) -> Site:
    return Site(block, grid, prefix, WIDTH)


def tokens(where: Site, count: int = 2, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return scale * torch.randn(
        count, where.prefix + where.patches, DIM, generator=generator, dtype=torch.float64
    )


def heads_of(attention: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, H, N, d), cut apart by hand."""
    parts = attention.qkv(x).split(DIM, dim=-1)
    query, key, value = (torch.stack(part.split(WIDTH, dim=-1), dim=1) for part in parts)
    return attention.q_norm(query), attention.k_norm(key), value


def finish(attention: nn.Module, mixed: Tensor) -> Tensor:
    return attention.proj(attention.norm(torch.cat(mixed.unbind(dim=1), dim=-1)))


def close(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> bool:
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance)


# --- where they are the exact attention ----------------------------------------------------------


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        lambda a, s: Window(a, s, window=8),
        lambda a, s: Window(a, s, window=8, shift=True),
        lambda a, s: Pooled(a, s, stride=1),
        lambda a, s: identity(Linformer(a, s, rank=s.patches)),
        lambda a, s: Nystrom(a, s, landmarks=s.grid, iterations=60),
    ],
    ids=["window", "shifted", "pooled", "linformer", "nystrom"],
)
def test_at_its_limit_it_is_exact(build, prefix, fused, norms):
    more = {"qk_norm": True, "scale_norm": True, "gated": True, "norm_layer": nn.LayerNorm} if norms else {}
    attention, where = exact(**more), site(prefix=prefix, block=1)
    other = build(attention, where)
    attention.fused_attn = other.fused_attn = fused
    x = tokens(where, scale=0.5)
    assert close(other(x), attention(x), 1e-5)


def identity(module: Linformer) -> Linformer:
    with torch.no_grad():
        for rows in (module.key_rows, module.value_rows):
            nn.init.eye_(rows.weight)
    return module.double()


def test_linformer_begins_as_the_identity_where_it_has_a_row_for_each_patch():
    attention, where = exact(), site()
    x = tokens(where)
    assert close(Linformer(attention, where, rank=24).double()(x), attention(x))


def test_performer_comes_near_with_many_features():
    attention, where = exact(), site()
    x = tokens(where, scale=0.25)
    errors = {}
    with torch.no_grad():
        for features in (60, 6000, 60000):
            module = Performer(attention, where, features=features).double()
            errors[features] = float((module(x) - attention(x)).norm() / attention(x).norm())
    assert errors[60000] < 0.002
    # a Monte Carlo mean: a hundred times the features, a tenth of the error, give or take
    assert 4 < errors[60] / errors[6000] < 25


# --- references by hand --------------------------------------------------------------------------


def windows_by_hand(where: Site, window: int, shifted: bool) -> Tensor:
    """Which token sees which (N, N), from coordinates alone."""
    number = []
    for size in where.grid:
        side = min(window, size)
        offset = side // 2 if shifted and side < size else 0
        number.append([math.floor((place - offset) / side) for place in range(size)])
    of = [(a, b) for a in number[0] for b in number[1]]
    seen = torch.ones(where.prefix + len(of), where.prefix + len(of), dtype=torch.bool)
    for i, one in enumerate(of):
        for j, two in enumerate(of):
            seen[where.prefix + i, where.prefix + j] = one == two
    return seen


@pytest.mark.parametrize(
    "grid", [(4, 6), (5, 7), (4, 3)], ids=["whole", "with a rest", "as high as a window"]
)
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("window", [2, 3, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_windows_are_masks(grid, shift, prefix, window, fused):
    attention, where = exact(), site(grid, prefix, block=1)
    module = Window(attention, where, window=window, shift=shift)
    module.fused_attn = fused
    x = tokens(where)
    query, key, value = heads_of(attention, x)
    scores = query @ key.mT / math.sqrt(WIDTH)
    scores = scores.masked_fill(~windows_by_hand(where, window, shift), -math.inf)
    assert close(module(x), finish(attention, scores.softmax(-1) @ value))


def test_only_every_second_block_is_shifted():
    shifted = [Window(exact(), site(block=k), window=2, shift=True).shifted for k in range(4)]
    assert shifted == [False, True, False, True]


def test_padding_has_no_gradient_that_is_not_a_number():
    where = site((3, 3), 0)
    module = Window(exact(), where, window=2, shift=False).train()
    for fused in (True, False):
        module.fused_attn = fused
        x = tokens(where).requires_grad_()
        module(x).sum().backward()
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("prefix", [0, 2])
def test_pooled_keys_and_values_are_averages(prefix):
    attention, where = exact(), site((5, 4), prefix)
    x = tokens(where)
    query, key, value = heads_of(attention, x)

    def averaged(part: Tensor) -> Tensor:
        patches = part[:, :, prefix:].unflatten(2, where.grid)
        cells = [patches[:, :, a : a + 2, b : b + 2].mean(dim=(2, 3)) for a in range(0, 5, 2) for b in (0, 2)]
        return torch.cat([part[:, :, :prefix], torch.stack(cells, dim=2)], dim=2)

    key, value = averaged(key), averaged(value)
    mixed = (query @ key.mT / math.sqrt(WIDTH)).softmax(-1) @ value
    assert key.shape[2] == prefix + 6  # the last row of cells is one patch high
    assert close(Pooled(attention, where, stride=2)(x), finish(attention, mixed))


def test_a_fixed_size_pools_to_as_many_keys_whatever_the_image():
    attention, where = exact(), site((4, 6), 1)
    by_size, by_stride = Pooled(attention, where, size=2), Pooled(attention, where, stride=2)
    assert by_size.work(25) == (0, 2 * 25 * 5, 0)
    assert by_stride.work(25) == (0, 2 * 25 * 7, 0)
    pooled = F.adaptive_avg_pool2d(torch.arange(24.0).view(1, 1, 4, 6), 2).flatten()
    by_hand = torch.stack([torch.arange(24.0).view(4, 6)[a : a + 2, b : b + 3].mean() for a in (0, 2) for b in (0, 3)])  # fmt: skip
    assert torch.equal(pooled, by_hand)


@pytest.mark.parametrize("kernel", ["relu", "elu"])
def test_linear_attention_is_its_quadratic_form(kernel):
    attention, where = exact(), site()
    x = tokens(where)
    query, key, value = heads_of(attention, x)
    phi = {"relu": lambda t: t.clamp_min(0), "elu": lambda t: torch.where(t > 0, t + 1, t.exp())}[kernel]
    matrix = phi(query) @ phi(key).mT  # (N, N), which the module never has
    weights = (matrix / matrix.sum(-1, keepdim=True)).nan_to_num(0)  # a query whose features are all zero
    mixed = weights @ value
    assert close(Linear(attention, where, kernel=kernel)(x), finish(attention, mixed))


def test_a_query_that_sees_nothing_gives_nothing():
    attention, where = exact(), site(prefix=0)
    with torch.no_grad():
        attention.qkv.weight[:DIM] = 0
        attention.qkv.bias[:DIM] = -1
    x = tokens(where).requires_grad_()
    given = Linear(attention, where, kernel="relu")(x)
    assert close(given, attention.proj.bias.expand_as(given))
    given.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_performer_is_its_quadratic_form():
    attention, where = exact(), site()
    module, x = Performer(attention, where, features=8).double(), tokens(where)
    query, key, value = heads_of(attention, x)

    def phi(t: Tensor) -> Tensor:  # Choromanski et al. 2021, lemma 1, with nothing taken away
        t = t / WIDTH**0.25
        return torch.exp(t @ module.features.T - t.square().sum(-1, keepdim=True) / 2) / math.sqrt(8)

    matrix = phi(query) @ phi(key).mT
    mixed = matrix / matrix.sum(-1, keepdim=True) @ value
    assert close(module(x), finish(attention, mixed))


def test_random_features_are_orthogonal_and_as_long_as_gaussian_vectors():
    rows = orthogonal(3000 * WIDTH, WIDTH, seed=1)
    block = rows[:WIDTH] / rows[:WIDTH].norm(dim=1, keepdim=True)
    assert close(block @ block.T, torch.eye(WIDTH, dtype=torch.float64))
    assert rows.square().sum(1).mean() == pytest.approx(WIDTH, rel=0.02)  # chi-squared with d degrees
    assert rows.mean(0).abs().max() < 0.03
    assert torch.equal(orthogonal(8, WIDTH, seed=1), rows[:8])
    assert not torch.equal(orthogonal(8, WIDTH, seed=2), rows[:8])


def test_blocks_draw_features_of_their_own():
    one, two, again = (Performer(exact(), site(block=k), features=4).features for k in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, two)


def test_nystrom_is_its_formula():
    attention, where = exact(), site((4, 6), 1)
    x = tokens(where, scale=0.5)
    query, key, value = heads_of(attention, x)

    def means(part: Tensor) -> Tensor:
        patches = part[:, :, 1:].unflatten(2, (4, 6))
        cells = [patches[:, :, a : a + 2, b : b + 2].mean(dim=(2, 3)) for a in (0, 2) for b in (0, 2, 4)]
        return torch.cat([part[:, :, :1], torch.stack(cells, dim=2)], dim=2)

    def kernel(one: Tensor, two: Tensor) -> Tensor:
        return (one @ two.mT / math.sqrt(WIDTH)).softmax(-1)

    middle = torch.linalg.pinv(kernel(means(query), means(key)))
    mixed = kernel(query, means(key)) @ middle @ kernel(means(query), key) @ value
    module = Nystrom(attention, where, landmarks=(2, 3), iterations=60)
    assert close(module(x), finish(attention, mixed), 1e-5)


def test_the_pseudo_inverse_of_one_matrix_does_not_depend_on_another():
    generator = torch.Generator().manual_seed(0)
    matrices = (3 * torch.randn(2, 5, 5, generator=generator, dtype=torch.float64)).softmax(-1)
    found = pseudo_inverse(matrices, 40)
    assert close(found, torch.linalg.inv(matrices), 1e-6)
    matrices[1] *= 100
    assert torch.equal(pseudo_inverse(matrices, 40)[0], found[0])


def test_linformer_is_its_formula():
    attention, where = exact(), site()
    module, x = Linformer(attention, where, rank=5).double(), tokens(where)
    with torch.no_grad():
        for rows in (module.key_rows, module.value_rows):
            rows.weight.normal_()
    query, key, value = heads_of(attention, x)
    key, value = (
        torch.cat([part[:, :, :1], torch.einsum("kn,bhnd->bhkd", rows.weight, part[:, :, 1:])], dim=2)
        for part, rows in ((key, module.key_rows), (value, module.value_rows))
    )
    mixed = (query @ key.mT / math.sqrt(WIDTH)).softmax(-1) @ value
    assert close(module(x), finish(attention, mixed))


def test_linformer_begins_as_pooling():
    attention, where = exact(), site((4, 6), 1)
    x = tokens(where)
    pooled = Pooled(attention, where, stride=2)(x)
    assert close(Linformer(attention, where, rank=6).double()(x), pooled)
    # 5 is no rows x columns of a 4 x 6 grid but 1 x 5: averages over pieces of the columns
    assert averages(5, (4, 6)).sum(1).allclose(torch.ones(5))
    assert averages(23, (4, 6)).sum(1).allclose(torch.ones(23))


@pytest.mark.parametrize(
    ("count", "grid", "pair"),
    [(49, (14, 14), (7, 7)), (6, (4, 6), (2, 3)), (2, (14, 14), (1, 2)), (23, (4, 6), None)],
)
def test_rectangles(count, grid, pair):
    assert rectangles(count, grid) == pair


# --- what they cost ------------------------------------------------------------------------------

# MACs of one head and image at N = 1 + 24 tokens, d = 6, by the papers' products
N, P, d = 25, 24, WIDTH
FORMULAS = {
    "window": (lambda a, s: Window(a, s, window=2), 2 * d * (6 * 4 * (1 + 4) + 1 * N)),
    # windows of 3 on 4 x 6 with a rest: 2 x 2 windows of 9 places, padding included
    "padded": (lambda a, s: Window(a, s, window=3), 2 * d * (4 * 9 * (1 + 9) + 1 * N)),
    "pooled": (lambda a, s: Pooled(a, s, stride=2), 2 * N * (1 + 6) * d),
    "linear": (lambda a, s: Linear(a, s), 2 * N * d * d + N * d),
    "performer": (lambda a, s: Performer(a, s, features=8).double(), 4 * N * 8 * d + N * 8),
    # m = 1 + 2 x 3: two kernels with N, that of the landmarks, 4 products in each of 6 iterations, Z (B V)
    "nystrom": (
        lambda a, s: Nystrom(a, s, landmarks=(2, 3)),
        4 * N * 7 * d + 2 * 7 * 7 * d + 6 * 4 * 7**3,
    ),
    "linformer": (
        lambda a, s: Linformer(a, s, rank=5).double(),
        2 * N * (1 + 5) * d + 2 * P * 5 * d,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMULAS)
def test_the_counter_finds_the_formula(kind):
    build, of_head = FORMULAS[kind]
    module = build(exact(), site())
    x = tokens(site(), 1)
    with torch.no_grad(), OperationCounter() as counter:
        module(x)
    projections = N * DIM * 3 * DIM + N * DIM * DIM
    assert counter.operations.macs - projections == HEADS * of_head
    assert not counter.operations.uncounted
    constant, width, square = module.work(N)
    assert constant + width * d + square * d * d == of_head


# --- what else they have to stand ----------------------------------------------------------------

ALL = {
    "window": lambda a, s: Window(a, s, window=2),
    "shifted": lambda a, s: Window(a, s, window=2, shift=True),
    "pooled": lambda a, s: Pooled(a, s, stride=2),
    "linear": lambda a, s: Linear(a, s),
    "performer": lambda a, s: Performer(a, s, features=8),
    "nystrom": lambda a, s: Nystrom(a, s, landmarks=(2, 2)),
    "linformer": lambda a, s: Linformer(a, s, rank=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_bfloat16_is_near(kind):
    where = site((4, 4), 1, block=1)
    module, x = ALL[kind](exact().float(), where).train(), tokens(where).float()
    with torch.autocast("cpu", torch.bfloat16):
        given = module(x)
    assert given.dtype == torch.bfloat16
    assert torch.isfinite(given).all()
    assert (given.float() - module(x)).norm() / module(x).norm() < 0.05
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["window", "shifted", "pooled", "linear", "performer", "nystrom"])
def test_another_grid_of_the_same_shape(kind):
    """What is trained at one resolution runs at another, as timm's dynamic_img_size asks for."""
    small, large = site((2, 4), 1, block=1), site((4, 8), 1, block=1)
    module, other = (ALL[kind](exact(), where).double() for where in (small, large))
    x = tokens(large)
    assert close(module(x), other(x))
    with pytest.raises(ValueError, match=r"30 tokens are not 1 and a grid of the shape of 2 x 4"):
        Pooled(exact(), small, stride=2)(x[:, :30])


@pytest.mark.parametrize("kind", ALL)
def test_images_do_not_see_one_another(kind):
    where = site((4, 4), 1, block=1)
    module, x = ALL[kind](exact(), where).double(), tokens(where, 3)
    assert close(module(x)[1:2], module(x[1:2]), 1e-12)


def test_a_mask_is_refused():
    with pytest.raises(ValueError, match=r"Linear attention takes no mask"):
        Linear(exact(), site())(tokens(site()), is_causal=True)
