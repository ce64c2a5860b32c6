"""From a plan to operations: which units stay, and what stands in for those that go."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from effvit_train.compress.prune.importance import Calibration, Moments
from effvit_train.compress.prune.solver import Plan, Scores, keep_best
from effvit_train.models.structure import Structure, Tap
from effvit_train.models.surgery import CUT, Fold, Keep, Operation, Slice, cut_group, drop_block

# in this order: which dimensions of a head are kept is said only of the heads that are
_ORDER = ("heads", "head_width", "mlp", "embed")


def operations_of(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    scores: Scores,
    *,
    compensate: str = "none",
    calibration: Calibration | None = None,
) -> list[Operation]:
    """The operations that carry out a plan: blocks are left out, the most important units stay.

    Args:
        model: as it is; not changed.
        structure: of the model; not changed.
        plan: what is to be left.
        scores: importance of each unit of each group.
        compensate: none | mean | least_squares: what the kept units make up for.
        calibration: activations, for compensation.
    """
    structure = copy.deepcopy(structure)
    operations: list[Operation] = []
    for block in plan.blocks:
        operations += drop_block(structure, block)
    kept_heads: dict[str, Tensor] = {}
    cuts: list[Operation] = []
    for kind in _ORDER:
        for name in plan.widths:
            group = structure.groups[name]
            if group.kind != kind:
                continue
            of_units = scores[name]
            if kind == "head_width":
                heads = kept_heads.get(name.rpartition(".")[0])
                of_units = of_units if heads is None else tuple(score[heads] for score in of_units)
            keep: Keep = keep_best(of_units, plan.widths[name])
            if kind == "heads":
                kept_heads[name.rpartition(".")[0]] = keep[0]
            cuts += cut_group(structure, group, keep)
    if compensate != "none":
        assert calibration is not None
        operations += _folds(model, cuts, calibration, mean_only=compensate == "mean")
    return operations + cuts


def record_of(plan: Plan, **where: Any) -> dict[str, Any]:
    """The plan as an entry of the architecture record: the widths that were left, and the blocks that were not."""
    return {"kind": CUT, **where, "blocks": list(plan.blocks), "widths": dict(plan.widths)}


def _folds(
    model: nn.Module, cuts: list[Operation], calibration: Calibration, *, mean_only: bool
) -> list[Operation]:
    """What the inputs that stay can make up for, in each layer that loses some."""
    folds: list[Operation] = []
    seen: Mapping[str, tuple[Tap, Moments]] = {
        tap.module: (tap, moments) for tap, moments in calibration.moments.items() if not tap.output
    }
    for layer, (_, moments) in seen.items():
        kept = torch.arange(len(moments.total))
        inputs = (f"{layer}.weight", f"{layer}.down.weight")  # of one matrix, or of a product
        for cut in cuts:
            if isinstance(cut, Slice) and cut.parameter in inputs and cut.dim == 1:
                kept = kept[cut.index]
        biased = getattr(model.get_submodule(layer), "bias", None) is not None
        if len(kept) < len(moments.total) and (biased or not mean_only):
            folds.append(fold(layer, moments, kept, mean_only=mean_only, biased=biased))
    return folds


def fold(layer: str, moments: Moments, kept: Tensor, *, mean_only: bool, biased: bool = True) -> Fold:
    """Let a layer's kept inputs predict the removed ones, linearly, as well as least squares can.

    With centred moments C and means m, removed = m_r + M (kept - m_k), M = C_rk C_kk^+; with `mean_only`
    M = 0 (Berisha et al. 2025, mean shift). A layer without a bias has no place for a constant: moments are
    then not centred.
    """
    there = torch.zeros(len(moments.total), dtype=torch.bool)
    there[kept] = True
    removed = (~there).nonzero()[:, 0]
    mean = moments.mean.cpu() * biased
    if mean_only:
        return Fold(layer, kept, removed, None, mean[removed])
    assert moments.products is not None
    centred = moments.products.cpu() / moments.count - torch.outer(mean, mean)
    inner = centred[kept][:, kept]
    mix = centred[removed][:, kept] @ torch.linalg.pinv(inner, hermitian=True, rtol=1e-12)
    return Fold(layer, kept, removed, mix, mean[removed] - mix @ mean[kept])
