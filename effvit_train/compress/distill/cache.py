"""Where the cache of a teacher is, and what shapes it (see `store`)."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm

from effvit_train._version import __version__
from effvit_train.compress.distill.config import MAX_INDEX, DistillConfig
from effvit_train.compress.distill.store import Format, Store
from effvit_train.errors import UserError
from effvit_train.parts import Context
from effvit_train.runs import ensure_writable

_KEY = "compress.distill.cache"
_DEFAULT_TOP_K = 100


def open_store(config: DistillConfig, context: Context, digests: list[str]) -> tuple[Store, dict[str, Any]]:
    """The store of what these teachers say of the training's views, and what the card says of it.

    Raises:
        UserError: more classes are to be kept than there are, or the disk has no room for all records.
    """
    cache, classes = config.cache, len(context.info.classes)
    assert cache.epochs is not None
    top_k = min(classes, _DEFAULT_TOP_K) if cache.top_k is None else cache.top_k
    if top_k > classes:
        raise UserError(
            f"the data has {classes} classes", key=f"{_KEY}.top_k", value=top_k, remedy=f"at most {_KEY}.top_k={classes}"
        )  # fmt: skip
    if classes > MAX_INDEX:
        raise UserError(
            f"a record names at most {MAX_INDEX} classes, the data has {classes}",
            key=f"{_KEY}.epochs", value=cache.epochs, remedy="leave the cache out",
        )  # fmt: skip
    layout = Format(classes, top_k, cache.dtype)
    key = _key(context, digests, layout)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    root = Path(context.config.cache_dir) / "logits"
    ensure_writable(root, key="cache_dir")
    path = root / f"{context.info.name}-{name}"
    store = Store(path, key, context.train_ids, layout, context.say)
    _check_room(store, cache.epochs)
    context.say(
        f"teacher cache: {path} ({cache.epochs} views of {len(context.train_ids):,} images, "
        f"{_size(store.bytes_per_variant * cache.epochs)} when full)"
    )
    return store, {"path": str(path), "epochs": cache.epochs, "top_k": top_k, "dtype": cache.dtype}


def _key(context: Context, digests: list[str], layout: Format) -> dict[str, Any]:
    """All that shapes a record: who is asked, about which views of which images, and what is kept."""
    config = context.config
    return {
        "schema": 1,
        "teachers": digests,
        "data": context.info.fingerprint,
        "images": len(context.train_ids),
        "input_shape": list(context.info.input_shape),
        "normalisation": [list(context.info.mean), list(context.info.std)],
        "augment": asdict(config.dataset.augment),
        "randaugment": config.recipe.randaugment,
        "erasing": config.recipe.erasing,
        "seed": context.stream.seed,
        "layout": asdict(layout),
        "versions": [__version__, timm.__version__],
    }


def _check_room(store: Store, variants: int) -> None:
    wanted = store.bytes_per_variant * variants
    there = sum(file.stat().st_blocks * 512 for file in store.path.rglob("*.bin"))
    free = shutil.disk_usage(store.path).free
    if wanted - there > free:
        raise UserError(
            f"the cache needs {_size(wanted)}, {_size(free)} are free at {store.path.parent}",
            key=f"{_KEY}.epochs", value=variants,
            remedy=f"fewer views, a smaller {_KEY}.top_k, or cache_dir=DIR on a larger disk",
        )  # fmt: skip


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
