"""The loss terms of distillation, one per kind; each gives one number per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from effvit_train.compress.distill import blocks
from effvit_train.compress.distill.config import ALL, DistillConfig, FeatureConfig, RelationConfig
from effvit_train.compress.distill.losses import feature_loss, hard_loss, relation_loss
from effvit_train.compress.distill.targets import LiveTargets
from effvit_train.compress.distill.transfer import AttentionTerm
from effvit_train.data.info import DataInfo
from effvit_train.errors import UserError
from effvit_train.keys import stream_key
from effvit_train.models.factored import FactoredLinear
from effvit_train.models.surgery import Operation, Slice, apply, slice_parameter
from effvit_train.parts import Step, Term
from effvit_train.soft_labels import SoftTerm, Targets, answered, soft_loss, student_logits

_KEY = "compress.distill"


class HardTerm(Term):
    """Kind `hard`: the class that the teacher holds likeliest (Touvron et al. 2021), of those known by now."""

    name = "hard"

    def __init__(self, targets: Targets, *, weight: float) -> None:
        self.targets, self.weight = targets, weight

    @override
    def __call__(self, step: Step) -> Tensor:
        student = student_logits(step)
        return hard_loss(student, self.targets.log_probs(step)[:, : student.shape[1]])


class SelfTerm(Term):
    """Kind `self`: the distribution of the moving average of the student's own weights.

    (Tarvainen & Valpola 2017, mean teacher, with Hinton's soft loss for the consistency cost.) It sees
    the same view; the average is part of the training's state.
    """

    name = "self"

    def __init__(self, model: nn.Module, *, decay: float, temperature: float, weight: float) -> None:
        self.temperature, self.weight = temperature, weight
        self.module = self._average = _Average(model, decay)

    @override
    def __call__(self, step: Step) -> Tensor:
        with torch.no_grad():
            target = self._average(step.images).float()
        return soft_loss(answered(step), target, self.temperature)

    @override
    def after_step(self, model: nn.Module, step: int) -> None:
        self._average.average.update(model, step=step)

    @override
    def after_cut(
        self, model: nn.Module, operations: Sequence[Operation], optimizer: Optimizer | None
    ) -> None:
        apply(self._average.average.module, operations)


class _Average(nn.Module):
    """A moving average of a model, for ever in evaluation mode."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.average = ModelEmaV3(model, decay=decay, use_warmup=True)
        self.average.module.requires_grad_(False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.average.module(images)

    def train(self, mode: bool = True) -> _Average:
        return super().train(False)


class FeatureTerm(Term):
    """Kind `feature`: the teacher's inner features, through a learned projection (FitNets).

    The projection is part of the training's state and is not shipped.

    Args:
        student: the model that is trained.
        targets: the teachers, live; the first one's features are learnt.
        info: the student's data.
        config: `compress.distill.feature`.
        seed: of the projection's weights.

    Raises:
        UserError: one of the two has no such block, or no square grid of features.
    """

    name = "feature"

    def __init__(
        self, student: nn.Module, targets: LiveTargets, info: DataInfo, config: FeatureConfig, seed: int
    ) -> None:
        self.weight, self.loss = config.weight, config.loss
        self._targets, self._student, self._teacher = targets, student, targets.teachers[0].model
        key = f"{_KEY}.feature.blocks"
        names = blocks.stages(student)
        numbers = range(len(names)) if config.blocks == ALL else config.blocks
        self.taps = tuple(blocks.resolve(k, names, key=key, whose="student") for k in numbers)
        own = blocks.widths(student, info.input_shape, self.taps)
        self.teacher_taps = self._choose(config, names, own, info)
        view = targets.teachers[0].view
        shape = (view.channels, *(view.size or info.input_shape[1:]))
        others = blocks.widths(self._teacher, shape, self.teacher_taps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_key("distill.feature", seed))
            self.module = self._projections = nn.ModuleList(
                nn.Linear(own[a][1], others[b][1]) for a, b in zip(self.taps, self.teacher_taps, strict=True)
            )

    @override
    def __call__(self, step: Step) -> Tensor:
        said = self._targets.outputs(step, 0)
        losses = []
        for name, other, projection in zip(self.taps, self.teacher_taps, self._projections, strict=True):
            own = blocks.patches(self._student, step.outputs[name])
            target = blocks.patches(self._teacher, said[other])
            own, target = blocks.same_grid(own, target)
            losses.append(feature_loss(projection(own).float(), target, self.loss))
        return torch.stack(losses).mean(dim=0)

    @override
    def after_cut(
        self, model: nn.Module, operations: Sequence[Operation], optimizer: Optimizer | None
    ) -> None:
        """Read fewer features where the embedding has become narrower."""
        for tap, projection in zip(self.taps, self._projections, strict=True):
            # every norm of a stage loses the same entries; a plain ViT is one stage
            stage = tap.rpartition(".")[0] if tap.startswith("blocks.") else tap
            norms = [
                cut
                for cut in operations
                if isinstance(cut, Slice)
                and cut.parameter.startswith(f"{stage}.")
                and cut.parameter.endswith(".norm1.weight")
            ]
            for cut in norms:
                if cut.parameter == norms[0].parameter:
                    slice_parameter(projection.weight, 1, cut.index, optimizer)  # type: ignore[arg-type]
            projection.in_features = projection.weight.shape[1]  # type: ignore[assignment,index]

    def _choose(
        self, config: FeatureConfig, names: Sequence[str], own: dict[str, tuple[int, int]], info: DataInfo
    ) -> tuple[str, ...]:
        found = blocks.stages(self._teacher)
        if config.teacher_blocks is not None or not found:
            wanted = config.teacher_blocks or [-1]
            key = f"{_KEY}.feature.teacher_blocks"
            if config.teacher_blocks is not None and len(wanted) != len(self.taps):
                raise UserError(
                    f"must name one block for each of the student's {len(self.taps)}",
                    key=key, value=config.teacher_blocks, remedy="or leave it out",
                )  # fmt: skip
            return tuple(blocks.resolve(k, found, key=key, whose="teacher") for k in wanted)
        if found[0].startswith("blocks.") and hasattr(self._teacher, "num_prefix_tokens"):
            return tuple(
                found[blocks.same_depth(names.index(name), len(names), len(found))] for name in self.taps
            )
        view = self._targets.teachers[0].view
        shape = (view.channels, *(view.size or info.input_shape[1:]))
        grids = blocks.widths(self._teacher, shape, found)
        return tuple(
            next((name for name in reversed(found) if 2 * grids[name][0] >= own[tap][0]), found[0])
            for tap in self.taps
        )


class RelationTerm(Term):
    """Kind `relation`: how the teacher's patches relate to one another (MiniLMv2).

    Needs no projection: what is compared are relations between positions, whatever the widths and the
    numbers of heads.

    Args:
        student: the model that is trained.
        targets: the teachers, live; the first that has such an attention is learnt from.
        config: `compress.distill.relation`.

    Raises:
        UserError: the student or all teachers have no attention between all patches.
    """

    name = "relation"

    def __init__(self, student: nn.Module, targets: LiveTargets, config: RelationConfig) -> None:
        self.weight = config.weight
        self._targets, self._student, self._relations = targets, student, tuple(config.relations)
        own = _attention(student)
        if not own:
            raise UserError(
                "the student has no attention between all its patches", key=f"{_KEY}.kinds", value="relation",
                remedy="choose a ViT, e.g. model=vit_s, or leave relation out",
            )  # fmt: skip
        able = [k for k, teacher in enumerate(targets.teachers) if _attention(teacher.model)]
        if not able:
            raise UserError(
                "the teacher has no attention between all its patches", key=f"{_KEY}.kinds", value="relation",
                remedy=f"give a ViT as teacher, or leave {_KEY}.teacher out: one is trained",
            )  # fmt: skip
        self.which = able[0]
        self._teacher = targets.teachers[self.which].model
        theirs = _attention(self._teacher)
        tap = blocks.resolve(config.block, own, key=f"{_KEY}.relation.block", whose="student")
        index = config.teacher_block
        if index is None:
            index = blocks.same_depth(own.index(tap), len(own), len(theirs))
        self.teacher_tap = blocks.resolve(
            index, theirs, key=f"{_KEY}.relation.teacher_block", whose="teacher"
        )
        self._tap, self.taps = tap, (tap, *blocks.before(student, tap))
        widths = (_width(student, tap), _width(self._teacher, self.teacher_tap))
        common = math.gcd(*widths)
        heads = config.heads
        if heads is None:
            most = int(student.get_submodule(tap.removesuffix(".qkv")).num_heads)  # type: ignore[arg-type]
            heads = max(h for h in range(1, most + 1) if common % h == 0)
        elif common % heads:
            raise UserError(
                f"does not divide the widths {widths[0]} and {widths[1]} of student and teacher",
                key=f"{_KEY}.relation.heads", value=heads, remedy=f"a divisor of {common}",
            )  # fmt: skip
        self.heads = heads

    @override
    def __call__(self, step: Step) -> Tensor:
        own = _query_key_value(self._student, self._tap, step.outputs)
        theirs = _query_key_value(self._teacher, self.teacher_tap, self._targets.outputs(step, self.which))
        losses = [
            relation_loss(*blocks.same_grid(own[name], theirs[name]), self.heads) for name in self._relations
        ]
        return torch.stack(losses).sum(dim=0)

    @override
    def after_cut(
        self, model: nn.Module, operations: Sequence[Operation], optimizer: Optimizer | None
    ) -> None:
        """Cut both widths into as many relation heads as before, or the most below that divide them."""
        self.taps = (self._tap, *blocks.before(model, self._tap))
        common = math.gcd(_width(model, self._tap), _width(self._teacher, self.teacher_tap))
        self.heads = max(h for h in range(1, self.heads + 1) if common % h == 0)


def _attention(model: nn.Module) -> list[str]:
    """Names of the projections to query, key and value of blocks that see all patches."""
    names = [f"{name}.attn.qkv" for name in blocks.stages(model) if name.startswith("blocks.")]
    known = dict(model.named_modules())
    return [name for name in names if isinstance(known.get(name), (nn.Linear, FactoredLinear))]


def _width(model: nn.Module, name: str) -> int:
    return model.get_submodule(name).out_features // 3  # type: ignore[operator,return-value]


def _query_key_value(model: nn.Module, name: str, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    entering = [outputs[block] for block in blocks.before(model, name)]
    found = blocks.patches(model, outputs[name], *entering)
    return dict(zip(("query", "key", "value"), found.chunk(3, dim=-1), strict=True))


def make_terms(
    config: DistillConfig, student: nn.Module, targets: Targets | None, info: DataInfo, seed: int
) -> list[Term]:
    """The terms of the configured kinds; the logit kinds share `config.share` equally."""
    terms: list[Term] = []
    kinds = config.logit_kinds
    share = config.share / max(1, len(kinds))
    if "soft" in kinds:
        assert targets is not None
        terms.append(SoftTerm(targets, temperature=config.temperature, weight=share))
    if "hard" in kinds:
        assert targets is not None
        terms.append(HardTerm(targets, weight=share))
    if "feature" in config.kinds:
        assert isinstance(targets, LiveTargets)
        terms.append(FeatureTerm(student, targets, info, config.feature, seed))
    if "relation" in config.kinds:
        assert isinstance(targets, LiveTargets)
        terms.append(RelationTerm(student, targets, config.relation))
    if "attention" in config.kinds:
        assert isinstance(targets, LiveTargets)
        terms.append(AttentionTerm(student, targets, config.attention))
    if "self" in kinds:
        terms.append(SelfTerm(student, decay=config.ema.decay, temperature=config.temperature, weight=share))
    _tap_teachers(terms, targets)
    return terms


def _tap_teachers(terms: list[Term], targets: Targets | None) -> None:
    if not isinstance(targets, LiveTargets):
        return
    wanted: list[set[str]] = [set() for _ in targets.teachers]
    teachers = [teacher.model for teacher in targets.teachers]
    for term in terms:
        if isinstance(term, (FeatureTerm, AttentionTerm)):
            wanted[0] |= set(term.teacher_taps)
        if isinstance(term, RelationTerm):
            wanted[term.which] |= {term.teacher_tap, *blocks.before(teachers[term.which], term.teacher_tap)}
    for teacher, names in zip(targets.teachers, wanted, strict=True):
        teacher.tap(names)
