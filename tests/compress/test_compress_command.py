"""`effvit compress`: what it refuses in one line, before anything is read or written."""

from __future__ import annotations

import pytest
from driving import card, cuts, run_in

from effvit_train import cli, load_model

QUICK = (
    "trainer.progress_bar=false", "model.args.depth=2", "model.args.embed_dim=32", "model.args.num_heads=4",
    "recipe.batch_size=128", "trainer.max_epochs=1", "logger=none", "audit=none", "dataset.num_workers=0",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def compress(directory, monkeypatch, *arguments: str) -> None:
    monkeypatch.chdir(directory)
    monkeypatch.setattr("sys.argv", ["effvit"])
    cli.main(["compress", *arguments])


@pytest.mark.parametrize(("arguments", "words"), [
    (("nowhere",), "no technique is named"),
    (("nowhere", "compress=none"), "changes nothing"),
    (("nowhere", "compress=quantise"), "must be one of"),
    (("nowhere", "model=vit_s", "compress=quantize"), "model=vit_s: is as the run was trained"),
    (("nowhere", "compress=quantize", "--fast"), "'--fast' is no override"),
    (("nowhere", "compress=quantize"), "no card"),
])  # fmt: skip
def test_wrong_arguments(arguments, words, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        compress(tmp_path, monkeypatch, *arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_several_techniques_one_after_the_other(tmp_path, monkeypatch, capsys):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=dense")
    settings = (
        "compress=[quantize,merge_tokens,lowrank]",
        "compress.merge_tokens.r=2",
        "compress.lowrank.energy=0.8",
    )
    compress(tmp_path, monkeypatch, "dense", *settings, "--out", "small")
    small = tmp_path / "small"
    assert {cut["kind"] for cut in cuts(small)} == {"lowrank", "merge_tokens", "quantize"}
    assert cuts(small)[-1]["kind"] == "quantize"  # what is rounded cannot be factored
    assert card(small)["run"]["compress"] == ["lowrank", "merge_tokens", "quantize"]
    assert card(small)["provenance"]["lowrank"]["of"] == str(tmp_path / "dense")
    assert load_model(small) is not None
    for technique, words in (("prune", "effvit prune RUN_DIR"), ("distill", "needs a training")):
        with pytest.raises(SystemExit) as caught:
            compress(tmp_path, monkeypatch, "dense", f"compress={technique}", "--out", "no")
        assert caught.value.code == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit):
        compress(tmp_path, monkeypatch, "dense", "compress=quantize", "--out", "small")
    assert "exists already" in capsys.readouterr().err
