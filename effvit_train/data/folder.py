"""`image_folder`: which files there are, their classes, splits and group columns. Opens no image."""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from effvit_train.data.config import DatasetConfig
from effvit_train.data.decode import EXTENSIONS
from effvit_train.data.known import existing_root
from effvit_train.data.splits import POOL, SPLITS, TEST, VAL
from effvit_train.errors import UserError, did_you_mean

Ints = npt.NDArray[np.int64]
_PARTS = {
    "train": POOL,
    "training": POOL,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "dev": VAL,
    "test": TEST,
}
_EDGE = 4096  # bytes at both ends of a file that its fingerprint covers


@dataclass(frozen=True)
class Listing:
    """The samples of a directory; a sample's id is its place here.

    Attributes:
        root: the directory.
        paths: (n) relative to `root`, with forward slashes.
        labels: (n,) class numbers.
        classes: class names, sorted.
        given: (n,) POOL, VAL or TEST: the set's own split.
        source: where the classes and splits come from: `folders` or the table's name.
        columns: further columns of the table, name -> value per sample.
        stats: (n, 2) size in bytes and time of change in ns.
        ignored: number of files that are not images.
    """

    root: Path
    paths: list[str]
    labels: Ints
    classes: tuple[str, ...]
    given: Ints
    source: str
    stats: Ints
    columns: dict[str, list[str]] = field(default_factory=dict)
    ignored: int = 0

    def key(self) -> str:
        """SHA-256 over paths, sizes and times of change: equal as long as no file was touched."""
        digest = hashlib.sha256("\0".join(self.paths).encode("utf-8", "surrogateescape"))
        digest.update(self.stats.astype("<i8").tobytes())
        return digest.hexdigest()

    def content(self, index: int) -> bytes:
        """SHA-256 over path, size and the first and last 4 KiB of one file."""
        path = self.root / self.paths[index]
        digest = hashlib.sha256(f"{self.paths[index]}\0".encode("utf-8", "surrogateescape"))
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(size.to_bytes(8, "little") + file.read(_EDGE))
            if size > _EDGE:
                file.seek(max(_EDGE, size - _EDGE))
                digest.update(file.read(_EDGE))
        return digest.digest()


def list_images(config: DatasetConfig) -> Listing:
    """Find the images of `dataset.root`, from `labels_csv` or else from class folders.

    Raises:
        UserError: the directory, the table or the classes are not usable.
    """
    root = existing_root(config)
    table = _table(config, root)
    listing = _from_table(config, root, table) if table is not None else _from_folders(config, root)
    _check_classes(config, listing)
    return listing


@dataclass
class _Found:
    """Samples as they are found."""

    paths: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    stats: list[tuple[int, int]] = field(default_factory=list)
    ignored: int = 0

    def add(self, path: str, name: str, part: int, stat: os.stat_result) -> None:
        self.paths.append(path)
        self.names.append(name)
        self.given.append(part)
        self.stats.append((stat.st_size, stat.st_mtime_ns))

    def listing(
        self, config: DatasetConfig, root: Path, source: str, columns: dict[str, list[str]] | None = None
    ) -> Listing:
        given = np.array(self.given, dtype=np.int64)
        classes = sorted({name for name, part in zip(self.names, self.given, strict=True) if part == POOL})
        number = {name: k for k, name in enumerate(classes)}
        strange = sorted(set(self.names) - set(classes))
        if strange and classes:
            raise UserError(
                f"class '{strange[0]}' has validation or test images but none to train on",
                key="dataset.root", value=config.root, remedy="add training images of it, or remove it",
            )  # fmt: skip
        if not classes:
            raise UserError(
                f"no images to train on in {root}" if self.paths else "holds no images",
                key="dataset.root", value=config.root,
                remedy="put images into one folder per class, as root/class/image.jpg, or give dataset.labels_csv",
            )  # fmt: skip
        return Listing(
            root, self.paths, np.array([number[name] for name in self.names], dtype=np.int64), tuple(classes),
            given, source, np.array(self.stats, dtype=np.int64), columns or {}, self.ignored,
        )  # fmt: skip


def _check_classes(config: DatasetConfig, listing: Listing) -> None:
    if len(listing.classes) < 2:
        raise UserError(
            f"holds images of one class only ('{listing.classes[0]}')",
            key="dataset.root", value=config.root, remedy="two classes at least, one folder each",
        )  # fmt: skip
    if config.num_classes is not None and config.num_classes != len(listing.classes):
        names = ", ".join(listing.classes[:5]) + (", ..." if len(listing.classes) > 5 else "")
        raise UserError(
            f"the data has {len(listing.classes)} classes ({names})",
            key="dataset.num_classes", value=config.num_classes, remedy="leave it null, which reads it from the data",
        )  # fmt: skip


def _from_folders(config: DatasetConfig, root: Path) -> Listing:
    found = _Found()
    folders = list(_folders(root))
    parts = {name: _PARTS[name.lower()] for name in folders if name.lower() in _PARTS}
    is_split = any(part == POOL and any(_folders(root / name)) for name, part in parts.items())
    if not is_split:
        _add_classes(config, found, root, "", folders, POOL)
        return found.listing(config, root, "folders")
    others = sorted(set(folders) - set(parts))
    if others:
        raise UserError(
            f"has the folder '{others[0]}' beside {', '.join(sorted(parts))}: is it a split or a class?",
            key="dataset.root", value=config.root, remedy="move it away, or list the images in dataset.labels_csv",
        )  # fmt: skip
    if len(set(parts.values())) < len(parts):
        raise UserError(
            f"has two folders for one split among {', '.join(sorted(parts))}",
            key="dataset.root", value=config.root, remedy="name them train, val and test",
        )  # fmt: skip
    found.ignored += sum(1 for entry in os.scandir(root) if entry.is_file())
    for name, part in sorted(parts.items()):
        _add_classes(config, found, root, f"{name}/", list(_folders(root / name)), part)
    return found.listing(config, root, "folders")


def _folders(path: Path) -> Iterator[str]:
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX":
            yield entry.name


def _add_classes(
    config: DatasetConfig, found: _Found, root: Path, prefix: str, folders: list[str], part: int
) -> None:
    loose = [entry.name for entry in os.scandir(root / prefix) if entry.is_file()]
    if not folders and any(Path(name).suffix.lower() in EXTENSIONS for name in loose):
        raise UserError(
            f"images lie directly in {root / prefix}: which class are they?",
            key="dataset.root", value=config.root,
            remedy="put them into one folder per class, or list them in dataset.labels_csv",
        )  # fmt: skip
    found.ignored += len(loose)
    for name in folders:
        before = len(found.paths)
        for directory, below, files in os.walk(root / prefix / name):
            below[:] = sorted(entry for entry in below if not entry.startswith("."))
            inside = Path(directory).relative_to(root).as_posix()
            for file in sorted(files):
                if file.startswith(".") or os.path.splitext(file)[1].lower() not in EXTENSIONS:
                    found.ignored += 1
                else:
                    found.add(f"{inside}/{file}", name, part, _stat(Path(directory, file)))
        if len(found.paths) == before and part == POOL:
            if len(folders) == 1:
                continue  # nothing at all: the caller says so
            raise UserError(
                f"class folder '{prefix}{name}' holds no images",
                key="dataset.root", value=config.root, remedy="add images to it or remove it",
            )  # fmt: skip


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:  # a dangling link: decoding will say so, by name
        return path.lstat()


def _table(config: DatasetConfig, root: Path) -> Path | None:
    if config.labels_csv is None:
        default = root / "labels.csv"
        return default if default.is_file() else None
    given = Path(config.labels_csv).expanduser()
    for candidate in (root / given, given):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"no such file in {root}", key="dataset.labels_csv", value=config.labels_csv,
        remedy="give its path relative to dataset.root",
    )  # fmt: skip


def _from_table(config: DatasetConfig, root: Path, table: Path) -> Listing:
    key, shown = "dataset.labels_csv", config.labels_csv or str(table)

    def wrong(problem: str, remedy: str) -> UserError:
        return UserError(problem, key=key, value=shown, remedy=remedy)

    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            header = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = header
            rows = [{name: (row[name] or "").strip() for name in header} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise wrong(f"is not a table that can be read ({error})", "save it as CSV in UTF-8") from None
    lacking = [name for name in ("path", "label") if name not in header]
    if lacking:
        raise wrong(
            f"has no column {' and '.join(lacking)} (it has {', '.join(header) or 'none'})",
            "columns: path,label[,split][,groups...]",
        )
    if not rows:
        raise wrong("has no rows", "one row per image: path,label")
    found, missing = _Found(), []
    for line, row in enumerate(rows, start=2):
        if not row["path"] or not row["label"]:
            raise wrong(
                f"line {line} has no {'path' if not row['path'] else 'label'}", "complete or remove it"
            )
        part = row.get("split", "").lower()
        if part and part not in _PARTS:
            raise wrong(f"line {line} has split '{row['split']}'", "use train, val, test or nothing")
        try:
            stat = os.stat(root / row["path"])
        except OSError:
            missing.append(row["path"])
            continue
        found.add(row["path"], row["label"], _PARTS[part] if part else POOL, stat)
    if missing:
        raise wrong(
            f"{len(missing)} of its files are not in {root}: {_first(missing)}",
            "its paths are relative to dataset.root",
        )
    if len(set(found.paths)) < len(found.paths):
        seen: set[str] = set()
        twice = next(path for path in found.paths if path in seen or seen.add(path))  # type: ignore[func-returns-value]
        raise wrong(f"lists {twice} twice", "one row per image")
    columns = {
        name: [row[name] for row in rows]
        for name in header
        if name and name not in ("path", "label", "split")
    }
    return found.listing(config, root, table.name, columns)


def group_numbers(config: DatasetConfig, listing: Listing) -> Ints | None:
    """(n,) group of each sample by `dataset.split_group`; an empty cell is a group of its own.

    Raises:
        UserError: there is no such column.
    """
    name = config.split_group
    if name is None:
        return None
    if name not in listing.columns:
        names = list(listing.columns)
        have = f"the columns are {', '.join(names)}" if names else "there is no labels.csv with columns"
        raise UserError(
            f"no such column; {have}",
            key="dataset.split_group", value=name, remedy=did_you_mean(name, names) or "dataset.split_group=null",
        )  # fmt: skip
    values = np.array(listing.columns[name])
    _, numbers = np.unique(values, return_inverse=True)
    numbers = numbers.astype(np.int64)
    alone = np.flatnonzero(values == "")
    numbers[alone] = len(values) + alone
    return numbers


def check_not_empty(config: DatasetConfig, split: Ints, listing: Listing) -> None:
    """Raise `UserError` when bad images were all that a class or a split had."""
    for part, name in enumerate(SPLITS[:3]):
        counts = np.bincount(listing.labels[split == part], minlength=len(listing.classes))
        if not counts.any() or (part == 0 and not counts.all()):
            what = f"class '{listing.classes[int(counts.argmin())]}'" if counts.any() else "the split"
            raise UserError(
                f"without the bad images {what} is empty in {name}",
                key="dataset.root", value=config.root, remedy="add good images or remove it",
            )  # fmt: skip


def _first(items: Iterable[str], count: int = 3) -> str:
    items = list(items)
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")
