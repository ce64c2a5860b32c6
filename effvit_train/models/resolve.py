"""From the configuration to an architecture record: what timm is asked for, tried on the meta device.

timm's architectures differ in the arguments that they take. Rather than keep a list, `resolve` asks
timm: it builds on the meta device (no memory, no random numbers, tens of milliseconds), drops the
optional arguments that the architecture refuses, and runs one image through before it says yes.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import nn

from effvit_train.errors import UserError, did_you_mean
from effvit_train.models.attention import forms, plan, swap
from effvit_train.models.config import ModelConfig
from effvit_train.models.geometry import Geometry, auto_patch, auto_window, divisors
from effvit_train.models.make import FLAT, Unsuitable, make
from effvit_train.models.record import ArchitectureRecord

# Keyword arguments of `timm.create_model` that belong to another key, or would read files.
_ELSEWHERE = {
    "num_classes": "dataset.num_classes",
    "in_chans": "dataset.channels",
    "img_size": "dataset.image_size",
    "patch_size": "model.patch_size",
    "drop_rate": "model.drop_rate",
    "drop_path_rate": "model.drop_path_rate",
    "stem": "model.stem",
    "global_pool": "model.pool",
    "attention": "model.attention",
    "embed_layer": "model.stem",
    "pretrained": "model.pretrained",
    "pretrained_cfg": "model.weights",
    "pretrained_cfg_overlay": "model.weights",
    "checkpoint_path": "model.weights",
    "cache_dir": "model.weights",
    "features_only": "model.name",
    "device": "trainer.accelerator",
    "dtype": "trainer.precision",
}
_OURS = {"global_pool": "pool"}
_REFUSED = re.compile(r"(?:unexpected keyword argument|multiple values for keyword argument) '(\w+)'")


def resolve(
    config: ModelConfig,
    *,
    input_shape: tuple[int, int, int],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
) -> ArchitectureRecord:
    """Decide what to build for images of `input_shape` (C, H, W) and these classes.

    Raises `UserError` for a name that timm does not know, an argument that the architecture does not
    take, a patch that does not divide the image, or an image that the architecture cannot take.
    """
    check_name(config.name)
    channels, height, width = input_shape
    kwargs = {"num_classes": len(classes), "in_chans": channels} | _plain_args(config.args)
    kwargs |= {"drop_rate": config.drop_rate, "drop_path_rate": config.drop_path_rate}
    if config.pool is not None:
        kwargs["global_pool"] = "" if config.pool == FLAT else config.pool
    native, kwargs = _build_native(config, kwargs)
    geometry = _geometry(native)
    ours = {"stem": config.stem, "global_pool": config.pool}
    kwargs |= {key: value for key, value in ours.items() if value is not None}
    size = math.gcd(height, width)
    kwargs["img_size"] = height if height == width else [height, width]
    record: dict[str, Any] | None = None
    failure = ""
    for patch in _patch_candidates(config, geometry, size):
        candidate = dict(kwargs)
        if patch is not None:
            candidate["patch_size"] = patch
            window = auto_window(size // patch, geometry.window) if geometry.window else None
            if window and "window_size" not in candidate:
                candidate["window_size"] = window
        record, failure = _try(config, candidate, input_shape, geometry, size)
        if record is not None:
            break
    if record is None:
        raise UserError(
            f"does not take images of {channels}x{height}x{width} ({failure})",
            key="model.name", value=config.name,
            remedy=f"e.g. dataset.image_size={geometry.image_size}, which it was made for, or another model",
        )  # fmt: skip
    if config.attention is not None or config.attention_args.given():
        record = _swapped(config, record, input_shape)
    return ArchitectureRecord(
        name=config.name, kwargs=record, input_shape=(channels, height, width),
        classes=tuple(str(c) for c in classes),
        mean=tuple(float(m) for m in mean), std=tuple(float(s) for s in std),
    )  # fmt: skip


def check_name(name: str) -> None:
    """Raise `UserError` unless timm knows the architecture and, after a dot, the weights' tag."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise UserError(
            "timm has no such model", key="model.name", value=name,
            remedy=hint or "see timm.list_models(), e.g. model.name=vit_small_patch16_224",
        )  # fmt: skip
    if tag:
        known = [n.partition(".")[2] for n in timm.list_pretrained(f"{architecture}.*")]
        if tag not in known:
            raise UserError(
                f"timm has no such weights of {architecture}", key="model.name", value=name,
                remedy=f"known: {', '.join(known) or 'none'}",
            )  # fmt: skip


def _plain_args(args: dict[str, Any]) -> dict[str, Any]:
    for name in args:
        if name in _ELSEWHERE:
            raise UserError(
                "is set by another key", key=f"model.args.{name}", value=args[name],
                remedy=f"use {_ELSEWHERE[name]}",
            )  # fmt: skip
    try:
        return json.loads(json.dumps(args, allow_nan=False))
    except (TypeError, ValueError):
        raise UserError(
            "must be numbers, words, true, false or lists", key="model.args", value=args
        ) from None


def _swapped(
    config: ModelConfig, kwargs: dict[str, Any], input_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """The arguments with the attention of each block; as they are where all of it is exact."""
    exact = meta_build(config.name, kwargs)
    entries = plan.plan(config.attention, config.attention_args.given(), exact, name=config.name)
    if entries is None:
        return kwargs
    kwargs = {**kwargs, swap.NAME: entries}
    try:
        with torch.no_grad():
            meta_build(config.name, kwargs)(torch.empty(1, *input_shape, device="meta"))
    except Exception as error:  # the layers complain in many ways
        raise UserError(
            f"cannot be put into {config.name}: {_first_line(error)}", key=forms.KEY, value=forms.shown(config.attention),
            remedy="model.attention=null keeps its own",
        ) from None  # fmt: skip
    return kwargs


def meta_build(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """Build on the meta device: shapes without memory and without drawing random numbers."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        warnings.simplefilter("ignore")
        return make(name, kwargs).eval()


def _build_native(config: ModelConfig, kwargs: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Build with timm's own image and patch; returns the model and the arguments that it takes."""
    kwargs = dict(kwargs)
    while True:
        try:
            return meta_build(config.name, kwargs), kwargs
        except TypeError as error:
            refused = _refused(error, kwargs)
            if refused in ("drop_rate", "drop_path_rate") and not kwargs[refused]:
                del kwargs[refused]
            elif refused is not None:
                raise _no_such_argument(config, refused, kwargs) from None
            else:
                raise _cannot_build(config, error) from None
        except Exception as error:  # timm raises whatever its layers raise
            raise _cannot_build(config, error) from None


def _refused(error: TypeError, kwargs: dict[str, Any]) -> str | None:
    match = _REFUSED.search(str(error))
    return match.group(1) if match and match.group(1) in kwargs else None


def _no_such_argument(config: ModelConfig, name: str, kwargs: dict[str, Any]) -> UserError:
    key = f"model.args.{name}" if name in config.args else f"model.{_OURS.get(name, name)}"
    try:
        plain = {k: v for k, v in kwargs.items() if k in ("num_classes", "in_chans")}
        taken = list(inspect.signature(type(meta_build(config.name, plain)).__init__).parameters)
    except Exception:  # only the hint is lost
        taken = []
    if name in config.args:
        remedy = did_you_mean(name, taken) or f"leave it out: '~{key}'"
    else:
        remedy = f"leave {key} at {'null' if name in _OURS else 0}"
    return UserError(f"{config.name} takes no such argument", key=key, value=kwargs[name], remedy=remedy)


def _cannot_build(config: ModelConfig, error: Exception) -> UserError:
    reason = f"timm cannot build it: {_first_line(error)}"
    if config.args:
        return UserError(
            reason, key="model.args", value=config.args, remedy=f"see the arguments of timm's {config.name}"
        )
    return UserError(reason, key="model.name", value=config.name, remedy="choose another model")


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:160]


def _geometry(model: nn.Module) -> Geometry:
    """Read off how timm's own build of the architecture cuts images."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    image_size = int((cfg.get("input_size") or (3, 224, 224))[-1])
    info = getattr(model, "feature_info", None)
    reductions = [int(f["reduction"]) for f in info if "reduction" in f] if isinstance(info, list) else []
    own = _first(getattr(getattr(model, "patch_embed", None), "patch_size", None))
    if not reductions or (own is not None and own != reductions[0]):
        # overlapping or convolutional stems: `patch_size`, if taken, is not pixels per token
        return Geometry(image_size, None)
    patch = reductions[0]
    return Geometry(image_size, patch, max(reductions) // patch, _native_window(model))


def _native_window(model: nn.Module) -> int | None:
    try:
        return _first(model.layers[0].blocks[0].window_size)  # type: ignore[index,union-attr]
    except (AttributeError, IndexError, TypeError):
        return None


def _first(value: object) -> int | None:
    if isinstance(value, (tuple, list)):
        value = value[0] if value else None
    return value if isinstance(value, int) else None


def _patch_candidates(config: ModelConfig, geometry: Geometry, size: int) -> list[int | None]:
    """Patches to try, in order; None leaves it to timm."""
    if config.patch_size != "auto":
        return [config.patch_size]  # type: ignore[list-item]
    if geometry.patch is None:
        return [None]
    patch = auto_patch(size, geometry)
    if patch is None:
        own = geometry.patch
        near = min(range(max(size // 2, 1), 2 * size), key=lambda n: (n % own != 0, abs(n - size)))
        raise UserError(
            f"no patch divides images of {size} pixels into a reasonable number of tokens",
            key="model.patch_size", value="auto", remedy=f"e.g. dataset.image_size={near}",
        )  # fmt: skip
    if config.stem is not None:  # a power of two
        return [2 ** max(1, int(math.log2(patch)))]
    smaller = [d for d in divisors(size) if d < patch]
    return [patch, *smaller[-1:], None]


def _try(
    config: ModelConfig,
    kwargs: dict[str, Any],
    input_shape: tuple[int, int, int],
    geometry: Geometry,
    size: int,
) -> tuple[dict[str, Any] | None, str]:
    """Build and run once on the meta device; (arguments that work, "") or (None, why not)."""
    kwargs = dict(kwargs)
    explicit = config.patch_size not in (None, "auto")
    while True:
        model = None
        try:
            model = meta_build(config.name, kwargs)
        except Unsuitable as error:
            raise UserError(
                str(error), key=error.key, value=getattr(config, error.key.removeprefix("model.")),
                remedy=f"another model.patch_size or dataset.image_size, or leave {error.key} out",
            ) from None  # fmt: skip
        except TypeError as error:
            refused = _refused(error, kwargs)
            if refused == "patch_size" and explicit:
                raise UserError(
                    f"the patches of {config.name} cannot be set", key="model.patch_size",
                    value=config.patch_size, remedy="model.patch_size=null keeps its own",
                ) from None  # fmt: skip
            if refused in ("img_size", "window_size") or refused == "patch_size":
                del kwargs[refused]
                continue
            problem = _first_line(error)
        except Exception as error:  # timm raises whatever its layers raise
            problem = _first_line(error)
        _check_divides(config, kwargs, geometry, size)
        if model is None:
            return None, problem
        try:
            with torch.no_grad():
                logits = model(torch.empty(1, *input_shape, device="meta"))
        except Exception as error:  # the architecture's own layers complain in many ways
            return None, _first_line(error)
        if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (1, kwargs["num_classes"]):
            return None, "it does not give one logit per class"
        return kwargs, ""


def _check_divides(config: ModelConfig, kwargs: dict[str, Any], geometry: Geometry, size: int) -> None:
    """Refuse a patch that does not divide the image: timm would silently drop the rest."""
    patch = kwargs.get("patch_size", geometry.patch)
    if patch is None or size % patch == 0 or ("patch_size" not in kwargs and "img_size" not in kwargs):
        return
    allowed = ", ".join(str(d) for d in divisors(size))
    if config.patch_size == "auto":  # its patch cannot be set
        near = max(1, round(size / patch)) * patch
        raise UserError(
            f"its patches of {patch} pixels do not divide images of {size}",
            key="model.name", value=config.name, remedy=f"e.g. dataset.image_size={near}",
        )  # fmt: skip
    own = f" ({config.name}'s own is {patch})" if config.patch_size is None else ""
    raise UserError(
        f"does not divide the image size {size}{own}; allowed: {allowed}",
        key="model.patch_size", value=config.patch_size, remedy="e.g. model.patch_size=auto",
    )  # fmt: skip
