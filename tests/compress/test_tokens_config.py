"""Which tokens merge or go: schedules, targets, and what cannot be, each in one line."""

from __future__ import annotations

import pytest

from effvit_train.audit.operations import count_operations
from effvit_train.compress._tokens import ClosedForm, Reduced, told
from effvit_train.compress.drop_tokens.config import DropTokensConfig
from effvit_train.compress.drop_tokens.plan import plan as plan_drop
from effvit_train.compress.merge_tokens.config import MergeTargetConfig, MergeTokensConfig
from effvit_train.compress.merge_tokens.plan import plan as plan_merge
from effvit_train.compress.merge_tokens.schedule import possible, spread
from effvit_train.errors import UserError
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.models.tokens.change import Merge
from effvit_train.models.tokens.steps import kept_of


def record(name: str = "vit_tiny_patch16_224", size: int = 64, **kwargs) -> ArchitectureRecord:
    given = {"img_size": size, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 4, "num_classes": 5}
    return ArchitectureRecord(
        name, {**given, **kwargs}, (3, size, size), tuple("abcde"), (0.5,) * 3, (0.5,) * 3
    )


def test_schedules():
    assert spread(8 * 12, 12, "constant") == [8] * 12
    assert spread(30, 4, "constant") == [8, 8, 7, 7]
    # ToMe's decreasing schedule of r = 11 in 12 blocks: int(22 - 2 k)
    assert spread(11 * 12, 12, "decreasing") == [22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
    assert spread(5, 1, "decreasing") == [5]
    # r = 16 of a ViT-S at 224: eleven times 16 of 196 leave 20, of which half can merge
    assert possible([16] * 12, 196) == [16] * 11 + [10]


@pytest.mark.parametrize(("count", "keep", "left"), [
    (196, 0.7, 138), (138, 0.7, 97), (10, 0.7, 7), (100, 0.55, 55), (3, 0.01, 1), (5, 1.0, 5),
])  # fmt: skip
def test_kept_tokens_are_rounded_up(count, keep, left):
    assert kept_of(count, keep) == left


@pytest.mark.parametrize("schedule", ["constant", "decreasing"])
def test_a_target_is_met_as_closely_as_whole_tokens_can(schedule):
    settings = MergeTokensConfig(target=MergeTargetConfig(macs=0.6), schedule=schedule)
    decided = plan_merge(settings, record())
    macs = decided.facts["macs"]
    assert 0.57 < macs["after"] / macs["before"] <= 0.6
    model = build(record())
    assert count_operations(model, (3, 64, 64)).macs == macs["before"]
    apply(model, decided.operations)
    assert count_operations(model, (3, 64, 64)).macs == macs["after"]
    # one token fewer would be too few
    total = sum(decided.facts["r"].values())
    reduced = Reduced.of(record(), "merge_tokens")
    form = ClosedForm(reduced, reduced.after(Merge({})))
    if schedule == "constant":
        assert form.macs(spread(total - 1, 4, schedule)) > 0.6 * macs["before"]
    for r in (spread(total, 4, schedule), [3, 0, 40, 1]):  # the closed form is what the counter says
        model = build(record())
        apply(model, [Merge({f"blocks.{k}": n for k, n in enumerate(r)})])
        assert form.macs(r) == count_operations(model, (3, 64, 64)).macs
    assert f"MACs {macs['after'] / macs['before']:.3f} of before" in decided.words


def test_nothing_named_is_a_target_and_nothing_to_do_is_nothing():
    facts = plan_merge(MergeTokensConfig(), record()).facts
    assert facts["target"] == {"macs": 0.7}
    assert facts["macs"]["after"] <= 0.7 * facts["macs"]["before"]
    assert plan_merge(MergeTokensConfig(r=0), record()) is None
    assert plan_merge(MergeTokensConfig(target=MergeTargetConfig(1.0)), record()) is None
    assert plan_drop(DropTokensConfig(keep=1.0), record()) is None


def test_more_than_half_of_the_tokens_cannot_merge_and_it_is_said():
    decided = plan_merge(MergeTokensConfig(r=40), record())  # 64 tokens
    assert list(decided.facts["r"].values()) == [32, 16, 8, 4]
    assert "no more than half" in decided.words
    assert decided.entry == {"kind": "merge_tokens", "r": decided.facts["r"], "proportional": True}
    assert "no more than half" not in plan_merge(MergeTokensConfig(r=4), record()).words


def test_a_list_says_it_block_by_block():
    decided = plan_merge(MergeTokensConfig(r=[0, 5, 0, 2]), record())
    assert decided.entry["r"] == {"blocks.1": 5, "blocks.3": 2}
    assert decided.facts["tokens"]["blocks.1"] == (64, 59)


def test_which_blocks_drop():
    assert list(plan_drop(DropTokensConfig(), record(depth=12)).entry["keep"]) == [
        "blocks.3",
        "blocks.6",
        "blocks.9",
    ]  # the paper's 4th, 7th and 10th
    assert plan_drop(DropTokensConfig(), record(depth=1)).entry["keep"] == {"blocks.0": 0.7}
    decided = plan_drop(DropTokensConfig(keep=[0.5, 0.9], blocks=[2, 1]), record())
    assert decided.entry["keep"] == {"blocks.1": 0.9, "blocks.2": 0.5}
    assert decided.words.startswith("keeps 0.9 in block 1, 0.5 in block 2: 64 tokens become")


def test_runs_of_blocks_in_words():
    values = dict(zip((f"blocks.{k}" for k in (0, 1, 2, 4, 6, 7)), (3, 3, 3, 2, 2, 1), strict=True))
    assert told(values) == "3 in blocks 0 to 2, 2 in blocks 4, 6, 1 in block 7"


def merging(**given):
    def tried(record_=None):
        settings = MergeTokensConfig(**given)
        settings.validate()
        plan_merge(settings, record_ or record())

    return tried


def dropping(**given):
    def tried(record_=None):
        settings = DropTokensConfig(**given)
        settings.validate()
        plan_drop(settings, record_ or record())

    return tried


SWIN = ArchitectureRecord(
    "swin_tiny_patch4_window7_224", {"img_size": 56, "num_classes": 5}, (3, 56, 56), tuple("abcde"), (0.5,) * 3, (0.5,) * 3
)  # fmt: skip


@pytest.mark.parametrize(("tried", "words"), [
    (merging(r=-1), r"compress.merge_tokens.r=-1: must be a whole number"),
    (merging(r=2.5), r"compress.merge_tokens.r=2.5: must be a whole number"),
    (merging(r=[1, 2]), r"lists 2 blocks, the model has 4"),
    (merging(r=2, target=MergeTargetConfig(0.5)), r"both tell how many tokens merge"),
    (merging(r=[1, 1, 1, 1], schedule="decreasing"), r"a schedule of its own"),
    (merging(schedule="linear"), r"must be one of constant, decreasing"),
    (merging(target=MergeTargetConfig(1.5)), r"target.macs=1.5: must be the fraction"),
    (merging(target=MergeTargetConfig(0.0)), r"target.macs=0.0: must be the fraction"),
    (merging(target=MergeTargetConfig(0.1)), r"cannot be met by merging: half .* leaves 0\.\d+; a higher target"),
    (merging(start=1.5), r"compress.merge_tokens.start=1.5"),
    (lambda: merging()(SWIN), r"compress=merge_tokens: swin_tiny.* attends within windows, which need a full grid"),
    (dropping(keep=0), r"compress.drop_tokens.keep=0: must be the share"),
    (dropping(keep=[0.5, 0.5]), r"lists 2 shares for 3 blocks"),
    (dropping(blocks=[1, 9]), r"no blocks.9 \(it has blocks.0 to blocks.3\)"),
    (dropping(blocks=[1, 1]), r"a list of different blocks"),
    (dropping(start="soon"), r"compress.drop_tokens.start=soon"),
    (lambda: dropping()(record(class_token=False, global_pool="avg")), r"has no class token"),
    (lambda: dropping()(record(global_pool="flat")), r"model.pool=flat"),
    (lambda: dropping()(SWIN), r"attends within windows"),
])  # fmt: skip
def test_one_line_says_what_is_wrong(tried, words):
    with pytest.raises(UserError, match=words) as caught:
        tried()
    assert "\n" not in str(caught.value)
    assert ";" in str(caught.value)  # with a remedy
