"""Low-rank runs from the command to their files: the change, resume, combinations, what is refused."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from driving import card, cuts, exit_code, interrupted_run, result, run_in

from effvit_train import checkpoint_file, load_model
from effvit_train.audit.operations import count_operations
from effvit_train.models.factored import FactoredLinear
from effvit_train.models.factory import count_parameters

LOWRANK = "compress.lowrank"
PLAIN = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "recipe.batch_size=64", "trainer.max_epochs=2", "trainer.num_threads=1", "logger=none", "audit=none",
    "dataset.num_workers=0", "dataset.train_fraction=0.4",
)  # fmt: skip
QUICK = (
    *PLAIN,
    "compress=lowrank",
    f"{LOWRANK}.energy=0.8",
    f"{LOWRANK}.calibration=64",
    f"{LOWRANK}.start=4steps",
)


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def test_a_run_resumed_after_the_change_ships_the_same_bytes(tmp_path, monkeypatch, capsys):
    arguments = (*QUICK, "recipe.ema=0.9", "recipe.layer_decay=0.8")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    whole = tmp_path / "whole"
    assert "lowrank: 8 of 8 layers factored: macs 0." in capsys.readouterr().out
    for steps in ((3, 4), (7,)):  # before the change and right after it; later
        name = "-".join(map(str, steps))
        assert interrupted_run(
            tmp_path, monkeypatch, "on_train_batch_end", steps[0], *arguments, f"run_dir={name}"
        ) == 130  # fmt: skip
        for count in steps[1:]:
            assert interrupted_run(
                tmp_path, monkeypatch, "on_train_batch_end", count, f"resume={name}"
            ) == 130  # fmt: skip
        run_in(tmp_path, monkeypatch, f"resume={name}")
        assert result(tmp_path / name) == result(whole), steps
        assert card(tmp_path / name)["provenance"]["lowrank"] == card(whole)["provenance"]["lowrank"]
    (cut,) = cuts(whole)
    facts = card(whole)["provenance"]["lowrank"]
    assert cut == {"kind": "lowrank", "layers": {name: row["rank"] for name, row in facts["layers"].items()}}
    assert facts["weighting"] == "activation"
    model = load_model(whole)
    assert isinstance(model.blocks[0].attn.qkv, FactoredLinear)
    assert count_operations(model, (1, 8, 8)).macs == facts["after"]["macs"] < facts["before"]["macs"]
    assert count_parameters(model) == facts["after"]["params"] == card(whole)["model"]["params"]
    # the optimizer's moments are of the factors, and belong to them
    state = checkpoint_file.read(whole / "checkpoints" / "last.ckpt")
    sizes = sorted(tuple(value["exp_avg"].shape) for value in state["optimizer_states"][0]["state"].values())
    assert sizes == sorted(tuple(parameter.shape) for parameter in model.parameters())


def test_a_factored_run_is_trained_further_and_factored_again(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *PLAIN, "run_dir=dense")
    start = (*PLAIN, "compress=lowrank", "model.weights=dense", "recipe.lr=1e-12", "recipe.weight_decay=0")
    run_in(tmp_path, monkeypatch, *start, f"{LOWRANK}.rank=4", f"{LOWRANK}.weighting=none", "run_dir=first")
    # at the start by default: nothing has been trained, so each factored layer is the SVD of the dense run's
    dense, first = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("dense", "first")
    )
    name = "blocks.1.mlp.fc1"
    u, s, v = torch.linalg.svd(dense[f"{name}.weight"].double(), full_matrices=False)
    product = first[f"{name}.up.weight"].double() @ first[f"{name}.down.weight"].double()
    assert torch.allclose(product, u[:, :4] * s[:4] @ v[:4], atol=1e-5)
    assert torch.allclose(first[f"{name}.up.bias"], dense[f"{name}.bias"], atol=1e-6)
    # without the technique the change comes with the weights; with it, again, to a lower rank, and LoRA on top
    run_in(
        tmp_path,
        monkeypatch,
        *PLAIN,
        "model.weights=first",
        "recipe.tune=lora",
        "recipe.lora_rank=2",
        "run_dir=on",
    )
    assert cuts(tmp_path / "on") == cuts(tmp_path / "first")
    again = (
        "model.weights=first",
        "compress=lowrank",
        f"{LOWRANK}.rank=2",
        f"{LOWRANK}.layers=fc1",
        "run_dir=again",
    )
    run_in(tmp_path, monkeypatch, *PLAIN, *again)
    assert cuts(tmp_path / "again") == [
        *cuts(tmp_path / "first"),
        {"kind": "lowrank", "layers": {"blocks.0.mlp.fc1": 2, "blocks.1.mlp.fc1": 2}},
    ]
    model = load_model(tmp_path / "again")
    assert (model.blocks[0].mlp.fc1.rank, model.blocks[0].mlp.fc2.rank) == (2, 4)


def test_after_the_training_what_ships_is_factored(tmp_path, monkeypatch):
    tuned = (*PLAIN, "recipe.tune=lora", "recipe.ema=0.5")
    run_in(tmp_path, monkeypatch, *tuned, "run_dir=dense")
    run_in(
        tmp_path, monkeypatch, *tuned, "compress=lowrank", f"{LOWRANK}.start=1", f"{LOWRANK}.target.macs=0.6",
        f"{LOWRANK}.search=true", f"{LOWRANK}.search_images=40", "run_dir=run",
    )  # fmt: skip
    dense, small = (load_model(tmp_path / name) for name in ("dense", "run"))
    facts = card(tmp_path / "run")["provenance"]["lowrank"]
    assert 0.58 < facts["after"]["macs"] / facts["before"]["macs"] <= 0.6
    assert count_operations(small, (1, 8, 8)).macs == facts["after"]["macs"]
    x = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        assert (dense(x) - small(x)).abs().max() < 0.5 * dense(
            x
        ).abs().max()  # the same model but for what is lost
    rows = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert rows == (tmp_path / "dense" / "metrics.csv").read_bytes()


def test_pruning_goes_on_from_the_factored_model(tmp_path, monkeypatch):
    prune = "compress.prune"
    run_in(
        tmp_path, monkeypatch, *QUICK, "compress=[lowrank,prune]", f"{prune}.start=0.6", f"{prune}.end=0.8",
        f"{prune}.cuts=2", f"{prune}.calibration=64", f"{prune}.round_to=2", f"{prune}.target.macs=0.8",
        f"{prune}.kinds=[heads,head_width,mlp,embed]", f"{prune}.compensate=least_squares", "run_dir=run",
    )  # fmt: skip
    run = tmp_path / "run"
    assert [cut["kind"] for cut in cuts(run)] == ["lowrank", "prune", "prune"]
    told = card(run)["provenance"]
    assert told["pruning"]["start"] == told["lowrank"]["after"]
    macs = count_operations(load_model(run), (1, 8, 8)).macs
    assert told["pruning"]["cuts"][-1]["macs"] == macs
    assert 0.75 < macs / told["lowrank"]["after"]["macs"] <= 0.8
    # and the other way round, by default one after the other
    run_in(
        tmp_path, monkeypatch, *PLAIN, "compress=[lowrank,prune]", f"{LOWRANK}.rank=4", f"{prune}.calibration=64",
        f"{prune}.round_to=2", f"{prune}.cuts=2", f"{prune}.target.macs=0.8", "run_dir=later",
    )  # fmt: skip
    later = tmp_path / "later"
    assert [cut["kind"] for cut in cuts(later)] == ["prune", "prune", "lowrank"]
    assert (
        count_operations(load_model(later), (1, 8, 8)).macs
        == card(later)["provenance"]["lowrank"]["after"]["macs"]
    )


def test_a_private_run_is_factored_by_its_weights(tmp_path, monkeypatch, capsys):
    private = ("privacy=dp_sgd", "privacy.noise_multiplier=1", "privacy.accountant=rdp", "recipe.ema=0.9")
    run_in(tmp_path, monkeypatch, *QUICK, *private, "run_dir=run")
    said = capsys.readouterr().out
    assert "compress.lowrank.weighting switched off: privacy=dp_sgd accounts for every look" in said
    facts = card(tmp_path / "run")["provenance"]["lowrank"]
    assert (facts["weighting"], facts["calibration_images"]) == ("none", None)
    spent = card(tmp_path / "run")["measures"]["privacy/epsilon"]
    run_in(tmp_path, monkeypatch, *(a for a in QUICK if "lowrank" not in a), *private, "run_dir=whole")
    assert spent == card(tmp_path / "whole")["measures"]["privacy/epsilon"]  # the change costs nothing
    assert exit_code(tmp_path, monkeypatch, *QUICK, *private, f"{LOWRANK}.weighting=activation") == 2
    error = capsys.readouterr().err
    assert "compress.lowrank.weighting=activation: cannot be combined with privacy=dp_sgd" in error
    assert "compress.lowrank.weighting=none" in error


@pytest.mark.parametrize(("arguments", "words"), [
    (("recipe.tune=lora",), "recipe.tune=lora: cannot be combined with compress.lowrank.start"),
    (("recipe.optimizer=adagrad",), "recipe.optimizer=adagrad: makes its state"),
    ((f"{LOWRANK}.start=99steps",), "leaves no step after it"),
    ((f"{LOWRANK}.energy=null", f"{LOWRANK}.target.macs=0.01"), "cannot be met by factoring"),
])  # fmt: skip
def test_what_is_refused_leaves_nothing_behind(arguments, words, tmp_path, monkeypatch, capsys):
    assert exit_code(tmp_path, monkeypatch, *QUICK, *arguments, "run_dir=run") == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "card.json").exists()


@pytest.mark.long
def test_two_processes_factor_alike_and_train_on(tmp_path, train_py, monkeypatch):
    arguments = (*QUICK, "recipe.ema=0.9")
    done = train_py(
        *arguments, "recipe.batch_size=32", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu",
        f"{LOWRANK}.weighting=none", f"run_dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run_in(
        tmp_path, monkeypatch, *arguments, f"{LOWRANK}.weighting=none", "run_dir=one"
    )  # the same 64 images a step
    assert cuts(tmp_path / "two") == cuts(tmp_path / "one")
    two, one = (load_model(tmp_path / name) for name in ("two", "one"))
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        assert (two(x) - one(x)).abs().max() < 1e-2  # the order of sums, and signs of bases that it may turn
