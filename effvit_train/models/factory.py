"""Build, save and load models from architecture records (contract C5)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from effvit_train.errors import UserError
from effvit_train.files import atomic_path
from effvit_train.models import weights
from effvit_train.models.attention import forms, start, swap
from effvit_train.models.changes import rebuild
from effvit_train.models.config import ModelConfig
from effvit_train.models.heads import GROWN
from effvit_train.models.make import is_ours, make
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.resolve import resolve

__all__ = ["build", "create", "embed_width", "load_model", "resolve", "save_model"]

MODEL_FILE = "model.safetensors"
RECORD_FILE = "model.json"


def build(record: ArchitectureRecord, *, device: torch.device | str | None = None) -> nn.Module:
    """Build the model of `record` with random weights (the caller seeds), in training mode.

    Raises `ValueError` for a cut that this version does not know, or that does not fit the model.
    """
    model = make(record.name, record.kwargs)
    rebuild(model, record.cuts)
    return model if device is None else model.to(device)


def create(
    config: ModelConfig,
    *,
    input_shape: tuple[int, int, int],
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    say: Callable[[str], None] = print,
) -> tuple[nn.Module, ArchitectureRecord]:
    """Decide what to build, build it, and load weights where the configuration asks for them.

    `say` is told in one line what a weights file did not bring. Raises `UserError` as `resolve`
    does, and for weights that cannot be had or do not fit.
    """
    record = resolve(config, input_shape=input_shape, classes=classes, mean=mean, std=std)
    if config.pretrained:
        model = weights.pretrained(_exact(record), build, say=say)
        return _with_attention(model, record, {}, say), record
    if config.weights:
        return _from_weights(record, Path(config.weights).expanduser(), say)
    model = build(record)
    positions = getattr(model, "pos_embed", None)
    if config.pos_std is not None and isinstance(positions, nn.Parameter):
        nn.init.normal_(positions, std=config.pos_std)
    return model, record


def _from_weights(
    record: ArchitectureRecord, path: Path, say: Callable[[str], None]
) -> tuple[nn.Module, ArchitectureRecord]:
    """Build the model with the weights of a file or run; the record with the cuts of that run.

    Attention is swapped once the exact model has its weights, unless the source has the very same.
    """
    cut = _cut_run(record, path)
    record = cut or record
    state, there = weights.read_state(path), _attention_of(path)
    if (path / RECORD_FILE).is_file():
        found = ArchitectureRecord.read(path / RECORD_FILE)
        state = weights.rows_of_classes(state, record, found.classes, say=say)
    if swap.NAME in record.kwargs:
        _check_rebuild(record)
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            own, exact = (set(build(r).state_dict()) for r in (record, _exact(record)))
        if set(state) == own and own != exact:
            return weights.of_same_model(record, path, build, state=state, say=say), record
    extra: weights.State = {}
    if there is not None:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            extra = start.beside(state, build(_exact(record)).state_dict())
        state = {name: tensor for name, tensor in state.items() if name not in extra}
        if swap.NAME not in record.kwargs:
            say(f"model.weights: {path} has {start.described(there)}; exact attention here")
    load = weights.of_same_model if cut is not None or is_ours(record.kwargs) else weights.from_file
    model = load(_exact(record), path, build, state=state, say=say)
    return _with_attention(model, record, extra, say), record


def _exact(record: ArchitectureRecord) -> ArchitectureRecord:
    return dataclasses.replace(record, kwargs=swap.without(record.kwargs))


def _with_attention(
    model: nn.Module, record: ArchitectureRecord, extra: weights.State, say: Callable[[str], None]
) -> nn.Module:
    """A model with its weights, once its attention is swapped as in the record."""
    entries = record.kwargs.get(swap.NAME)
    if entries is not None:
        say(f"model.attention: {start.swap_loaded(model, entries, extra)}")
    return model


def _attention_of(path: Path) -> list[Any] | None:
    """The swapped attention of a run, or None."""
    if not (path / RECORD_FILE).is_file():
        return None
    return ArchitectureRecord.read(path / RECORD_FILE).kwargs.get(swap.NAME)


def _check_rebuild(record: ArchitectureRecord) -> None:
    """Raise `UserError` where this attention cannot be cut as the run was whose weights are asked for."""
    if not record.cuts:
        return
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            build(record)
    except ValueError as error:
        raise UserError(
            f"cannot take the weights of a model that was cut in this way ({error})", key=forms.KEY,
            value=start.described(record.kwargs[swap.NAME]), remedy="start from the uncut run, or another kind",
        ) from None  # fmt: skip


def _cut_run(record: ArchitectureRecord, path: Path) -> ArchitectureRecord | None:
    """The record with the cuts of the run whose weights are asked for; None where it has none.

    Raises `UserError` when that run has another architecture.
    """
    if not (path / RECORD_FILE).is_file():
        return None
    found = ArchitectureRecord.read(path / RECORD_FILE)
    if not found.cuts:
        return None
    heads = {"num_classes": record.kwargs.get("num_classes")}
    kwargs = swap.without(record.kwargs)
    if (found.name, {**swap.without(found.kwargs), **heads}) != (record.name, kwargs):
        raise UserError(
            f"holds a model that was cut out of {found.name} {found.kwargs}, this run builds {record.name} "
            f"{kwargs}",
            key="model.weights", value=path, remedy="repeat the model of that run",
        )  # fmt: skip
    # a head that grew has all its rows from the start
    return dataclasses.replace(record, cuts=[cut for cut in found.cuts if cut["kind"] != GROWN])


def save_model(
    model: nn.Module,
    record: ArchitectureRecord,
    run_dir: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write `model.safetensors` and `model.json` into `run_dir`, each atomically.

    `metadata` is further text for the header of `model.safetensors`. The same arguments give the same bytes.
    """
    # Every tensor is copied: safetensors refuses tensors that share memory or are not contiguous.
    state = {
        name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()
    }
    with atomic_path(Path(run_dir) / MODEL_FILE) as temporary:
        content = safetensors.torch.save(state, metadata={"format": "pt", **(metadata or {})})
        with open(temporary, "wb") as file:
            file.writelines(_sorted_metadata(content))
    record.write(Path(run_dir) / RECORD_FILE)


def _sorted_metadata(content: bytes) -> tuple[bytes, bytes, memoryview]:
    """The same safetensors file in three parts; the library writes its metadata in an order of chance."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight bytes
    return len(text).to_bytes(8, "little"), text, memoryview(content)[start:]


def load_model(run_dir: str | Path) -> nn.Module:
    """Rebuild what a run shipped, in evaluation mode on the CPU; leaves the random state alone.

    Raises `UserError` when `model.json` or `model.safetensors` is missing, damaged or they do not
    belong together.
    """
    model = _rebuild(ArchitectureRecord.read(Path(run_dir) / RECORD_FILE), Path(run_dir))
    load_weights(model, Path(run_dir) / MODEL_FILE)
    return model.eval()


def exact_counterpart(model: nn.Module, record: ArchitectureRecord) -> nn.Module | None:
    """The same weights in exact attention, in evaluation mode, beside the model; None where there is no such thing.

    Mixers that have no exact counterpart stay as they are. Leaves the random state alone.
    """
    kwargs = swap.comparable(record.kwargs)
    if kwargs is None:
        return None
    with torch.random.fork_rng(devices=[]):
        exact = build(dataclasses.replace(record, kwargs=kwargs))
    state = model.state_dict()
    exact.load_state_dict({name: state[name] for name in exact.state_dict()})
    first = next(model.parameters())
    return exact.to(first.device, first.dtype).eval()


def _rebuild(record: ArchitectureRecord, run_dir: Path) -> nn.Module:
    try:
        with torch.random.fork_rng(devices=[]):
            return build(record)
    except Exception as error:  # timm raises whatever its layers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot rebuild the model of {run_dir / RECORD_FILE}: {reason}",
            remedy="use the versions of timm and effvit_train that wrote it",
        ) from None


def inspect_model(run_dir: str | Path) -> nn.Module:
    """What a run shipped, on the meta device: its weights are compared with the record, but not read.

    Raises `UserError` as `load_model` does.
    """
    record = ArchitectureRecord.read(Path(run_dir) / RECORD_FILE)
    with torch.device("meta"):
        model = _rebuild(record, Path(run_dir))
    path = Path(run_dir) / MODEL_FILE
    weights.check_same(weights.read_shapes(path), model.state_dict(), source=str(path))
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a `model.safetensors` of ours; every key and shape must be the model's own."""
    state = weights.read_safetensors(path)
    weights.check_same(state, model.state_dict(), source=str(path))
    model.load_state_dict(state)


def hash_state(digest: hashlib._Hash, model: nn.Module) -> None:
    """Add the names and bytes of a model's state to a digest."""
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def embed_width(model: nn.Module) -> int:
    """Width of the final features: a plain ViT's embedding, a pyramid's last stage."""
    width = getattr(model, "num_features", None) or getattr(model, "embed_dim", None)
    if isinstance(width, (tuple, list)):
        width = width[-1]
    if not isinstance(width, int):
        raise ValueError(f"{type(model).__name__} does not say how wide its features are")
    return width
