"""The sets that are known by name: `digits`, `fashion_mnist`, `cifar10`.

Published files are read only if their MD5 is the published one; CIFAR-10's are pickles, which could
otherwise run code.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import pickle
import socket
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt

from effvit_train.data.config import DatasetConfig
from effvit_train.data.splits import POOL, TEST
from effvit_train.errors import UserError

Pixels = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]

# github.com/zalandoresearch/fashion-mnist, README, "Get the Data"
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# www.cs.toronto.edu/~kriz/cifar.html gives the archive's; torchvision those of its members
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_MD5 = {
    CIFAR10_ARCHIVE: "c58f30108f718f92721af3b95e74349a",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Arrays:
    """A set in memory.

    Attributes:
        images: (n, C, H, W).
        labels: (n,).
        classes: class names.
        given: (n,) POOL or TEST.
    """

    images: Pixels
    labels: Ints
    classes: tuple[str, ...]
    given: Ints


def digits() -> Arrays:
    """scikit-learn's 1,797 handwritten digits (Alpaydin & Kaynak 1998), 8x8 grey, without a split.

    Reads the package's file: importing `sklearn.datasets` would take most of a second.
    """
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(io.BytesIO(gzip.decompress(file.read_bytes())), delimiter=",", dtype=np.int64)
    grey = (table[:, :64] * 255 + 8) // 16  # 0..16 to 0..255, rounded
    images = grey.astype(np.uint8).reshape(-1, 1, 8, 8)
    labels = table[:, 64]
    return Arrays(images, labels, tuple("0123456789"), np.full(len(labels), POOL))


def fashion_mnist(config: DatasetConfig) -> Arrays:
    """Fashion-MNIST (Xiao et al. 2017) from its four IDX files, in root or as torchvision lays them."""
    root = existing_root(config, create=config.download)
    folders = (root, root / "FashionMNIST" / "raw")
    folder = _first_with(folders, FASHION_MNIST_MD5)
    if folder is None and config.download:
        _download(config, "FashionMNIST", root)
        folder = _first_with(folders, FASHION_MNIST_MD5)
    if folder is None:
        raise _not_there(config, "fashion_mnist", "train-images-idx3-ubyte.gz and its three companions")
    parts = [
        _idx(gzip.decompress(_checked(config, folder / name, md5))) for name, md5 in FASHION_MNIST_MD5.items()
    ]
    images = np.concatenate([parts[0], parts[2]])[:, None]
    labels = np.concatenate([parts[1], parts[3]]).astype(np.int64)
    return Arrays(images, labels, FASHION_MNIST_CLASSES, _test_from(len(labels), len(parts[1])))


def cifar10(config: DatasetConfig) -> Arrays:
    """CIFAR-10 (Krizhevsky 2009), python version, from its archive or its folder of batches."""
    root = existing_root(config, create=config.download)
    members = [name for name in CIFAR10_MD5 if name != CIFAR10_ARCHIVE]
    batches = _cifar10_batches(config, root, members)
    if batches is None and config.download:
        _download(config, "CIFAR10", root)
        batches = _cifar10_batches(config, root, members)
    if batches is None:
        raise _not_there(config, "cifar10", f"{CIFAR10_FOLDER} or {CIFAR10_ARCHIVE}")
    images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([np.asarray(batch["labels"], dtype=np.int64) for batch in batches])
    train = len(labels) - len(batches[-1]["labels"])
    return Arrays(images, labels, CIFAR10_CLASSES, _test_from(len(labels), train))


def existing_root(config: DatasetConfig, *, create: bool = False) -> Path:
    """`dataset.root` as a directory that is there; raises `UserError`."""
    if config.root is None:
        raise UserError(
            f"{config.name} needs a directory",
            key="dataset.root", value=None, remedy="e.g. dataset.root=path/to/images",
        )  # fmt: skip
    root = Path(config.root).expanduser()
    if create and not root.exists():
        root.mkdir(parents=True)
    if not root.is_dir():
        what = "is a file, not a directory" if root.exists() else "no such directory"
        raise UserError(
            what, key="dataset.root", value=config.root, remedy="give the directory that holds the images"
        )
    return root


def _first_with(folders: Iterable[Path], names: Iterable[str]) -> Path | None:
    names = list(names)
    return next((f for f in folders if all((f / name).is_file() for name in names)), None)


def _cifar10_batches(config: DatasetConfig, root: Path, members: list[str]) -> list[dict[str, Any]] | None:
    folder = _first_with((root / CIFAR10_FOLDER, root), members)
    if folder is not None:
        return [_unpickle(_checked(config, folder / name, CIFAR10_MD5[name])) for name in members]
    archive = root / CIFAR10_ARCHIVE
    if not archive.is_file():
        return None
    content = _checked(config, archive, CIFAR10_MD5[CIFAR10_ARCHIVE])
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        files = [tar.extractfile(f"{CIFAR10_FOLDER}/{name}") for name in members]
        return [_unpickle(file.read()) for file in files if file is not None]


def _unpickle(content: bytes) -> dict[str, Any]:
    return pickle.loads(content, encoding="latin1")  # only ever bytes whose checksum is the published one


def _checked(config: DatasetConfig, file: Path, md5: str) -> bytes:
    """The bytes of a file whose MD5 is the published one; raises `UserError`."""
    content = file.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise UserError(
            f"{file.name} has the wrong checksum (MD5 {found}, published {md5})",
            key="dataset.root", value=config.root, remedy="delete the file and fetch it again",
        )  # fmt: skip
    return content


def _idx(content: bytes) -> Pixels:
    """An IDX file of unsigned bytes: 0, 0, type 8, rank, then the big-endian shape."""
    shape = np.frombuffer(content, dtype=">u4", count=content[3], offset=4).tolist()
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def _test_from(total: int, train: int) -> Ints:
    return np.where(np.arange(total) < train, POOL, TEST)


def _not_there(config: DatasetConfig, name: str, files: str) -> UserError:
    return UserError(
        f"holds no {name} ({files})",
        key="dataset.root", value=config.root, remedy="give its directory, or dataset.download=true",
    )  # fmt: skip


def _download(config: DatasetConfig, name: str, root: Path) -> None:
    """Let torchvision fetch a set into `root`; raises `UserError` where the network does not answer."""
    from filelock import FileLock

    import effvit_train._torchvision  # noqa: F401  (torchvision needs the hook that the package installs)

    fetch: Callable[..., object] = getattr(__import__("torchvision.datasets").datasets, name)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(20.0)
    try:
        with FileLock(root / ".effvit_download.lock"):
            fetch(str(root), download=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or str(error).strip().splitlines()[0]
        raise UserError(
            f"{config.name} could not be downloaded ({reason})",
            key="dataset.download", value=True, remedy=f"put its files under dataset.root={config.root}",
        ) from None  # fmt: skip
    finally:
        socket.setdefaulttimeout(before)
