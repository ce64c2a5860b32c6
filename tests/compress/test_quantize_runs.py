"""Quantised runs from the command to their files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import card, cuts, exit_code, interrupted_run, result, run_in

from effvit_train import cli, load_model
from effvit_train.audit.probe import measure
from effvit_train.compress.quantize.decide import _spread
from effvit_train.models.few_bits import Bf16Linear, FakeQuantLinear, Int8Linear

KEY = "compress.quantize"
QUICK = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "recipe.batch_size=128", "trainer.max_epochs=3", "logger=none", "audit=none", "dataset.num_workers=0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def layers(run: Path, kind: type) -> int:
    return sum(isinstance(module, kind) for module in load_model(run).modules())


def test_the_training_is_the_same_and_what_ships_is_int8(tmp_path, monkeypatch):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=dense")
    run_in(tmp_path, monkeypatch, *QUICK, "compress=quantize", "run_dir=small")
    dense, small = tmp_path / "dense", tmp_path / "small"
    assert (dense / "metrics.csv").read_bytes() == (small / "metrics.csv").read_bytes()
    assert layers(small, Int8Linear) == 8
    assert (small / "model.safetensors").stat().st_size < 0.45 * (dense / "model.safetensors").stat().st_size
    found = card(small)["provenance"]["quantize"]
    assert found["layers"] == 8
    assert min(found["signal_to_noise_db"].values()) > 30  # 8 bits: about 6 dB a bit below the largest weight
    # longer: the checkpoint holds weights that train
    run_in(tmp_path, monkeypatch, "resume=small", "trainer.max_epochs=4")
    assert card(small)["run"]["epochs"] == 4
    assert layers(small, Int8Linear) == 8


@pytest.mark.long
def test_the_same_by_the_command_after_training(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=dense")
    run_in(tmp_path, monkeypatch, *QUICK, "compress=quantize", "run_dir=small")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["effvit"])
    cli.main(["compress", "dense", "compress=quantize", "--out", "after"])
    cli.main(["compress", "dense", "compress=quantize", f"{KEY}.mode=static", "--out", "static"])
    assert (tmp_path / "after" / "model.safetensors").read_bytes() == (
        tmp_path / "small" / "model.safetensors"
    ).read_bytes()
    assert (
        card(tmp_path / "static")["provenance"]["quantize"]["calibration_images"] == 180
    )  # of 512: all there are
    capsys.readouterr()
    for arguments, words in (
        (["compress", "dense", "compress=quantize", f"{KEY}.qat=true"], "is a way of training"),
        (["compress", "dense", "compress=quantize", f"{KEY}.layers=[patch_embed]"], "are not in"),
        (["compress", "after", "compress=lowrank"], "neither cut nor factored"),
        (["prune", "after", "--target", "macs=0.7"], "neither cut nor factored"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main([*arguments, "--out", "no"])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    for arguments in (
        ("model.weights=after",),
        ("model.weights=after", "compress=quantize"),
        ("model.weights=after", "compress=prune"),
    ):
        assert exit_code(tmp_path, monkeypatch, *QUICK, *arguments, "run_dir=no") == 2
        assert "quantised" in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("more", [
    pytest.param((), marks=pytest.mark.long), (f"{KEY}.mode=static", "recipe.ema=0.9"),
    pytest.param((f"{KEY}.mode=weight_only", "trainer.precision=bf16-mixed"), marks=pytest.mark.long),
])  # fmt: skip
def test_quantisation_aware_training_resumes_exactly(more, tmp_path, monkeypatch):
    arguments = (*QUICK, "compress=quantize", f"{KEY}.qat=true", f"{KEY}.start=0.4", *more)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=straight")
    for count in (8, 20):  # before and after the layers are there
        name = f"stopped{count}"
        assert (
            interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", count, *arguments, f"run_dir={name}")
            == 130
        )
        run_in(tmp_path, monkeypatch, f"resume={name}")
        assert result(tmp_path / name) == result(tmp_path / "straight")
    assert [cut["kind"] for cut in cuts(tmp_path / "straight")] == ["fake_quantize", "quantize"]
    assert layers(tmp_path / "straight", FakeQuantLinear) == 0
    assert load_model(tmp_path / "straight")(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_bf16_weights(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "trainer.max_epochs=1", "run_dir=dense")
    monkeypatch.setattr("sys.argv", ["effvit"])
    cli.main(["compress", "dense", "compress=quantize", f"{KEY}.dtype=bf16", "--out", "small"])
    assert "train what was changed" not in capsys.readouterr().out
    assert layers(tmp_path / "small", Bf16Linear) == 8
    record = json.loads((tmp_path / "small" / "model.json").read_text())
    # the process that measures brings the model to a type of its own
    told = measure(
        {
            "record": record, "weights": str(tmp_path / "small" / "model.safetensors"), "device": "cpu",
            "precision": "32-true", "num_threads": 1, "latency_runs": 1, "throughput_batch": 1,
            "throughput_runs": 1,
        }
    )  # fmt: skip
    assert told["params"] == sum(p.numel() for p in load_model(tmp_path / "dense").parameters())
    assert 16 < told["bits"] < 32


def test_calibration_images_are_spread_over_the_split():
    ids = np.arange(100, 110)
    assert _spread(ids, 4).tolist() == [100, 102, 105, 107]  # k * 10 // 4
    assert _spread(ids, 20).tolist() == ids.tolist()


@pytest.mark.parametrize(("arguments", "words"), [
    ((f"{KEY}.mode=sometimes",), f"{KEY}.mode=sometimes: must be one of dynamic, static, weight_only"),
    ((f"{KEY}.dtype=int3",), f"{KEY}.dtype=int3"),
    ((f"{KEY}.percentile=3",), f"{KEY}.percentile=3.0: must be 50 to 100"),
    ((f"{KEY}.qat=true", f"{KEY}.dtype=bf16"), "trains for int8"),
    ((f"{KEY}.qat=true", "recipe.tune=head"), "trains the weights that it rounds"),
    ((f"{KEY}.start=2",), f"{KEY}.start=2"),
    ((f"{KEY}.layers=[fc3]",), "did you mean 'fc2'?"),
    ((f"{KEY}.qat=true", f"{KEY}.mode=static", f"{KEY}.start=0"), "the ranges of random weights"),
    ((f"{KEY}.qat=true", f"{KEY}.start=0.3", "compress=[lowrank,quantize]", "compress.lowrank.start=1"),
     "compress.lowrank.start=the end: comes after compress.quantize.start, and layers that round"),
    ((f"{KEY}.layers=[patch_embed]",), f"{KEY}.layers=patch_embed: are not in"),
])  # fmt: skip
def test_wrong_settings(arguments, words, tmp_path, monkeypatch, capsys):
    assert exit_code(tmp_path, monkeypatch, *QUICK, "compress=quantize", *arguments, "run_dir=run") == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
