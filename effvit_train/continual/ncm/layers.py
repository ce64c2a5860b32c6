"""The classifier's layers: what they read, and how weights get into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.models.heads import CannotGrowError, logits_layers
from effvit_train.models.mode import evaluating
from effvit_train.precision import autocast


def check(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Try a model whether its logits are the mean over its heads of linear functions of features.

    Args:
        model: on the CPU.
        input_shape: (C, H, W) of its images.

    Raises:
        UserError: they are not.
    """
    try:
        names = logits_layers(model)
    except CannotGrowError as error:
        raise _refusal(str(error)) from None
    layers: list[Any] = [model.get_submodule(name) for name in names]
    if any(layer.bias is None for layer in layers):
        raise _refusal(f"{type(model).__name__} has a classifier without biases")
    image = torch.linspace(-1, 1, 2 * int(torch.tensor(input_shape).prod())).view(2, *input_shape)
    with evaluating(model), _inputs(model, names) as seen:
        logits = model(image)
        inputs = [seen[name] for name in names]
        linear = torch.stack([layer(x) for layer, x in zip(layers, inputs, strict=True)]).mean(dim=0)
    if any(x.ndim != 2 for x in inputs) or not torch.allclose(logits, linear, atol=1e-4):
        raise _refusal(
            f"the logits of {type(model).__name__} are no linear function of one vector of features"
        )


def features(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    loader: Iterable[Any],
    *,
    device: torch.device,
    precision: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the classifier reads in evaluation mode, of each batch: features (B, F) and labels (B,), on the CPU.

    Several heads read features of their own; they stand side by side.
    """
    names = logits_layers(model)
    for batch in loader:
        with evaluating(model), _inputs(model, names) as seen, autocast(precision, device):
            model(normalise(batch.images.to(device)))
            found = torch.cat([seen[name].double() for name in names], dim=1)
        yield found.cpu(), batch.labels


@torch.no_grad()
def write(model: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Let the logits be `features @ weight.T + bias`.

    Args:
        model: as `check` wants it; its logits are the mean over its heads.
        weight: (K, F), for the features of all heads side by side.
        bias: (K,).
    """
    layers: list[Any] = [model.get_submodule(name) for name in logits_layers(model)]
    parts = weight.split([layer.in_features for layer in layers], dim=1)
    for layer, part in zip(layers, parts, strict=True):
        layer.weight.copy_(part * len(layers))
        layer.bias.copy_(bias)


@contextmanager
def _inputs(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the layers are given in a forward."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, given: seen.__setitem__(name, given[0])

    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _refusal(why: str) -> UserError:
    return UserError(
        f"{why}: class means cannot be written into it", key="continual", value="ncm",
        remedy="choose another model, e.g. model=vit_s, or another strategy",
    )  # fmt: skip
