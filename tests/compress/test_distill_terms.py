"""Terms, teachers and students in memory: what each sees, what it learns from, one number per sample."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from effvit_train.compress.distill import DistillConfig, TrainedTeacherConfig, blocks
from effvit_train.compress.distill.config import FeatureConfig, RelationConfig
from effvit_train.compress.distill.find import default_teacher
from effvit_train.compress.distill.losses import feature_loss, relation_loss
from effvit_train.compress.distill.student import with_token
from effvit_train.compress.distill.targets import LiveTargets
from effvit_train.compress.distill.terms import FeatureTerm, RelationTerm, SelfTerm, make_terms
from effvit_train.config import Config, RecipeConfig
from effvit_train.data.info import DataInfo
from effvit_train.errors import UserError
from effvit_train.frozen import Teacher, View
from effvit_train.models.config import ModelConfig
from effvit_train.parts import Step
from effvit_train.soft_labels import soft_loss
from effvit_train.taps import Taps

INFO = DataInfo("d", ("a", "b", "c"), (1, 8, 8), (0.4,), (0.2,), {}, {}, "f", {})


def vit(name: str = "vit_tiny_patch16_224", *, seed: int = 0, patch: int = 2, **kwargs) -> nn.Module:
    torch.manual_seed(seed)
    sizes = {"img_size": 8, "patch_size": patch, "in_chans": 1, "num_classes": 3}
    return timm.create_model(name, **{"embed_dim": 8, "depth": 2, "num_heads": 2} | sizes | kwargs)


def convnet(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", in_chans=1, num_classes=3)


def teacher(model: nn.Module) -> Teacher:
    return Teacher(model, View(INFO.mean, INFO.std, INFO.mean, INFO.std))


def step_of(student: nn.Module, terms, count: int = 4, rows: slice = slice(None)) -> Step:
    images = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))[rows]
    taps = Taps(student, [name for term in terms for name in term.taps])
    logits = student(images)
    taps.remove()
    token = None
    if isinstance(logits, tuple):
        logits, token = logits
    labels = torch.tensor([0, 1, 2, 0])[rows]
    return Step(
        images, labels, F.one_hot(labels, 3).float(), logits, torch.arange(4)[rows],
        token_logits=token, outputs=taps.take(),
    )  # fmt: skip


# --- what the teacher sees ---------------------------------------------------------------------


class _Sees(nn.Module):
    """Remembers its input."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.LazyLinear(3)
        self.seen = torch.empty(0)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = x
        return self.drop(self.linear(x.flatten(1)))


def seen(view: View, images: torch.Tensor) -> torch.Tensor:
    model = _Sees()
    model(view(images))
    Teacher(model, view)(images)
    return model.seen


def test_the_teacher_sees_the_batch_in_its_own_normalisation():
    pixels = torch.rand(3, 1, 8, 8)
    found = seen(View((0.4,), (0.2,), (0.1,), (0.5,)), (pixels - 0.4) / 0.2)
    assert torch.allclose(found, (pixels - 0.1) / 0.5, atol=1e-5)


def test_a_colour_teacher_of_a_grey_student_and_the_other_way_round():
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels = torch.rand(2, 1, 8, 8)
    found = seen(View((0.4,), (0.2,), mean, std), (pixels - 0.4) / 0.2)
    assert found.shape == (2, 3, 8, 8)
    for c in range(3):
        assert torch.allclose(found[:, c], (pixels[:, 0] - mean[c]) / std[c], atol=1e-5)
    pixels = torch.rand(2, 3, 8, 8)
    shape = (1, 3, 1, 1)
    images = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    found = seen(View(mean, std, (0.4,), (0.2,)), images)
    assert torch.allclose(found, (pixels.mean(1, keepdim=True) - 0.4) / 0.2, atol=1e-5)


def test_a_teacher_of_another_size():
    images = torch.full((2, 1, 8, 8), 0.5)
    found = seen(View((0.4,), (0.2,), (0.4,), (0.2,), (32, 32)), images)
    assert found.shape == (2, 1, 32, 32)
    assert torch.allclose(found, torch.tensor(0.5))


def test_the_teacher_is_frozen_in_eval_mode_and_learns_nothing():
    model = _Sees()
    model(torch.zeros(1, 1, 8, 8))
    asked = Teacher(model, View((0.4,), (0.2,), (0.4,), (0.2,)))
    images = torch.randn(4, 1, 8, 8)
    log_probs, _ = asked(images)
    assert torch.allclose(log_probs.exp().sum(1), torch.ones(4))
    assert not log_probs.requires_grad
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    assert torch.equal(log_probs, asked(images)[0])  # no dropout


def test_the_teachers_are_asked_once_for_all_terms_of_a_step():
    model = convnet()
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    config = DistillConfig(kinds=["soft", "hard", "feature"])
    student = vit()
    terms = make_terms(config, student, LiveTargets([teacher(model)]), INFO, 0)
    calls.clear()
    step = step_of(student, terms)
    for term in terms:
        term(step)
    assert calls == [1]
    assert [term.name for term in terms] == ["soft", "hard", "feature"]


# --- one number per sample ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds", [["soft"], ["hard"], ["feature"], ["relation"], ["self"], ["soft", "token"]]
)
def test_a_term_of_a_sample_does_not_depend_on_the_others(kinds):
    name = "deit_tiny_distilled_patch16_224" if "token" in kinds else "vit_tiny_patch16_224"
    student = vit(name)
    if "token" in kinds:
        student.set_distilled_training(True)
    targets = LiveTargets([teacher(vit(seed=1, embed_dim=16, depth=4, num_heads=4))])
    (term,) = make_terms(DistillConfig(kinds=kinds), student, targets, INFO, 0)
    whole = term(step_of(student, [term]))
    assert whole.shape == (4,)
    for k in range(4):
        assert torch.allclose(term(step_of(student, [term], rows=slice(k, k + 1)))[0], whole[k], atol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "shares", "label"),
    [
        (["soft"], [0.9], 0.1),
        (["hard"], [0.5], 0.5),
        (["token"], [0.5], 0.5),
        (["self"], [0.5], 0.5),
        (["soft", "self"], [0.45, 0.45], 0.1),
        (["soft", "hard"], [0.25, 0.25], 0.5),
        (["feature"], [1.0], 1.0),
        (["soft", "feature", "relation"], [0.9, 1.0, 1.0], 0.1),
    ],
)
def test_weights(kinds, shares, label):
    config = DistillConfig(kinds=kinds)
    config.validate()
    student = vit("deit_tiny_distilled_patch16_224") if "token" in kinds else vit()
    terms = make_terms(config, student, LiveTargets([teacher(vit(seed=1))]), INFO, 0)
    assert [term.weight for term in terms] == pytest.approx(shares)
    assert 1 - config.share == pytest.approx(label)


def test_one_kind_needs_no_brackets():
    config = DistillConfig(kinds="hard")
    config.validate()
    assert config.kinds == ["hard"]


# --- features ----------------------------------------------------------------------------------


def test_features_of_a_vit_at_the_same_depth_through_a_projection():
    student, large = vit(depth=2), vit(seed=1, embed_dim=16, depth=6)
    targets = LiveTargets([teacher(large)])
    term = FeatureTerm(student, targets, INFO, FeatureConfig(blocks=[0, 1]), 0)
    assert term.taps == ("blocks.0", "blocks.1")
    assert term.teacher_taps == ("blocks.2", "blocks.5")
    assert [tuple(p.weight.shape) for p in term.module] == [(16, 8), (16, 8)]
    targets.teachers[0].tap(term.teacher_taps)
    step = step_of(student, [term])
    # by hand: the blocks one after the other, without the class token
    x = large.pos_drop(large._pos_embed(large.patch_embed(step.images)))
    expected = []
    for k, block in enumerate(large.blocks):
        x = block(x)
        if k in (2, 5):
            own = step.outputs[f"blocks.{0 if k == 2 else 1}"][:, 1:]
            expected.append(feature_loss(term.module[len(expected)](own), x[:, 1:], "cosine"))
    assert torch.allclose(term(step), sum(expected) / 2, atol=1e-5)


def test_features_of_a_convnet_come_from_the_stage_whose_grid_fits():
    student = vit(patch=1)  # 8 x 8 positions
    targets = LiveTargets([teacher(convnet())])  # stages of 2, 2, 1, 1, 1 positions per side
    term = FeatureTerm(student, targets, INFO, FeatureConfig(loss="mse"), 0)
    grids = blocks.widths(
        targets.teachers[0].model, INFO.input_shape, blocks.stages(targets.teachers[0].model)
    )
    fine = [name for name, (grid, _) in grids.items() if 2 * grid >= 8]
    assert term.teacher_taps == ((fine or list(grids))[-1 if fine else 0],)
    targets.teachers[0].tap(term.teacher_taps)
    loss = term(step_of(student, [term]))
    loss.sum().backward()
    assert term.module[0].weight.grad.abs().sum() > 0
    assert student.blocks[-1].mlp.fc2.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in targets.teachers[0].model.parameters())


def test_the_finer_grid_is_averaged_to_the_coarser():
    x = torch.arange(16.0).view(1, 16, 1)  # a 4 x 4 grid
    own, other = blocks.same_grid(x, torch.zeros(1, 4, 3))
    assert own.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert other.shape == (1, 4, 3)


def test_the_projection_is_drawn_from_the_seed_alone():
    def drawn(seed: int) -> torch.Tensor:
        torch.rand(3)
        targets = LiveTargets([teacher(vit(seed=1))])
        return FeatureTerm(vit(), targets, INFO, FeatureConfig(), seed).module[0].weight

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (FeatureConfig(blocks=[2]), "compress.distill.feature.blocks=2: the student has no such block"),
        (
            FeatureConfig(teacher_blocks=[-9]),
            "compress.distill.feature.teacher_blocks=-9: the teacher has no",
        ),
    ],
)
def test_blocks_that_are_not_there(config, key):
    with pytest.raises(UserError, match=key):
        FeatureTerm(vit(), LiveTargets([teacher(vit())]), INFO, config, 0)


# --- relations ---------------------------------------------------------------------------------


def test_relations_across_widths_and_heads_by_hand():
    student, large = vit(embed_dim=12, num_heads=3), vit(seed=1, embed_dim=16, num_heads=4)
    targets = LiveTargets([teacher(convnet()), teacher(large)])
    term = RelationTerm(student, targets, RelationConfig())
    assert term.which == 1  # the first that has attention
    assert term.heads == 2  # at most the student's 3, dividing 12 and 16
    targets.teachers[1].tap([term.teacher_tap])
    step = step_of(student, [term])
    captured = []
    hook = large.blocks[1].attn.qkv.register_forward_hook(lambda m, i, o: captured.append(o[:, 1:]))
    large(step.images)
    hook.remove()
    own = step.outputs["blocks.1.attn.qkv"][:, 1:]
    expected = sum(
        relation_loss(own[..., 12 * k : 12 * k + 12], captured[0][..., 16 * k : 16 * k + 16], 2)
        for k in range(3)
    )
    assert torch.allclose(term(step), expected, atol=1e-5)
    only = RelationTerm(student, targets, RelationConfig(relations=["value"]))
    step = step_of(student, [only])
    last = relation_loss(own[..., 24:], captured[0][..., 32:], 2)
    assert torch.allclose(only(step), last, atol=1e-5)


@pytest.mark.parametrize(
    ("student", "asked", "config", "line"),
    [
        (convnet(), vit(), RelationConfig(), "the student has no attention between all its patches"),
        (vit(), convnet(), RelationConfig(), "the teacher has no attention between all its patches"),
        (vit(), vit(), RelationConfig(heads=3), "does not divide the widths 8 and 8"),
        (vit(), vit(), RelationConfig(block=5), "the student has no such block"),
    ],
)
def test_relations_that_cannot_be(student, asked, config, line):
    with pytest.raises(UserError, match=line):
        RelationTerm(student, LiveTargets([teacher(asked)]), config)


# --- the distillation token --------------------------------------------------------------------


def test_with_a_token_the_teacher_speaks_to_its_head_and_the_labels_to_the_class_head():
    student = vit("deit_tiny_distilled_patch16_224")
    student.set_distilled_training(True)
    asked = teacher(convnet())
    (term,) = make_terms(DistillConfig(kinds=["soft", "token"]), student, LiveTargets([asked]), INFO, 0)
    step = step_of(student, [term])
    expected = soft_loss(step.token_logits, asked(step.images)[0], 1.0)
    assert torch.allclose(term(step), expected)
    term(step).sum().backward()
    assert student.head_dist.weight.grad.abs().sum() > 0
    assert student.head.weight.grad is None
    student.eval()
    with torch.no_grad():
        step.images.requires_grad_(False)
        features = student.forward_features(step.images)
        mean = (student.head(features[:, 0]) + student.head_dist(features[:, 1])) / 2
        assert torch.allclose(student(step.images), mean, atol=1e-6)  # at test the mean of both


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_small_patch16_224", "vit_base_patch32_224"])
def test_a_plain_vit_becomes_a_distilled_one_of_the_same_body(name):
    model = with_token(Config(model=ModelConfig(name=name, patch_size=None)))
    plain = timm.create_model(name)
    distilled = timm.create_model(model.name, patch_size=model.patch_size, **model.args)
    want, got = plain.state_dict(), distilled.state_dict()
    assert set(got) - set(want) == {"dist_token", "head_dist.weight", "head_dist.bias"}
    different = {key for key in want if want[key].shape != got[key].shape}
    assert different == {"pos_embed"}  # one position more
    # the same function of tokens: the plain body's weights in the distilled body
    distilled.blocks.load_state_dict(plain.blocks.state_dict())
    tokens = torch.randn(1, 5, plain.embed_dim)
    assert torch.equal(plain.blocks.eval()(tokens), distilled.blocks.eval()(tokens))


def test_a_distilled_student_stays_as_it_is():
    model = ModelConfig(name="deit_tiny_distilled_patch16_224")
    assert with_token(Config(model=copy.deepcopy(model))) == model


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (ModelConfig(name="swin_tiny_patch4_window7_224"), "cannot be given a distillation token"),
        (ModelConfig(name="resnet18"), "cannot be given a distillation token"),
        (ModelConfig(name="deit3_small_patch16_224"), "cannot be given a distillation token"),  # layer scale
        (ModelConfig(weights="x.safetensors"), "brings a ViT without the distillation token"),
        (ModelConfig(pretrained=True), "brings a ViT without the distillation token"),
    ],
)
def test_students_that_cannot_have_a_token(model, line):
    with pytest.raises(UserError, match=line):
        with_token(Config(model=model))


# --- self-distillation -------------------------------------------------------------------------


def test_the_student_learns_from_the_moving_average_of_itself():
    student = vit()
    term = SelfTerm(student, decay=0.5, temperature=1.0, weight=1.0)
    assert torch.allclose(term(step_of(student, [term])), torch.zeros(4), atol=1e-6)  # still the same
    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 1.0
    term.after_step(student, 10_000)  # past timm's warm-up of the decay
    for name, value in term.module.average.module.state_dict().items():
        assert torch.allclose(value, before[name] + 0.5, atol=1e-6)
    step = step_of(student, [term])
    average = term.module.average.module
    assert torch.allclose(term(step), soft_loss(step.logits, average(step.images), 1.0), atol=1e-6)
    term.module.train()
    assert not term.module.average.module.training


# --- the teacher that is trained first ---------------------------------------------------------


def test_the_teachers_length_follows_the_size_of_the_set():
    config = TrainedTeacherConfig(
        recipe=RecipeConfig(batch_size=32), max_epochs=60, min_steps=2400, max_steps=20_000
    )
    assert config.epochs(1257) == 62  # 39 steps an epoch: 60 epochs would be 2,340 steps
    assert config.epochs(251) == 343  # 7 steps
    assert config.epochs(5000) == 60  # 156 steps: neither limit
    assert config.epochs(54_000) == 12  # 1,687 steps: 12 epochs are the first over 20,000


@pytest.mark.parametrize(
    ("kinds", "size", "name"),
    [
        (["soft"], 32, "test_efficientnet"),
        (["soft"], 224, "resnet18"),
        (["feature"], 28, "test_efficientnet"),
        (["soft", "relation"], 28, "vit_tiny_patch16_224"),
        (["relation"], 224, "vit_tiny_patch16_224"),
    ],
)
def test_the_default_teacher_follows_the_kinds(kinds, size, name):
    config = DistillConfig(kinds=kinds)
    config.trained.model.name = "auto"
    assert default_teacher(config, size).name == name
    config.trained.model.name = "resnet50"
    assert default_teacher(config, size).name == "resnet50"
