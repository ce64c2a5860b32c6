"""The typed schema of the `model` group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

from effvit_train.errors import UserError, one_of
from effvit_train.models.attention import forms

STEMS = ("scattering",)
TUNED = ("all", "head", "bias", "lora")  # `recipe.tune`
# Kinds of linear layers that techniques work on; the first five by default.
LINEARS = ("qkv", "proj", "fc1", "fc2", "other", "patch_embed", "head")
POOLS = ("token", "avg", "map", "flat")


@dataclass
class AttentionArgs:
    """`model.attention_args.*`: settings of swapped attention; null leaves it to the kind.

    Attributes:
        window: `window`: patches per side; null takes 2 to 8 that divide the grid.
        shift: `window`: every second block's windows stand half a window further.
        stride: `pooled`: patches per side that become one key (2).
        size: `pooled`: keys per side instead, whatever the image.
        kernel: `linear`: relu | elu.
        features: `performer`: random features; null takes a head's width.
        seed: `performer`: of the features.
        landmarks: `nystrom`: their number, or rows and columns of rectangles; null takes those of 3 x 3 patches,
            at most 64.
        iterations: `nystrom`: of the pseudo-inverse (6).
        rank: `linformer`: rows of keys and values; null takes one for each 2 x 2 patches, at most 256.
        wavelet: `wavelet`: haar | db2.
        levels: `wavelet`: of the transform; null takes as many as lead to one cell.
    """

    window: Optional[int] = None
    shift: Optional[bool] = None
    stride: Optional[int] = None
    size: Optional[int] = None
    kernel: Optional[str] = None
    features: Optional[int] = None
    seed: Optional[int] = None
    landmarks: Any = None
    iterations: Optional[int] = None
    rank: Optional[int] = None
    wavelet: Optional[str] = None
    levels: Optional[int] = None

    def given(self) -> dict[str, Any]:
        """Those that are not null."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class ModelConfig:
    """`model.*`.

    Attributes:
        name: any timm model name.
        pretrained: load timm's published weights (from its cache or the hub).
        weights: a file of weights to start from (safetensors, or a state dict that
            `torch.load(weights_only=True)` reads), or a run directory of ours.
        patch_size: pixels; `auto` follows the image size, null keeps timm's own.
        stem: null, timm's own | scattering: fixed wavelets instead of learnt patches, which need no data and
            so no privacy; patches are then of 2, 4, 8, ... pixels (docs/privacy.md).
        pool: what the classifier sees: null, timm's own | token | avg | map | flat: every token, each with
            weights of its own.
        attention: null or exact, timm's own | window | pooled | linear | performer | nystrom | linformer, or a mixer
            in its place, fourier | fnet | wavelet, in every block; or a list with one for each block; or blocks and
            their kinds, `{0-5: linear, 6: window}`, of which the others stay exact (docs/attention.md).
        attention_args: settings of these kinds; each goes to the blocks whose kind takes it.
        drop_rate: dropout before the classifier (timm's `drop_rate`).
        drop_path_rate: stochastic depth (timm's `drop_path_rate`).
        pos_std: standard deviation of a learned position embedding at initialisation; null keeps
            timm's 0.02, with which a small set takes most of its training to find positions at all
            (docs/benchmarks.md). Without effect on loaded weights.
        args: further keyword arguments for `timm.create_model`, such as `depth`.
    """

    name: str = "vit_tiny_patch16_224"
    pretrained: bool = False
    weights: Optional[str] = None
    patch_size: Optional[Union[int, str]] = "auto"
    stem: Optional[str] = None
    pool: Optional[str] = None
    attention: Any = None
    attention_args: AttentionArgs = field(default_factory=AttentionArgs)
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    pos_std: Optional[float] = None
    args: dict[str, Any] = field(default_factory=dict)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        patch = self.patch_size
        if not (patch is None or patch == "auto" or (isinstance(patch, int) and patch > 0)):
            raise UserError(
                "must be a positive whole number of pixels, auto or null",
                key="model.patch_size", value=patch, remedy="e.g. model.patch_size=4",
            )  # fmt: skip
        if self.stem is not None:
            one_of("model.stem", self.stem, STEMS)
        if self.pool is not None:
            one_of("model.pool", self.pool, POOLS)
        if self.attention is not None:
            forms.check(self.attention)
        for key in ("drop_rate", "drop_path_rate"):
            value = getattr(self, key)
            if not 0.0 <= value < 1.0:
                raise UserError(
                    "must be in [0, 1)", key=f"model.{key}", value=value, remedy=f"e.g. model.{key}=0.1"
                )
        if self.pos_std is not None and not self.pos_std > 0:
            raise UserError(
                "must be positive or null",
                key="model.pos_std",
                value=self.pos_std,
                remedy="e.g. model.pos_std=1.0",
            )
        if self.pretrained and self.weights:
            raise UserError(
                "cannot be combined with model.pretrained=true",
                key="model.weights", value=self.weights, remedy="give one of the two",
            )  # fmt: skip
