"""Runs that merge or drop tokens, from the command to their files: resume, combinations, cost."""

from __future__ import annotations

import pytest
import torch
from driving import card, cuts, exit_code, interrupted_run, result, run_in

from effvit_train import checkpoint_file, cli, load_model
from effvit_train.audit.operations import count_operations

MERGE, DROP = "compress.merge_tokens", "compress.drop_tokens"
QUICK = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "recipe.batch_size=256", "trainer.max_epochs=2", "logger=none", "audit=none", "dataset.num_workers=0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


MIXES = {
    "merged, averaged, distilled": (
        "compress=[distill,merge_tokens]", f"{MERGE}.r=3", f"{MERGE}.start=0.5", "recipe.ema=0.9",
        "compress.distill.kinds=[soft,feature,relation,self]", "compress.distill.trained.max_epochs=1",
        "compress.distill.trained.min_steps=1",
    ),
    "dropped, then pruned": (
        "compress=[drop_tokens,prune]", f"{DROP}.keep=0.6", "compress.prune.start=0.2", "compress.prune.end=0.7",
        "compress.prune.cuts=2", "compress.prune.calibration=32", "compress.prune.round_to=2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
def test_resume_after_the_change_gives_the_same_bytes(mix, tmp_path, monkeypatch):
    arguments = (*QUICK, *MIXES[mix])
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert cuts(tmp_path / "whole")[0]["kind"] in ("merge_tokens", "drop_tokens")
    # 5 steps an epoch: the change comes before step 5 (or 0); stopped before it and after it
    for step in (7,) if "distill" in str(arguments) else (3, 7):
        assert interrupted_run(
            tmp_path, monkeypatch, "on_train_batch_end", step, *arguments, f"run_dir=stopped{step}"
        ) == 130  # fmt: skip
        run_in(tmp_path, monkeypatch, f"resume=stopped{step}")
        assert result(tmp_path / f"stopped{step}") == result(tmp_path / "whole")
        assert card(tmp_path / f"stopped{step}")["provenance"] | {"changes": 0, "teacher": 0} == card(
            tmp_path / "whole"
        )["provenance"] | {"changes": 0, "teacher": 0}


def test_the_card_tells_what_was_merged(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "compress=merge_tokens", f"{MERGE}.target.macs=0.6", "run_dir=run")
    run = tmp_path / "run"
    facts = card(run)["provenance"]["merge_tokens"]
    assert facts["patches"] == 16
    assert cuts(run) == [{"kind": "merge_tokens", "r": facts["r"], "proportional": True}]
    model = load_model(run)
    assert count_operations(model, (1, 8, 8)).macs == facts["macs"]["after"] <= 0.6 * facts["macs"]["before"]
    assert f"merge_tokens: r = {facts['r']['blocks.0']} in" in capsys.readouterr().out
    assert "Fewer tokens" in (run / "card.html").read_text()
    assert card(run)["run"]["compress"] == ["merge_tokens"]


def test_off_the_shelf_after_training_the_weights_are_the_plain_run_s(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=plain")
    run_in(
        tmp_path,
        monkeypatch,
        *QUICK,
        "compress=merge_tokens",
        f"{MERGE}.r=4",
        f"{MERGE}.start=1",
        "run_dir=run",
    )
    assert (tmp_path / "run/metrics.csv").read_bytes() == (tmp_path / "plain/metrics.csv").read_bytes()
    plain, merged = load_model(tmp_path / "plain"), load_model(tmp_path / "run")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name])
    x = torch.randn(2, 1, 8, 8)
    assert not torch.allclose(plain(x), merged(x))
    assert cuts(tmp_path / "run")[0]["r"] == {"blocks.0": 4, "blocks.1": 4}
    # trained further it merges from the start, and may merge otherwise
    run_in(
        tmp_path,
        monkeypatch,
        *QUICK,
        "model.weights=run",
        "compress=merge_tokens",
        f"{MERGE}.r=2",
        "run_dir=more",
    )
    assert [block.r for block in load_model(tmp_path / "more").blocks] == [2, 2]
    assert exit_code(
        tmp_path, monkeypatch, *QUICK, "model.weights=run", "compress=drop_tokens", "run_dir=not"
    ) == 2  # fmt: skip


def test_the_average_that_ships_is_changed_along(tmp_path, monkeypatch):
    run_in(
        tmp_path, monkeypatch, *QUICK, "compress=drop_tokens", f"{DROP}.keep=0.5", f"{DROP}.start=6steps",
        "recipe.ema=0.9", "run_dir=run",
    )  # fmt: skip
    state = checkpoint_file.read(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert state["architecture"]["cuts"] == cuts(tmp_path / "run")
    shipped = load_model(tmp_path / "run")
    for name, tensor in shipped.state_dict().items():
        assert torch.equal(tensor, state["state_dict"][f"ema.module.{name}"])


@pytest.mark.parametrize(("engine", "technique"), [("bookkeeping", "merge_tokens"), ("vmap", "drop_tokens")])
def test_private_training(engine, technique, tmp_path, monkeypatch):
    # the engine is checked against a batch-of-one loop when it starts, and again after the change
    run_in(
        tmp_path, monkeypatch, *QUICK, f"compress={technique}", f"compress.{technique}.start=0.5",
        "privacy=dp_sgd", "privacy.epsilon=8", f"privacy.engine={engine}", "trainer.max_epochs=1", "run_dir=run",
    )  # fmt: skip
    assert card(tmp_path / "run")["measures"]["privacy/epsilon"] <= 8
    assert [cut["kind"] for cut in cuts(tmp_path / "run")] == [technique]


@pytest.mark.parametrize(("arguments", "words"), [
    (("compress=[merge_tokens,drop_tokens]",), "decides by itself which tokens stay"),
    (("compress=merge_tokens", "model=swin_t"), "attends within windows, which need a full grid"),
    (("compress=drop_tokens", "model.pool=avg", "+model.args.class_token=false"), "has no class token"),
    (("compress=drop_tokens", "model.pool=flat"), "weights for every patch"),
    (("compress=merge_tokens", f"{MERGE}.r=1", f"{MERGE}.target.macs=0.5"), "both tell"),
    (
        ("compress=[distill,drop_tokens]", f"{DROP}.fuse=false", "compress.distill.kinds=[feature]"),
        "compares all patches of an image",
    ),
])  # fmt: skip
def test_what_is_refused_leaves_nothing(arguments, words, tmp_path, monkeypatch, capsys):
    quick = [argument for argument in QUICK if not argument.startswith("model.args")]
    assert exit_code(tmp_path, monkeypatch, *quick, *arguments, "run_dir=run") == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "card.json").exists()


def test_cost_is_that_of_the_merged_model(monkeypatch, capsys):
    from effvit_train import cost_command
    from effvit_train.card import Measured

    seen = []
    monkeypatch.setattr(
        cost_command, "measure_cost", lambda record, *a, **k: (seen.append(record), (Measured(), {}))[1]
    )
    arguments = ["cost", "--json", *QUICK[1:4], "compress=merge_tokens", f"{MERGE}.r=5"]
    cli.main(arguments)
    assert seen[0].cuts == [
        {"kind": "merge_tokens", "r": {"blocks.0": 5, "blocks.1": 5}, "proportional": True}
    ]
    cli.main(arguments[:-2])
    assert seen[1].cuts == []


def test_where_no_target_is_named_a_shallow_model_merges_what_it_can(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "model.args.depth=1", "compress=merge_tokens", "run_dir=run")
    (change,) = cuts(tmp_path / "run")
    assert change["r"]["blocks.0"] == 8  # half of 16 patches
    assert exit_code(
        tmp_path, monkeypatch, *QUICK, "model.args.depth=1", "compress=merge_tokens", f"{MERGE}.target.macs=0.5",
        "run_dir=no",
    ) == 2  # fmt: skip
    assert "which is the most" in capsys.readouterr().err
