"""What an engine is, and what all of them have in common: the sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.privacy.engine import KEY
from effvit_train.privacy.engine.clip import Clip

Losses = Callable[..., Tensor]


class Engine(Protocol):
    """Adds up the clipped gradients of samples, one micro-batch after another.

    Attributes:
        modules: hold all that is trained.
        clip: how a sample's gradient is bounded.
        views: views of a sample, adjacent in a batch.
        sums: parameter -> sum of the clipped gradients since `zero`, fp32 or wider.
        squares: parameter -> squared norm of its gradient in the last micro-batch, (B,), before clipping.
            Says much about single samples: never published.
    """

    modules: nn.Module
    clip: Clip
    views: int
    sums: dict[str, Tensor]
    squares: dict[str, Tensor]

    def zero(self) -> None:
        """Begin a new sum."""
        ...

    def accumulate(self, losses: Losses, samples: int, batch: Any = None) -> Tensor:
        """Add the clipped gradients of a micro-batch; returns the norms (B,) before clipping.

        The norms say much about single samples: never published.

        Args:
            losses: the forward pass of the micro-batch; returns its losses (B * views,), those of a
                sample's views adjacent. Called with `batch` if that is given, else without arguments.
            samples: B.
            batch: the micro-batch as a tree of tensors, the first dimension of each B * views. `vmap`
                cannot do without it: it calls `losses` with a batch of one.

        Raises:
            UserError: the losses are not one for each view of each sample, or a layer's input is not of
                that many rows.
        """
        ...

    def refresh(self) -> None:
        """Take note of parameters that have been cut, left out or frozen; the sums are zero afterwards."""
        ...

    def close(self) -> None:
        """Leave the modules as they were found."""
        ...


class Summing:
    """The sums of all engines: allocated once, in fp32 or wider."""

    def __init__(self, modules: nn.Module, clip: Clip, *, views: int = 1) -> None:
        self.modules, self.clip, self.views = modules, clip, views
        self.sums: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        self.refresh()

    def zero(self) -> None:
        """Begin a new sum."""
        for total in self.sums.values():
            total.zero_()

    def refresh(self) -> None:
        """Take note of parameters that have been cut, left out or frozen; the sums are zero afterwards."""
        check_modules(self.modules)
        self.squares = {}
        self.parameters = {n: p for n, p in self.modules.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise UserError("nothing is trained: all parameters are frozen", key=KEY)
        self.sums = {name: p.new_zeros(p.shape, dtype=wide(p.dtype)) for name, p in self.parameters.items()}

    def close(self) -> None:
        """Leave the modules as they were found."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def evaluate(self, losses: Losses, batch: Any, samples: int) -> Tensor:
        """Run `losses` and see that they are one for each view of each sample, (B * views,)."""
        with torch.enable_grad():
            values = losses() if batch is None else losses(batch)
        check_losses(values, samples * self.views)
        return values

    @torch.no_grad()
    def add_per_sample(self, gradients: dict[str, Tensor]) -> Tensor:
        """Clip and add gradients that are there for each sample, (B, *shape); returns the norms (B,)."""
        gradients = {name: gradient.detach().to(wide(gradient.dtype)) for name, gradient in gradients.items()}
        self.squares = {name: squared_norms(gradient) for name, gradient in gradients.items()}
        norms, factors = self.clip.factors(self.squares)
        clean = bool(norms.isfinite().all())
        with full_precision(self.device):
            for name, gradient in gradients.items():
                add_scaled(self.sums[name], gradient, factors[name], clean)
        return norms


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type that gradients of this one are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def squared_norms(gradients: Tensor) -> Tensor:
    """||g_i||^2 of (B, *shape), as (B,).

    Squares are added by `sum`, which adds in pairs: `vector_norm` adds one after another, and loses a
    digit or two on a large layer, with which a sample could give more than C.
    """
    flat = gradients.flatten(1)
    step = max(1, (1 << 20) // max(1, flat.shape[1]))
    return torch.cat([part.square().sum(dim=1) for part in flat.split(step)])


def add_scaled(total: Tensor, gradients: Tensor, factor: Tensor, clean: bool) -> None:
    """Add sum_i factor_i g_i to the total; a factor 0 takes out what is not finite, unless all is `clean`."""
    flat = gradients.flatten(1)
    if not clean:
        flat = flat.masked_fill((factor == 0)[:, None], 0)
    total.view(-1).addmv_(flat.T, factor.to(flat.dtype))


def check_losses(losses: Tensor, rows: int) -> None:
    """Raise `UserError` unless the losses are (rows,)."""
    if losses.shape != (rows,):
        raise UserError(
            f"the losses have the shape {tuple(losses.shape)} where one for each of {rows} images is needed",
            key=KEY,
            remedy="a loss term returns a tensor (B,), not its mean",
        )


def check_modules(modules: nn.Module) -> None:
    """Raise `UserError` for modules that no engine can take: samples are not apart in them, or hidden."""
    for name, module in modules.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UserError(
                f"{name} ({type(module).__name__}) mixes samples: no gradient belongs to one sample alone",
                key=KEY,
                remedy="choose a model without batch normalisation, such as model=vit_s",
            )
        if hasattr(module, "parametrizations") or any(k.endswith("_orig") for k in module._parameters):
            raise UserError(
                f"{name} ({type(module).__name__}) computes its weights from other parameters",
                key=KEY,
                remedy="remove parametrizations and pruning masks first",
            )


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply matrices as they are: no autocast, no TF32, no bf16 in their stead.

    Norms and sums that round their operands differently would let a sample give more than C.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def uncompiled() -> AbstractContextManager[None]:
    """Run compiled modules as they are written: hooks that come and go would break them into pieces."""
    return torch.compiler.set_stance("force_eager")
