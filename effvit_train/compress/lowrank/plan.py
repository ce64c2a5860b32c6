"""Decides which layers are factored, to which ranks, and in which basis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from effvit_train.compress.lowrank import looks
from effvit_train.compress.lowrank.allocation import CannotMeetError, Option, allocate
from effvit_train.compress.lowrank.config import ACTIVATION, KEY, LowRankConfig
from effvit_train.compress.lowrank.decompose import Decomposition, decompose, decompose_on
from effvit_train.compress.lowrank.layers import Found, Layer, find_layers
from effvit_train.errors import UserError
from effvit_train.models.factored import matrix_of
from effvit_train.models.low_rank import record_of
from effvit_train.models.record import ArchitectureRecord
from effvit_train.parts import Decided

_STEPS = 8  # a narrow layer has so many ranks to choose from, if `round_to` does not say otherwise
_ROUND = 8


def check(config: LowRankConfig, record: ArchitectureRecord) -> None:
    """Raise `UserError` for what a model cannot be factored to, whatever its weights are."""
    found = find_layers(record, config.layers)
    if config.rank is not None:
        _of_rank(config, found)
    elif config.targets:
        _allocate(
            config, found, {layer.name: dict.fromkeys(_ranks(config, layer), 1.0) for layer in found.layers}
        )
    elif not any(_ranks(config, layer) for layer in found.layers):
        raise _nothing_saves(config, found)


def decide(
    config: LowRankConfig, model: nn.Module, module: Any, data: Any, epoch: int, say: Callable[[str], None]
) -> Decided | None:
    """What is factored; None where nothing is.

    Args:
        config: `compress.lowrank`.
        model: whose weights are looked at; it is not changed.
        module: that holds it, with the record.
        data: where the images are.
        epoch: whose training images are looked at.
        say: prints one line.

    Raises:
        UserError: the model cannot be factored in this way.
    """
    found = find_layers(module.record, config.layers)
    able = [layer for layer in found.layers if layer.highest]
    bases, looked = _decompose(config, able, model, module, data, epoch)
    told: dict[str, Any] = {"calibration_images": looked, "search_images": None, "search": None}
    if config.rank is not None:
        ranks = _of_rank(config, found)
    elif config.targets:
        lost: dict[str, dict[int, float]] = {
            layer.name: {rank: 1 - bases[layer.name].kept(rank) for rank in _ranks(config, layer)}
            for layer in able
        }
        if config.search:
            tried, images = _search(lost, bases, model, looks.validation_images(config, module, data), say)
            told |= {
                "search_images": images,
                "search": {
                    name: {str(rank): loss for rank, loss in own.items()} for name, own in tried.items()
                },
            }
            lost = {name: looks.losses(bases[name], list(lost[name]), tried[name]) for name in tried}
        ranks = _allocate(config, found, lost)
    else:
        ranks = _of_energy(config, able, bases)
    if not ranks:
        if config.kept is not None:
            _say_why_not(config, able, bases, say)
        return None
    return _decided(config, found, bases, ranks, told)


def _decompose(
    config: LowRankConfig, layers: Sequence[Layer], model: nn.Module, module: Any, data: Any, epoch: int
) -> tuple[dict[str, Decomposition], int | None]:
    """Of each layer; and how many training images were looked at."""
    matrices = {layer.name: matrix_of(model.get_submodule(layer.name)).cpu() for layer in layers}
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            raise UserError(
                f"{name} has weights that are not finite numbers", key="compress", value="lowrank"
            )
    if config.weighting != ACTIVATION:
        return {name: decompose(matrix) for name, matrix in matrices.items()}, None
    inputs, looked = looks.inputs_of(
        model, list(matrices), looks.calibration_images(config, module, data, epoch)
    )
    biased = {name: getattr(model.get_submodule(name), "bias", None) is not None for name in matrices}
    return {
        name: decompose_on(matrix, inputs[name], biased=biased[name]) for name, matrix in matrices.items()
    }, looked


def _search(
    lost: Mapping[str, Mapping[int, float]], bases: Mapping[str, Decomposition], model: nn.Module,
    images: Sequence[Tensor], say: Callable[[str], None],
) -> tuple[dict[str, dict[int, float]], int]:  # fmt: skip
    """What ranks of each layer cost in quality; and how many images were looked at."""
    ranks = {name: sorted(own) for name, own in lost.items() if own}
    count = sum(map(len, images))
    say(f"lowrank: tries ranks of {len(ranks)} layers on {count} validation images")
    return looks.sensitivities(model, bases, ranks, images), count


# --- ranks ---------------------------------------------------------------------------------------


def _multiple(config: LowRankConfig, layer: Layer) -> int:
    """Of what the ranks of a layer are multiples."""
    if config.round_to is not None:
        return config.round_to
    return max(m for m in (1, 2, 4, _ROUND) if m == 1 or m * _STEPS <= layer.highest)


def _ranks(config: LowRankConfig, layer: Layer) -> list[int]:
    """The ranks that a layer may get, falling."""
    step = _multiple(config, layer)
    return list(range(layer.highest // step * step, 0, -step))


def _of_rank(config: LowRankConfig, found: Found) -> dict[str, int]:
    assert config.rank is not None
    ranks = {layer.name: config.rank for layer in found.layers if config.rank <= layer.highest}
    if not ranks:
        raise _nothing_saves(config, found)
    return ranks


def _of_energy(
    config: LowRankConfig, layers: Sequence[Layer], bases: Mapping[str, Decomposition]
) -> dict[str, int]:
    """The lowest rank of each layer that keeps the share of its energy, where that saves something."""
    assert config.kept is not None
    share = config.kept * (1 - 1e-12)
    ranks = {}
    for layer in layers:
        enough = [rank for rank in _ranks(config, layer) if bases[layer.name].kept(rank) >= share]
        if enough:
            ranks[layer.name] = enough[-1]
    return ranks


def _allocate(config: LowRankConfig, found: Found, lost: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
    """Ranks that meet the budgets, with least lost."""
    layers = {layer.name: layer for layer in found.layers}
    options = {
        name: [
            Option(None, layers[name].costs(None), 0.0),
            *(Option(rank, layers[name].costs(rank), loss) for rank, loss in own.items()),
        ]
        for name, own in lost.items()
    }
    budgets = {name: share * found.costs[name] for name, share in config.targets.items()}
    try:
        chosen = allocate(options, found.costs, budgets)
    except CannotMeetError as error:
        key, value = config.asked
        raise UserError(
            f"cannot be met by factoring {', '.join(config.layers)}: {error}", key=key, value=value,
            remedy=f"a higher target, more {KEY}.layers, or a smaller {KEY}.round_to",
        ) from None  # fmt: skip
    return {name: option.rank for name, option in chosen.items() if option.rank is not None}


def _nothing_saves(config: LowRankConfig, found: Found) -> UserError:
    key, value = config.asked
    highest = max(layer.highest for layer in found.layers)
    if config.rank is None and highest:  # there are ranks, and no multiples among them
        key, value = f"{KEY}.round_to", config.round_to
    return UserError(
        f"saves nothing in any of {len(found.layers)} layers: the highest rank that does is {highest}",
        key=key, value=value, remedy=f"a smaller one, or other {KEY}.layers",
    )  # fmt: skip


def _say_why_not(
    config: LowRankConfig, layers: Sequence[Layer], bases: Mapping[str, Decomposition], say: Callable[[str], None]
) -> None:  # fmt: skip
    most = max(
        (bases[layer.name].kept(ranks[0]) for layer in layers if (ranks := _ranks(config, layer))),
        default=0.0,
    )
    say(
        f"lowrank: no layer keeps {config.kept:g} of its energy at a rank that saves anything; "
        f"the most that one keeps there is {most:.3f}"
    )


# --- what is told --------------------------------------------------------------------------------


def _decided(
    config: LowRankConfig, found: Found, bases: Mapping[str, Decomposition], ranks: dict[str, int],
    told: Mapping[str, Any],
) -> Decided:  # fmt: skip
    layers = {layer.name: layer for layer in found.layers}
    ranks = {name: ranks[name] for name in layers if name in ranks}  # in the model's order
    after = found.after(ranks)
    rows = {}
    for name, rank in ranks.items():
        kept = bases[name].kept(rank)
        rows[name] = {
            "rank": rank, "shape": list(layers[name].shape), "energy": kept, "error": math.sqrt(max(0.0, 1 - kept)),
        }  # fmt: skip
    mean_energy = math.fsum(bases[name].kept(rank) for name, rank in ranks.items()) / len(ranks)
    facts: dict[str, Any] = {
        "by": config.asked[0].removeprefix(f"{KEY}."), "asked": config.targets or config.asked[1],
        "weighting": config.weighting,
        **told,
        "before": found.costs, "after": after, "layers": rows,
        "layers_left": len(found.layers) - len(ranks), "mean_energy": mean_energy,
    }  # fmt: skip
    words = ", ".join(f"{name} {after[name] / found.costs[name]:.3f}" for name in after)
    return Decided(
        [bases[name].factor(name, rank) for name, rank in ranks.items()],
        record_of(ranks),
        facts,
        f"{len(ranks)} of {len(found.layers)} layers factored: {words} of what they were, "
        f"{mean_energy:.3f} of a layer's energy kept on average",
    )
