"""Groups and pictures of the test images, from the data set itself."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from made import make_run
from PIL import Image

from effvit_train.compare_command import compare
from effvit_train.compose import register
from effvit_train.config import Config
from effvit_train.data.datamodule import DataModule
from effvit_train.errors import UserError
from effvit_train.runs import RunDir, RunState, write_config


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """Two runs on an image folder of which the last 40 of 120 images are the test images."""
    monkeypatch.chdir(tmp_path)
    register()
    rows = ["path,label,side,sender,split"]
    for number in range(120):
        name, split = "cat" if number % 2 else "dog", "test" if number >= 80 else "train"
        (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (160, 160), (number, 0, 200)).save(tmp_path / "set" / name / f"{number:03d}.png")
        rows.append(f"{name}/{number:03d}.png,{name},{'left' if number < 115 else 'right'},{number},{split}")
    (tmp_path / "set" / "labels.csv").write_text("\n".join(rows) + "\n")
    config = Config(seed=0, name="x", cache_dir=str(tmp_path / "cache"))
    config.dataset.name, config.dataset.root, config.dataset.image_size = (
        "image_folder",
        str(tmp_path / "set"),
        160,
    )
    config.recipe.batch_size = 8
    data = DataModule(
        config.dataset, batch_size=8, seed=0, cache_dir=tmp_path / "cache", say=lambda line: None
    )
    labels = np.array([batch for loaded in data.test_dataloader() for batch in loaded.labels.tolist()])
    ids = data.indices("test")
    for name, wrong in (("a", []), ("b", [0, 1, 2])):
        said = labels.copy()
        said[wrong] = 1 - said[wrong]
        run = make_run(
            tmp_path / name, id=name, classes=("cat", "dog"), labels=labels, predicted=said, curves=False,
            compress=["distill"] * (name == "b"), fingerprint=data.info.fingerprint,
        )  # fmt: skip
        content = dict(np.load(run / "predictions.npz"))
        np.savez(run / "predictions.npz", **{**content, "index": ids})
        card = json.loads((run / "card.json").read_text())
        card["provenance"]["dataset"]["groups"] = data.info.groups
        (run / "card.json").write_text(json.dumps(card))
        state = RunState.new()
        state.data = data.info.fingerprint
        state.write(RunDir(run).state)
        write_config(RunDir(run), config, [])
    return tmp_path


def test_flipped_images_are_shown_with_their_files_and_groups(two_runs, capsys):
    compare(["a", "b", "--images", "2", "--group", "sender"])
    out = capsys.readouterr().out
    assert "3 images are right in A only, 0 in B only" in out
    page = (two_runs / "compare-a-b.html").read_text()
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="test image (\d+), (cat|dog)"', page)
    assert len(pictures) == 2
    assert page.count("✗") == 2
    assert re.search(r'title="(cat|dog)/\d{3}.png"', page)
    assert "Right in A only: 3 images, 2 of them here" in page
    assert "Accuracy per group" in page
    assert "5 groups" not in page  # of sender, each has one image: 40 groups
    assert "40 groups with fewer than 30 test images (40 together)" in page
    assert "1 group with fewer than 30 test images (5 together)" in page


def test_groups_alone_need_no_pictures(two_runs, capsys):
    compare(["a", "b", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["images"]) for row in told["groups"]["side"]["groups"]] == [("left", 35)]
    assert told["groups"]["side"]["too_small"] == 1


def test_data_that_moved(two_runs, capsys):
    shutil.move(two_runs / "set", two_runs / "elsewhere")
    compare(["a", "b"])
    capsys.readouterr()
    page = (two_runs / "compare-a-b.html").read_text()
    assert "<img" not in page
    assert "No pictures: the data set cannot be read" in page.replace("\u00a0", " ")
    assert "if it has moved, give --root DIR" in page
    compare(["a", "b", "--root", "elsewhere"])
    assert (two_runs / "compare-a-b.html").read_text().count("<img") == 3


def test_other_data_or_columns_are_refused(two_runs):
    with pytest.raises(
        UserError, match=r"--group=sende: is not a column of the table; did you mean 'sender'"
    ):
        compare(["a", "b", "--group", "sende"])
    Image.new("RGB", (200, 200)).save(two_runs / "set" / "cat" / "081.png")
    with pytest.raises(UserError, match=r"--root=set: the data are not those"):
        compare(["a", "b", "--root", "set"])
