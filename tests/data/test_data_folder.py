"""Directories of images: layouts, tables, bad files, and what is said about wrong ones."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from effvit_train.data import verify
from effvit_train.errors import UserError


def table(root: Path, rows: list[dict], name: str = "labels.csv", encoding: str = "utf-8") -> Path:
    with open(root / name, "w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def images(data, split):
    batches = list(data.eval_dataloader(split))
    return np.concatenate([batch.images.numpy() for batch in batches]) if batches else None


def test_class_folders_are_split_by_us(folder, module):
    data = module(root=folder())
    info = data.info
    assert info.classes == ("cat", "dog")
    assert info.counts == {"train": 14, "val": 2, "test": 4, "unused": 0}
    assert info.class_counts == {"train": [7, 7], "val": [1, 1], "test": [2, 2], "unused": [0, 0]}
    assert info.split == {"source": "stratified", "seed": 0, "group": None, "train_fraction": 1.0}
    assert info.input_shape == (3, 8, 8)


def test_pixels_labels_and_ids_belong_together(folder, module):
    root = folder()
    files = sorted(root.rglob("*.png"))
    for batch in module(root=root).train_dataloader():
        for image, label, index in zip(*batch, strict=True):
            path = files[int(index)]
            assert (image.permute(1, 2, 0).numpy() == np.asarray(Image.open(path))).all()
            assert ("cat", "dog")[int(label)] == path.parent.name


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_split_folders_are_taken_as_they_are(folder, module, val):
    folder(count=10, prefix="train/")
    folder(count=3, prefix=f"{val}/")
    root = folder(count=5, prefix="test/")
    info = module(root=root).info
    assert info.counts == {"train": 20, "val": 6, "test": 10, "unused": 0}
    assert info.split["source"] == "folders (test and val)"


def test_without_validation_folder_it_comes_from_training(folder, module):
    folder(count=10, prefix="train/")
    info = module(root=folder(count=5, prefix="test/")).info
    assert info.counts == {"train": 18, "val": 2, "test": 10, "unused": 0}


def test_images_below_a_class_folder_and_files_that_are_none(folder, module):
    root = folder()
    (root / "cat" / "more").mkdir()
    shutil.copy(root / "cat" / "000.png", root / "cat" / "more" / "x.PNG")
    for name in ("cat/.hidden.png", "cat/notes.txt", "Thumbs.db", "dog/.DS_Store"):
        (root / name).write_text("x")
    info = module(root=root).info
    assert sum(info.counts.values()) == 21
    assert info.ignored == 4


def test_split_does_not_move_with_seed(folder, module):
    root = folder(count=30)
    splits = [
        module(root=root, seed=seed, split_seed=split_seed).indices("train").tolist()
        for seed, split_seed in ((0, 0), (1, 0), (0, 1))
    ]
    assert splits[0] == splits[1] != splits[2]


def test_channels_follow_the_files_unless_given(folder, module):
    assert module(root=folder(grey=True)).info.input_shape[0] == 1
    root = folder(classes=("bird", "cat"))  # one colour class beside the grey cat and dog
    assert module(root=root).info.input_shape[0] == 3
    assert module(root=root, channels=1).info.input_shape[0] == 1


def test_folders_default_to_224(folder, module):
    assert module(root=folder(), image_size=None).info.input_shape == (3, 224, 224)


@pytest.mark.parametrize("augment", [{}, {"resized_crop": 0.5, "hflip": True, "shift": 1}])
def test_in_memory_and_streamed_are_the_same(folder, module, augment):
    root = folder(size=19)
    memory = module(root=root, in_memory="true", augment=augment)
    streamed = module(root=root, in_memory="false", num_workers=2, augment=augment)
    for split in ("train", "val", "test"):
        assert (images(memory, split) == images(streamed, split)).all()
    for one, other in zip(memory.train_dataloader(), streamed.train_dataloader(), strict=True):
        assert (one.index == other.index).all()
        assert (one.images == other.images).all()
    assert memory.info.mean == streamed.info.mean
    assert memory.info.fingerprint.startswith("pixels:")
    assert streamed.info.fingerprint.startswith("files:")


def test_evaluation_pixels_do_not_move_with_the_augmentation(folder, module):
    root = folder(size=19)
    plain, cropped = module(root=root), module(root=root, augment={"resized_crop": 0.5})
    for split in ("train", "val", "test"):
        assert (images(plain, split) == images(cropped, split)).all()


def test_memory_limit_decides(folder, module):
    root = folder(count=100, size=64)  # 200 images of 64x64x3 = 2.34 MiB
    assert module(root=root, image_size=64, memory_limit_mb=3).info.fingerprint.startswith("pixels:")
    assert module(root=root, image_size=64, memory_limit_mb=2).info.fingerprint.startswith("files:")


def test_in_memory_as_the_command_line_gives_it(folder, module):
    from effvit_train.data.config import DatasetConfig

    for given, kind in (("False", "files:"), ("True", "pixels:")):
        DatasetConfig(in_memory=given).validate()
        assert module(root=folder(), in_memory=given).info.fingerprint.startswith(kind)
        shutil.rmtree(folder())
    with pytest.raises(UserError, match=r"dataset.crop_mode=Squash: must be one of"):
        DatasetConfig(crop_mode="Squash").validate()


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_the_fingerprint_moves_with_content_labels_and_splits_only(folder, module, in_memory):
    root = folder()

    def now(**keys):
        return module(root=root, in_memory=in_memory, **keys).info.fingerprint

    first = now()
    assert now(seed=5) == first
    assert now(split_seed=1) != first
    assert now(train_fraction=0.5) != first
    one, other = root / "cat" / "001.png", root / "dog" / "001.png"
    content = one.read_bytes()
    shutil.copy(other, one)
    assert now() != first
    one.write_bytes(content)
    assert now() == first


# ---- tables


def rows(root: Path, **columns) -> list[dict]:
    paths = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    return [
        {"path": path, "label": Path(path).parent.name, **{name: make(k) for name, make in columns.items()}}
        for k, path in enumerate(paths)
    ]


def test_table_with_split_and_group_columns(folder, module):
    root = folder(count=12)
    table(
        root,
        rows(root, split=lambda k: ("train", "train", "test")[k % 3], site=lambda k: "ab"[k % 2], id=str),
    )
    data = module(root=root)
    assert data.info.counts == {"train": 14, "val": 2, "test": 8, "unused": 0}
    assert data.info.split["source"] == "labels.csv (test)"
    assert data.info.groups == {"site": ["a", "b"], "id": sorted(str(k) for k in range(24))}
    ids = data.indices("test")
    assert ids.tolist() == list(range(2, 24, 3))
    assert data.groups("test")["site"] == ["ab"[k % 2] for k in ids]
    assert [int(index) for batch in data.test_dataloader() for index in batch.index] == ids.tolist()


def test_a_column_with_many_values_is_no_group_to_report_but_may_split(folder, module):
    root = folder(count=60)
    table(root, rows(root, tile=lambda k: str(k // 2), site=lambda k: str(k % 2)), encoding="utf-8-sig")
    data = module(root=root, split_group="tile")
    assert list(data.info.groups) == ["site"]
    split = data._prepared.split
    assert (split[::2] == split[1::2]).all()
    assert min(data.info.counts[name] for name in ("train", "val", "test")) > 0


def test_table_under_another_name_and_labels_that_are_not_folders(folder, module):
    root = folder()
    found = rows(root)
    for k, row in enumerate(found):
        row["label"] = "even" if k % 2 == 0 else "odd"
    table(root, found, "mine.csv")
    assert module(root=root).info.classes == ("cat", "dog")
    assert module(root=root, labels_csv="mine.csv").info.classes == ("even", "odd")
    assert module(root=root, labels_csv=str(root / "mine.csv")).info.classes == ("even", "odd")


# ---- bad images


@pytest.mark.parametrize("in_memory", ["true", "false"])
def test_bad_images_are_named_or_skipped(folder, module, in_memory):
    root = folder(count=12)
    truncate(root / "cat" / "003.png")
    for k in (1, 2, 3):
        (root / "dog" / f"{k:03d}.png").write_text("no image")
    with pytest.raises(UserError) as caught:
        module(root=root, in_memory=in_memory)
    line = str(caught.value)
    assert line.startswith(
        f"dataset.root={root}: 4 of 24 images cannot be used: cat/003.png (truncated), dog/001.png (not an"
    )
    assert "003.png (not" not in line.split("dog/002.png")[1]  # three are named
    assert line.endswith("dataset.on_bad_image=skip")
    said: list[str] = []
    data = module(root=root, in_memory=in_memory, on_bad_image="skip", num_workers=0, say=said.append)
    assert data.info.skipped == 4
    assert sum(data.info.counts.values()) == 20
    assert any(line.startswith("4 of 24 images cannot be used and are left out") for line in said)
    used = np.concatenate([data.indices(name) for name in ("train", "val", "test")])
    assert sorted({3, 13, 14, 15} | set(used.tolist())) == list(range(24))
    assert len(images(data, "train")) == data.info.counts["train"]


def test_a_class_of_bad_images_only(folder, module):
    root = folder()
    for path in (root / "cat").iterdir():
        path.write_text("no image")
    with pytest.raises(UserError, match="without the bad images class 'cat' is empty in train"):
        module(root=root, on_bad_image="skip")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_are_refused(folder, module):
    root = folder()
    Image.new("L", (200, 100)).save(root / "cat" / "huge.png")
    with pytest.raises(UserError, match=r"cat/huge.png \(200x100 is more than dataset.max_pixels=10000\)"):
        module(root=root, max_pixels=10_000)


def test_checking_is_remembered_until_a_file_is_touched(folder, module, tmp_path, monkeypatch):
    root = folder()
    passes = []
    decode_all = verify.decode_all
    monkeypatch.setattr(verify, "decode_all", lambda *a, **k: passes.append(1) or decode_all(*a, **k))
    first = module(root=root, in_memory="false").info
    again = module(root=root, in_memory="false", seed=1).info
    assert len(passes) == 1
    assert again.fingerprint == first.fingerprint
    (file,) = (tmp_path / "cache" / "verified").iterdir()
    assert json.loads(file.read_text())["bad"] == {}
    truncate(root / "cat" / "003.png")
    with pytest.raises(UserError, match="003"):
        module(root=root, in_memory="false")
    assert len(passes) == 2
    with pytest.raises(UserError, match="003"):  # recalled, bad files and all
        module(root=root, in_memory="false")
    assert len(passes) == 2


def test_a_dangling_link_is_a_bad_image(folder, module):
    root = folder()
    (root / "cat" / "link.png").symlink_to(root / "nowhere.png")
    with pytest.raises(UserError, match=r"cat/link.png \(no such file\)"):
        module(root=root)


def test_a_cache_that_cannot_be_written_is_mentioned(folder, module, tmp_path):
    (tmp_path / "cache").write_text("a file")
    said: list[str] = []
    module(root=folder(), in_memory="false", say=said.append)
    assert any("could not remember" in line for line in said)


# ---- wrong inputs


def refused(module, **keys) -> str:
    with pytest.raises(UserError) as caught:
        module(**keys)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_no_root_and_no_such_root(module, tmp_path):
    assert refused(module, name="image_folder").startswith(
        "dataset.root=null: image_folder needs a directory"
    )
    assert "no such directory" in refused(module, root=tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file, not a directory" in refused(module, root=tmp_path / "file")


def test_unknown_set(module):
    line = refused(module, name="digit")
    assert line.startswith(
        "dataset.name=digit: must be one of digits, fashion_mnist, cifar10, image_folder, synthetic"
    )
    assert line.endswith("did you mean 'digits'?")


def test_folders_that_are_wrong(folder, module, tmp_path):
    root = tmp_path / "set"
    (root / "cat").mkdir(parents=True)
    assert "holds no images" in refused(module, root=root)
    shutil.rmtree(root)
    folder()
    (root / "empty").mkdir()
    assert "class folder 'empty' holds no images" in refused(module, root=root)
    shutil.rmtree(root)
    assert "one class only ('cat')" in refused(module, root=folder(classes=("cat",)))
    assert "images lie directly in" in refused(module, root=root / "cat")
    shutil.rmtree(root)
    folder(prefix="train/")
    folder(classes=("bird",), prefix="test/")
    assert "class 'bird' has validation or test images but none to train on" in refused(module, root=root)
    shutil.rmtree(root / "test")
    folder(classes=("fish",))
    assert "has the folder 'fish' beside train" in refused(module, root=root)
    shutil.rmtree(root / "fish")
    folder(prefix="val/")
    folder(prefix="valid/")
    assert "two folders for one split" in refused(module, root=root)


def test_numbers_that_do_not_agree(folder, module):
    root = folder()
    line = refused(module, root=root, num_classes=7)
    assert line.startswith("dataset.num_classes=7: the data has 2 classes (cat, dog)")
    line = refused(module, root=root, batch_size=15)
    assert line.startswith("recipe.batch_size=15: the batch is larger than the training split of 14 images")
    assert line.endswith("at most recipe.batch_size=14")
    assert module(root=root, batch_size=14).info.counts["train"] == 14
    assert "dataset.split_group=tile: no such column; there is no labels.csv" in refused(
        module, root=root, split_group="tile"
    )


@pytest.mark.parametrize(("change", "expected"), [
    (lambda r: [{"path": x["path"], "class": x["label"]} for x in r], "has no column label (it has path, class)"),
    (lambda r: [{**r[0], "path": "cat/99.png"}, *r[1:]], "1 of its files are not in"),
    (lambda r: [{**r[0], "label": ""}, *r[1:]], "line 2 has no label"),
    (lambda r: [{**x, "split": "trian"} for x in r], "line 2 has split 'trian'; use train, val, test or nothing"),
    (lambda r: [*r, r[0]], "lists cat/000.png twice"),
])  # fmt: skip
def test_tables_that_are_wrong(folder, module, change, expected):
    root = folder()
    table(root, change(rows(root)))
    line = refused(module, root=root)
    assert line.startswith(f"dataset.labels_csv={root / 'labels.csv'}: ")
    assert expected in line


def test_more_tables_that_are_wrong(folder, module):
    root = folder()
    table(root, rows(root, site=str))
    assert "the columns are site; did you mean 'site'?" in refused(module, root=root, split_group="sit")
    assert refused(module, root=root, labels_csv="none.csv").startswith(
        "dataset.labels_csv=none.csv: no such file"
    )
    (root / "labels.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    assert "is not a table that can be read" in refused(module, root=root)
    (root / "labels.csv").write_text("path,label\n")
    assert "has no rows" in refused(module, root=root)
