"""One comparison for all engines: norms and clipped sums against a loop over batches of one sample.

The loop is plain autograd on the modules as they are, without any of the engines' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.mlp_mixer import MlpMixer
from torch import Tensor, nn
from torch.nn import functional as F

from effvit_train.models.make import make

Losses = Callable[[Any], Tensor]


@dataclass
class Reference:
    """Of the loop: norms (B,), sums by parameter, and each sample's gradients."""

    norms: Tensor
    sums: dict[str, Tensor]
    gradients: list[dict[str, Tensor]]


def take(batch: Any, start: int, stop: int) -> Any:
    return torch.utils._pytree.tree_map(lambda tensor: tensor[start:stop], batch)


def loop(
    modules: nn.Module, losses: Losses, batch: Any, samples: int, clip: Any, views: int = 1
) -> Reference:
    """Clip each sample's gradient by hand, in float64."""
    trained = {name: p for name, p in modules.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in trained.items()}
    norms, gradients = [], []
    for k in range(samples):
        loss = losses(take(batch, k * views, (k + 1) * views)).mean()
        found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        own = {
            name: torch.zeros(p.shape, dtype=torch.float64) if g is None else g.double()
            for (name, p), g in zip(trained.items(), found, strict=True)
        }
        norm = math.sqrt(sum(float((g**2).sum()) for g in own.values()))
        for name, factor in factors(clip, own, norm).items():
            sums[name] += factor * own[name]
        norms.append(norm)
        gradients.append(own)
    return Reference(torch.tensor(norms, dtype=torch.float64), sums, gradients)


def factors(clip: Any, gradients: dict[str, Tensor], norm: float) -> dict[str, float]:
    """The definitions of the three modes, once more."""
    if clip.mode == "flat":
        return dict.fromkeys(gradients, min(1.0, clip.max_norm / norm) if norm else 1.0)
    if clip.mode == "automatic":
        return dict.fromkeys(gradients, clip.max_norm / (norm + 0.01))
    layers: dict[str, float] = {}
    for name, gradient in gradients.items():
        layer = name.rpartition(".")[0]
        layers[layer] = layers.get(layer, 0.0) + float((gradient**2).sum())
    bound = clip.max_norm / math.sqrt(len(layers))
    of = {layer: min(1.0, bound / math.sqrt(square)) if square else 1.0 for layer, square in layers.items()}
    return {name: of[name.rpartition(".")[0]] for name in gradients}


def distance(engine: Any, norms: Tensor, reference: Reference) -> float:
    """The worst error of the norms and of the sums, each against the largest entry of its quantity."""
    assert engine.sums.keys() == reference.sums.keys()
    worst = float((norms.double() - reference.norms).abs().max() / reference.norms.max())
    scale = max(float(total.abs().max()) for total in reference.sums.values())
    for name, total in reference.sums.items():
        assert engine.sums[name].shape == total.shape
        worst = max(worst, float((engine.sums[name].double() - total).abs().max()) / scale)
    return worst


def compare(
    engine: Any, losses: Losses, batch: Any, samples: int, *, micro_batches: tuple[int, ...] = ()
) -> float:
    """The worst error of an engine on a batch, cut into micro-batches; see `distance`."""
    reference = loop(engine.modules, losses, batch, samples, engine.clip, engine.views)
    sizes = micro_batches or (samples,)
    engine.zero()
    start, norms = 0, []
    for size in sizes:
        part = take(batch, start * engine.views, (start + size) * engine.views)
        norms.append(engine.accumulate(losses, size, part))
        start += size
    assert start == samples
    return distance(engine, torch.cat(norms), reference)


def shake(modules: nn.Module, seed: int = 0) -> nn.Module:
    """No parameter stays at the zero or one that it starts with, which would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in modules.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return modules


# --- models --------------------------------------------------------------------------------------

_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
_SWIN = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": (2, 2),
         "num_heads": (2, 4), "num_classes": 5, "drop_path_rate": 0.0}  # fmt: skip
_MIXER = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_blocks": 2, "num_classes": 5}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", _VIT),
    "qk_norm": ("vit_tiny_patch16_224", {**_VIT, "qk_norm": True, "scale_attn_norm": True}),
    "layer_scale": ("vit_tiny_patch16_224", {**_VIT, "init_values": 0.1}),
    "registers": ("vit_tiny_patch16_224", {**_VIT, "reg_tokens": 3, "pre_norm": True}),
    "average": ("vit_tiny_patch16_224", {**_VIT, "class_token": False, "global_pool": "avg"}),
    "map": ("vit_tiny_patch16_224", {**_VIT, "class_token": False, "global_pool": "map"}),
    "scattering": ("vit_tiny_patch16_224", {**_VIT, "stem": "scattering"}),
    "flat": ("vit_tiny_patch16_224", {**_VIT, "class_token": False, "global_pool": "flat"}),
    "plain_position": ("vit_tiny_patch16_224", {**_VIT, "no_embed_class": True}),
    "no_position": ("vit_tiny_patch16_224", {**_VIT, "pos_embed": "none"}),
    "deit": ("deit_tiny_distilled_patch16_224", _VIT),
    "deit3": ("deit3_small_patch16_224", _VIT),
    "swin": ("swin_tiny_patch4_window7_224", _SWIN),
    "swin_fused": ("swin_tiny_patch4_window7_224", _SWIN),
    "mixer": ("", _MIXER),
}  # fmt: skip


def make_model(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    name, kwargs = MODELS[kind]
    torch.manual_seed(3)
    model = MlpMixer(**kwargs) if kind == "mixer" else make(name, kwargs)
    shake(model)
    if kind == "deit":
        model.set_distilled_training(True)
    for module in model.modules():
        if "swin" in kind and hasattr(module, "fused_attn"):
            module.fused_attn = kind == "swin_fused"
    return nn.ModuleDict({"model": model.to(dtype).train()})


def images(samples: int, dtype: torch.dtype = torch.float64, size: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    pixels = torch.randn(samples, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    # samples of unlike gradients, so that some are clipped and some are not
    pixels = pixels * torch.linspace(0.2, 2, samples).to(dtype)[:, None, None, None]
    return pixels, torch.randint(5, (samples,), generator=generator)


def label_losses(modules: Any) -> Losses:
    """Cross entropy; of both heads where there are two."""

    def losses(batch: Any) -> Tensor:
        output = modules["model"](batch[0])
        heads = output if isinstance(output, tuple) else (output,)
        return sum(F.cross_entropy(head.float() if head.dtype == torch.bfloat16 else head, batch[1], reduction="none")
                   for head in heads)  # fmt: skip

    return losses


def median_norm(modules: nn.Module, losses: Losses, batch: Any, samples: int, views: int = 1) -> float:
    """A clipping norm that clips half of the samples."""
    from effvit_train.privacy.engine import Clip

    return float(loop(modules, losses, batch, samples, Clip(1.0), views).norms.median())
