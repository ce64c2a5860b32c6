"""Fourier and wavelet mixers against direct sums, explicit matrices and cases worked out by hand."""

from __future__ import annotations

import cmath
import math

import effvit_train  # noqa: F401  isort: skip
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from effvit_train.audit.growth import fit_exponent
from effvit_train.audit.operations import OperationCounter
from effvit_train.audit.tally import take_tally
from effvit_train.models.spectral import FNetMixer, FourierMixer, WaveletMixer, resample
from effvit_train.models.spectral.wavelet import WAVELETS, analyse, padded, synthesise

MIXERS = {
    "fourier": FourierMixer,
    "fnet": FNetMixer,
    "haar": WaveletMixer,
    "db2": lambda dim, grid, prefix=0: WaveletMixer(dim, grid, prefix, wavelet="db2"),
}
GRIDS = [(4, 4), (3, 5), (1, 6), (5, 1), (1, 1)]


def tokens(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def mixer(kind: str, dim: int, grid: tuple[int, int], prefix: int = 0, noise: float = 0.5) -> nn.Module:
    """In double precision, with weights far from where they start."""
    torch.manual_seed(1)
    module = MIXERS[kind](dim, grid, prefix).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * noise)
    return module


# --- what they compute ----------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (2, 5)])
def test_the_global_filter_is_a_circular_convolution(grid):
    height, width = grid
    module = mixer("fourier", 2, grid)
    (x,) = tokens(1, height * width, 2).unflatten(1, grid)
    kernel = torch.fft.irfft2(torch.view_as_complex(module.filter.weight.detach()), s=grid, dim=(0, 1))
    expected = torch.zeros(height, width, 2, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            for y in range(height):
                for z in range(width):
                    expected[row, column] += kernel[y, z] * x[(row - y) % height, (column - z) % width]
    found = module(x.flatten(0, 1)[None]).view(height, width, 2)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [4, 5])
def test_fnet_is_two_dft_matrices(dim):
    count = 7  # a class token and a grid of 2 x 3
    (x,) = tokens(1, count, dim)

    def dft(size):
        return [
            [cmath.exp(-2j * math.pi * j * k / size) / math.sqrt(size) for k in range(size)]
            for j in range(size)
        ]

    rows, columns, values = dft(count), dft(dim), x.tolist()
    expected = [
        [
            sum(rows[n][m] * values[m][d] * columns[k][d] for m in range(count) for d in range(dim)).real
            for k in range(dim)
        ]
        for n in range(count)
    ]
    found = FNetMixer(dim, (2, 3), 1)(x[None])[0]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_haar_by_hand():
    # of (1 2 / 3 5): the sum, left - right, top - bottom and both, each over 2
    square = torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64).view(1, 2, 2, 1)
    found = analyse(square, 1, WAVELETS["haar"]).view(2, 2)
    expected = torch.tensor([[5.5, -1.5], [-2.5, 0.5]], dtype=torch.float64)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_haar_of_two_levels_by_hand():
    image = torch.arange(16, dtype=torch.float64).view(1, 4, 4, 1)
    found = analyse(image, 2, WAVELETS["haar"]).view(4, 4)
    # a plane 4 r + c: its quarters' sums over 2 are 5, 9, 21, 25; every fine detail is that of the plane
    expected = torch.tensor(
        [[30, -4, -1, -1], [-16, 0, -1, -1], [-4, -4, 0, 0], [-4, -4, 0, 0]], dtype=torch.float64
    )
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_db2_is_daubechies_wavelet():
    # Daubechies 1988, table 1, N = 2
    published = (0.482962913145, 0.836516303738, 0.224143868042, -0.129409522551)
    assert WAVELETS["db2"] == pytest.approx(published, abs=1e-12)
    # two vanishing moments: a ramp has no details but where it goes round the edge
    ramp = torch.arange(8, dtype=torch.float64).view(1, 8, 1, 1)
    details = analyse(ramp, 1, WAVELETS["db2"]).view(8)[4:]
    assert torch.allclose(details[:3], torch.zeros(3, dtype=torch.float64), atol=1e-12)
    assert abs(float(details[3])) > 1


@pytest.mark.parametrize("wavelet", WAVELETS)
@pytest.mark.parametrize(("sides", "levels"), [((8, 8), 3), ((4, 2), 2), ((6, 4), 1), ((1, 4), 2)])
def test_wavelets_are_orthonormal(wavelet, sides, levels):
    points = sides[0] * sides[1]
    basis = torch.eye(points, dtype=torch.float64).view(points, *sides, 1)
    matrix = analyse(basis, levels, WAVELETS[wavelet]).view(points, points)
    assert torch.allclose(matrix @ matrix.T, torch.eye(points, dtype=torch.float64), atol=1e-12)
    back = synthesise(basis, levels, WAVELETS[wavelet]).view(points, points)
    assert torch.allclose(back, matrix.T, atol=1e-12)


@pytest.mark.parametrize("kind", ["fourier", "haar", "db2"])
@pytest.mark.parametrize("grid", [*GRIDS, (14, 14), (7, 10)])
def test_gains_of_one_give_the_tokens_back(kind, grid):
    module = mixer(kind, 3, grid, noise=0)
    with torch.no_grad():
        module.filter.weight.fill_(1)
        if kind == "fourier":
            module.filter.weight[..., 1] = 0
    x = tokens(2, grid[0] * grid[1], 3)
    assert torch.allclose(module(x), x, rtol=0, atol=1e-12)


def test_fewer_levels_stay_within_their_cells():
    module = WaveletMixer(1, (8, 8), levels=1).double()
    x = torch.zeros(1, 64, 1, dtype=torch.float64)
    x[0, 0] = 1
    reached = module(x).view(8, 8).abs() > 1e-9
    assert reached[:2, :2].all()
    assert reached.sum() == 4
    assert (WaveletMixer(1, (8, 8)).double()(x).abs() > 1e-9).all()


@pytest.mark.parametrize("kind", ["fourier", "haar", "db2"])
def test_starts_near_the_identity(kind):
    torch.manual_seed(0)
    module, x = MIXERS[kind](8, (6, 6)).double(), tokens(4, 36, 8)
    assert float((module(x).detach() - x).norm() / x.norm()) < 0.05


# --- tokens outside the grid ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fourier", "haar", "db2"])
def test_prefix_tokens_read_the_mean_and_are_not_read(kind):
    module, x = mixer(kind, 3, (2, 4), 2), tokens(2, 10, 3)
    found = module(x)
    gates = module.prefix.weight.view(2, 3)
    assert torch.allclose(found[:, :2], found[:, 2:].mean(dim=1, keepdim=True) * gates, atol=1e-12)
    others = x.clone()
    others[:, :2] = 7
    assert torch.equal(module(others), found)
    assert "prefix.weight" not in mixer(kind, 3, (2, 4)).state_dict()


def test_gates_are_not_decayed_and_filters_are():
    model = vit(4)
    groups = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decay[id(model.blocks[0].attn.prefix.weight)] == 0
    assert decay[id(model.blocks[0].attn.filter.weight)] == 0.1


@pytest.mark.parametrize("kind", MIXERS)
def test_what_is_refused(kind):
    module = MIXERS[kind](4, (2, 3), 1)
    with pytest.raises(ValueError, match=r"6 tokens where it mixes 1 and a grid of 2 x 3"):
        module(torch.zeros(1, 6, 4))
    with pytest.raises(ValueError, match="takes no mask"):
        module(torch.zeros(1, 7, 4), attn_mask=torch.zeros(7, 7))
    with pytest.raises(ValueError, match="takes no mask"):
        module(torch.zeros(1, 7, 4), is_causal=True)
    with pytest.raises(ValueError, match="no tokens to mix"):
        MIXERS[kind](4, (0, 3))


def test_wavelets_that_are_refused():
    with pytest.raises(ValueError, match="no such wavelet: db9; there are haar, db2"):
        WaveletMixer(4, (8, 8), wavelet="db9")
    for levels in (0, 4):
        with pytest.raises(ValueError, match=f"{levels} levels of wavelets where 8 x 8 has 1 to 3"):
            WaveletMixer(4, (8, 8), levels=levels)


# --- arithmetic -----------------------------------------------------------------------------------


def operations(module: nn.Module, count: int, dim: int):
    with torch.no_grad(), OperationCounter() as counter:
        module.to("meta")(torch.zeros(1, count, dim, device="meta"))
    return counter.operations


def fourier_flops(height: int, width: int, dim: int, prefix: int) -> int:
    """Two real transforms, a complex product for each kept frequency, the mean and the gates."""
    points = height * width
    transform = int(2.5 * points * dim * math.log2(points))
    read = points * dim + prefix * dim if prefix else 0
    return 2 * transform + 6 * height * (width // 2 + 1) * dim + read


def wavelet_flops(side: tuple[int, int], levels: int, taps: int, dim: int) -> int:
    """Each output of a filter of L taps takes L products and L - 1 sums, in both axes, there and back."""
    points = side[0] * side[1]
    outputs = sum(points // 4**level for level in range(levels))
    return 4 * (2 * taps - 1) * outputs * dim + points * dim


@pytest.mark.parametrize(("grid", "prefix"), [((14, 14), 1), ((8, 6), 0), ((4, 4), 2)])
def test_fourier_flops_are_the_formula(grid, prefix):
    counted = operations(FourierMixer(24, grid, prefix), prefix + grid[0] * grid[1], 24)
    assert counted.elementwise == fourier_flops(*grid, 24, prefix)
    assert counted.macs == 0
    assert not counted.uncounted


def test_fnet_flops_are_the_formula():
    counted = operations(FNetMixer(24, (14, 14), 1), 197, 24)
    assert counted.elementwise == int(2.5 * 197 * 24 * math.log2(197 * 24))
    assert not counted.uncounted


@pytest.mark.parametrize(("wavelet", "taps"), [("haar", 2), ("db2", 4)])
@pytest.mark.parametrize(("grid", "levels"), [((16, 16), 4), ((14, 14), 4), ((12, 12), 2)])
def test_wavelet_flops_are_the_formula(wavelet, taps, grid, levels):
    module = WaveletMixer(24, grid, wavelet=wavelet, levels=levels)
    counted = operations(module, grid[0] * grid[1], 24)
    assert counted.elementwise == wavelet_flops(padded(grid, levels), levels, taps, 24)
    assert counted.macs == 0
    assert not counted.uncounted


@pytest.mark.parametrize(("kind", "most"), [("fourier", 1.2), ("fnet", 1.2), ("haar", 1.01), ("db2", 1.01)])
def test_growth_is_nearly_linear(kind, most):
    sides = [8, 16, 32, 64]
    costs = [operations(MIXERS[kind](16, (side, side)), side**2, 16).flops for side in sides]
    assert 1 <= fit_exponent([float(side**2) for side in sides], costs).value < most


@pytest.mark.parametrize("kind", MIXERS)
def test_the_tally_books_them_as_spectral_mixing(kind):
    tally = take_tally(vit(2, kind).to("meta"), (3, 32, 32))
    work = {layer.name.split(".attn")[0]: layer.flops for layer in tally.of_kind("spectral_mixing")}
    assert set(work) == {"blocks.0"}
    within = [layer for layer in tally.layers if layer.name.startswith("blocks.0.attn")]
    assert {layer.kind for layer in within} == {"spectral_mixing"}
    assert not tally.uncounted


# --- as a part of a model -------------------------------------------------------------------------


def vit(depth: int, kind: str = "fourier", spectral: int = 1, **kwargs) -> nn.Module:
    """The first blocks mix, the others attend (SpectFormer)."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=depth, num_heads=4,
        num_classes=5, **kwargs,
    )  # fmt: skip
    for block in model.blocks[:spectral]:
        block.attn = MIXERS[kind](24, model.patch_embed.grid_size, model.num_prefix_tokens)
    return model


@pytest.mark.parametrize("kind", MIXERS)
def test_in_a_model_everything_gets_a_gradient(kind):
    model = vit(2, kind)
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", MIXERS)
def test_images_do_not_see_one_another(kind):
    module, x = mixer(kind, 4, (3, 4), 1), tokens(3, 13, 4)
    together = module(x)
    for k in range(3):
        assert torch.allclose(together[k : k + 1], module(x[k : k + 1]), rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", MIXERS)
def test_gradients(kind):
    module, x = mixer(kind, 2, (3, 4), 1), tokens(1, 13, 2).requires_grad_()
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    names = [name for name, _ in module.named_parameters()]

    def run(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


@pytest.mark.parametrize("kind", MIXERS)
def test_half_precision_is_widened_within(kind):
    module, x = mixer(kind, 8, (4, 4), 1).float(), tokens(2, 17, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, module(x.float()).bfloat16())
    whole = module.bfloat16()(x)  # weights of bf16 too
    assert whole.dtype == torch.bfloat16
    assert torch.allclose(whole.float(), found.float(), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("kind", MIXERS)
def test_compiles_and_exports_with_any_batch(kind):
    module, x = mixer(kind, 4, (2, 3), 1).float().eval(), tokens(3, 7, 4, dtype=torch.float32)
    expected = module(x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x), expected, atol=1e-6)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: batch},))
    assert torch.allclose(program.module()(x), expected, atol=1e-6)


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_the_products_for_onnx_compute_the_same(kind, grid, monkeypatch):
    module, x = mixer(kind, 5, grid, 1), tokens(2, 1 + grid[0] * grid[1], 5)
    expected = module(x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    monkeypatch.setattr(torch.fft, "rfft2", None)
    monkeypatch.setattr(torch.fft, "fft2", None)
    assert torch.allclose(module(x), expected, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_onnx_with_any_batch():
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    parts = [mixer(kind, 4, (2, 3), 1).float().eval() for kind in ("fourier", "fnet", "haar")]
    module, x = nn.Sequential(*parts).eval(), tokens(3, 7, 4, dtype=torch.float32)
    program = torch.onnx.export(
        module, (x[:2],), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    assert program is not None
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert "DFT" not in operators
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.allclose(torch.from_numpy(found), module(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", MIXERS)
def test_on_the_meta_device(kind):
    with torch.device("meta"):
        module = MIXERS[kind](4, (3, 4), 1)
        assert module(torch.empty(2, 13, 4)).shape == (2, 13, 4)


# --- another grid ---------------------------------------------------------------------------------


def test_a_filter_keeps_its_gains_at_shared_frequencies():
    small, large = mixer("fourier", 3, (4, 6)), mixer("fourier", 3, (8, 12))
    weight = small.filter.weight.detach()
    found = large.resampled(weight, (4, 6))
    assert found.shape == large.filter.weight.shape
    # what a real signal sees of a filter: its spectrum after a round trip
    seen = torch.fft.rfft2(torch.fft.irfft2(torch.view_as_complex(weight), s=(4, 6), dim=(0, 1)), dim=(0, 1))
    every_second = torch.view_as_complex(found)[::2, ::2]
    assert torch.allclose(every_second, seen, rtol=0, atol=1e-12)


def test_a_kernel_reaches_as_many_tokens_on_a_larger_grid():
    small, large = FourierMixer(1, (8, 8)).double(), FourierMixer(1, (16, 16)).double()
    kernel = torch.zeros(8, 8, 1, dtype=torch.float64)
    kernel[0, 0], kernel[0, 1], kernel[7, 0] = 1.0, 0.5, -0.25  # itself, its left, what is below
    weight = torch.view_as_real(torch.fft.rfft2(kernel, dim=(0, 1)))
    found = torch.fft.irfft2(
        torch.view_as_complex(large.resampled(weight, small.grid)), s=(16, 16), dim=(0, 1)
    )[..., 0]
    # linear interpolation of frequencies leaves (1 + cos(2 pi t / 16)) / 2 of what is t tokens away where it was,
    # and gives the rest to the place 8 tokens on, which was the same one
    taper = (1 + math.cos(2 * math.pi / 16)) / 2
    expected = {(0, 0): 1.0, (0, 1): 0.5 * taper, (0, 9): 0.5 * (1 - taper)}
    expected |= {(15, 0): -0.25 * taper, (7, 0): -0.25 * (1 - taper)}
    for place, value in expected.items():
        assert float(found[place]) == pytest.approx(value), place
    assert float(found.abs().sum()) == pytest.approx(1.75)


@pytest.mark.parametrize("kind", ["fourier", "haar", "db2"])
@pytest.mark.parametrize(("old", "new"), [((4, 4), (8, 8)), ((14, 14), (9, 12)), ((3, 5), (6, 4))])
def test_the_identity_stays_the_identity(kind, old, new):
    model, source = mixer(kind, 3, new, 1), mixer(kind, 3, old, 1, noise=0)
    with torch.no_grad():
        source.filter.weight.fill_(1)
        if kind == "fourier":
            source.filter.weight[..., 1] = 0
    model.load_state_dict(resample(model, source.state_dict(), old))
    x = tokens(2, 1 + new[0] * new[1], 3)
    assert torch.allclose(model(x)[:, 1:], x[:, 1:], rtol=0, atol=1e-12)


def test_wavelet_gains_stay_with_their_scale():
    small, large = WaveletMixer(1, (4, 4)), WaveletMixer(1, (8, 8))
    gains = torch.full((4, 4, 1), 2.0)  # fine details
    gains[:2, :2] = 3.0  # coarse ones
    gains[0, 0] = 5.0  # the mean
    found = large.resampled(gains, (4, 4))[..., 0]
    expected = torch.full((8, 8), 2.0)
    expected[:4, :4] = 3.0
    expected[:2, :2] = 5.0  # what the mean of 4 x 4 tokens was, and what is coarser
    assert torch.equal(found, expected)
    back = small.resampled(found[..., None], (8, 8))
    assert torch.equal(back, gains)


def test_resample_leaves_the_rest_alone_and_knows_other_grids():
    model, state = vit(2), vit(2).state_dict()
    assert resample(model, state, (4, 4)).keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in resample(model, state, (4, 4)).items())
    fitted = resample(WaveletMixer(2, (8, 8)), WaveletMixer(2, (4, 4), 1).state_dict(), (4, 4))
    assert fitted["filter.weight"].shape == (8, 8, 2)
    with pytest.raises(ValueError, match="not those of a grid of 5 x 5"):
        WaveletMixer(2, (8, 8)).resampled(torch.ones(4, 4, 2), (5, 5))
