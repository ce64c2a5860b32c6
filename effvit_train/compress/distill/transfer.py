"""Kind `attention`: cheaper attention learns, block by block, to give what the exact one gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from effvit_train.compress.distill import blocks
from effvit_train.compress.distill.config import ALL, AttentionConfig
from effvit_train.compress.distill.losses import attention_loss
from effvit_train.compress.distill.targets import LiveTargets
from effvit_train.errors import UserError
from effvit_train.models.surgery import Operation, Slice
from effvit_train.parts import Step, Term

_KEY = "compress.distill"


class AttentionTerm(Term):
    """Kind `attention`: attention transfer (Zhang et al. 2025, LoLCATs; Bick et al. 2024, MOHAWK, stage 2).

    Every chosen attention of the student is given what the teacher's attention of that block receives, and is to
    give what that one gives: it learns from inputs that are right, whatever the blocks before it still get wrong.
    No gradient leaves the block. The loss is relative, and the mean over the blocks.

    Args:
        student: the model that is trained.
        targets: the teachers, live; the first one's attention is learnt.
        config: `compress.distill.attention`.

    Raises:
        UserError: the teacher has not the same blocks and tokens, or no attention of the student was replaced.
    """

    name = "attention"

    def __init__(self, student: nn.Module, targets: LiveTargets, config: AttentionConfig) -> None:
        self.weight = config.weight
        self._targets, self._student = targets, student
        names = _attention(student)
        if config.blocks == ALL:
            chosen = [name for name in names if type(student.get_submodule(name)) is not Attention]
            if not chosen:
                raise UserError(
                    "no attention of the student is replaced, and the exact one has nothing to learn",
                    key=f"{_KEY}.kinds", value="attention", remedy="e.g. model.attention=linear, or leave attention out",
                )  # fmt: skip
        else:
            key = f"{_KEY}.attention.blocks"
            chosen = [blocks.resolve(k, names, key=key, whose="student") for k in config.blocks]
        self._check(student, targets.teachers[0].model, chosen)
        self._names = list(dict.fromkeys(chosen))
        self.teacher_taps = tuple(tap for name in self._names for tap in (_before(name), name))
        width = int(student.embed_dim)  # type: ignore[arg-type]
        self.module = self._kept = _Kept(self._names, width)

    @override
    def __call__(self, step: Step) -> Tensor:
        said = self._targets.outputs(step, 0)
        if not self._names:  # every one of them was cut away
            return step.logits.new_zeros(len(step.logits))
        losses = []
        for name in self._names:
            kept = self._kept.of(name)
            attention = self._student.get_submodule(name)
            given, wanted = (said[tap][..., kept] for tap in (_before(name), name))
            given = given.to(next(attention.parameters()).dtype)
            losses.append(attention_loss(attention(given).float(), wanted.float()))
        return torch.stack(losses).mean(dim=0)

    @override
    def after_cut(
        self, model: nn.Module, operations: Sequence[Operation], optimizer: Optimizer | None
    ) -> None:
        """Forget blocks that are gone, and look at those dimensions of the embedding that are left."""
        left = dict(model.named_modules())
        for name in [name for name in self._names if name not in left]:
            self._names.remove(name)
            self._kept.forget(name)
        for cut in operations:
            if isinstance(cut, Slice) and cut.parameter.endswith(".norm1.weight"):
                self._kept.cut(f"{cut.parameter.removesuffix('.norm1.weight')}.attn", cut.index)

    @staticmethod
    def _check(student: Any, teacher: Any, chosen: Sequence[str]) -> None:
        def body(model: Any) -> tuple[Any, ...]:
            grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
            return (
                len(model.blocks), model.embed_dim, grid, getattr(model, "num_prefix_tokens", 0),
            )  # fmt: skip

        there = set(_attention(teacher))
        if not set(chosen) <= there or body(student) != body(teacher):
            raise UserError(
                "kind attention needs a teacher of the student's body: as many blocks, as wide, on the same tokens",
                key=f"{_KEY}.teacher", value=type(teacher).__name__,
                remedy="give the exact run that the student starts from, e.g. model.weights=RUN_DIR and "
                f"{_KEY}.teacher=self",
            )  # fmt: skip


class _Kept(nn.Module):
    """Which dimensions of the teacher's embedding the student still has, by block; part of the checkpoint."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(_key(name), torch.arange(width))

    def of(self, name: str) -> Tensor:
        """Numbers of the dimensions that are left."""
        return self.get_buffer(_key(name))

    def cut(self, name: str, index: Tensor) -> None:
        """Of these dimensions only those at `index` are left."""
        if _key(name) in self._buffers:  # those of other blocks are none of ours
            kept = self.of(name)
            self._buffers[_key(name)] = kept[index.to(kept.device)]

    def forget(self, name: str) -> None:
        """The block is gone."""
        del self._buffers[_key(name)]


def _key(name: str) -> str:
    return name.replace(".", "_")


def _before(name: str) -> str:
    """What gives an attention its input."""
    return f"{name.removesuffix('.attn')}.norm1"


def _attention(model: nn.Module) -> list[str]:
    """Names of the attentions of a ViT's blocks, or of what stands in their place."""
    known = dict(model.named_modules())
    names = [f"{name}.attn" for name in blocks.stages(model) if name.startswith("blocks.")]
    return [name for name in names if name in known and _before(name) in known]
