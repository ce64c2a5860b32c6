"""Parameters, MACs and FLOPs against published tables and formulas written out by hand."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from effvit_train.audit.cost import VIT_B16
from effvit_train.audit.operations import count_operations
from effvit_train.models.resolve import meta_build

# Published by timm: huggingface/pytorch-image-models, commit aa4b5850c154,
# results/benchmark-infer-amp-nchw-pt240-cu124-rtx3090.csv: infer_img_size, param_count (M), infer_gmacs.
# Those MACs include the attention products (windowed ones too: Swin-T without them is 4.35 G). They also
# hold the normalisations as 5 per element (ViT-Ti: 1.2537 + 25 * 197 * 192 * 5 / 1e9 = 1.2584), which we
# count as elementwise FLOPs: so ours are lower by 0.1 to 0.6 %.
PUBLISHED = {
    "vit_tiny_patch16_224": (224, 5.72, 1.26, 0.01),
    "vit_small_patch16_224": (224, 22.05, 4.61, 0.01),
    "vit_base_patch16_224": (224, 86.57, 17.58, 0.01),
    "deit_small_patch16_224": (224, 22.05, 4.61, 0.01),
    "deit3_small_patch16_224": (224, 22.06, 4.61, 0.01),
    "swin_tiny_patch4_window7_224": (224, 28.29, 4.51, 0.01),
    "pvt_v2_b1": (224, 14.01, 2.12, 0.02),  # a pyramid
    "coatnet_0_rw_224": (224, 27.44, 4.43, 0.02),  # a hybrid of convolutions and attention
    "mixer_b16_224": (224, 59.88, 12.62, 0.02),  # mixes tokens without attention
    "deit_small_distilled_patch16_224": (224, 22.44, 4.63, 0.02),  # a distillation token and two heads
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tables(name: str) -> None:
    size, params, gmacs, tolerance = PUBLISHED[name]
    model = meta_build(name, {})
    operations = count_operations(model, (3, size, size))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(params, rel=tolerance)
    assert operations.macs / 1e9 == pytest.approx(gmacs, rel=tolerance)
    assert not operations.uncounted


def test_swin_without_attention_products_would_be_caught() -> None:
    # 2 * tokens * 49 * width MACs in each block: 0.140 G in all, 3 % of Swin-T
    stages = zip((56, 28, 14, 7), (96, 192, 384, 768), (2, 2, 6, 2), strict=True)
    products = sum(depth * 2 * side**2 * 49 * width for side, width, depth in stages)
    macs = count_operations(meta_build("swin_tiny_patch4_window7_224", {}), (3, 224, 224)).macs
    assert (macs - products) / 1e9 < 4.51 * 0.97


def vit_macs(image: int, patch: int, channels: int, width: int, depth: int, classes: int) -> int:
    """MACs of a ViT with a class token and an MLP four times as wide."""
    grid = (image // patch) ** 2
    tokens = grid + 1
    block = tokens * (4 * width**2 + 2 * width * 4 * width) + 2 * tokens**2 * width
    return grid * channels * patch**2 * width + depth * block + width * classes


@pytest.mark.parametrize(
    ("image", "patch", "width", "depth", "heads"),
    [(8, 2, 64, 4, 4), (32, 4, 192, 12, 3), (224, 16, 768, 12, 12)],
)
def test_vit_formula_exactly(image: int, patch: int, width: int, depth: int, heads: int) -> None:
    kwargs = {"img_size": image, "patch_size": patch, "embed_dim": width, "depth": depth, "num_heads": heads}
    operations = count_operations(meta_build("vit_tiny_patch16_224", kwargs), (3, image, image))
    assert operations.macs == vit_macs(image, patch, 3, width, depth, 1000)


def test_the_reference_of_the_efficient_error_rate() -> None:
    assert vit_macs(224, 16, 3, 768, 12, 1000) == VIT_B16["macs"]
    model = meta_build("vit_base_patch16_224", {})
    assert sum(p.numel() for p in model.parameters()) == VIT_B16["params"]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_way_of_running_counts_the_same(fused: bool, mode) -> None:  # type: ignore[no-untyped-def]
    kwargs = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    expected = count_operations(meta_build("vit_tiny_patch16_224", kwargs), (3, 32, 32))
    model = timm.create_model("vit_tiny_patch16_224", **kwargs)
    for block in model.blocks:
        block.attn.fused_attn = fused
    with mode():
        counted = count_operations(model, (3, 32, 32))
    assert counted.macs == expected.macs
    # unfused, queries alone are scaled: one multiplication per element of the keys is saved
    saved = 0 if fused else 2 * 65 * 32
    assert counted.elementwise == expected.elementwise - saved
    assert model.training


class Single(nn.Module):
    """One layer on (1, C, H, W)."""

    def __init__(self, layer: nn.Module, flat: bool = False) -> None:
        super().__init__()
        self.layer, self.flat = layer, flat
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1) if self.flat else x)


class Fourier(nn.Module):
    """A real transform of 8x8 points and back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:])


class Complex(nn.Module):
    """8 x 8 complex numbers: squared as numbers, as a matrix, and added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.complex(x[0, 0], x[0, 1])
        return torch.view_as_real(z * z + z @ z)


# on one image of 2x8x8 = 128 numbers
@pytest.mark.parametrize(
    ("layer", "flat", "macs", "elementwise"),
    [
        (nn.Linear(128, 10), True, 1280, 10),
        (nn.Linear(128, 10, bias=False), True, 1280, 0),
        (nn.Conv2d(2, 6, 4, 4), False, 6 * 4 * 2 * 16, 24),
        (nn.Conv2d(2, 4, 3, padding=1, groups=2, bias=False), False, 4 * 64 * 9, 0),
        (nn.ConvTranspose2d(2, 3, 2, 2, bias=False), False, 128 * 3 * 4, 0),
        (nn.GELU(), False, 0, 5 * 128),
        (nn.Softmax(-1), False, 0, 5 * 128),
        (nn.LayerNorm(8), False, 0, 7 * 128),
        (nn.BatchNorm2d(2), False, 0, 2 * 128),
        (nn.ReLU(), False, 0, 128),
        (nn.AdaptiveAvgPool2d(1), False, 0, 128),
        (nn.AvgPool2d(2), False, 0, 32 * 4),
        (nn.MaxPool2d(2), False, 0, 32 * 4),
        (nn.Flatten(), False, 0, 0),
        (nn.Dropout(0.5), False, 0, 0),
        (Complex(), False, 4 * 8**3, (6 + 2) * 64),
        (Fourier(), False, 0, 2 * 2.5 * 128 * math.log2(64)),  # 2.5 N log2 N each way (real)
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_single_layers_by_hand(layer: nn.Module, flat: bool, macs: int, elementwise: float) -> None:
    operations = count_operations(Single(layer, flat), (2, 8, 8))
    assert operations.macs == macs
    assert operations.elementwise == elementwise
    assert operations.flops == 2 * macs + elementwise
    assert not operations.uncounted


def test_an_unknown_operator_is_named() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0(x)

    assert list(count_operations(Single(Odd()), (1, 4, 4)).uncounted) == ["i0"]
