"""Weights to start from: timm's published ones, or a file. Nothing is ever unpickled as code."""

from __future__ import annotations

import dataclasses
import pickle
import socket
import threading
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from effvit_train.errors import UserError
from effvit_train.models.make import is_ours
from effvit_train.models.record import ArchitectureRecord

Build = Callable[[ArchitectureRecord], nn.Module]
Say = Callable[[str], None]
State = dict[str, Tensor]

CONNECT_SECONDS = 5.0
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # timm's order of preference
_PREFIXES = ("_orig_mod.", "module.", "model.", "net.")


def from_file(
    record: ArchitectureRecord, path: Path, build: Build, *, state: State | None = None, say: Say = print
) -> nn.Module:
    """Build the model of `record` with the weights of a file or of a run directory of ours.

    Positions, patches, relative-position tables and input channels are adapted by timm's own loader;
    another number of classes gets a new head. Whatever else does not match is a `UserError`. `state` is what is
    loaded of the file, where it was read before.
    """
    state = read_state(path) if state is None else state
    return _fill(record, state, build, source=str(path), say=say)


def of_same_model(
    record: ArchitectureRecord, path: Path, build: Build, *, state: State | None = None, say: Say = print
) -> nn.Module:
    """Build the model of `record`, which was cut or has parts of ours, with the weights of the very same model.

    Another number of classes gets a new head. Whatever else does not match is a `UserError`. `state` is what is
    loaded of the file, where it was read before.
    """
    state, model = read_state(path) if state is None else state, build(record)
    own = model.state_dict()
    cfg = timm.get_pretrained_cfg(record.name)
    heads = tuple(f"{head}." for head in _names(cfg.classifier if cfg else None) or ("head",))
    other = [key for key in own if key not in state or state[key].shape != own[key].shape]
    if [key for key in other if not key.startswith(heads)] or set(state) - set(own):
        raise UserError(
            f"does not fit the model: {_difference(state, own)}", key="model.weights", value=path,
            remedy="give the directory of a finished run with the same model",
        )  # fmt: skip
    if other:
        say(f"model.weights: other classes in {path}: new head")
    model.load_state_dict({key: value for key, value in state.items() if key not in other}, strict=False)
    return model


def pretrained(record: ArchitectureRecord, build: Build, *, say: Say = print) -> nn.Module:
    """Build the model of `record` with timm's published weights, from its cache or the hub."""
    if is_ours(record.kwargs):
        raise UserError(
            "cannot be combined with model.stem or model.pool=flat, which timm's weights know nothing of",
            key="model.pretrained", value=True, remedy="model.stem=null model.pool=null, or model.weights=RUN_DIR",
        )  # fmt: skip
    cfg = timm.get_pretrained_cfg(record.name)
    if cfg is None or not cfg.has_weights:
        others = timm.list_pretrained(f"{record.name.partition('.')[0]}*")[:1]
        raise UserError(
            f"timm publishes no weights of {record.name}", key="model.pretrained", value=True,
            remedy=f"model.weights=FILE{', or model.name=' + others[0] if others else ''}",
        )  # fmt: skip
    _check_cuts(record)
    cached = _cached_file(cfg)
    if cached is None:
        _check_reachable(cfg, record.name)
    # A cached file is named outright: the hub would otherwise be asked whether it is still current.
    overlay: dict[str, Any] | None = {"file": cached} if cached else None
    try:
        model = timm.create_model(
            record.name, pretrained=True, pretrained_cfg_overlay=overlay, **record.kwargs
        )
    except Exception as error:  # the hub client, the checksum, the loader: each has its own errors
        raise UserError(
            f"timm's weights of {record.name} cannot be loaded: {_line(error)}", key="model.pretrained",
            value=True, remedy="give a file: model.weights=FILE",
        ) from None  # fmt: skip
    there, here = cfg.num_classes, record.kwargs["num_classes"]
    if there != here:
        say(f"model.pretrained: {there} classes there, {here} here: new head")
    return model


# --- reading -----------------------------------------------------------------------------------


def read_state(path: Path) -> State:
    """Read a state dict from a safetensors file, a `weights_only` checkpoint or a run directory."""
    if path.is_dir():
        if not (path / "model.safetensors").is_file():
            raise UserError(
                "no model.safetensors in this directory", key="model.weights", value=path,
                remedy="give a file of weights or the directory of a finished run",
            )  # fmt: skip
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError("no such file", key="model.weights", value=path, remedy="give a file of weights")
    if _is_safetensors(path):
        return _unwrap(read_safetensors(path), path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of the pickle's protocol: ours says what matters
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = "Unsupported" in str(error) or "Weights only load failed" in str(error)
        raise UserError(
            "holds Python objects, which could run code, or is damaged" if refused else "is damaged",
            key="model.weights", value=path, remedy="save its state dict alone, best as safetensors",
        ) from None  # fmt: skip
    except Exception as error:  # zip, tar, EOF: as many errors as ways to be no checkpoint
        raise UserError(
            f"is no file of weights ({_line(error)})", key="model.weights", value=path,
            remedy="give safetensors or a state dict saved by torch.save",
        ) from None  # fmt: skip
    return _unwrap(content, path)


def read_safetensors(path: Path) -> State:
    """Read a safetensors file; `UserError` when it is missing or damaged."""
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise UserError(f"no weights at {path}", remedy="give the directory of a finished run") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({_line(error)})", remedy="give another file") from None


def read_shapes(path: Path) -> State:
    """What a safetensors file says that it holds, as tensors on the meta device; nothing else is read.

    Raises `UserError` when the file is missing or its header or size is not right.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118  # no mapping
    except FileNotFoundError:
        raise UserError(f"no weights at {path}", remedy="give the directory of a finished run") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({_line(error)})", remedy="give another file") from None
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def check_same(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, source: str) -> None:
    """Raise `UserError` naming the first keys that are missing, superfluous or of another shape."""
    complaint = _difference(state, wanted)
    if complaint:
        raise UserError(f"{source} does not fit the model: {complaint}", remedy="it belongs to another model")


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(9)
    # eight bytes of header length, then JSON; a zip or a pickle never has '{' there
    return len(head) == 9 and head[8:9] == b"{"


def _unwrap(content: Any, path: Path) -> State:
    """Take the state dict out of the usual wrappers and drop prefixes that all keys share."""
    for _ in range(3):
        inner = next(
            (content[w] for w in _WRAPPERS if isinstance(content, dict) and _is_dict(content.get(w))), None
        )
        if inner is None:
            break
        content = inner
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise UserError(
            "holds no state dict", key="model.weights", value=path,
            remedy="save model.state_dict() with torch.save or safetensors",
        )  # fmt: skip
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            if all(key.startswith(prefix) for key in state):
                state = {key[len(prefix) :]: value for key, value in state.items()}
                changed = True
    return state


def _is_dict(value: object) -> bool:
    return isinstance(value, dict) and bool(value)


# --- filling -----------------------------------------------------------------------------------


def _fill(record: ArchitectureRecord, state: State, build: Build, *, source: str, say: Say) -> nn.Module:
    """Load through timm's own loader, strictly; then move all but the head where classes differ."""
    _check_cuts(record)
    cfg = timm.get_pretrained_cfg(record.name)
    heads = _names(cfg.classifier if cfg else None) or ("head",)
    stems = _names(cfg.first_conv if cfg else None)
    wanted = int(record.kwargs["num_classes"])
    found = _classes_in(state, heads)
    overlay: dict[str, Any] = {
        "state_dict": state, "num_classes": found, "label_offset": 0, "custom_load": False, "source": "",
    }  # fmt: skip
    channels = next(
        (state[f"{s}.weight"].shape[1] for s in stems if _is_kernel(state.get(f"{s}.weight"))), None
    )
    if channels is not None:
        overlay["input_size"] = (int(channels), *record.input_shape[1:])
    same = dataclasses.replace(record, kwargs={**record.kwargs, "num_classes": found})
    try:
        filled = timm.create_model(same.name, pretrained=True, pretrained_cfg_overlay=overlay, **same.kwargs)
    except Exception as error:  # load_state_dict's RuntimeError, or whatever a model's filter raises
        complaint = _difference(state, build(same).state_dict()) or _line(error)
        raise UserError(
            f"does not fit {record.name}: {complaint}", key="model.weights", value=source,
            remedy="give weights of this architecture, or its model.name and model.args",
        ) from None  # fmt: skip
    if found == wanted:
        return filled
    model = build(record)
    own, new = model.state_dict(), filled.state_dict()
    is_head = tuple(f"{head}." for head in heads)
    kept = {k: new[k] for k in own if not k.startswith(is_head) and k in new and new[k].shape == own[k].shape}
    lost = [k for k in own if k not in kept and not k.startswith(is_head)]
    if lost:
        raise UserError(
            f"does not fit {record.name}: {_some(lost)} would stay random", key="model.weights", value=source,
            remedy="give weights of this architecture",
        )  # fmt: skip
    model.load_state_dict(kept, strict=False)
    say(f"model.weights: {found or 'no'} classes in {source}, {wanted} here: new head")
    return model


def _check_cuts(record: ArchitectureRecord) -> None:
    if record.cuts:
        raise ValueError("weights are loaded before anything is cut")


def _names(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, (tuple, list)) else ()


def _is_kernel(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _classes_in(state: State, heads: tuple[str, ...]) -> int:
    """Number of outputs of the classifier in `state`; 0 when it has none."""
    for head in (*heads, "head.fc", "head", "fc", "classifier"):
        for name in (f"{head}.weight", f"{head}.bias"):
            if name in state:
                return int(state[name].shape[0])
    return 0


def _difference(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    missing = [k for k in wanted if k not in state]
    superfluous = [k for k in state if k not in wanted]
    shapes = [
        f"{k} is {_shape(state[k])} instead of {_shape(wanted[k])}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    parts = []
    if missing:
        parts.append(f"lacks {_some(missing)}")
    if superfluous:
        parts.append(f"has also {_some(superfluous)}")
    if shapes:
        parts.append(_some(shapes))
    return ", ".join(parts)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "a number"


def _line(error: Exception) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


def rows_of_classes(state: State, record: ArchitectureRecord, found: tuple[str, ...], *, say: Say) -> State:
    """The state with the classifier's rows in the order of the record's classes, where `found` names them all.

    Streams number classes in the order of arrival: by number, rows would be those of other classes.
    """
    if found == record.classes or not set(record.classes) <= set(found):
        return state
    cfg = timm.get_pretrained_cfg(record.name)
    heads = tuple(f"{head}." for head in _names(cfg.classifier if cfg else None) or ("head",))
    rows = torch.tensor([found.index(name) for name in record.classes])
    say("model.weights: the classifier's rows are taken by the names of the classes")
    return {
        key: tensor[rows] if key.startswith(heads) and tensor.shape[:1] == (len(found),) else tensor
        for key, tensor in state.items()
    }


# --- the hub -----------------------------------------------------------------------------------


def _cached_file(cfg: Any) -> str | None:
    """Path of the weights in the local cache of the hub or of torch.hub, or None."""
    if cfg.file:
        return str(cfg.file)
    if cfg.hf_hub_id and not cfg.custom_load:
        from huggingface_hub import try_to_load_from_cache

        names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
        for name in names:
            path = try_to_load_from_cache(cfg.hf_hub_id, name)
            if isinstance(path, str):
                return path
    if cfg.url and not cfg.custom_load:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(str(cfg.url)).path).name
        if path.is_file():
            return str(path)
    return None


def _check_reachable(cfg: Any, name: str) -> None:
    """Raise `UserError` soon when the server of the weights cannot be reached.

    The hub's client retries for minutes; one connection tells enough. Behind a proxy the client is
    left to find out for itself.
    """
    from huggingface_hub import constants

    url = str(constants.ENDPOINT if cfg.hf_hub_id else cfg.url)
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if constants.HF_HUB_OFFLINE and cfg.hf_hub_id:
        reachable = False
    elif parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    else:
        reachable = _connects(host, port)
    if not reachable:
        raise UserError(
            f"timm's weights of {name} are not in the cache and {host} cannot be reached",
            key="model.pretrained", value=True, remedy="give a file: model.weights=FILE",
        )  # fmt: skip


def _connects(host: str, port: int) -> bool:
    done: list[bool] = []

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
            done.append(True)
        except OSError:
            done.append(False)

    # In a thread, because the look-up of a name knows no timeout.
    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return bool(done and done[0])
