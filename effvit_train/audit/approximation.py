"""The axis `approximation/*`: how far replaced parts are from the exact ones, and how near to low rank all are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from effvit_train.audit.low_rank import ENERGIES, attention_ranks, weight_ranks
from effvit_train.audit.matrices import NOT_FINITE, all_finite
from effvit_train.card import Measured
from effvit_train.errors import first_line
from effvit_train.models.mode import evaluating
from effvit_train.taps import Taps

ATTENTION = "approximation/attention_error"
OUTPUT = "approximation/output_error"
RANK = "approximation/rank_share"
NOTHING_REPLACED = "the model has no replaced parts"
MIXERS_ONLY = "its token mixers have no queries and keys, and so no exact attention with the same weights"
BATCH = 32  # images at once
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_BLOCK = re.compile(r"(^|\.)blocks\.\d+$")
# Settings that do not change what a module computes in evaluation mode.
_IGNORED = frozenset(("training", "fused_attn", "p", "drop_prob", "inplace"))


@dataclass(frozen=True)
class LayerError:
    """Relative errors ||y - y'||_F / ||y||_F of one layer, over all images together.

    Attributes:
        name: of the submodule, in both models.
        local: given the same input, the one that the exact model's layer receives.
        propagated: each within its own model, so that what earlier layers changed is in it.
        reason: why one of them is None.
    """

    name: str
    local: float | None
    propagated: float | None
    reason: str = ""


def measure_approximation(
    model: nn.Module,
    images: Tensor,
    *,
    exact: nn.Module | None = None,
    without: str = NOTHING_REPLACED,
    energies: Sequence[float] = ENERGIES,
    attention_images: int = 4,
) -> tuple[Measured, dict[str, Any]]:
    """The errors of a model against its exact counterpart, and the ranks of its weights and attention.

    Args:
        model: what ships.
        images: (n, C, H, W) as the model sees them. Of a private run none that it was trained on.
        exact: the same model before parts were replaced, with the same names; None if there is none.
        without: why there is none.
        energies: shares of the energy that ranks are given for.
        attention_images: so many of the images show the rank of attention.

    Returns:
        The measures, and layer by layer what they were taken from.
    """
    measured = Measured()
    if not all_finite(model):
        measured.missing |= dict.fromkeys((ATTENTION, OUTPUT, RANK), NOT_FINITE)
        return measured, {}
    facts: dict[str, Any] = {}
    ranks = weight_ranks(model, energies)
    facts["weights"] = ranks
    facts["attention"] = attention_ranks(model, images[:attention_images], energies)
    if ranks:
        highest = str(max(energies))
        shares = [row["rank"][highest] / row["full_rank"] for row in ranks]
        measured.values[RANK] = math.fsum(shares) / len(shares)
    else:
        measured.missing[RANK] = "the model has neither linear layers nor convolutions"
    if exact is None:
        measured.missing |= dict.fromkeys((ATTENTION, OUTPUT), without)
        return measured, facts
    layers, output = compare_layers(exact, model, images)
    facts["layers"] = [asdict(layer) for layer in layers]
    if output is None:
        measured.missing[OUTPUT] = "the two models do not give outputs of one shape"
    else:
        measured.values[OUTPUT] = output
    replaced = replaced_attention(exact, model)
    errors, reasons = attention_errors(exact, model, images, replaced)
    facts["attention_errors"] = errors
    if errors:
        measured.values[ATTENTION] = math.fsum(errors.values()) / len(errors)
    elif replaced:
        measured.missing[ATTENTION] = "; ".join(sorted(set(reasons.values())))
    else:
        measured.missing[ATTENTION] = "the model has no replaced attention"
    return measured, facts


def compare_layers(
    exact_model: nn.Module, other_model: nn.Module, images: Tensor, names: Sequence[str] | None = None
) -> tuple[list[LayerError], float | None]:
    """The errors of each layer, by itself and with what went before, and of the models' outputs.

    Args:
        exact_model: what is approximated.
        other_model: the approximation.
        images: (n, C, H, W) as both see them.
        names: of submodules of both; None takes their blocks, or their direct children if they have none.

    Returns:
        The layers in the exact model's order, and the propagated error of the output; None where the two do not
        give outputs of one shape.

    Both models are left as found; their outputs are compared in double precision.
    """
    if names is None:
        names = shared_blocks(exact_model, other_model)
    local = {name: _Sums() for name in names}
    whole = {name: _Sums() for name in names}
    output = _Sums()
    with evaluating(exact_model, other_model):
        for part in images.split(BATCH):
            taps = [Taps(model, names) for model in (exact_model, other_model)]
            try:
                with _beside(exact_model, other_model, local):
                    first = exact_model(part)
                taps[1].take()  # what the other's layers gave beside the exact ones
                second = other_model(part)
                outputs = [tap.take() for tap in taps]
            finally:
                for tap in taps:
                    tap.remove()
            for name in names:
                if all(name in found for found in outputs):
                    whole[name].add(outputs[0][name], outputs[1][name])
            output.add(first, second)
    errors = [
        LayerError(name, local[name].error(), whole[name].error(), local[name].reason or whole[name].reason)
        for name in names
    ]
    return errors, output.error()


def attention_errors(
    exact_model: nn.Module, other_model: nn.Module, images: Tensor, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """||A(x) - A'(x)||_F / ||A(x)||_F of attention modules A and their replacements A'.

    x is what A' receives in `other_model`: the inputs that it has to do with in use. Arguments as in
    `compare_layers`. Returns the errors by name, and the reasons of those that could not be taken.
    """
    sums = {name: _Sums() for name in names}
    with evaluating(exact_model, other_model):
        for part in images.split(BATCH):
            with _beside(other_model, exact_model, sums, exact_runs=False):
                other_model(part)
    errors = {name: error for name, found in sums.items() if (error := found.error()) is not None}
    return errors, {name: found.reason for name, found in sums.items() if found.error() is None}


def replaced_attention(exact_model: nn.Module, other_model: nn.Module) -> list[str]:
    """Attention modules of the exact model that are others in the other one: in class, setting or weights."""
    others = dict(other_model.named_modules())
    found: list[str] = []
    for name, module in exact_model.named_modules():
        own = name.rpartition(".")[2]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not name or inside or not _ATTENTION.search(f"{own} {type(module).__name__}"):
            continue
        if name in others and _differ(module, others[name]):
            found.append(name)
    return found


def shared_blocks(exact_model: nn.Module, other_model: nn.Module) -> list[str]:
    """Names of the blocks that both models have; of their direct children where neither has blocks."""
    others = dict(other_model.named_modules())
    shared = [name for name, _ in exact_model.named_modules() if name in others]
    return [name for name in shared if _BLOCK.search(name)] or [
        name for name in shared if name and "." not in name
    ]


def _differ(one: nn.Module, two: nn.Module) -> bool:
    def settings(module: nn.Module) -> list[tuple[Any, ...]]:
        rows = []
        for name, part in module.named_modules():
            plain = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str))}
            rows.append((name, type(part), {k: v for k, v in plain.items() if k not in _IGNORED}))
        return rows

    if settings(one) != settings(two):
        return True
    states = one.state_dict(), two.state_dict()
    return states[0].keys() != states[1].keys() or any(
        not torch.equal(tensor, states[1][name].to(tensor)) for name, tensor in states[0].items()
    )


class _Sums:
    """Squares of a difference and of what is exact, summed over batches."""

    def __init__(self) -> None:
        self.reason = "never ran"
        self._difference = self._exact = 0.0

    def add(self, exact: Any, other: Any) -> None:
        """Add a batch of outputs: tensors, or tuples that begin with one."""
        exact, other = _first(exact), _first(other)
        if exact is None or other is None:
            self.fail("it does not give a tensor")
        elif exact.shape != other.shape:
            self.fail(f"it gives {tuple(other.shape[1:])}, the exact one {tuple(exact.shape[1:])}")
        elif self.reason in ("", "never ran"):
            self.reason = ""
            self._difference += float((exact.double() - other.double()).square().sum())
            self._exact += float(exact.double().square().sum())

    def fail(self, reason: str) -> None:
        """There is no error to give."""
        self.reason = reason

    def error(self) -> float | None:
        """The relative error; None where there is none, also where the exact output is zero."""
        if self.reason:
            return None
        if not self._exact:
            return 0.0 if not self._difference else None
        return math.sqrt(self._difference / self._exact)


def _first(output: Any) -> Tensor | None:
    while isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


@contextmanager
def _beside(
    running: nn.Module, standing: nn.Module, sums: dict[str, _Sums], *, exact_runs: bool = True
) -> Iterator[None]:
    """While `running` runs, give its layers' inputs to those of `standing` too, and compare the outputs."""
    given: dict[str, Any] = {}
    hooks = []

    def before(name: str) -> Callable[..., None]:
        twin = standing.get_submodule(name)

        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            args, kwargs = tree_map(lambda v: v.clone() if isinstance(v, Tensor) else v, (args, kwargs))
            try:
                given[name] = twin(*args, **kwargs)
            except Exception as error:  # a layer of another width complains in its own way
                sums[name].fail(f"it does not take the same input: {first_line(error)}")

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if name in given:
                pair = (output, given.pop(name))
                sums[name].add(*(pair if exact_runs else pair[::-1]))

        return hook

    for name in sums:
        layer = running.get_submodule(name)
        hooks.append(layer.register_forward_pre_hook(before(name), with_kwargs=True))
        hooks.append(layer.register_forward_hook(after(name)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
