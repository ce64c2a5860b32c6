"""Engine `bookkeeping`: one forward, one backward that computes no weight's gradient, one product per layer.

Bu et al. 2023, "Differentially private optimization on large model at small cost" (see `tape`).

While `accumulate` runs, hooks pass the output of every layer that is trained through an identity whose
backward puts what it needs on the tape. The identities hang on a probe, and the probe's gradient is all
that autograd is asked for: it walks to every identity, and computes no gradient of a weight on its way.
Everything that has an effect happens in the backward of the identities, which autograd itself gives the
layer's input back: so checkpointed blocks, whose forward runs twice, count once. Nothing of it stays on
the modules when `accumulate` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from effvit_train.errors import UserError
from effvit_train.privacy.engine import KEY
from effvit_train.privacy.engine.base import Losses, Summing, full_precision, uncompiled, wide
from effvit_train.privacy.engine.clip import Clip
from effvit_train.privacy.engine.rules import (
    LAYERS,
    OWNERS,
    Names,
    Rule,
    StandIn,
    Table,
    table_gradients,
    window_bias,
)
from effvit_train.privacy.engine.tape import PATHS, Scratch, Tape, finish

Sink = Callable[..., None]
_OTHER = "privacy.engine=vmap takes it"


@dataclass(frozen=True)
class Part:
    """A module that owns trained parameters, and how it is handled."""

    path: str
    module: nn.Module
    names: Names
    how: Rule | StandIn | Table


class BookKeeping(Summing):
    """See `base.Engine` for what it does.

    Args:
        modules, clip, views: see `make_engine`.
        path: how norms of linear maps are computed: what costs less, or always `ghost` or `instantiate`.

    Raises:
        UserError: a module owns trained parameters and no rule knows it; one mixes samples.
    """

    def __init__(self, modules: nn.Module, clip: Clip, *, views: int = 1, path: str = "auto") -> None:
        assert path in PATHS
        self.path = path
        self._parts: list[Part] = []
        self._scratch = Scratch()
        super().__init__(modules, clip, views=views)

    @override
    def refresh(self) -> None:
        super().refresh()
        self._parts = parts_of(self.modules)
        self._scratch = Scratch()

    def accumulate(self, losses: Losses, samples: int, batch: Any = None) -> Tensor:
        """See `base.Engine`."""
        rows = samples * self.views
        probe = torch.zeros((), device=self.device, requires_grad=True)
        tape = Tape(samples, self.path, self._scratch)
        with uncompiled(), _watched(self._parts, probe, tape, rows):
            values = self.evaluate(losses, batch, samples)
            # of the mean over a sample's views; losses of a lower precision are added up in fp32
            total = values.sum(dtype=wide(values.dtype)) / self.views
            if total.requires_grad:
                with torch.autocast(self.device.type, enabled=False):
                    torch.autograd.grad(total, probe, allow_unused=True)
        del values, total
        with torch.no_grad(), full_precision(self.device):
            norms, self.squares = finish(tape, self.clip, self.sums)
        return norms


def parts_of(modules: nn.Module, engine: str = "bookkeeping") -> list[Part]:
    """How each module that owns trained parameters is handled; raises `UserError` for what cannot be."""
    known = {id(parameter): name for name, parameter in modules.named_parameters()}
    parts = []
    for path, module in modules.named_modules():
        trained = {name: p for name, p in module._parameters.items() if p is not None and p.requires_grad}
        if not trained:
            continue
        kind = type(module)
        how: Rule | StandIn | Table | None = LAYERS.get(kind) or OWNERS.get(kind)
        what = f"{path or 'the model'} ({kind.__name__})"
        if how is None or not set(trained) <= set(how.parameters):
            unknown = sorted(set(trained) - set(how.parameters if how else ()))
            raise UserError(
                f"has no rule for {', '.join(unknown)} of {what}", key=KEY, value=engine, remedy=_OTHER
            )
        why = "" if isinstance(how, Table) else how.refuses(module)
        if not why and isinstance(how, StandIn) and any(len(p) != 1 for p in trained.values()):
            why = "has one of these for each sample"
        if why:
            raise UserError(f"cannot take {what}, which {why}", key=KEY, value=engine, remedy=_OTHER)
        parts.append(Part(path, module, {name: known[id(p)] for name, p in trained.items()}, how))
    return parts


@contextmanager
def _watched(parts: list[Part], probe: Tensor, tape: Tape, rows: int) -> Iterator[None]:
    """Put on the tape what the backward passes within have to say of the parts."""
    with ExitStack() as stack:
        for part in parts:
            if isinstance(part.how, Rule):
                _watch_layer(stack, part, part.how, probe, tape, rows)
            elif isinstance(part.how, StandIn):
                _stand_in(stack, part, probe, tape, rows)
            else:
                _spread_table(stack, part, probe, tape, rows)
        yield


def _watch_layer(stack: ExitStack, part: Part, rule: Rule, probe: Tensor, tape: Tape, rows: int) -> None:
    wants_input = any(name in part.names for name in rule.inputs)

    def sink(gradient: Tensor, inputs: Tensor | None = None) -> None:
        rule.record(tape, part.module, part.names, inputs, gradient)

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # autocast would do it too, but only we can keep what it makes of the input: the operand that is
        # multiplied with, in half the memory
        first, kind = args[0], args[0].device.type
        if torch.is_autocast_enabled(kind) and first.is_floating_point() and first.dtype != torch.float64:
            return (first.to(torch.get_autocast_dtype(kind)), *args[1:])
        return args

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        _check_rows(part, args[0], rows)
        kept = (args[0].detach(),) if wants_input else ()
        return _Capture.apply(output, probe, sink, *kept)

    if rule.casts:
        stack.callback(part.module.register_forward_pre_hook(before).remove)
    # before other hooks: what they take of the output has to hang on the probe
    stack.callback(part.module.register_forward_hook(after, prepend=True).remove)


def _stand_in(stack: ExitStack, part: Part, probe: Tensor, tape: Tape, rows: int) -> None:
    owned = part.module._parameters
    for name, full in part.names.items():
        parameter = owned[name]
        assert parameter is not None

        def sink(gradient: Tensor, full: str = full) -> None:
            each = gradient.unflatten(0, (tape.samples, -1))
            if each.shape[1] == 1:
                tape.add_gradients(full, each.squeeze(1))
            else:
                tape.add_gradients(full, each.sum(dim=1, dtype=wide(each.dtype)))

        owned[name] = _Spread.apply(parameter.detach(), probe, rows, sink)
        stack.callback(owned.__setitem__, name, parameter)


def _spread_table(stack: ExitStack, part: Part, probe: Tensor, tape: Tape, rows: int) -> None:
    module: Any = part.module
    ((_, full),) = part.names.items()
    windows = 0

    def sink(gradient: Tensor) -> None:
        tape.add_gradients(full, table_gradients(module, gradient, tape.samples).flatten(1))

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal windows
        _check_rows(part, args[0], rows)
        windows = args[0].shape[0]

    def bias() -> Tensor:
        own = window_bias(module, module.relative_position_bias_table.detach())
        return _Spread.apply(own, probe, windows, sink) if torch.is_grad_enabled() else own

    module._get_rel_pos_bias = bias
    stack.callback(delattr, module, "_get_rel_pos_bias")
    stack.callback(module.register_forward_pre_hook(before).remove)


def _check_rows(part: Part, inputs: Tensor, rows: int) -> None:
    """Raise `UserError` for an input that cannot be one of `rows` images, or of several windows of each."""
    if inputs.shape[0] % rows:
        raise UserError(
            f"{part.path} is given {inputs.shape[0]} rows, which are not {rows} images",
            key=KEY, value="bookkeeping", remedy=_OTHER,
        )  # fmt: skip


class _Capture(torch.autograd.Function):
    """The identity; its backward gives the gradient, and what was kept, to a sink."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, probe: Tensor, sink: Sink, *kept: Tensor) -> Tensor:
        ctx.sink = sink
        ctx.save_for_backward(*kept)
        # no view: a view made here may not be written to, and models do that
        return output.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # the layer's own backward needs it in one piece too: made once, for both
        gradient = gradient.contiguous()
        kept = ctx.saved_tensors  # once: in a checkpointed block this is what runs it again
        with full_precision(gradient.device):
            ctx.sink(gradient, *kept)
        return gradient, None, None, *(None for _ in kept)


class _Spread(torch.autograd.Function):
    """A tensor (1, ...) for every row, (rows, ...) in the same memory; its backward is as `_Capture`'s."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, probe: Tensor, rows: int, sink: Sink) -> Tensor:
        ctx.sink = sink
        return parameter.expand(rows, *parameter.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, ...]:
        with full_precision(gradient.device):
            ctx.sink(gradient)
        return None, None, None, None
