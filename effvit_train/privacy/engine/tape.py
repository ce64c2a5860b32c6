"""What one backward pass leaves behind for each parameter, sample by sample: book-keeping.

Bu et al. 2023, "Differentially private optimization on large model at small cost". A linear map's
gradient of sample i is G_i^T A_i: its inputs A (B, T, I), the gradients of its outputs G (B, T, O), where
T counts all positions at which the sample met the weight. Its norm is had without the gradient from
<A_i A_i^T, G_i G_i^T> (the ghost norm), at a cost of T^2 (I + O), or from the gradient itself, at T I O.
Which costs less is also what takes less room until the norms of all layers are known: I O against
T (I + O). So a layer either keeps A and G, or its gradients, and never both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from effvit_train.privacy.engine.base import add_scaled, squared_norms, wide
from effvit_train.privacy.engine.clip import Clip

BUDGET = 1 << 22  # entries of a temporary tensor: 16 MB, which stays in reach of the caches
PATHS = ("auto", "ghost", "instantiate")
# Of (sum_t |A_t| |G_t|)^2 against ||g||^2: how much may cancel out in a ghost norm. Its error is that ratio
# times some rounding of fp32; beyond this, a sample could give noticeably more than C.
CANCELLATION = 1e3


class Call(ABC):
    """One call of a linear map: what it was given, and the gradient of what it gave."""

    rows: int  # T
    inputs: int  # I
    outputs: int  # O
    dtype: torch.dtype  # of A and G, wide
    copies: bool  # whether `operands` makes new tensors

    @abstractmethod
    def operands(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """A (b, T, I) and G (b, T, O) of the samples from `start` to `stop`, in `dtype`."""


class LinearCall(Call):
    """Of `nn.Linear`: everything between the first and the last dimension is positions.

    Args:
        inputs: (B * m, ..., I), where a sample's m rows (views, windows) are adjacent.
        gradients: (B * m, ..., O).
        samples: B.
    """

    def __init__(self, inputs: Tensor, gradients: Tensor, samples: int) -> None:
        self._inputs = inputs.reshape(samples, -1, inputs.shape[-1])
        self._gradients = gradients.reshape(samples, -1, gradients.shape[-1])
        self.rows, self.inputs = self._inputs.shape[1:]
        self.outputs = self._gradients.shape[2]
        self.dtype = wide(gradients.dtype)
        self.copies = inputs.dtype != self.dtype or gradients.dtype != self.dtype

    def operands(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Call`."""
        return self._inputs[start:stop].to(self.dtype), self._gradients[start:stop].to(self.dtype)


class ConvCall(Call):
    """Of `nn.Conv2d` without groups: a linear map of patches, which are cut out when they are needed.

    Args:
        images: (B * m, C, H, W).
        gradients: (B * m, O, H', W').
        samples: B.
        kernel, stride, padding, dilation: of the convolution.
    """

    def __init__(
        self,
        images: Tensor,
        gradients: Tensor,
        samples: int,
        *,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> None:
        self._images, self._gradients, self._each = images, gradients, images.shape[0] // samples
        self._geometry = {
            "kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation
        }  # fmt: skip
        self.rows = self._each * gradients.shape[2] * gradients.shape[3]
        self.inputs = images.shape[1] * kernel[0] * kernel[1]
        self.outputs = gradients.shape[1]
        self.dtype, self.copies = wide(gradients.dtype), True

    def patches(self, start: int, stop: int) -> Tensor:
        """(b * m, I, H' * W') of the samples from `start` to `stop`."""
        images = self._images[start * self._each : stop * self._each].to(self.dtype)
        return F.unfold(images, **self._geometry)

    def of_outputs(self, start: int, stop: int) -> Tensor:
        """(b * m, O, H' * W')."""
        return self._gradients[start * self._each : stop * self._each].flatten(2).to(self.dtype)

    def operands(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """See `Call`."""
        inputs, gradients = self.patches(start, stop), self.of_outputs(start, stop)
        count = stop - start
        return (
            inputs.transpose(1, 2).reshape(count, -1, self.inputs),
            gradients.transpose(1, 2).reshape(count, -1, self.outputs),
        )

    def instantiate_grouped(self, groups: int) -> Tensor:
        """Per-sample gradients (B, O, I / groups) of a convolution whose groups see channels of their own."""
        samples = self._images.shape[0] // self._each
        of_group = self.inputs // groups
        result = self._images.new_empty((samples, self.outputs, of_group), dtype=self.dtype)
        for start, stop in chunks(samples, self.rows * (self.inputs + self.outputs)):
            inputs = self.patches(start, stop).unflatten(1, (groups, of_group))
            gradients = self.of_outputs(start, stop).unflatten(1, (groups, -1))
            each = (gradients @ inputs.transpose(2, 3)).flatten(1, 2)
            result[start:stop] = each.unflatten(0, (stop - start, -1)).sum(dim=1)
        return result


@dataclass
class Entry:
    """What the tape holds of one parameter: per-sample gradients, or the calls that they come from."""

    gradients: Tensor | None = None
    calls: list[Call] = field(default_factory=list)


class Tape:
    """What the backward pass of one micro-batch leaves behind, parameter by parameter.

    Args:
        samples: B.
        path: `auto`, or one of `PATHS` for all layers, for tests.
        scratch: where temporary tensors lie.
    """

    def __init__(self, samples: int, path: str, scratch: Scratch) -> None:
        self.samples, self.path, self.scratch = samples, path, scratch
        self.entries: dict[str, Entry] = {}

    def add_gradients(self, name: str, gradients: Tensor) -> None:
        """Take per-sample gradients (B, *shape); a parameter that is met again gets their sum."""
        entry = self.entries.setdefault(name, Entry())
        gradients = gradients.flatten(1).to(wide(gradients.dtype))
        # not in place: what was given may be a gradient that other layers hold too
        entry.gradients = gradients if entry.gradients is None else entry.gradients + gradients

    def add_call(self, name: str, call: Call) -> None:
        """Take a call of a linear map, or the gradients that follow from it if they are smaller."""
        path = self.path
        if path == "auto":
            smaller = call.inputs * call.outputs <= call.rows * (call.inputs + call.outputs)
            path = "instantiate" if smaller else "ghost"
        if path == "instantiate":
            self.add_gradients(name, instantiate([call], self.samples))
        else:
            self.entries.setdefault(name, Entry()).calls.append(call)

    def squares(self, name: str) -> tuple[Tensor, Tensor | None] | None:
        """Squared norms (B,) of a parameter's gradients; None where it was not met.

        What a parameter gave in several calls is one gradient: cross terms count. With a ghost norm comes
        what it would be if nothing had cancelled out.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        if entry.calls and (entry.gradients is not None or self._many_rows(entry.calls)):
            self.add_gradients(name, instantiate(entry.calls, self.samples))
            entry.calls.clear()
        if entry.gradients is not None:
            return squared_norms(entry.gradients), None
        return ghost_norms(entry.calls, self.samples, self.scratch)

    def exact_square(self, name: str, sample: int) -> Tensor:
        """Squared norm (1,) of one sample's gradient, from the gradient itself."""
        total: Tensor | None = None
        for call in self.entries[name].calls:
            inputs, gradients = call.operands(sample, sample + 1)
            product = gradients.flatten(0, 1).T @ inputs.flatten(0, 1)
            total = product if total is None else total + product
        assert total is not None
        return squared_norms(total[None])

    def add_sum(self, name: str, factor: Tensor, total: Tensor, clean: bool) -> None:
        """Add a parameter's clipped gradients to the total, and forget what they came from.

        Unless all samples are `clean`, what a factor 0 takes out may be infinite.
        """
        entry = self.entries.pop(name, None)
        if entry is None:
            return
        if entry.gradients is not None:
            add_scaled(total, entry.gradients, factor, clean)
            return
        while entry.calls:
            add_call_sum(entry.calls.pop(), self.samples, factor, total, self.scratch, clean)

    def _many_rows(self, calls: list[Call]) -> bool:
        """Whether calls that are few rows each are so many together that gradients cost less."""
        rows, first = sum(call.rows for call in calls), calls[0]
        return self.path == "auto" and first.inputs * first.outputs <= rows * (first.inputs + first.outputs)


class Scratch:
    """Memory for temporary tensors, taken once: on CPUs, fresh pages cost as much as what fills them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, slot: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this shape, and `like`'s type, whose content is arbitrary; valid until the next one."""
        key = (slot, like.dtype, like.device)
        count = 1
        for length in shape:
            count *= length
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            self._buffers[key] = buffer = like.new_empty(count)
        return buffer[:count].view(shape)


def chunks(samples: int, entries: int) -> list[tuple[int, int]]:
    """Ranges of samples that have at most `BUDGET` entries together, `entries` each, at least one sample."""
    step = max(1, min(samples, BUDGET // max(1, entries)))
    return [(start, min(start + step, samples)) for start in range(0, samples, step)]


def instantiate(calls: list[Call], samples: int) -> Tensor:
    """Per-sample gradients G_i^T A_i, summed over the calls, (B, O * I)."""
    first = calls[0]
    result: Tensor | None = None
    for call in calls:
        entries = call.rows * (call.inputs + call.outputs) if call.copies else 0
        for start, stop in chunks(samples, max(entries, 1)):
            inputs, gradients = call.operands(start, stop)
            if result is None:
                result = inputs.new_empty((samples, first.outputs, first.inputs))
            part = result[start:stop]
            if call is first:
                torch.bmm(gradients.transpose(1, 2), inputs, out=part)
            else:
                part.baddbmm_(gradients.transpose(1, 2), inputs)
    assert result is not None
    return result.flatten(1)


def ghost_norms(calls: list[Call], samples: int, scratch: Scratch) -> tuple[Tensor, Tensor]:
    """Squared norms (B,) of sum over calls of G_i^T A_i, from <A_i A_i^T, G_i G_i^T>.

    With them (sum_t |A_it| |G_it|)^2, which the norms would be if all positions pointed the same way.
    """
    rows = sum(call.rows for call in calls)
    width = sum(call.rows * (call.inputs + call.outputs) for call in calls if call.copies or len(calls) > 1)
    squares, bounds = [], []
    for start, stop in chunks(samples, 2 * rows * rows + width):
        operands = [call.operands(start, stop) for call in calls]
        inputs, gradients = (
            pair[0] if len(pair) == 1 else torch.cat(pair, dim=1) for pair in zip(*operands, strict=True)
        )
        shape = (stop - start, rows, rows)
        of_inputs = torch.bmm(inputs, inputs.transpose(1, 2), out=scratch.take("first", shape, inputs))
        of_outputs = torch.bmm(
            gradients, gradients.transpose(1, 2), out=scratch.take("second", shape, inputs)
        )
        product = of_inputs.mul_(of_outputs)
        bounds.append(product.diagonal(dim1=1, dim2=2).sqrt().sum(dim=1).square())
        # rounding may take a norm that is zero below it
        squares.append(product.flatten(1).sum(dim=1).clamp_(min=0))
    return torch.cat(squares), torch.cat(bounds)


def add_call_sum(
    call: Call, samples: int, factor: Tensor, total: Tensor, scratch: Scratch, clean: bool
) -> None:
    """Add sum_i factor_i G_i^T A_i to the total (O, I): one product, the narrower operand scaled."""
    total = total.view(call.outputs, call.inputs)
    narrow = min(call.inputs, call.outputs)
    entries = call.rows * (narrow + (call.inputs + call.outputs if call.copies else 0))
    for start, stop in chunks(samples, entries):
        inputs, gradients = call.operands(start, stop)
        scale = factor[start:stop, None, None]
        if not clean:  # 0 * inf is not 0
            inputs, gradients = (operand.masked_fill(scale == 0, 0) for operand in (inputs, gradients))
        if call.inputs < call.outputs:
            inputs = torch.mul(inputs, scale, out=scratch.take("first", tuple(inputs.shape), inputs))
        else:
            scaled = scratch.take("first", tuple(gradients.shape), gradients)
            gradients = torch.mul(gradients, scale, out=scaled)
        total.addmm_(gradients.flatten(0, 1).T, inputs.flatten(0, 1))


def finish(tape: Tape, clip: Clip, sums: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the clipped gradients on the tape to the sums; returns norms (B,) and squares by parameter."""
    squares, bounds = {}, {}
    for name, total in sums.items():
        square, bound = tape.squares(name) or (total.new_zeros(tape.samples), None)
        squares[name] = square.to(total.dtype)
        if bound is not None:
            bounds[name] = bound
    if bounds:
        _mend(tape, squares, bounds, by_layer=clip.mode == "per_layer")
    norms, factors = clip.factors(squares)
    clean = bool(norms.isfinite().all())
    for name, total in sums.items():
        tape.add_sum(name, factors[name], total, clean)
    return norms, squares


def _mend(tape: Tape, squares: dict[str, Tensor], bounds: dict[str, Tensor], *, by_layer: bool) -> None:
    """Compute norms anew, in place, for samples of which so much cancels out that ghost norms are coarse.

    Rounding is relative to what cancels: the norm of a gradient that is small for that reason could come
    out as nothing, and the gradient would not be clipped. From the gradient itself it is as good as the
    sum that it becomes part of.

    Args:
        squares: of all parameters.
        bounds: of those that have ghost norms, what nothing cancelled out would be.
        by_layer: whether each layer's norm matters, not only that of all together.
    """
    if by_layer:
        coarse = torch.stack([bound > CANCELLATION * squares[name] for name, bound in bounds.items()])
    else:
        norms = torch.stack(list(squares.values())).sum(dim=0)
        all_bounds = torch.stack(list(bounds.values()))
        coarse = (all_bounds.sum(dim=0) > CANCELLATION * norms).expand_as(all_bounds)
    names = list(bounds)
    for which, sample in coarse.nonzero().tolist():
        squares[names[which]][sample] = tape.exact_square(names[which], sample)[0]
