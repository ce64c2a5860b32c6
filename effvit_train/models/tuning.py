"""Which weights of a model are trained: all, or few of them when it starts from good ones.

Few weights take less noise in private training: the noise that DP-SGD adds grows with their number, the clipped
gradient does not.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.models.config import TUNED
from effvit_train.models.linears import classifiers

ALL, HEAD, BIAS, LORA = TUNED


class LowRank(nn.Module):
    """A linear layer that stays as it is, plus what is learnt: a product of two narrow ones.

    Hu et al. 2022, "LoRA": W x + (alpha / r) B A x with alpha = r, A as a linear layer is initialised, B = 0.

    Args:
        base: the layer, frozen from now on.
        rank: r.
    """

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, base.out_features, bias=False, **like)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        return self.base(x) + self.up(self.down(x))

    def change(self) -> Tensor:
        """What is learnt, B A (out, in), in double precision."""
        return self.up.weight.double() @ self.down.weight.double()

    def merged(self) -> nn.Linear:
        """The plain layer that gives the same."""
        self.base.weight.data += self.change().to(self.base.weight.dtype)
        return self.base


def tune(model: nn.Module, what: str, *, rank: int, example: Tensor) -> None:
    """Freeze all that is not to be trained; the classifier always is.

    Args:
        model: with its starting weights.
        what: all | head | bias (Ben Zaken et al. 2022, "BitFit") | lora (of every linear layer of the blocks).
        rank: of LoRA.
        example: an image (1, C, H, W) that the model is tried with.

    Raises:
        UserError: the model has no classifier of its own, no linear layer that the rank is below, or layers that
            use a linear layer's weights without calling it.
    """
    if what == ALL:
        return
    heads = _classifiers(model)
    model.requires_grad_(False)
    for head in heads:
        head.requires_grad_(True)
    if what == BIAS:
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.requires_grad_(True)
    elif what == LORA:
        _add_low_ranks(model, heads, rank)
        _try(model, example)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    wanted = classifiers(model)
    heads = [head for head in wanted if head is not None and list(head.parameters())]
    if len(heads) < len(wanted):
        raise UserError(
            f"{type(model).__name__} does not say which of its layers is the classifier", key="recipe.tune",
            remedy="recipe.tune=all",
        )  # fmt: skip
    return heads


def _add_low_ranks(model: nn.Module, heads: list[nn.Module], rank: int) -> None:
    of_heads = {id(module) for head in heads for module in head.modules()}
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and id(module) not in of_heads
    ]
    wide = [(name, module) for name, module in found if rank < min(module.weight.shape)]
    if not wide:
        widths = sorted({min(module.weight.shape) for _, module in found})
        raise UserError(
            f"no linear layer is wider ({', '.join(map(str, widths)) or 'there is none'})", key="recipe.lora_rank",
            value=rank, remedy="a smaller rank, or recipe.tune=all",
        )  # fmt: skip
    for name, module in wide:
        model.set_submodule(name, LowRank(module, rank))


@torch.no_grad()
def _try(model: nn.Module, example: Tensor) -> None:
    training = model.training
    try:
        model.eval()(example)
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__} uses weights of linear layers without calling them ({error})",
            key="recipe.tune", value=LORA, remedy="recipe.tune=bias or recipe.tune=all",
        ) from None  # fmt: skip
    finally:
        model.train(training)


def merge(model: nn.Module) -> None:
    """Add what low-rank layers have learnt to the layers that they stand beside: the model is as it was built."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRank):
            model.set_submodule(name, module.merged())


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """The state that the model would have after `merge`, in tensors of its own; the model stays as it is."""
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, LowRank):
            for part in ("down.weight", "up.weight"):
                del state[f"{name}.{part}"]
            for part in [key for key in state if key.startswith(f"{name}.base.")]:
                state[f"{name}.{part.removeprefix(f'{name}.base.')}"] = state.pop(part)
            state[f"{name}.weight"] += module.change().to(state[f"{name}.weight"].dtype)
    return state
