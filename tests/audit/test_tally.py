"""Where the arithmetic and the bytes of a forward pass go, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from effvit_train.audit.operations import count_operations
from effvit_train.audit.tally import KINDS, count_tokens, take_tally
from effvit_train.models.resolve import meta_build

VIT = {"img_size": 8, "patch_size": 2, "embed_dim": 64, "depth": 4, "num_heads": 4, "num_classes": 10}
VIT |= {"in_chans": 1}


class FourierMixer(nn.Module):
    """Tokens (B, N, C) mixed by a filter for each frequency."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.ones(tokens // 2 + 1, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft(torch.fft.rfft(x, dim=1) * self.filter, n=x.shape[1], dim=1)


class Tokens(nn.Module):
    """(B, C, H, W) to tokens (B, H W, C), then a mixer."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x.flatten(2).transpose(1, 2))


class Fused(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)


class Written(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ x.mT / math.sqrt(x.shape[-1])).softmax(-1) @ x


def test_kinds_of_a_vit_by_hand() -> None:
    # 16 patches of 4 pixels and a class token, 64 wide, 4 blocks, 10 classes
    tally = take_tally(meta_build("vit_tiny_patch16_224", VIT), (1, 8, 8))
    macs = {kind: sum(layer.macs for layer in tally.of_kind(kind)) for kind in KINDS}
    assert macs == {
        "attention_products": 4 * 2 * 17**2 * 64,
        "attention_projections": 4 * 17 * 4 * 64**2,
        "mlp": 4 * 17 * 8 * 64**2,
        "embedding": 16 * 4 * 64,
        "head": 640,
        "spectral_mixing": 0,
        "other": 0,
    }
    # GELU 5 for each of 17 x 256 hidden numbers, and two biases, in each of 4 blocks
    mlp = sum(layer.elementwise for layer in tally.of_kind("mlp"))
    assert mlp == 4 * (5 * 17 * 256 + 17 * 256 + 17 * 64)


@pytest.mark.parametrize(
    ("name", "kwargs", "shape"),
    [
        ("vit_tiny_patch16_224", VIT, (1, 8, 8)),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 2, 1, 1), "img_size": 56}, (3, 56, 56)),
        ("mixer_s32_224", {"img_size": 64}, (3, 64, 64)),
        ("pvt_v2_b0", {}, (3, 64, 64)),
    ],
)
def test_the_layers_add_up_to_the_whole(name: str, kwargs: dict[str, object], shape) -> None:  # type: ignore[no-untyped-def]
    model = meta_build(name, kwargs)
    tally, whole = take_tally(model, shape), count_operations(model, shape)
    assert (tally.macs, tally.flops) == (whole.macs, whole.flops)
    assert sum(len(tally.of_kind(kind)) for kind in KINDS) == len(tally.layers)
    named = [layer for layer in tally.of_kind("other") if layer.macs and "downsample" not in layer.name]
    assert not named


def test_bytes_of_a_linear_layer_by_hand() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 10))
    tally = take_tally(model, (1, 8, 8))
    first, relu, last = tally.layers
    assert (first.name, first.weight_bytes, first.activation_bytes) == ("1", 4 * 65_000, 4 * (64 + 1000))
    assert (relu.weight_bytes, relu.activation_bytes) == (0, 4 * 2000)
    # 2 x 10,000 MACs and 10 biases, over 10,010 weights and 1,010 numbers of 4 bytes
    assert last.intensity() == 20_010 / (4 * 11_020)
    assert last.intensity(batch=100) == 100 * 20_010 / (4 * (10_010 + 100 * 1010))
    # the image, and before and after the ReLU; what was before is gone when the last layer runs
    assert tally.peak_bytes == 4 * (64 + 1000 + 1000)
    assert tally.weight_bytes == 4 * (65_000 + 10_010)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_fused_attention_keeps_its_scores_to_itself(device: str) -> None:
    # 1 head, 64 tokens of 8: 2 x 64^2 x 8 MACs
    with torch.device(device):
        fused, written = (nn.Sequential(nn.Conv2d(1, 1, 1), mixer) for mixer in (Fused(), Written()))
    one, other = take_tally(fused, (1, 64, 8)), take_tally(written, (1, 64, 8))
    attention = one.of_kind("attention_products")
    assert [layer.macs for layer in attention] == [2 * 64**2 * 8]
    assert attention[0].activation_bytes == 4 * 4 * 64 * 8  # queries, keys, values and the result
    assert sum(layer.macs for layer in other.of_kind("attention_products")) == 2 * 64**2 * 8
    # written out, 64^2 scores are divided and normalised, all in memory: two at once at least
    assert other.peak_bytes - one.peak_bytes >= 4 * 64**2
    assert other.of_kind("attention_products")[0].activation_bytes > 4 * 5 * 64**2


def test_fourier_transforms_are_counted_and_named() -> None:
    tally = take_tally(Tokens(FourierMixer(64, 8)), (8, 8, 8))
    (mixing,) = tally.of_kind("spectral_mixing")
    # a real transform of 64 points and back, for each of 8 channels: 2.5 N log2 N each way
    assert mixing.fft == 2 * 2.5 * 64 * 6 * 8
    assert mixing.flops > mixing.fft  # the filter
    assert not mixing.macs


def test_a_wavelet_is_known_by_its_name() -> None:
    class HaarMixer(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, ::2] + x[:, 1::2], x[:, ::2] - x[:, 1::2]], dim=1)

    (layer,) = take_tally(Tokens(HaarMixer()), (8, 8, 8)).layers
    assert (layer.kind, layer.flops) == ("spectral_mixing", 64 * 8)


def test_tokens() -> None:
    model = meta_build("vit_tiny_patch16_224", VIT)
    assert count_tokens(model, (1, 8, 8)) == 17
    assert count_tokens(model, (1, 16, 16)) is None  # the model counts those of another image
    assert count_tokens(nn.Flatten(), (1, 8, 8)) is None


def test_the_model_is_left_as_found() -> None:
    model = Tokens(FourierMixer(64, 8)).train()
    state = torch.get_rng_state()
    take_tally(model, (8, 8, 8))
    assert model.training
    assert model.mixer.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
