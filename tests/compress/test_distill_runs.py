"""Distilling runs from the command to their files: kinds, caches, teachers, resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from driving import SMALL, curves, exit_code, interrupted_run, run_in

from effvit_train import checkpoint_file, cli, load_model
from effvit_train.frozen import Teacher

KIND = "compress.distill.kinds"
CACHE = "compress.distill.cache"
QUICK = (
    *SMALL, "recipe.batch_size=128", "trainer.max_epochs=3", "logger=none", "audit=none", "compress=distill",
    "compress.distill.trained.max_epochs=1", "compress.distill.trained.min_steps=1", "dataset.num_workers=0",
)  # fmt: skip
EXACT = (f"{CACHE}.epochs=3", f"{CACHE}.dtype=float32")
FILES = ("model.safetensors", "metrics.csv")


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


@pytest.fixture
def asked(monkeypatch):
    """The batches that a teacher was asked about."""
    calls: list[int] = []
    original = Teacher.__call__

    def call(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Teacher, "__call__", call)
    return calls


def result(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in FILES]


def card(run: Path) -> dict:
    return json.loads((run / "card.json").read_text())


def build_cache(directory: Path, monkeypatch, *arguments: str) -> None:
    monkeypatch.chdir(directory)
    cli.cache(list(arguments))


@pytest.mark.long
def test_every_kind_at_once(tmp_path, monkeypatch):
    kinds = ["soft", "hard", "token", "feature", "relation", "self"]
    run_in(tmp_path, monkeypatch, *QUICK, f"{KIND}=[{','.join(kinds)}]", "run_dir=run")
    run = tmp_path / "run"
    row = curves(run)[-1]
    terms = {
        name: float(row[f"train/{name}"]) for name in ("label", "soft", "hard", "feature", "relation", "self")
    }
    # soft, hard and self share a half, as there are hard labels; the labels keep the other
    logits = (terms["soft"] + terms["hard"] + terms["self"]) / 3
    total = 0.5 * terms["label"] + 0.5 * logits + terms["feature"] + terms["relation"]
    assert float(row["train/loss"]) == pytest.approx(total, rel=1e-4)
    # projection and average are part of the training, and of nothing that is shipped
    state = checkpoint_file.read(run / "checkpoints" / "last.ckpt")["state_dict"]
    extra = {name for name in state if name.startswith("term_modules.")}
    assert {name.split(".")[1] for name in extra} == {"feature", "self"}
    shipped = safetensors.torch.load_file(run / "model.safetensors")
    assert set(shipped) == {name.removeprefix("model.") for name in state if name.startswith("model.")}
    model = load_model(run)
    assert model.head_dist.out_features == 10
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    found = card(run)["provenance"]["teacher"]
    assert found["kinds"] == kinds
    assert found["name"] == "vit_tiny_patch16_224"  # relations need a ViT
    own = json.loads((Path(found["run_dir"]) / "card.json").read_text())
    assert found["measures"]["quality/accuracy"] == own["measures"]["quality/accuracy"] == found["accuracy"]
    data = card(run)["provenance"]["dataset"]["fingerprint"]
    assert [(entry["data"], entry["via"]) for entry in card(run)["provenance"]["seen"]] == [
        (data, "training"), (data, "teacher"),
    ]  # fmt: skip


@pytest.mark.parametrize("kinds", ["soft", "hard,token"])
def test_a_cached_teacher_gives_the_weights_of_a_live_one(kinds, tmp_path, monkeypatch, asked):
    arguments = (*QUICK, f"{KIND}=[{kinds}]", "recipe.erasing=0.3", "recipe.randaugment=rand-m9-mstd0.5-inc1")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=live")
    assert len(asked) == 27  # steps; its accuracy is on its own card
    run_in(tmp_path, monkeypatch, *arguments, *EXACT, "run_dir=cached")
    assert len(asked) == 54
    assert result(tmp_path / "cached") == result(tmp_path / "live")
    run_in(tmp_path, monkeypatch, *arguments, *EXACT, "run_dir=again")
    assert len(asked) == 54  # and the teacher was not even loaded
    assert result(tmp_path / "again") == result(tmp_path / "live")
    run_in(tmp_path, monkeypatch, *arguments, f"{CACHE}.epochs=3", "run_dir=half")
    live, half = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("live", "half")
    )
    difference = max((live[name] - half[name]).abs().max().item() for name in live)
    assert 0 <= difference < 2e-3  # 11 bits of a log-probability, through 27 steps of AdamW


@pytest.mark.long
def test_views_come_round_and_runs_of_other_seeds_share_them(tmp_path, monkeypatch, asked):
    epochs = ("trainer.max_epochs=5", f"{CACHE}.epochs=2")
    run_in(tmp_path, monkeypatch, *QUICK, *epochs, "run_dir=one")
    # 1,257 images in batches of 128: 9 batches, what is left over differs from epoch to epoch
    first = len(asked)
    assert 18 <= first <= 18 + 3 * 9
    run_in(tmp_path, monkeypatch, *QUICK, *epochs, "seed=1", "recipe.lr=1e-3", "run_dir=two")
    run_in(tmp_path, monkeypatch, *QUICK, *epochs, "seed=2", "model.args.depth=2", "run_dir=three")
    # two more runs of 45 steps: only what was left over by chance is asked, about ten images of each view
    assert len(asked) - first <= 25
    (cache,) = (tmp_path / "cache" / "logits").glob("digits-*/")
    assert sorted(p.name for p in cache.glob("variant-*")) == ["variant-00000", "variant-00001"]
    assert card(tmp_path / "two")["provenance"]["teacher"]["cache"] == {
        "path": str(cache), "epochs": 2, "top_k": 10, "dtype": "float16",
    }  # fmt: skip
    run_in(tmp_path, monkeypatch, *QUICK, *epochs, "dataset.augment.shift=2", "run_dir=four")
    assert len(list((tmp_path / "cache" / "logits").glob("digits-*/"))) == 2  # other views, another cache


@pytest.fixture(autouse=True)
def _cache_of_each_test(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFVIT_CACHE", str(tmp_path / "cache"))


def test_built_ahead_it_is_what_the_run_would_have_kept(tmp_path, monkeypatch, asked, capfd):
    lazy = (*QUICK, *EXACT, f"cache_dir={tmp_path}/lazy")
    run_in(tmp_path, monkeypatch, *lazy, "run_dir=lazy-run")
    ahead = (*QUICK, *EXACT, f"cache_dir={tmp_path}/ahead")
    build_cache(tmp_path, monkeypatch, *ahead)
    assert "teacher cache: complete, 3,771 records, 3,771 of them new" in capfd.readouterr().out
    asked.clear()
    run_in(tmp_path, monkeypatch, *ahead, "run_dir=ahead-run")
    assert asked == []
    assert result(tmp_path / "ahead-run") == result(tmp_path / "lazy-run")
    build_cache(tmp_path, monkeypatch, *ahead)
    assert asked == []
    assert "3,771 records, 0 of them new" in capfd.readouterr().out
    # the run left out what did not fill a batch: 105 images of each epoch
    build_cache(tmp_path, monkeypatch, *lazy)
    assert f"{3 * 105} of them new" in capfd.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_a_build_that_was_interrupted_goes_on(tmp_path, monkeypatch, asked, capfd):
    arguments = (*QUICK, *EXACT)
    original = Teacher.__call__

    def stopping(self, images):
        if len(asked) == 12:
            raise KeyboardInterrupt  # as a kill: nothing is tidied up
        return original(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "__call__", stopping)
        with pytest.raises(KeyboardInterrupt):
            build_cache(tmp_path, monkeypatch, *arguments)
    build_cache(tmp_path, monkeypatch, *arguments)
    assert len(asked) == 30  # 10 batches of each of 3 views, none twice
    assert f"{3771 - 11 * 128 - 105:,} of them new" in capfd.readouterr().out


def test_damage_is_told_and_made_good(tmp_path, monkeypatch, asked, capfd):
    arguments = (*QUICK, *EXACT)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=one")
    (file, *_) = sorted((tmp_path / "cache" / "logits").rglob("*.bin"))
    data = bytearray(file.read_bytes())
    size = len(data) // 1257
    hit = next(k for k in range(1257) if any(data[k * size : (k + 1) * size]))
    data[hit * size + 9] ^= 4
    file.write_bytes(data)
    asked.clear()
    capfd.readouterr()
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=two")
    assert asked == [128]
    assert "teacher cache: 1 damaged records were computed again" in capfd.readouterr().out
    assert result(tmp_path / "two") == result(tmp_path / "one")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((f"{KIND}=[soft,token,feature,relation,self]",), marks=pytest.mark.long),
        EXACT,
        (f"{CACHE}.epochs=2", f"{KIND}=[hard,self]", "recipe.erasing=0.3", "recipe.ema=0.9"),
    ],
)
def test_a_resumed_run_ends_with_the_same_bytes(arguments, tmp_path, monkeypatch):
    arguments = (*QUICK, *arguments)
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole", "cache_dir=cache-whole")
    run_in(
        tmp_path, monkeypatch, *arguments, "run_dir=teachers", "trainer.max_epochs=1", "cache_dir=cache-run"
    )
    shutil.rmtree(tmp_path / "cache-run" / "logits", ignore_errors=True)
    arguments = (*arguments, "run_dir=run", "cache_dir=cache-run")
    for k, first in enumerate((arguments, ("resume=run",))):
        assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 7 + 6 * k, *first) == 130
    run_in(tmp_path, monkeypatch, "resume=run")
    assert result(tmp_path / "run") == result(tmp_path / "whole")


def test_a_resumed_run_learns_from_the_same_teacher_or_not_at_all(tmp_path, monkeypatch, capfd):
    plain = [item for item in QUICK if "distill" not in item]
    run_in(tmp_path, monkeypatch, *plain, "run_dir=teacher", "trainer.max_epochs=1")
    run_in(tmp_path, monkeypatch, *plain, "run_dir=other", "trainer.max_epochs=2")
    arguments = (*QUICK, "compress.distill.teacher=teacher", "run_dir=run")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 4, *arguments) == 130
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "teacher" / "model.safetensors")
    assert exit_code(tmp_path, monkeypatch, "resume=run") == 2
    assert (
        "compress.distill.teacher: is not the teacher that this run has learnt from" in capfd.readouterr().err
    )


def test_several_teachers_and_one_of_another_size(tmp_path, monkeypatch, capfd):
    plain = [item for item in QUICK if "distill" not in item]
    run_in(tmp_path, monkeypatch, *plain, "run_dir=a")
    run_in(tmp_path, monkeypatch, *plain, "run_dir=b", "dataset.image_size=16", "seed=1")
    teachers = "compress.distill.teacher=[a,b]"
    run_in(tmp_path, monkeypatch, *QUICK, teachers, f"{KIND}=[soft,feature,relation]", "run_dir=live")
    run_in(tmp_path, monkeypatch, *QUICK, teachers, *EXACT, "run_dir=cached")
    run_in(tmp_path, monkeypatch, *QUICK, teachers, "run_dir=soft")
    assert result(tmp_path / "cached") == result(tmp_path / "soft")
    found = card(tmp_path / "live")["provenance"]["teacher"]
    assert found["source"] == "ensemble"
    assert [member["run_dir"] for member in found["members"]] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert [member["measures"]["quality/accuracy"] for member in found["members"]] == [
        card(tmp_path / name)["measures"]["quality/accuracy"] for name in ("a", "b")
    ]
    assert found["params"] == sum(member["params"] for member in found["members"])


def test_a_foreign_teacher_is_declared_or_the_card_says_that_it_is_not(tmp_path, monkeypatch, capfd):
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    torch.save(model.state_dict(), tmp_path / "teacher.pt")
    foreign = ("compress.distill.teacher=test_resnet", "compress.distill.weights=teacher.pt")
    run_in(tmp_path, monkeypatch, *QUICK, *foreign, "run_dir=silent")
    assert "is not declared (compress.distill.teacher_data=NAME); the card says so" in capfd.readouterr().out
    found = card(tmp_path / "silent")["provenance"]["teacher"]
    assert (found["source"], found["declared"], found["measures"]) == ("file", None, None)
    declared = (
        *foreign,
        "compress.distill.teacher_data=the clinic archive",
        "compress.distill.image_size=16",
    )
    run_in(tmp_path, monkeypatch, *QUICK, *declared, "run_dir=declared")
    assert "not declared" not in capfd.readouterr().out
    found = card(tmp_path / "declared")["provenance"]
    assert found["teacher"]["declared"] == "the clinic archive"
    own, foreign = found["seen"]
    assert (own["name"], own["via"], own["images"]) == ("digits", "training", 1257)
    assert (foreign["name"], foreign["via"], foreign["declared"]) == ("the clinic archive", "teacher", True)


def test_the_cache_and_mixtures(tmp_path, monkeypatch, capfd):
    arguments = (*QUICK, f"{CACHE}.epochs=1", "trainer.max_epochs=1", "run_dir=run")
    assert exit_code(tmp_path, monkeypatch, *arguments, "recipe.mixup=0.5") == 2
    line = "recipe.mixup=0.5: cannot be combined with compress.distill.cache.epochs"
    assert line in capfd.readouterr().err
    run_in(tmp_path, monkeypatch, *arguments, "recipe=deit", "recipe.batch_size=128")
    said = capfd.readouterr().out
    assert "recipe.mixup switched off" in said
    assert "recipe.cutmix switched off" in said


def test_a_cache_command_that_has_nothing_to_do(tmp_path, monkeypatch, capfd):
    for arguments, line in (
        (("compress=none",), "compress=none: has no teacher to ask; add compress=distill"),
        (("compress=distill",), f"{CACHE}.epochs=null: is needed"),
        (("compress=distill", "-m"), "effvit cache builds one cache at a time"),
        (
            ("compress=distill", f"{CACHE}.epochs=1", f"{KIND}=[relation]"),
            "not the inner outputs that kind relation",
        ),
    ):
        with pytest.raises(SystemExit) as caught:
            build_cache(tmp_path, monkeypatch, *arguments)
        assert caught.value.code == 2
        assert line in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
