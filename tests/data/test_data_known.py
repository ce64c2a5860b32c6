"""The sets known by name; the real ones where they are present."""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import urllib.error
from pathlib import Path

import numpy as np
import pytest
from published import cifar_batches, shared, write_idx

from effvit_train.data import known
from effvit_train.errors import UserError


def test_digits_are_scikit_learns(module):
    from sklearn.datasets import load_digits

    reference = load_digits()
    arrays = known.digits()
    assert np.abs(arrays.images[:, 0] - reference.images * 255 / 16).max() <= 0.5
    assert (arrays.labels == reference.target).all()
    info = module(name="digits").info
    assert info.counts == {"train": 1257, "val": 180, "test": 360, "unused": 0}
    # quotas of the test split: 0.2 of 178 182 177 183 181 182 181 179 174 180, by largest remainders
    assert info.class_counts["test"] == [36, 37, 35, 37, 36, 36, 36, 36, 35, 36]
    assert info.classes == tuple("0123456789")
    assert info.input_shape == (1, 8, 8)
    assert module(name="digits", train_fraction=0.2).info.counts["train"] == 251


def test_digits_mean_and_std_are_those_of_the_training_pixels(module):
    data = module(name="digits")
    pixels = known.digits().images[data.indices("train")] / 255
    assert data.info.mean == pytest.approx((pixels.mean(),), abs=1e-12)
    assert data.info.std == pytest.approx((pixels.std(),), abs=1e-12)


def test_other_sizes_and_channels(module):
    data = module(name="digits", image_size=12, channels=3, augment={"resized_crop": 0.6, "hflip": True})
    batch = next(iter(data.train_dataloader()))
    assert batch.images.shape == (4, 3, 12, 12)
    assert (batch.images[:, 0] == batch.images[:, 1]).all()
    assert next(iter(data.test_dataloader())).images.shape[1:] == (3, 12, 12)


def test_digits_do_not_import_sklearn_torchvision_or_timm():
    code = (
        "import sys, effvit_train\n"
        "from effvit_train.data.prepare import prepare\n"
        "from effvit_train.data.config import DatasetConfig\n"
        "from pathlib import Path\n"
        "import effvit_train.data.augment\n"
        "prepare(DatasetConfig(), cache_dir=Path('unused'), say=print)\n"
        "print([name for name in ('sklearn', 'torchvision', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env())
    assert done.stdout.strip() == "[]"


def env():
    import os

    import effvit_train

    return {**os.environ, "PYTHONPATH": str(Path(effvit_train.__file__).parents[1])}


@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"])
def test_fashion_mnist_files_are_read_if_the_checksum_is_the_published_one(
    module, tmp_path, monkeypatch, layout
):
    published = write_idx(tmp_path / "set" / layout)
    keys = {"name": "fashion_mnist", "root": tmp_path / "set", "image_size": None}
    with pytest.raises(UserError, match=r"dataset.root=.*train-images-idx3-ubyte.gz has the wrong checksum"):
        module(**keys)
    monkeypatch.setattr(
        known, "FASHION_MNIST_MD5", {name: published[name] for name in known.FASHION_MNIST_MD5}
    )
    data = module(**keys)
    assert data.info.input_shape == (1, 28, 28)
    assert data.info.counts == {"train": 50, "val": 10, "test": 20, "unused": 0}  # one of each class at least
    (batch,) = data.test_dataloader()
    assert (batch.images[:, 0, 0, 0] == batch.index - 60).all()
    assert (batch.labels == (batch.index - 60) % 10).all()


def test_fashion_mnist_that_is_not_there(module, tmp_path):
    with pytest.raises(UserError, match=r"dataset.root=.*holds no fashion_mnist.*dataset.download=true"):
        module(name="fashion_mnist", root=tmp_path)


@pytest.mark.parametrize(("name", "method"), [("fashion_mnist", "FashionMNIST"), ("cifar10", "CIFAR10")])
def test_a_download_without_a_network(module, tmp_path, monkeypatch, name, method):
    def unreachable(*_args, **_keys):
        raise urllib.error.URLError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError) as caught:
        module(name=name, root=tmp_path / "new", download=True)
    line = str(caught.value)
    assert line.startswith(f"dataset.download=true: {name} could not be downloaded")
    assert str(tmp_path / "new") in line
    assert "\n" not in line


@pytest.mark.parametrize("layout", ["folder", "archive"])
def test_cifar10_pickles_are_read_only_if_the_checksum_is_the_published_one(
    module, tmp_path, monkeypatch, layout
):
    files = cifar_batches()
    if layout == "folder":
        (tmp_path / known.CIFAR10_FOLDER).mkdir()
        for name, content in files.items():
            (tmp_path / known.CIFAR10_FOLDER / name).write_bytes(content)
    else:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(f"{known.CIFAR10_FOLDER}/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        files[known.CIFAR10_ARCHIVE] = buffer.getvalue()
        (tmp_path / known.CIFAR10_ARCHIVE).write_bytes(buffer.getvalue())
    keys = {"name": "cifar10", "root": tmp_path, "image_size": None}
    loads = []
    monkeypatch.setattr(
        known.pickle, "loads", lambda *a, _loads=pickle.loads, **k: loads.append(1) or _loads(*a, **k)
    )
    with pytest.raises(UserError, match=r"dataset.root=.*wrong checksum"):
        module(**keys)
    assert not loads
    md5 = {name: hashlib.md5(files.get(name, b"")).hexdigest() for name in known.CIFAR10_MD5}
    monkeypatch.setattr(known, "CIFAR10_MD5", md5)
    data = module(**keys)
    assert data.info.classes[3] == "cat"
    assert data.info.input_shape == (3, 32, 32)
    assert data.info.counts == {"train": 90, "val": 10, "test": 20, "unused": 0}
    (batch,) = data.test_dataloader()
    assert (batch.images[:, 2, 31, 31] == batch.index).all()
    assert batch.index.tolist() == list(range(100, 120))


def test_known_sets_have_their_own_number_of_classes_and_no_groups(module):
    with pytest.raises(UserError, match=r"dataset.num_classes=7: digits has 10 classes"):
        module(name="digits", num_classes=7)
    with pytest.raises(UserError, match=r"dataset.split_group=x: digits has no groups"):
        module(name="digits", split_group="x")


def test_the_real_fashion_mnist(module):
    root = shared("fashion_mnist")
    data = module(name="fashion_mnist", root=root, image_size=None, batch_size=128)
    info = data.info
    assert info.counts == {"train": 54_000, "val": 6_000, "test": 10_000, "unused": 0}
    assert info.class_counts["test"] == [1000] * 10
    assert info.class_counts["val"] == [600] * 10
    # the published statistics of all 60,000; ours are of the 54,000 that train
    assert info.mean == pytest.approx((0.2860,), abs=5e-4)
    assert info.std == pytest.approx((0.3530,), abs=5e-4)
    both = np.concatenate([data.indices("train"), data.indices("val")])
    pixels = known.fashion_mnist(data._config).images[both]
    assert len(pixels) == 60_000
    assert pixels.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std() / 255 == pytest.approx(0.3530, abs=5e-5)


def test_the_real_magnetic_tiles(module, tmp_path):
    source = shared("magnetic_tile")
    root = tmp_path / "set"
    with tarfile.open(source / "magnetic_tile.tar") as tar:
        tar.extractall(root, filter="data")
    (root / "labels.csv").write_bytes((source / "labels.csv").read_bytes())
    said: list[str] = []
    data = module(root=root, image_size=32, split_group="tile_group", say=said.append)
    info = data.info
    assert info.counts["train"] + info.counts["val"] == 1003
    assert info.counts["test"] == 341
    assert info.classes == ("Blowhole", "Break", "Crack", "Fray", "Free", "Uneven")
    assert info.class_counts["test"] == [31, 23, 13, 9, 240, 25]
    assert 80 <= info.counts["val"] <= 120
    assert min(info.class_counts["val"]) >= 1
    assert info.input_shape == (1, 32, 32)
    assert info.groups["exposure"] == list("0123456")
    assert "tile_group" not in info.groups  # 217 values
    exposure = data.groups("test")["exposure"]
    assert [exposure.count(value) for value in "0123456"] == [2, 55, 56, 56, 56, 57, 59]
    tiles = np.array(data._prepared.columns["tile_group"])
    parts = [set(tiles[data.indices(name)]) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 217
    assert said == []
