"""Where a model's inner features are, and how those of two models are brought to one grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.models.resample import average
from effvit_train.models.tokens.change import blocks_of, reduced
from effvit_train.models.tokens.steps import to_grid
from effvit_train.taps import Taps


def stages(model: nn.Module) -> list[str]:
    """Names of the submodules whose outputs are features: a ViT's blocks, else timm's stages."""
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, (nn.Sequential, nn.ModuleList)) and hasattr(model, "num_prefix_tokens"):
        return [f"blocks.{k}" for k in range(len(blocks))]
    info = getattr(model, "feature_info", None)
    names = [str(entry["module"]) for entry in info if entry.get("module")] if isinstance(info, list) else []
    known = dict(model.named_modules())
    return [name for name in names if name in known]


def widths(model: nn.Module, input_shape: Sequence[int], names: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(positions per side, width) of the features of each submodule, found by running one image through."""
    taps = Taps(model, names)
    parameter = next(model.parameters())
    training = model.training
    with torch.no_grad():
        model.eval()(torch.zeros(1, *input_shape, device=parameter.device))
    model.train(training)
    found = {}
    for name, output in taps.take().items():
        tokens = patches(model, output)
        found[name] = (math.isqrt(tokens.shape[1]), tokens.shape[2])
    taps.remove()
    return found


def before(model: nn.Module, name: str) -> tuple[str, ...]:
    """The block whose output says which tokens a submodule of the next one is given; none where all are there."""
    if not reduced(model):
        return ()
    names = list(blocks_of(model))
    at = names.index(".".join(name.split(".")[:2]))
    return (names[at - 1],) if at else ()


def patches(model: nn.Module, output: Any, entering: Any = None) -> Tensor:
    """Features (B, N, D) of the positions of an image, without class and other tokens, in float32.

    Where tokens were merged or dropped, every patch has the features of the token that it is a part of.

    Args:
        model: that they are from.
        output: of a block or a stage; of a submodule of a block with fewer tokens `entering` is needed too.
        entering: what the block before it gave (see `before`); None where that gave all tokens.
    """
    if isinstance(output, tuple):  # of a block with fewer tokens
        output = to_grid(*output)
    elif entering is not None:
        output = to_grid(output, entering[1])
    if output.dim() == 4:
        if getattr(model, "output_fmt", "NCHW") == "NHWC":
            return output.flatten(1, 2).float()
        return output.flatten(2).transpose(1, 2).float()
    return output[:, int(getattr(model, "num_prefix_tokens", 0)) :].float()


def same_grid(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Bring features (B, N, D) and (B, M, D') on square grids to the coarser one, by averaging."""
    grids = [math.isqrt(x.shape[1]) for x in (one, other)]
    coarser = min(grids)
    return _pool(one, grids[0], coarser), _pool(other, grids[1], coarser)


def _pool(x: Tensor, grid: int, to: int) -> Tensor:
    if grid == to:
        return x
    image = x.transpose(1, 2).unflatten(2, (grid, grid))
    return average(image, (to, to)).flatten(2).transpose(1, 2)


def resolve(index: int, names: Sequence[str], *, key: str, whose: str) -> str:
    """The submodule that a block's number means; negative numbers count from the end."""
    if not -len(names) <= index < len(names):
        allowed = f"{-len(names)} to {len(names) - 1}"
        raise UserError(
            f"the {whose} has no such block" + (f" (it has {allowed})" if names else ""),
            key=key, value=index, remedy=f"e.g. {key}=[-1]" if names else "choose another kind",
        )  # fmt: skip
    return names[index]


def same_depth(index: int, count: int, other: int) -> int:
    """The block of a model with `other` blocks at the relative depth of block `index` of `count`."""
    position = (index % count + 1) / count
    return max(0, round(position * other) - 1)
