"""The diagonal of the Fisher information of a classifier's weights, from gradients of single samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from effvit_train.models.mode import evaluating

EXACT = 10  # up to so many classes the expectation over them is summed
_BYTES = 1 << 26  # of gradients that are held at a time; more are no faster

Weights = dict[str, Tensor]
# Of one batch: images (B, C, H, W) as the model sees them, labels (B,), uniform draws (B,).
Samples = tuple[Tensor, Tensor, Tensor]
# From one sample's log-probabilities (K,), label and draw: classes (n, K), one-hot, times the root of the weight
# that the square of their gradient has.
Choice = Callable[[Tensor, Tensor, Tensor], Tensor]
# Of samples: name -> gradients (samples, n, shape of the weight).
Gradients = Callable[[Weights, Tensor, Tensor, Tensor], Weights]


def fisher_diagonal(model: nn.Module, batches: Iterable[Samples], *, empirical: bool) -> Weights:
    """The mean over images of `sum_k w_k (d log p_k / d theta_i)^2` for each trained weight theta_i, in fp32.

    Kirkpatrick et al. 2017, eq. 3; Kunstner et al. 2019, eq. 3 and 4. True: w = p, the expectation over the model's
    own predictions, summed for up to `EXACT` classes, else one class drawn from p with each image's own draw.
    Empirical: w is 1 for the label. Each gradient is of one image: the square of a mean is none of this.

    Args:
        model: on the images' device; its mode is given back. Weights that are not trained have no information.
        batches: images, labels and draws.
        empirical: whether to take the labels.

    Returns:
        Name -> (shape of the weight).
    """
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    state = {
        name: tensor.detach().float() if tensor.is_floating_point() else tensor.detach()
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    weights = {name: state[name] for name in names}
    total = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    rows = max(1, _BYTES // (4 * EXACT * sum(tensor.numel() for tensor in weights.values())))
    gradients = _of_many(model, rest, of_label if empirical else of_prediction)
    count = 0
    # kernels that are fused have no rule for single samples
    with evaluating(model, gradients=True), sdpa_kernel(SDPBackend.MATH):
        for images, labels, draws in batches:
            with torch.autocast(images.device.type, enabled=False):
                for part in zip(images.split(rows), labels.split(rows), draws.split(rows), strict=True):
                    for name, found in gradients(weights, *part).items():
                        total[name] += found.square().sum(dim=(0, 1))
            count += len(images)
    return {name: value / count for name, value in total.items()}


def of_prediction(log_probs: Tensor, label: Tensor, draw: Tensor) -> Tensor:
    """All classes by their probability; of many classes one, drawn by it."""
    probs = log_probs.detach().exp()
    if len(probs) <= EXACT:
        return probs.sqrt().diag()
    drawn = (probs.cumsum(dim=0) < draw).sum().clamp_max(len(probs) - 1)
    return of_label(log_probs, drawn, draw)


def of_label(log_probs: Tensor, label: Tensor, draw: Tensor) -> Tensor:
    """The label's class."""
    return F.one_hot(label, len(log_probs)).to(log_probs)[None]


def _of_many(model: nn.Module, rest: Weights, choice: Choice) -> Gradients:
    """Of many samples at once, or one by one where a layer cannot be vectorised."""
    able = True

    def gradients(weights: Weights, images: Tensor, labels: Tensor, draws: Tensor) -> Weights:
        nonlocal able
        if able:
            single = functools.partial(_of_one, model, rest, choice, vmap)
            try:
                return vmap(single, in_dims=(None, 0, 0, 0))(weights, images, labels, draws)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # no rule for it, or data that decide what is computed
                able = False
        found = [
            _of_one(model, rest, choice, _one_by_one, weights, *sample)
            for sample in zip(images, labels, draws, strict=True)
        ]
        return _stacked(found)

    return gradients


def _of_one(
    model: nn.Module, rest: Weights, choice: Choice, over: Callable[[Any], Any],
    weights: Weights, image: Tensor, label: Tensor, draw: Tensor,
) -> Weights:  # fmt: skip
    """Of one image (C, H, W): name -> gradients (n, shape of the weight)."""

    def answer(weights: Weights) -> Tensor:
        return F.log_softmax(functional_call(model, (weights, rest), (image[None],))[0], dim=-1)

    both: Any = vjp(answer, weights)
    log_probs, pull = both
    found: Weights = over(lambda row: pull(row)[0])(choice(log_probs, label, draw))
    return found


def _one_by_one(pull: Callable[[Tensor], Weights]) -> Callable[[Tensor], Weights]:
    return lambda rows: _stacked([pull(row) for row in rows])


def _stacked(found: list[Weights]) -> Weights:
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}
