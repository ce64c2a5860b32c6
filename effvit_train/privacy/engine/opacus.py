"""Engines `opacus_hooks` and `opacus_ghost`: Opacus's grad-sample modules, for reference and benchmark.

Opacus handles a module that it knows by exact type, and takes what owns parameters otherwise through
vmap as a whole: a ViT, which owns its class token, would be one such module. So its layers are wrapped
one by one; tokens and position embeddings get a module each that stands in while `accumulate` runs; and
samplers are registered for timm's norms and layer scales. Names and parameters stay the model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)
from timm.layers import LayerNorm, LayerNormFp32, LayerScale
from torch import Tensor, nn
from typing_extensions import override

from effvit_train.errors import UserError
from effvit_train.privacy.engine import KEY
from effvit_train.privacy.engine.base import Losses, Summing, uncompiled, wide
from effvit_train.privacy.engine.bookkeeping import parts_of
from effvit_train.privacy.engine.rules import StandIn

_OWN = (nn.Linear, nn.Conv2d, nn.LayerNorm)  # known to Opacus itself
_MORE = (LayerNorm, LayerNormFp32, LayerScale)
_OTHER = "take privacy.engine=bookkeeping"


class OpacusHooks(Summing):
    """Per-sample gradients from Opacus's backward hooks; see `base.Engine`.

    Raises:
        UserError: a layer for which Opacus has no sampler; windows, which it takes for samples.
    """

    kind = "opacus_hooks"

    @override
    def refresh(self) -> None:
        self.close()
        super().refresh()
        _register()
        layers: list[nn.Module] = []
        self._owners: list[tuple[nn.Module, str, _Token]] = []
        for part in parts_of(self.modules, self.kind):
            if isinstance(part.how, StandIn):
                for name in part.names:
                    self._owners.append((part.module, name, _Token(part.module.get_parameter(name))))
            elif type(part.module) in (*_OWN, *_MORE):
                layers.append(part.module)
            else:
                raise UserError(
                    f"cannot take {part.path} ({type(part.module).__name__}), for which Opacus has no sampler",
                    key=KEY, value=self.kind, remedy=_OTHER,
                )  # fmt: skip
        self._wrapped = self._wrap(nn.ModuleList([*layers, *(token for *_, token in self._owners)]))
        self._wrapped.disable_hooks()

    def _wrap(self, layers: nn.Module) -> Any:
        return GradSampleModule(layers, loss_reduction="sum", strict=False)

    def accumulate(self, losses: Losses, samples: int, batch: Any = None) -> Tensor:
        """See `base.Engine`."""
        with uncompiled(), self._standing_in(samples * self.views):
            values = self.evaluate(losses, batch, samples)
            parameters = list(self.parameters.values())
            torch.autograd.grad(values.sum() / self.views, parameters, allow_unused=True)
            gradients = {}
            for name, parameter in self.parameters.items():
                each = parameter.grad_sample  # type: ignore[attr-defined]
                if each is None:
                    each = parameter.new_zeros((samples, *parameter.shape))
                elif len(each) != samples * self.views:
                    raise UserError(
                        f"cannot take {name}: Opacus finds {len(each)} samples in {samples * self.views}",
                        key=KEY, value=self.kind, remedy=_OTHER,
                    )  # fmt: skip
                gradients[name] = each.unflatten(0, (samples, -1)).sum(dim=1)
        return self.add_per_sample(gradients)

    @contextmanager
    def _standing_in(self, rows: int) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # of the first layer, whose inputs are images and need none
            warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients")
            stack.callback(self._forget)
            self._wrapped.enable_hooks()
            stack.callback(self._wrapped.disable_hooks)
            for module, name, token in self._owners:
                stack.callback(module._parameters.__setitem__, name, module._parameters[name])
                with torch.enable_grad():
                    module._parameters[name] = token(torch.ones(rows, 1, device=self.device))
            yield

    def _forget(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad_sample = None  # type: ignore[attr-defined]
            parameter._forward_counter = 0  # type: ignore[attr-defined]
            for left in ("_current_grad_sample", "_norm_sample"):
                if hasattr(parameter, left):
                    delattr(parameter, left)
        for module in self._wrapped.modules():
            for left in ("activations", "max_batch_len"):
                if left in module.__dict__:
                    delattr(module, left)

    @override
    def close(self) -> None:
        wrapped = self.__dict__.pop("_wrapped", None)
        if wrapped is not None:
            wrapped.remove_hooks()
            for parameter in self.parameters.values():
                for left in ("grad_sample", "_forward_counter"):
                    if hasattr(parameter, left):
                        delattr(parameter, left)


class OpacusGhost(OpacusHooks):
    """Ghost clipping: a backward pass for the norms, a second one for the clipped sum; see `base.Engine`.

    Raises:
        UserError: as `OpacusHooks`; several views; clipping layer by layer; a layer that is called twice.
    """

    kind = "opacus_ghost"

    @override
    def refresh(self) -> None:
        if self.views > 1 or self.clip.mode == "per_layer":
            what = "several views of a sample" if self.views > 1 else "layers that are clipped by themselves"
            raise UserError(f"cannot take {what}", key=KEY, value=self.kind, remedy=_OTHER)
        super().refresh()

    @override
    def _wrap(self, layers: nn.Module) -> Any:
        return GradSampleModuleFastGradientClipping(layers, loss_reduction="sum", strict=False)

    @override
    def accumulate(self, losses: Losses, samples: int, batch: Any = None) -> Tensor:
        """See `base.Engine`."""
        parameters = list(self.parameters.values())
        with uncompiled(), self._standing_in(samples):
            try:
                values = self.evaluate(losses, batch, samples)
            except NotImplementedError as error:
                raise UserError(
                    f"cannot take a layer that is called twice ({error})",
                    key=KEY, value=self.kind, remedy=_OTHER,
                ) from error  # fmt: skip
            torch.autograd.grad(values.sum(), parameters, allow_unused=True, retain_graph=True)
            self.squares = {}
            for name, parameter in self.parameters.items():
                found = getattr(parameter, "_norm_sample", None)
                if found is None:
                    found = parameter.new_zeros(samples)
                elif len(found) != samples:
                    raise UserError(
                        f"cannot take {name}: Opacus finds {len(found)} samples in {samples}",
                        key=KEY, value=self.kind, remedy=_OTHER,
                    )  # fmt: skip
                self.squares[name] = found.detach().to(wide(found.dtype)).square()
            self._wrapped.disable_hooks()
            norms, factors = self.clip.factors(self.squares)
            factor = next(iter(factors.values()))
            sums = torch.autograd.grad((factor * values).sum(), parameters, allow_unused=True)
        for total, gradient in zip(self.sums.values(), sums, strict=True):
            if gradient is not None:
                total.add_(gradient)
        return norms


class _Token(nn.Module):
    """Gives its parameter (1, ...) to every row of its input (rows, 1)."""

    def __init__(self, token: nn.Parameter) -> None:
        super().__init__()
        self.token = token

    def forward(self, rows: Tensor) -> Tensor:
        return self.token.expand(len(rows), *self.token.shape[1:])


def _register() -> None:
    """Tell Opacus how to sample what it does not know, by exact type."""
    samplers = GradSampleModule.GRAD_SAMPLERS
    for kind in (LayerNorm, LayerNormFp32):
        samplers.setdefault(kind, samplers[nn.LayerNorm])
    samplers.setdefault(LayerScale, _sample_scale)
    samplers.setdefault(_Token, _sample_token)


def _sample_scale(
    layer: LayerScale, activations: list[Tensor], gradients: Tensor
) -> dict[nn.Parameter, Tensor]:
    product = activations[0] * gradients
    return {layer.gamma: product.reshape(len(product), -1, product.shape[-1]).sum(dim=1)}


def _sample_token(layer: _Token, activations: list[Tensor], gradients: Tensor) -> dict[nn.Parameter, Tensor]:
    return {layer.token: gradients.unsqueeze(1)}
