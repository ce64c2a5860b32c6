"""Wrong inputs, as a user would make them: exit code 2, one line with the key and the remedy, nothing left behind."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effvit_train import cli


def _images(root: Path, *classes: str, count: int = 12, size: int = 8) -> Path:
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.png")
    return root


def _folder(path: Path) -> Path:
    return _images(path / "set", "a", "b")


def _empty_class(path: Path) -> Path:
    root = _folder(path)
    (root / "c").mkdir()
    return root


def _one_class(path: Path) -> Path:
    return _images(path / "set", "a")


def _corrupt(path: Path) -> Path:
    root = _folder(path)
    data = (root / "a" / "0.png").read_bytes()
    (root / "a" / "0.png").write_bytes(data[: len(data) // 2])
    return root


def _no_images(path: Path) -> Path:
    (path / "set" / "a").mkdir(parents=True)
    (path / "set" / "a" / "notes.txt").write_text("no image")
    return path / "set"


def _labels(path: Path, header: str, *rows: str) -> Path:
    root = _folder(path)
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(row.split(",") for row in rows)
    return root


def _idx(path: Path) -> Path:
    root = path / "set"
    root.mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (root / f"{name}-ubyte.gz").write_bytes(b"not the published bytes")
    return root


def _pickle(path: Path) -> Path:
    import pickle

    file = path / "weights.pt"
    with open(file, "wb") as handle:
        pickle.dump({"a": Path("x")}, handle)
    return file


def _empty(path: Path) -> Path:
    (path / "set").mkdir()
    return path / "set"


def _old_run(path: Path) -> Path:
    """A directory that holds a run's configuration, and a checkpoint that is none."""
    run = path / "old"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text("seed: 0\nname: x\nrun_dir: x\n")
    (run / ".hydra" / "overrides.yaml").write_text("[]\n")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"garbage")
    return run


def _run_of_other_classes(path: Path) -> Path:
    from effvit_train.models.record import ArchitectureRecord

    run = path / "teacher"
    run.mkdir()
    record = ArchitectureRecord("resnet18", {}, (1, 8, 8), ("cat", "dog"), (0.5,), (0.5,))
    record.write(run / "model.json")
    return run


FOLDER = "dataset=image_folder dataset.image_size=8 dataset.root={set}"
# (overrides, what makes {set}, text in the line: the key, and the remedy or what is allowed)
CASES = {
    "typo in a group": ("modell=vit_s", None, "modell", "did you mean model"),
    "no option": ("dataset.stream=class continual=null", None, "continual=null", "must be one of derpp, ewc"),
    "typo in an option": ("model=vit_sm", None, "model=vit_sm", "did you mean 'vit_s'"),
    "typo in a key": ("recipe.learning_rte=1", None, "recipe.learning_rte", "allowed: batch_size"),
    "typo near a key": ("trainer.max_epoch=3", None, "trainer.max_epoch", "did you mean trainer.max_epochs"),
    "added unknown root key": ("+epochs=3", None, "epochs", "unknown key"),
    "wrong type": ("trainer.max_epochs=many", None, "trainer.max_epochs=many", "whole number"),
    "wrong type of a switch": ("model.pretrained=maybe", None, "model.pretrained=maybe", "true or false"),
    "negative epochs": ("trainer.max_epochs=-3", None, "trainer.max_epochs=-3", "at least 1"),
    "negative learning rate": ("recipe.lr=-1", None, "recipe.lr=-1", "positive"),
    "zero batch": ("recipe.batch_size=0", None, "recipe.batch_size=0", "at least 1"),
    "fraction above one": ("dataset.train_fraction=1.5", None, "dataset.train_fraction=1.5", "(0, 1]"),
    "unreadable override": ("recipe.lr=[1", None, "recipe.lr", "quote"),
    "no such schedule": ("recipe.schedule=cosin", None, "recipe.schedule=cosin", "did you mean 'cosine'"),
    "no such optimizer": ("recipe.optimizer=adamz", None, "recipe.optimizer=adamz", "did you mean"),
    "no such precision": ("trainer.precision=8", None, "trainer.precision=8", "bf16-mixed"),
    "fp16 on a processor": ("trainer.precision=16-mixed", None, "trainer.precision=16-mixed", "bf16-mixed"),
    "no such timm model": ("model.name=vit_smal_patch16_224", None, "model.name", "did you mean"),
    "argument the model lacks": ("+model.args.dpeth=3", None, "model.args.dpeth", "depth"),
    "patch does not divide": ("model.patch_size=3", None, "model.patch_size=3", "8"),
    "weights and pretrained": ("model.pretrained=true model.weights=x.pt", None, "model.weights=x.pt", "one of the two"),
    "no such weights file": ("model.weights={set}/none.pt", _empty, "model.weights", "none.pt"),
    "weights that are a pickle": ("model.weights={set}", _pickle, "model.weights", "safetensors"),
    "technique not switched on": ("compress.distill.weight=0.5", None, "compress.distill", "add compress=distill"),
    "none with another": ("compress=[none,distill]", None, "compress=none,distill", "leave none out"),
    "no such technique": ("compress=destill", None, "compress=destill", "did you mean 'distill'"),
    "one canary": ("audit.canaries=1", None, "audit.canaries=1", "0 or at least 2"),
    "more canaries than there are": ("audit.canaries=1000", None, "audit.canaries=1000", "at most audit.canaries=90"),
    "odd number of shadows": ("audit.shadow_models=3", None, "audit.shadow_models=3", "even"),
    "shadows of several processes": ("audit.shadow_models=2 trainer.devices=2", None, "audit.shadow_models=2", "trainer.devices=1"),
    "epsilon without privacy": ("privacy.epsilon=3", None, "privacy.epsilon=3.0", "add privacy=dp_sgd"),
    "no such privacy": ("privacy=dp", None, "privacy=dp", "none"),
    "temperature zero": ("compress=distill compress.distill.temperature=0", None, "compress.distill.temperature=0", "positive"),
    "teacher that is nothing": ("compress=distill compress.distill.teacher=resnet81", None, "compress.distill.teacher=resnet81", "did you mean"),
    "teacher of other classes": ("compress=distill compress.distill.teacher={set}", _run_of_other_classes, "compress.distill.teacher", "cat, dog"),
    "kind that does not exist": ("compress=distill compress.distill.kinds=[soft,features]", None, "compress.distill.kinds=features", "did you mean 'feature'"),
    "no kind at all": ("compress=distill compress.distill.kinds=[]", None, "compress.distill.kinds=[]", "names nothing to learn"),
    "kind named twice": ("compress=distill compress.distill.kinds=[soft,soft]", None, "compress.distill.kinds=soft,soft", "twice"),
    "share without a kind to share": ("compress=distill compress.distill.kinds=[feature] compress.distill.weight=0.5", None, "compress.distill.weight=0.5", "feature.weight"),
    "teacher that nobody asks": ("compress=distill compress.distill.kinds=[self] compress.distill.teacher=resnet18", None, "compress.distill.teacher=resnet18", "add e.g. soft"),
    "token for a model without one": ("compress=distill compress.distill.kinds=[token] model=swin_t", None, "compress.distill.kinds=token", "choose e.g. model=vit_s"),
    "block that is not there": ("compress=distill compress.distill.feature.teacher_blocks=[1,2]", None, "compress.distill.feature.teacher_blocks", "one block for each"),
    "cache of features": ("compress=distill compress.distill.kinds=[soft,feature] compress.distill.cache.epochs=3", None, "compress.distill.cache.epochs=3", "leave feature out"),
    "cache of nothing": ("compress=distill compress.distill.kinds=[self] compress.distill.cache.epochs=3", None, "compress.distill.cache.epochs=3", "no teacher"),
    "cache of no view": ("compress=distill compress.distill.cache.epochs=0", None, "compress.distill.cache.epochs=0", "at least 1"),
    "cached type": ("compress=distill compress.distill.cache.dtype=int8", None, "compress.distill.cache.dtype=int8", "float16, float32"),
    "kind that cannot be cut": ("compress=prune compress.prune.kinds=[head]", None, "compress.prune.kinds=head", "did you mean 'heads'"),
    "budget above one": ("compress=prune compress.prune.target.macs=50", None, "compress.prune.target.macs=50", "target.macs=0.5"),
    "budget out of reach": ("compress=prune compress.prune.target.macs=0.01", None, "compress.prune.target.macs=0.01", "a higher target"),
    "criterion": ("compress=prune compress.prune.importance=weights", None, "compress.prune.importance=weights", "magnitude"),
    "last cut before the first": ("compress=prune compress.prune.start=0.6 compress.prune.end=0.3", None, "compress.prune.end=0.3", "after the first"),
    "cut that is no time": ("compress=prune compress.prune.start=soon", None, "compress.prune.start=soon", "10epochs"),
    "convnet cut by us": ("compress=prune model.name=resnet18", None, "compress.prune.kinds=heads,mlp", "choose a ViT"),
    "head widths of a mixer": ("compress=prune compress.prune.kinds=[head_width] model.name=mixer_s32_224 dataset=synthetic dataset.image_size=224 dataset.channels=3", None, "compress.prune.kinds=head_width", "only its mlp"),
    "optimizer with a factored state": ("compress=prune recipe.optimizer=adafactor", None, "recipe.optimizer=adafactor", "adamw"),
    "teacher that is the start, from scratch": ("compress=[distill,prune] compress.distill.teacher=self", None, "compress.distill.teacher=self", "model.weights=RUN_DIR"),
    "teacher with 1000 classes": ("compress=distill compress.distill.teacher=resnet18", None, "compress.distill.teacher=resnet18", "1000 classes"),
    "no root": ("dataset=image_folder", None, "dataset.root", "directory"),
    "missing directory": ("dataset=image_folder dataset.root=/nowhere/at/all", None, "dataset.root=/nowhere/at/all", "holds the images"),
    "no images": (FOLDER, _no_images, "dataset.root", "image"),
    "empty class": (FOLDER, _empty_class, "dataset.root", "c"),
    "one class": (FOLDER, _one_class, "dataset.root", "class"),
    "corrupt image": (FOLDER, _corrupt, "0.png", "dataset.on_bad_image=skip"),
    "another number of classes": (f"{FOLDER} dataset.num_classes=7", _folder, "dataset.num_classes=7", "2"),
    "batch larger than the set": (f"{FOLDER} recipe.batch_size=500", _folder, "recipe.batch_size=500", "at most recipe.batch_size=16"),
    "no such group column": (f"{FOLDER} dataset.split_group=tile", _folder, "dataset.split_group=tile", "no such column"),
    "labels without label": (FOLDER, lambda p: _labels(p, "path,kind", "a/0.png,a"), "labels.csv", "label"),
    "labels of missing files": (FOLDER, lambda p: _labels(p, "path,label", "a/99.png,a", "b/0.png,b"), "a/99.png", "relative to dataset.root"),
    "wrong checksum": ("dataset=fashion_mnist dataset.root={set}", _idx, "dataset.root", "checksum"),
    "fashion_mnist without files": ("dataset=fashion_mnist dataset.root={set}", _empty, "dataset.root", "dataset.download=true"),
    "no GPU": ("trainer=gpu", None, "trainer.accelerator=gpu", "trainer=cpu"),
    "odd batch with mixup": ("recipe.mixup=0.8 recipe.batch_size=33", None, "recipe.batch_size=33", "even"),
    "resume of nothing": ("resume=/nowhere/at/all", None, "resume=/nowhere/at/all", "run directory"),
    "resume of another directory": ("resume={set}", _empty, "resume", ".hydra/config.yaml"),
    "resume that changes the model": ("resume={set} model.name=resnet18", _old_run, "model.name=resnet18", "start a new run"),
    "damaged checkpoint": ("resume={set}", _old_run, "last.ckpt is cut short", "remove checkpoints/ to start the run again"),
    "argument the optimizer lacks": ("+recipe.opt_args.foo=1", None, "recipe.opt_args", "betas"),
    "no such strategy": ("trainer.strategy=foo", None, "trainer.strategy=foo", "trainer.strategy=auto"),
    "teacher's recipe": ("compress=distill compress.distill.trained.recipe.lr=-1", None, "compress.distill.trained.recipe.lr=-1", "positive"),
    "cache that cannot be written": ("compress=distill cache_dir=/proc/nope", None, "cache_dir=/proc/nope", "cannot be written"),
    "sweep over processes": ("-m seed=1,2 trainer.devices=2", None, "trainer.devices=2", "hydra/launcher=parallel"),
}  # fmt: skip


@pytest.fixture
def in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    return work


@pytest.mark.parametrize("name", CASES)
def test_one_line_exit_2_and_nothing_left_behind(name, tmp_path, in_empty_directory, capfd, monkeypatch):
    overrides, make, key, remedy = CASES[name]
    if "GPU" in name or "fp16" in name:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = make(tmp_path) if make else None
    before = _tree(made)
    arguments = [word.replace("{set}", str(made)) for word in overrides.split()]
    with pytest.raises(SystemExit) as caught:
        cli.train(arguments)
    out, err = capfd.readouterr()
    os.environ.pop("HYDRA_FULL_ERROR", None)
    assert caught.value.code == 2, out + err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert key in lines[0]
    assert remedy in lines[0]
    assert remedy
    assert "Traceback" not in out + err
    assert list(in_empty_directory.iterdir()) == []
    assert _tree(made) == before


def _tree(path: Path | None) -> list[str]:
    return sorted(str(entry) for entry in path.rglob("*")) if path is not None and path.is_dir() else []


def test_there_are_at_least_forty():
    assert len(CASES) >= 40


def test_a_run_directory_that_cannot_be_written(in_empty_directory, capfd):
    Path("file").write_text("")
    with pytest.raises(SystemExit) as caught:
        cli.train(["run_dir=file/run"])
    err = capfd.readouterr().err
    assert caught.value.code == 2
    assert len(err.strip().splitlines()) == 1
    assert "run_dir=" in err


def test_a_run_directory_that_holds_a_run_is_left_alone(in_empty_directory, capfd, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "state.json").write_text("{}")
    for arguments, value in (
        ([f"run_dir={run}"], run),
        (["-m", f"run_dir={tmp_path}", "seed=1,2"], tmp_path),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.train(arguments)
        assert caught.value.code == 2
        assert f"run_dir={value}: holds a run already" in capfd.readouterr().err
    assert [path.name for path in run.iterdir()] == ["state.json"]


def test_hydra_full_error_shows_the_traceback(train_py):
    done = train_py("recipe.lrr=1", env={"HYDRA_FULL_ERROR": "1"})
    assert "Traceback" in done.stderr


def test_as_a_process_too(train_py, tmp_path):
    done = train_py("model.patch_size=3")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_swept_group_with_a_setting_is_composed_job_by_job(in_empty_directory, capfd):
    """Hydra first composes without what is swept, where the setting's group is not switched on."""
    with pytest.raises(SystemExit) as caught:
        cli.train(["-m", "compress=[prune],[distill,prune]", "compress.prune.target.macs=2"])
    err = capfd.readouterr().err
    assert caught.value.code == 2
    assert "compress.prune.target.macs=2" in err
    assert "not switched on" not in err
    with pytest.raises(SystemExit) as caught:
        cli.train(["-m", "seed=1,2", "--cfg", "job"])
    assert caught.value.code == 2
    assert "--cfg shows the configuration of one run; leave out -m" in capfd.readouterr().err


def test_an_unknown_command(capfd):
    with pytest.raises(SystemExit) as caught:
        cli.main(["trian"])
    assert caught.value.code == 2
    assert "did you mean 'train'" in capfd.readouterr().err


def test_a_report_of_no_run(capfd, tmp_path):
    with pytest.raises(SystemExit) as caught:
        cli.main(["report", str(tmp_path)])
    assert caught.value.code == 2
    assert "no finished run at or below" in capfd.readouterr().err
    shutil.rmtree(tmp_path)
