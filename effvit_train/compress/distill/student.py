"""The distillation token (Touvron et al. 2021): the student becomes timm's distilled ViT of the same body."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.models.config import ModelConfig
from effvit_train.models.resolve import check_name, meta_build

_DISTILLED = "deit_base_distilled_patch16_224"
_KEY = "compress.distill.kinds"


def with_token(config: Config) -> ModelConfig:
    """The configured model with a distillation token and its head; one that has them stays as it is.

    Raises:
        UserError: it is no plain ViT, or its weights are those of one without the token.
    """
    model = config.model
    check_name(model.name)
    args = dict(model.args)
    # what belongs to images and classes comes later and changes neither body nor heads
    plain = meta_build(model.name, args)
    if hasattr(plain, "dist_token"):
        return model
    if model.pretrained or model.weights:
        key = "model.pretrained" if model.pretrained else "model.weights"
        raise UserError(
            f"brings a ViT without the distillation token that {_KEY}=[token] trains",
            key=key, value=model.weights or True,
            remedy="start from a distilled one, e.g. model.name=deit_tiny_distilled_patch16_224 model.pretrained=true",
        )  # fmt: skip
    body = _body(plain)
    if body is not None:
        own_patch = body.pop("patch_size")
        if _layers(meta_build(_DISTILLED, args | body)) == _layers(plain):
            patch = own_patch if model.patch_size is None else model.patch_size
            return dataclasses.replace(model, name=_DISTILLED, args=args | body, patch_size=patch)
    raise UserError(
        f"{model.name} cannot be given a distillation token: only plain ViTs with a class token can",
        key=_KEY, value="token", remedy="choose e.g. model=vit_s or model=deit_s, or leave token out",
    )  # fmt: skip


def _body(model: Any) -> dict[str, Any] | None:
    """The arguments of timm's ViT that give this body; None for a model of another kind."""
    try:
        block = model.blocks[0]
        return {
            "embed_dim": int(model.embed_dim),
            "depth": len(model.blocks),
            "num_heads": int(block.attn.num_heads),
            "mlp_ratio": block.mlp.fc1.out_features / int(model.embed_dim),
            "patch_size": int(model.patch_embed.patch_size[0]),
        }
    except (AttributeError, IndexError, TypeError):
        return None


def _layers(model: nn.Module) -> list[tuple[str, str, str]]:
    """Every module inside the blocks with its kind and settings: the two bodies compute the same."""
    return [
        (name, type(module).__name__, module.extra_repr())
        for name, module in model.named_modules()
        if name.startswith(("blocks", "norm", "fc_norm"))
    ]
