"""An engine against a batch-of-one loop of plain autograd, on a few real samples through the real loss.

The one test that needs no knowledge of the model. It finds what no rule can see: a module that has no
batch axis, a loss that couples samples, a parameter that is used outside its module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from effvit_train.errors import UserError
from effvit_train.models.deterministic import deterministic
from effvit_train.privacy.engine import KEY
from effvit_train.privacy.engine.base import Engine, check_losses

# Relative to the largest of its quantity: per parameter would be too strict, for some gradients (such as
# the bias of a norm of keys) are zero but for rounding.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.1}

# Samples -> (what to call for their losses, the micro-batch that it takes or None): see `Engine.accumulate`.
LossesOf = Callable[[Sequence[int]], tuple[Callable[..., Tensor], Any]]


def check(
    engine: Engine, losses_of: LossesOf, samples: int, *, dtype: torch.dtype | None = None
) -> dict[str, float]:
    """Compare norms and clipped sums of an engine with those of a loop over batches of one.

    Dropout and stochastic depth are off meanwhile. Afterwards the engine's sums are zero; random
    generators and modules are as they were.

    Args:
        engine: the engine.
        losses_of: of some of the samples 0, 1, ..., given by number.
        samples: how many, at least 2: one cannot tell whether samples are apart.
        dtype: that the model computes in (under autocast that of autocast); None for the parameters'.

    Returns:
        The worst relative errors, `norms` and `sums`.

    Raises:
        UserError: they differ; it names the worst parameter.
    """
    assert samples > 1
    device = next(engine.modules.parameters()).device
    tolerance = TOLERANCE[dtype or next(iter(engine.sums.values())).dtype]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), deterministic(engine.modules):
        squares, sums = _loop(engine, losses_of, samples)
        engine.zero()
        losses, batch = losses_of(range(samples))
        engine.accumulate(losses, samples, batch)
    of_norms = {
        name: engine.squares[name].double().sqrt() - square.sqrt() for name, square in squares.items()
    }
    of_sums = {name: engine.sums[name].double() - total for name, total in sums.items()}
    engine.zero()
    largest = torch.stack(list(squares.values())).sum(dim=0).max().sqrt()
    errors = {
        "norms": _worst(of_norms, largest),
        "sums": _worst(of_sums, torch.stack([total.abs().max() for total in sums.values()]).max()),
    }
    for what, (error, name) in errors.items():
        if not error <= tolerance:
            raise UserError(
                f"the {what} of per-sample gradients of {name} are wrong by {error:.1e} of the largest: "
                f"a module has no batch axis, a loss couples samples, or the parameter is used outside its module",
                key=KEY, remedy="try privacy.engine=vmap; if it says the same, the loss couples samples",
            )  # fmt: skip
    return {what: error for what, (error, _) in errors.items()}


def _worst(errors: dict[str, Tensor], largest: Tensor) -> tuple[float, str]:
    # what is not a number is the worst of all
    relative = {
        name: (error.abs().max() / largest.clamp_min(1e-30)).nan_to_num(nan=torch.inf).item()
        for name, error in errors.items()
    }
    name = max(relative, key=relative.__getitem__)
    return relative[name], name


def _loop(engine: Engine, losses_of: LossesOf, samples: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Squared norms (B,) and clipped sums by parameter, in float64, from ordinary gradients."""
    trained = {name: p for name, p in engine.modules.named_parameters() if p.requires_grad}
    each: dict[str, list[Tensor]] = {name: [] for name in trained}
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in trained.items()}
    for k in range(samples):
        losses, batch = losses_of([k])
        with torch.enable_grad():
            values = losses() if batch is None else losses(batch)
            check_losses(values, engine.views)
            found = torch.autograd.grad(values.mean(), list(trained.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(p, dtype=torch.float64) if gradient is None else gradient.double()
            for (name, p), gradient in zip(trained.items(), found, strict=True)
        }
        own = {name: gradient.square().sum().view(1) for name, gradient in gradients.items()}
        _, factors = engine.clip.factors(own)
        for name, gradient in gradients.items():
            each[name].append(own[name])
            sums[name] += factors[name] * gradient
    return {name: torch.cat(squares) for name, squares in each.items()}, sums
