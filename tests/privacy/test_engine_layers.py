"""Every kind of layer alone, against a batch-of-one loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_harness import compare, loop, median_norm, shake
from timm.layers import (
    AttentionPoolLatent,
    GroupNorm,
    GroupNorm1,
    LayerNorm,
    LayerNorm2d,
    LayerNormFp32,
    LayerScale,
    LayerScale2d,
    RmsNorm,
)
from timm.models.mlp_mixer import Affine
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.nn.utils import prune

from effvit_train.errors import UserError
from effvit_train.privacy.engine import Clip, make_engine
from effvit_train.privacy.engine.bookkeeping import BookKeeping

B = 3
LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(4, 6), (4,)),
    "linear tokens": (lambda: nn.Linear(4, 6), (5, 4)),
    "linear grid": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), (5, 4)),
    "patches": (lambda: nn.Conv2d(3, 8, 4, stride=4), (3, 8, 8)),
    "conv": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2)), (4, 7, 5)),
    "dilated conv": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2, bias=False), (2, 6, 6)),
    "grouped conv": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise conv": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2), (4, 7, 7)),
    "layer norm": (lambda: nn.LayerNorm(6), (5, 6)),
    "layer norm of a vector": (lambda: nn.LayerNorm(6), (6,)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((5, 6)), (4, 5, 6)),
    "layer norm without bias": (lambda: nn.LayerNorm(6, bias=False), (5, 6)),
    "timm's layer norm of heads": (lambda: LayerNorm(6), (2, 5, 6)),
    "layer norm of images": (lambda: LayerNorm2d(4), (4, 3, 5)),
    "group norm": (lambda: GroupNorm(4, 2), (4, 3, 5)),
    "group norm of one": (lambda: GroupNorm1(4), (4, 3)),
    "rms norm": (lambda: RmsNorm(6), (5, 6)),
    "layer scale": (lambda: LayerScale(6, 0.5), (5, 6)),
    "layer scale of images": (lambda: LayerScale2d(4, 0.5), (4, 3, 5)),
    "affine": (lambda: Affine(6), (5, 6)),
    "attention pool": (lambda: AttentionPoolLatent(8, num_heads=2, latent_len=3), (5, 8)),
    "window attention": (lambda: WindowAttention(8, 2, window_size=2), (4, 8)),
}


class Alone(nn.Module):
    """A layer between random, fixed weights, so that no symmetry hides an error."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        output = self.layer(inputs)
        weights = torch.linspace(-1, 2, output[0].numel(), dtype=output.dtype).view(output.shape[1:])
        return (weights * output + 0.3 * (output + weights).sin()).flatten(1).sum(dim=1)


def alone(name: str) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn((2 * B, *shape), generator=generator, dtype=torch.float64)
    return shake(Alone(make())).double(), inputs


@pytest.mark.parametrize("path", ["auto", "ghost", "instantiate"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, path):
    modules, inputs = alone(name)
    clip = Clip(median_norm(modules, modules, inputs, 2 * B))
    assert compare(BookKeeping(modules, clip, path=path), modules, inputs, 2 * B) <= 1e-9


@pytest.mark.parametrize("path", ["auto", "ghost", "instantiate"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_with_two_views(name, path):
    modules, inputs = alone(name)
    clip = Clip(median_norm(modules, modules, inputs, B, views=2))
    assert compare(BookKeeping(modules, clip, views=2, path=path), modules, inputs, B) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_norm_that_computes_in_fp32(dtype):
    modules = shake(Alone(LayerNormFp32(6)))
    inputs = torch.randn(B, 5, 6).to(dtype)
    # a loss of bf16 values is exact to 2^-8
    tolerance = 1e-5 if dtype == torch.float32 else 0.01
    assert compare(BookKeeping(modules, Clip(1.0)), modules, inputs, B) <= tolerance


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("windows", [1, 3])
def test_windows_of_an_image_are_adjacent(windows, fused):
    """(B * windows, N, C) with and without a mask, as Swin calls its attention."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = WindowAttention(8, 2, window_size=2)
            self.attention.fused_attn = fused

        def forward(self, inputs: Tensor) -> Tensor:
            mask = torch.zeros(windows, 4, 4, dtype=inputs.dtype)
            mask[:, 0, 1:3] = -100
            rows = self.attention(inputs.flatten(0, 1), mask)
            return rows.view(*inputs.shape).square().flatten(1).sum(dim=1)

    torch.manual_seed(0)
    modules = shake(Windows()).double()
    inputs = torch.randn(B, windows, 4, 8, dtype=torch.float64)
    assert compare(BookKeeping(modules, Clip(1.0)), modules, inputs, B) <= 1e-9


class Twice(nn.Module):
    """Everything is called twice, the second time on what the first gave: cross terms count."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.scale = nn.Linear(6, 6), LayerNorm(6), LayerScale(6)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(2):
            inputs = self.scale(self.norm(self.linear(inputs).tanh()))
        return inputs.square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("path", ["auto", "ghost", "instantiate"])
@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_module_called_twice(tokens, path):
    torch.manual_seed(0)
    modules = shake(Twice()).double()
    inputs = torch.randn(B, tokens, 6, dtype=torch.float64)
    clip = Clip(median_norm(modules, modules, inputs, B))
    assert compare(BookKeeping(modules, clip, path=path), modules, inputs, B) <= 1e-9


@pytest.mark.parametrize("path", ["auto", "ghost"])
def test_parameter_of_two_modules(path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, inputs: Tensor) -> Tensor:
            return self.second(self.first(inputs).tanh()[:, :2]).square().flatten(1).sum(dim=1)

    modules = shake(Tied()).double()
    assert (
        compare(BookKeeping(modules, Clip(1.0), path=path), modules, torch.randn(B, 5, 6).double(), B) <= 1e-9
    )


def test_gradients_that_layers_share():
    """Of outputs that are added up there is one gradient: scaling it for one layer must not reach the other."""

    class Parallel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return (self.first(inputs) + self.second(inputs)).square().flatten(1).sum(dim=1)

    modules = shake(Parallel()).double()
    inputs = torch.randn(B, 2, 6).double()
    clip = Clip(0.1 * median_norm(modules, modules, inputs, B))
    assert compare(BookKeeping(modules, clip, path="ghost"), modules, inputs, B) <= 1e-9


def test_outputs_that_are_overwritten():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(6, 6), LayerNorm(6)

        def forward(self, inputs: Tensor) -> Tensor:
            inputs = self.linear(inputs)
            inputs.view(-1, 6)[:, :3].mul_(2)
            return nn.functional.relu_(self.norm(inputs.add_(1))).flatten(1).sum(dim=1)

    modules = shake(Overwriting()).double()
    assert compare(BookKeeping(modules, Clip(1.0)), modules, torch.randn(B, 5, 6).double(), B) <= 1e-9


def test_hooks_of_others_see_what_hangs_on_the_tape():
    """A tap on a layer's output, such as a distillation term's, is part of the gradient."""
    tapped: list[Tensor] = []

    class Tapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 2)
            self.first.register_forward_hook(lambda module, inputs, output: tapped.append(output))

        def forward(self, inputs: Tensor) -> Tensor:
            output = self.second(self.first(inputs)).square()
            return output.flatten(1).sum(dim=1) + tapped.pop().sin().flatten(1).sum(dim=1)

    modules = shake(Tapped()).double()
    assert compare(BookKeeping(modules, Clip(1.0)), modules, torch.randn(B, 5, 6).double(), B) <= 1e-9


def test_frozen_layers_cost_nothing_and_stay_out(monkeypatch):
    torch.manual_seed(0)
    modules = shake(nn.Sequential(nn.Linear(6, 6), LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 3))).double()
    modules[0].requires_grad_(False)
    modules[2].weight.requires_grad_(False)
    engine = BookKeeping(modules, Clip(1.0))
    assert set(engine.sums) == {"1.weight", "1.bias", "2.bias", "3.weight", "3.bias"}

    def losses(inputs: Tensor) -> Tensor:
        assert not modules[0]._forward_hooks
        return modules(inputs).square().flatten(1).sum(dim=1)

    inputs = torch.randn(B, 5, 6).double()
    reference = loop(modules, losses, inputs, B, engine.clip)
    assert reference.norms.min() > 1
    assert compare(engine, losses, inputs, B) <= 1e-9


def test_what_is_not_called_gets_nothing():
    modules = nn.ModuleDict({"used": nn.Linear(4, 2), "unused": nn.Linear(4, 2)}).double()
    engine = BookKeeping(modules, Clip(1.0))
    engine.accumulate(lambda: modules["used"](torch.randn(B, 4).double()).sum(dim=1), B)
    assert engine.sums["used.weight"].abs().sum() > 0
    assert not engine.sums["unused.weight"].any()


@pytest.mark.parametrize(
    ("module", "named"),
    [
        (nn.MultiheadAttention(4, 2), "in_proj_bias, in_proj_weight of 0 (MultiheadAttention)"),
        (nn.Embedding(4, 2), "weight of 0 (Embedding)"),
        (nn.BatchNorm1d(4), "0 (BatchNorm1d) mixes samples"),
        (nn.BatchNorm2d(4, affine=False), "0 (BatchNorm2d) mixes samples"),
        (nn.Conv2d(4, 4, 3, padding="same"), "0 (Conv2d), which pads"),
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), "0 (Conv2d), which pads"),
        (LayerScale(4, inplace=True), "0 (LayerScale), which overwrites its input"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), "computes its weights"),
        (prune.identity(nn.Linear(4, 4), "weight"), "computes its weights"),
    ],
)
def test_refused_by_name(module, named):
    with pytest.raises(UserError) as caught:
        make_engine("bookkeeping", nn.Sequential(module, nn.Linear(4, 4)), Clip(1.0))
    assert named in str(caught.value)
    assert caught.value.key == "privacy.engine"


def test_subclass_is_refused_because_it_may_compute_something_else():
    class Doubling(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            return super().forward(inputs) * 2

    with pytest.raises(
        UserError, match=r"has no rule for bias, weight of 0 \(Doubling\); privacy.engine=vmap"
    ):
        make_engine("bookkeeping", nn.Sequential(Doubling(4, 4)), Clip(1.0))


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="nothing is trained"):
        make_engine("bookkeeping", nn.Linear(2, 2).requires_grad_(False), Clip(1.0))
