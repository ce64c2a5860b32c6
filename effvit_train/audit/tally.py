"""The arithmetic and the memory traffic of one forward pass, layer by layer and by kind of work.

The counter of `effvit_train.audit.operations` says how much; hooks say where. A *layer* is a submodule with
what its own forward does, without its children's. Beside the arithmetic stand the bytes that an eager runtime
without caches moves: each operator reads every operand once and writes its result once. A view moves nothing,
and a fused attention reads queries, keys and values and writes its result, but no scores.
"""

from __future__ import annotations

import re
import weakref
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from effvit_train.audit.operations import PRODUCTS, OperationCounter, attention_work
from effvit_train.audit.where import Where
from effvit_train.models.mode import evaluating

KINDS = (
    "attention_products", "attention_projections", "mlp", "embedding", "head", "spectral_mixing", "other",
)  # fmt: skip
# Of a submodule's own name and its class; the nearest match on the way outwards decides.
_NAMES = {
    "embedding": re.compile(r"patch_?embed|pos_?embed|\bstem", re.IGNORECASE),
    "spectral_mixing": re.compile(r"fourier|fft|global_?filter|wavelet|dwt|haar", re.IGNORECASE),
    "attention_projections": re.compile(r"attn|attention", re.IGNORECASE),
    "mlp": re.compile(r"mlp|ffn|feed_?forward|swiglu", re.IGNORECASE),
}
_HEAD = re.compile(r"head|fc\b|classifier", re.IGNORECASE)  # of a direct child of the model
_LOOKUPS = frozenset(("embedding", "index", "index_select", "gather"))
_WRITES_NOTHING = frozenset(("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"))


@dataclass
class Layer:
    """What one submodule's own forward does for one image.

    Attributes:
        name: of the submodule; empty for the model itself.
        kind: one of `KINDS`.
        macs: multiply-accumulates.
        elementwise: FLOPs outside them, Fourier transforms included.
        fft: FLOPs of Fourier transforms alone: 5 N log2 N for a complex one of N points, half for a real one.
        weight_bytes: read, whatever the batch size.
        activation_bytes: read and written, for each image.
    """

    name: str
    kind: str
    macs: int = 0
    elementwise: int = 0
    fft: int = 0
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def flops(self) -> int:
        """2 x MACs + elementwise work."""
        return 2 * self.macs + self.elementwise

    def intensity(self, batch: int = 1) -> float:
        """FLOPs per byte moved in a batch; 0 where nothing is moved."""
        moved = self.weight_bytes + batch * self.activation_bytes
        return batch * self.flops / moved if moved else 0.0


@dataclass
class Tally:
    """One forward pass of one image.

    Attributes:
        layers: in the order in which they began to work; a submodule that does work of two kinds is there twice.
        peak_bytes: most memory that activations held at once, the image included: what an eager runtime frees
            as soon as nothing refers to it. Workspaces of kernels are not known here.
        weight_bytes: parameters and buffers.
        uncounted: operators whose arithmetic is not known, with how often they were called.
    """

    layers: list[Layer] = field(default_factory=list)
    peak_bytes: int = 0
    weight_bytes: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)

    @property
    def macs(self) -> int:
        """MACs of the whole model."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """FLOPs of the whole model."""
        return sum(layer.flops for layer in self.layers)

    def of_kind(self, *kinds: str) -> list[Layer]:
        """The layers of these kinds."""
        return [layer for layer in self.layers if layer.kind in kinds]

    def intensity(self, batch: int = 1) -> float:
        """FLOPs per byte moved by the whole model in a batch."""
        moved = sum(layer.weight_bytes + batch * layer.activation_bytes for layer in self.layers)
        return batch * self.flops / moved if moved else 0.0


def take_tally(model: nn.Module, input_shape: tuple[int, int, int]) -> Tally:
    """Follow one image of `input_shape` (C, H, W) through a model in evaluation mode.

    Works on any device; on the meta device it allocates and computes nothing. The model is left as found.

    Kinds. A product of two activations is an attention product, and so is what else the attention's own
    forward computes (softmax, scale). Everything else goes by names, from the submodule outwards: layers
    within an attention are its projections. Whatever a submodule computes that runs a Fourier transform, or
    is called a Fourier or wavelet mixer, is spectral mixing. Normalisation, residuals and all that no name
    claims is `other`.
    """
    tensors = [*model.parameters(), *model.buffers()]
    anchor = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    image = torch.zeros(1, *input_shape, device=anchor.device, dtype=anchor.dtype)
    where = Where()
    recorder = _Recorder(where, tensors)
    recorder.keep(image)
    with evaluating(model), where.following(model), recorder, _FusedAttention(recorder):
        model(image)
    return Tally(
        layers=_layers(model, recorder), peak_bytes=recorder.peak,
        weight_bytes=sum(t.numel() * t.element_size() for t in tensors),
        uncounted=recorder.operations.uncounted,
    )  # fmt: skip


def count_tokens(model: nn.Module, input_shape: tuple[int, int, int]) -> int | None:
    """Tokens of an image: patches of the first grid, and class, register and distillation tokens.

    None for a model that does not count its patches, or counts those of images of another size.
    """
    embed = getattr(model, "patch_embed", None)
    patches = getattr(embed, "num_patches", None)
    if not isinstance(patches, int) or getattr(embed, "img_size", None) not in (None, input_shape[1:]):
        return None
    return patches + int(getattr(model, "num_prefix_tokens", 0))


class _Recorder(OperationCounter):
    """Books each operator under the submodule that called it and the sort of work that it is."""

    def __init__(self, where: Where, weights: list[Tensor]) -> None:
        super().__init__()
        self.books: dict[tuple[str, str], Layer] = {}
        self.peak = 0
        self.hidden = False  # inside a fused attention, whose parts are not seen from outside
        self._where = where
        self._weights = {_storage(t) for t in weights}
        self._live: set[int] = set()
        self._held = 0

    def count(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        if self.hidden:
            return
        counted = self.operations
        macs, elementwise = counted.macs, counted.elementwise
        super().count(func, args, kwargs, output)
        operands = _tensors((args, kwargs))
        name = func._overloadpacket.__name__.rstrip("_")
        if name.startswith("_fft"):
            sort = "fft"
        elif func._overloadpacket in PRODUCTS:
            products = [t for t in operands if t.ndim > 1]
            sort = "weights" if any(_storage(t) in self._weights for t in products) else "activations"
        else:
            sort = "elementwise"
        moves = name not in _WRITES_NOTHING and not _is_view(func, operands, output)
        reads, writes = (operands, _tensors(output)) if moves else ([], [])
        limit = sum(map(_bytes, writes)) if name in _LOOKUPS else None
        self._book(sort, counted.macs - macs, counted.elementwise - elementwise, reads, writes, limit)
        self.keep(output)

    def fused(self, macs: int, elementwise: int, operands: list[Tensor], output: Tensor) -> None:
        """Book an attention whose scores never reach the memory."""
        self.operations.macs += macs
        self.operations.elementwise += elementwise
        self._book("activations", macs, elementwise, operands, [output], None)
        self.keep(output)

    def keep(self, value: Any) -> None:
        """Follow how long the memory behind new tensors is held."""
        for tensor in _tensors(value):
            storage, key = tensor.untyped_storage(), _storage(tensor)
            if key in self._live or key in self._weights:
                continue
            self._live.add(key)
            self._held += storage.nbytes()
            self.peak = max(self.peak, self._held)
            weakref.finalize(storage, self._free, key, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._live.discard(key)
        self._held -= size

    def _book(
        self, sort: str, macs: int, elementwise: int, reads: list[Tensor], writes: list[Tensor], limit: int | None
    ) -> None:  # fmt: skip
        """Add to the book of the running submodule; of each operand no more than `limit` bytes are read."""
        if not (macs or elementwise or reads or writes):
            return
        book = self.books.setdefault((self._where.name, sort), Layer(self._where.name, sort))
        book.macs += macs
        book.elementwise += elementwise
        book.fft += elementwise if sort == "fft" else 0
        for tensor in reads:
            size = _bytes(tensor) if limit is None else min(_bytes(tensor), limit)
            if _storage(tensor) in self._weights:
                book.weight_bytes += size
            else:
                book.activation_bytes += size
        book.activation_bytes += sum(map(_bytes, writes))


class _FusedAttention(TorchFunctionMode):
    """Books `scaled_dot_product_attention` as one operator.

    On the meta device it would come apart into products and a softmax with all scores in memory; on the
    devices that models run on it does not.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.recorder.hidden = True
        try:
            output = func(*args, **kwargs)
        finally:
            self.recorder.hidden = False
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
        query, key, value = (named[part] for part in ("query", "key", "value"))
        macs, elementwise = attention_work((query, key, value), {}, output)
        mask = named.get("attn_mask")
        if mask is not None:  # added to each score
            elementwise += query.shape[:-1].numel() * key.shape[-2]
        operands = [query, key, value] + ([] if mask is None else [mask])
        self.recorder.fused(macs, elementwise, operands, output)
        return output


def _layers(model: nn.Module, recorder: _Recorder) -> list[Layer]:
    """The books with kinds for sorts, added up by submodule and kind."""
    attending = {name for name, sort in recorder.books if sort == "activations"}
    transforming = {name for name, sort in recorder.books if sort == "fft"}
    modules = dict(model.named_modules())
    merged: dict[tuple[str, str], Layer] = {}
    for (name, sort), book in recorder.books.items():
        kind = _kind(modules, name, sort, attending, transforming)
        layer = merged.setdefault((name, kind), Layer(name, kind))
        for part in ("macs", "elementwise", "fft", "weight_bytes", "activation_bytes"):
            setattr(layer, part, getattr(layer, part) + getattr(book, part))
    return list(merged.values())


def _kind(
    modules: dict[str, nn.Module], name: str, sort: str, attending: set[str], transforming: set[str]
) -> str:
    if sort == "fft" or name in transforming:
        return "spectral_mixing"
    path = name.split(".") if name else []
    for depth in range(len(path), 0, -1):
        at = ".".join(path[:depth])
        text = f"{path[depth - 1]} {type(modules[at]).__name__}"
        named = next((kind for kind, pattern in _NAMES.items() if pattern.search(text)), None)
        if named is None and at in attending:
            named = "attention_projections"
        if named == "spectral_mixing":
            return named
        if sort == "activations":
            continue  # only a spectral mixer around it would make it something else
        if named == "attention_projections" and at == name and sort == "elementwise":
            return "attention_products"
        if named is not None:
            return named
        if depth == 1 and _HEAD.match(path[0]):
            return "head"
    return "attention_products" if sort == "activations" else "other"


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """Bytes that a tensor occupies: an expanded one no more than what it was expanded from."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _is_view(func: Any, operands: list[Tensor], output: Any) -> bool:
    if func._schema.is_mutable:
        return False
    shared = {_storage(t) for t in operands}
    results = _tensors(output)
    return bool(results) and all(_storage(t) in shared for t in results)
