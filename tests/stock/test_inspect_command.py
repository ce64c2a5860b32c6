"""`effvit inspect` on a folder whose faults were made by hand."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from driving import SMALL
from PIL import Image

from effvit_train import cli
from effvit_train.card import Card
from effvit_train.config import Config
from effvit_train.data.config import DatasetConfig
from effvit_train.inspect_command import parse
from effvit_train.stock import survey as survey_module
from effvit_train.stock.balance import balance
from effvit_train.stock.findings import findings
from effvit_train.stock.trainings import share_of

ROOT = Path(__file__).resolve().parents[2]


def inspected(capsys, *arguments: str) -> str:
    cli.main(["inspect", *map(str, arguments)])
    return capsys.readouterr().out


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(["inspect", *map(str, arguments)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((32, 24), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two classes, 36 and 6 training images, 12 and 3 for tests, with a table; some are there twice."""
    monkeypatch.chdir(tmp_path)
    root, rows, seed = tmp_path / "set", ["path,label,split,tile,light"], 0
    for split, counts in (("train", (36, 6)), ("test", (12, 3))):
        for name, count in zip(("free", "crack"), counts, strict=True):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                path = f"{split}/{name}/{k}.png"
                picture(seed).save(root / path)
                rows.append(f"{path},{name},{split},{split}{seed // 3},{seed % 2}")
                seed += 1
    shutil.copy(root / "train/free/0.png", root / "test/free/0.png")  # in training too, byte for byte
    picture(1).resize((64, 48)).save(root / "test/free/1.png")  # in training too, larger
    shutil.copy(root / "test/free/5.png", root / "test/crack/0.png")  # with two labels
    Image.new("RGB", (32, 24), "white").save(root / "test/free/7.png")
    (root / "test/free/8.png").write_bytes(b"not an image")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def test_what_is_wrong_with_a_folder_is_found(folder, capsys):
    told = json.loads(
        inspected(capsys, "--json", "dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=24")
    )
    assert told["info"]["counts"] == {"train": 37, "val": 5, "test": 14, "unused": 0}
    assert told["unreadable"] == {
        "images": 1,
        "examples": [["test/free/8.png", "not an image that Pillow can read"]],
    }
    twice = told["duplicates"]
    # test/free/0 and test/crack/0 repeat images before them in the table
    assert (twice["exact"], twice["near"]) == (2, 1)
    assert twice["in_training"] == {"val": 0, "test": 1}
    assert twice["near_in_training"] == {"val": 0, "test": 2}
    assert twice["conflicting"] == {"exact": 1, "near": 0}
    near = next(pair for pair in twice["examples"] if pair["kind"] == "near")
    assert {near["one"], near["other"]} == {"train/free/1.png", "test/free/1.png"}
    assert told["pixels"]["constant_examples"] == ["test/free/7.png"]
    assert told["sizes"]["width"] == [32, 32.0, 64]
    assert told["sizes"]["enlarged"] == 0
    test = told["balance"]["test"]
    assert (test["largest"], test["least"], test["most"]) == ("free", 3, 11)
    columns = {one["name"]: one for one in told["columns"]}
    assert columns["tile"]["shared"]["test"] == 0
    assert columns["light"]["shared"]["test"] == 2
    assert sum(map(sum, columns["light"]["table"]["train"].values())) == 37
    assert any("1 file cannot be used" in line for line in told["findings"])
    assert any("1 pair of exactly the same image with different classes" in line for line in told["findings"])
    assert os.listdir() == ["set"]  # no run directory


def test_in_words_and_in_pictures(folder, capsys):
    out = inspected(
        capsys, "dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=24",
        "dataset.split_group=tile", "--pairs", "pairs.png", "--accuracy", "95%",
    )  # fmt: skip
    assert "test/free/8.png: not an image that Pillow can read" in out
    assert "14 test images: an accuracy of 98.0 % is known to" in out
    assert "takes 73 test images at least" in out
    assert "these 14 are too few" in out
    assert "light: training / test images by class" in out
    assert max(map(len, out.splitlines())) > 100  # nothing is cut to the terminal's width
    assert "…" not in out
    with Image.open("pairs.png") as sheet:
        assert sheet.size == (2 * 48 + 12, 48 + 6)


def test_privacy_is_told_and_torch_is_not_needed(folder):
    code = "import sys; from effvit_train.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", "dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=24",
         "privacy=dp_sgd", "privacy.epsilon=3"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "not covered by the guarantee" in done.stdout
    assert "public constants (mean 0.5000" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_the_default_digits_are_too_small_for_near_duplicates(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = json.loads(inspected(capsys, "--json"))
    assert told["info"]["name"] == "digits"
    assert told["duplicates"]["near"] is None
    assert "less than 16 pixels" in told["duplicates"]["near_missing"]
    assert told["test_images"] == 360
    assert not list(tmp_path.iterdir())


def test_wrong_inputs_are_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments, says in (
        (["--accuracy", "2"], "--accuracy=2: must be between 0 and 1"),
        (["--fractions", "0,1"], "--fractions=0,1: must be numbers in (0, 1]"),
        (["--learning-curve", "privacy=dp_sgd", "privacy.epsilon=3"], "would spend the privacy budget"),
        (["--learning-curve", "trainer.fast_dev_run=true"], "gives no learning curve"),
        (["--fractions", "0.01,1"], "0.01 of 1,257 training images is less than a batch of 32; recipe.batch_size=12"),
        (["--pairs", "x.jpg"], "must be a .png"), (["-m", "dataset=digits"], "one data set at a time"),
        (["dataset=digit"], "did you mean 'digits'"),
    ):  # fmt: skip
        assert says in refused(capsys, *arguments), arguments
    assert not list(tmp_path.rglob("state.json"))


def test_smaller_shares_keep_the_steps_and_the_validations():
    config = Config()
    config.trainer.max_epochs, config.recipe.batch_size = 30, 64
    found = share_of(config, 0.1, 1257)  # 125 images: 1 batch where the whole has 19
    assert (found.trainer.max_epochs, found.trainer.check_val_every_n_epoch) == (570, 19)
    found = share_of(config, 0.3, 1257)  # 377 images: 5 batches
    assert (found.trainer.max_epochs, found.trainer.check_val_every_n_epoch) == (120, 4)
    whole = share_of(config, 1.0, 1257)
    assert (whole.trainer.max_epochs, whole.trainer.check_val_every_n_epoch) == (30, 1)
    config.dataset.train_fraction = 0.5
    assert share_of(config, 0.3, 628).dataset.train_fraction == 0.15
    options, overrides = parse(["--learning-curve", "seed=1", "--accuracy", "98%"])
    assert (options.fractions, options.accuracies, overrides) == ((0.1, 0.3, 1.0), (0.98,), ["seed=1"])


def test_a_learning_curve_is_trained_once(capsys, tmp_path, monkeypatch, no_probe):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "--json", "--fractions", "1,0.3", "--accuracy", "5%", "--accuracy", "99%", "trainer.max_epochs=1", *SMALL,
    ]  # fmt: skip
    told = json.loads(inspected(capsys, *arguments))
    points = told["learning_curve"]["points"]
    assert [one["point"]["images"] for one in points] == [377, 1257]
    assert [one["epochs"] for one in points] == [4, 1]
    assert all(one["point"]["total"] == 180 for one in points)
    for one in points:
        assert 0 <= one["interval"][0] <= one["accuracy"] <= one["interval"][1] <= 1
        card = Card.read(Path(one["run_dir"]) / "card.json")
        assert card.provenance["dataset"]["counts"]["train"] == one["point"]["images"]
    assert told["learning_curve"]["answers"][0]["verdict"] == "enough"
    assert [path.parent.name for path in tmp_path.glob("runs/*/*")] == ["inspect", "inspect"]
    monkeypatch.setattr("effvit_train.stock.trainings.run_job", None)  # nothing is trained again
    again = inspected(capsys, *(item for item in arguments if item != "--json"))
    assert "error = " in again
    assert "if the curve goes on like this" in again
    assert "Enough for 0.05" in again


def test_what_deserves_attention(folder, monkeypatch):
    monkeypatch.setattr(survey_module, "MOST_GROUPS", 5)  # as if the 19 tiles were many
    config = Config()
    config.cache_dir = str(folder.parent / "cache")
    config.dataset = DatasetConfig(name="image_folder", root=str(folder), image_size=64)
    stock = survey_module.survey(config, print).stock
    told = "\n".join(stock.findings)
    assert re.search(
        r"No value of tile is in both training and test images, but \d are in .* validation images", told
    )
    assert "1 class of 2 with fewer than 30 training images (fewest: 5 of 'crack')" in told
    assert "at most 24 pixels, enlarged to dataset.image_size=64" in told
    assert "1 image constant but for noise, such as test/free/7.png" in told
    twice = dataclasses.replace(
        stock.duplicates,
        doubtful=True,
        in_training={"val": 0, "test": 2},
        near_in_training={"val": 0, "test": 5},
    )
    train, test = balance([600, 20], ["a", "b"], wanted=30), balance([30, 10], ["a", "b"], wanted=30)
    changed = dataclasses.replace(
        stock, duplicates=twice, balance={**stock.balance, "train": train, "test": test}, divided_groups=1
    )
    told = "\n".join(findings(changed, "tile"))
    assert "2 of 40 test images (5.0%) are in training too, byte for byte" in told
    assert "3 of 40 test images (7.5%) have a near-identical one in training; so many images here" in told
    assert "unbalanced 30 to 1: always saying 'a' has 75.0% of the test images right" in told
    assert "1 group of tile in several splits" in told
    assert "validates as it tests" not in told  # groups are kept whole as it is
