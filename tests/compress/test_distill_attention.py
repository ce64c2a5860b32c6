"""Cheaper attention that learns from the exact one: the term by hand, and runs from the command to the card."""

from __future__ import annotations

import json

import pytest
import torch
from driving import SMALL, exit_code, interrupted_run, run_in
from torch import nn
from torch.nn import functional as F

from effvit_train import cli, load_model
from effvit_train.compress.distill import DistillConfig
from effvit_train.compress.distill.config import AttentionConfig, FeatureConfig
from effvit_train.compress.distill.losses import attention_loss
from effvit_train.compress.distill.targets import LiveTargets
from effvit_train.compress.distill.terms import FeatureTerm, make_terms
from effvit_train.compress.distill.transfer import AttentionTerm
from effvit_train.data.info import DataInfo
from effvit_train.errors import UserError
from effvit_train.frozen import Teacher, View
from effvit_train.models.changes import recorded_operations
from effvit_train.models.make import make
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import CUT, apply, cut_group, drop_block
from effvit_train.parts import Step
from effvit_train.privacy.engine import Clip, make_engine
from effvit_train.privacy.engine.checks import check

INFO = DataInfo("d", ("a", "b", "c"), (1, 8, 8), (0.4,), (0.2,), {}, {}, "f", {})
BODY = {
    "img_size": 8,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 3,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 2,
}
LINEAR = [{"kind": "linear"}, {"kind": "exact"}, {"kind": "linformer", "rank": 4}]


def vit(attention=None, **more) -> nn.Module:
    torch.manual_seed(0)
    kwargs = BODY | more | ({} if attention is None else {"attention": attention})
    model = make("vit_tiny_patch16_224", kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def targets(model: nn.Module) -> LiveTargets:
    return LiveTargets([Teacher(model, View(INFO.mean, INFO.std, INFO.mean, INFO.std))])


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))


def step(x: torch.Tensor) -> Step:
    labels = torch.zeros(len(x), dtype=torch.long)
    return Step(x, labels, F.one_hot(labels, 3).float(), torch.zeros(len(x), 3), torch.arange(len(x)))


def term_of(student: nn.Module, teacher: nn.Module, **settings) -> AttentionTerm:
    seen = targets(teacher)
    term = AttentionTerm(student, seen, AttentionConfig(**settings))
    seen.teachers[0].tap(term.teacher_taps)
    return term


def by_hand(student: nn.Module, teacher: nn.Module, x: torch.Tensor, numbers) -> torch.Tensor:
    """The teacher block by block, each swapped attention beside its own."""
    tokens = teacher._pos_embed(teacher.patch_embed(x))
    errors = []
    for number, block in enumerate(teacher.blocks):
        given = block.norm1(tokens)
        if number in numbers:
            one, two = block.attn(given), student.blocks[number].attn(given)
            errors.append((one - two).flatten(1).norm(dim=1) ** 2 / one.flatten(1).norm(dim=1) ** 2)
        tokens = block(tokens)
    return torch.stack(errors).mean(0)


def test_each_attention_is_given_what_the_teachers_received():
    student, teacher = vit(LINEAR), vit()
    with torch.no_grad():
        student.patch_embed.proj.weight.zero_()  # what the student itself sees is of no account
    term = term_of(student, teacher)
    x = images()
    loss = term(step(x))
    assert loss.shape == (4,)
    with torch.no_grad():
        assert torch.allclose(loss, by_hand(student, teacher, x, (0, 2)), rtol=1e-4)
    loss.sum().backward()
    trained = {
        name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert all(name.startswith(("blocks.0.attn.", "blocks.2.attn.")) for name in trained)
    assert {"blocks.0.attn.qkv.weight", "blocks.2.attn.key_rows.weight", "blocks.2.attn.proj.bias"} <= trained
    assert all(p.grad is None for p in teacher.parameters())


def test_chosen_blocks_and_each_sample_by_itself():
    student, teacher = vit(LINEAR), vit()
    x = images()
    with torch.no_grad():
        chosen = term_of(student, teacher, blocks=[-1])(step(x))
        assert torch.allclose(chosen, by_hand(student, teacher, x, (2,)), rtol=1e-4)
        alone = term_of(student, teacher, blocks=[-1])(step(x[1:2]))
    assert torch.allclose(alone, chosen[1:2], rtol=1e-4)


def test_the_exact_attention_has_no_loss():
    assert attention_loss(torch.ones(2, 3, 4), torch.ones(2, 3, 4)).tolist() == [0, 0]
    assert attention_loss(torch.zeros(2, 3, 4), 5 * torch.ones(2, 3, 4)).tolist() == [1, 1]
    teacher = vit()
    same = [{"kind": "window", "window": 4}] * 3
    with torch.no_grad():
        assert float(term_of(vit(same), teacher)(step(images())).max()) < 1e-9


def test_what_cannot_be_learnt_is_told():
    with pytest.raises(UserError, match=r"kinds=attention: no attention of the student is replaced"):
        term_of(vit(), vit())
    for other in (vit(embed_dim=16), vit(depth=2), vit(patch_size=4), vit(reg_tokens=1)):
        with pytest.raises(
            UserError, match=r"distill.teacher=VisionTransformer: kind attention needs a teacher of"
        ):
            term_of(vit(LINEAR), other)
    with pytest.raises(UserError, match=r"attention.blocks=5: the student has no such block"):
        term_of(vit(LINEAR), vit(), blocks=[5])


def test_a_student_that_is_cut_goes_on_learning():
    student, teacher = vit(LINEAR), vit()
    term = term_of(student, teacher)
    structure = read_structure(student)
    for group, kept in (
        (structure.groups["embed"], [0, 2, 3, 5, 8, 9, 11]),
        (structure.groups["blocks.0.attn.heads"], [1]),
    ):
        operations = cut_group(structure, group, (torch.tensor(kept),))
        apply(student, operations)
        term.after_cut(student, operations, None)
    x, kept = images(), torch.tensor([0, 2, 3, 5, 8, 9, 11])
    with torch.no_grad():
        taps: dict[str, torch.Tensor] = {}
        for name in ("blocks.2.norm1", "blocks.2.attn"):
            teacher.get_submodule(name).register_forward_hook(
                lambda m, i, o, name=name: taps.__setitem__(name, o)
            )
        teacher(x)
        one = taps["blocks.2.attn"][..., kept]
        two = student.blocks[2].attn(taps["blocks.2.norm1"][..., kept])
        last = (one - two).flatten(1).norm(dim=1) ** 2 / one.flatten(1).norm(dim=1) ** 2
        operations = drop_block(structure, "blocks.0")
        apply(student, operations)
        term.after_cut(student, operations, None)
        assert torch.allclose(term(step(x)), last, rtol=1e-4)
    # a resumed run cuts as recorded, whichever units, and then loads what is left
    other = vit(LINEAR)
    resumed = term_of(other, teacher)
    entry = {"kind": CUT, "blocks": ["blocks.0"], "widths": {"embed": 7}}
    operations = recorded_operations(other, entry)
    apply(other, operations)
    resumed.after_cut(other, operations, None)
    resumed.module.load_state_dict(term.module.state_dict())
    assert resumed.module.of("blocks.2.attn").tolist() == kept.tolist()


def test_features_of_every_block():
    student, teacher = vit(LINEAR), vit()
    term = FeatureTerm(student, targets(teacher), INFO, FeatureConfig(blocks="all"), seed=0)
    assert term.taps == term.teacher_taps == tuple(f"blocks.{k}" for k in range(3))
    with pytest.raises(
        UserError, match=r"feature.teacher_blocks=\[1\]: must name one block for each of the stud"
    ):
        FeatureTerm(student, targets(teacher), INFO, FeatureConfig(blocks="all", teacher_blocks=[1]), seed=0)


@pytest.mark.parametrize(
    ("value", "ok"),
    [("all", True), (2, True), ([0, -1], True), ("some", False), ([], False), ([True], False)],
)
def test_blocks_are_numbers_or_all(value, ok):
    for part in ("feature", "attention"):
        config = DistillConfig(kinds=["attention", "feature"], teacher=["resnet18"])
        getattr(config, part).blocks = value
        if ok:
            config.validate()
        else:
            with pytest.raises(
                UserError, match=rf"compress.distill.{part}.blocks=.*(must be numbers of blocks|names no)"
            ):
                config.validate()


@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
def test_private_gradients_of_the_term(engine):
    student, teacher = vit(LINEAR).double(), vit().double()
    config = DistillConfig(kinds=["attention"], teacher=["x"])
    seen = targets(teacher)
    (term,) = make_terms(config, student, seen, INFO, seed=0)
    x = images().double()

    def losses_of(rows):
        def losses(batch):
            memo = step(batch)
            return F.cross_entropy(student(batch), memo.labels, reduction="none") + term(memo)

        return losses, x[list(rows)]

    errors = check(make_engine(engine, nn.ModuleDict({"model": student}), Clip(0.5)), losses_of, 3)
    assert max(errors.values()) < 1e-5  # the teacher's words are taken in fp32


QUICK = (*SMALL[:1], "model.args.depth=2", *SMALL[2:], "recipe.batch_size=128", "logger=none", "audit=none",
         "dataset.num_workers=0")  # fmt: skip


def test_from_an_exact_run_to_the_card(tmp_path, monkeypatch, no_probe, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "trainer.max_epochs=2", "run_dir=exact")
    learnt = (
        *QUICK, "trainer.max_epochs=3", "model.weights=exact", "model.attention={0: linear, 1: linformer}",
        "compress=distill", "compress.distill.teacher=self", "compress.distill.kinds=[attention,soft]",
    )  # fmt: skip
    run_in(tmp_path, monkeypatch, *learnt, "run_dir=linear")
    assert (
        "model.attention: linear in blocks 0, linformer in blocks 1; new: key_rows.weight"
        in capsys.readouterr().out
    )
    rows = (tmp_path / "linear" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/attention")
    terms = [float(row.split(",")[column]) for row in rows[1:] if row.split(",")[column]]
    assert terms[-1] < terms[0]
    # killed and resumed, it is the same run
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 15, *learnt, "run_dir=killed") == 130
    run_in(tmp_path, monkeypatch, "resume=killed")
    for name in ("model.safetensors", "metrics.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "linear" / name).read_bytes()
    assert type(load_model(tmp_path / "linear").blocks[1].attn).__name__ == "Linformer"
    cli.audit([str(tmp_path / "linear"), "audit.parts=[approximation]"])
    card = json.loads((tmp_path / "linear" / "card.json").read_text())
    assert card["measures"]["approximation/attention_error"] > 0
    errors = card["provenance"]["audit"]["approximation"]["attention_errors"]
    assert list(errors) == ["blocks.0.attn", "blocks.1.attn"]


def test_wrong_settings_end_with_one_line(tmp_path, monkeypatch, capsys):
    for argument, line in (
        ("model.attention=lineer", "model.attention=lineer: must be one of exact"),
        ("model.attention=[linear]", "names 1 blocks, the model has 2"),
        (
            "model.attention_args.windw=3",
            "model.attention_args.windw: unknown key; did you mean model.attention_args.window?",
        ),
        ("model.attention_args.window=x", "model.attention_args.window=x: must be a whole number"),
        ("model.attention_args.window=3", "model.attention_args.window=3: is no setting of exact attention"),
    ):
        assert exit_code(tmp_path, monkeypatch, *QUICK, argument, "run_dir=wrong") == 2
        assert line in capsys.readouterr().err
        assert not (tmp_path / "wrong").exists()
