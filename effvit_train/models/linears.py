"""Which linear layers a model has, in the words that settings name them by."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

_KIND_OF = {
    **dict.fromkeys(("qkv", "q", "k", "v", "kv", "qk", "q_proj", "k_proj", "v_proj"), "qkv"),
    **dict.fromkeys(("proj", "out_proj"), "proj"),
    **dict.fromkeys(("fc1", "fc1_g", "fc1_x", "w12"), "fc1"),
    **dict.fromkeys(("fc2", "w3"), "fc2"),
}
_STEMS = ("patch_embed", "stem")
_FACTORS = ("down", "up")  # of a factored layer


def classifiers(model: nn.Module) -> list[nn.Module | None]:
    """What the model says its classifiers are, one for each head; None where it does not say."""
    found = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    heads = found if isinstance(found, tuple) else (found,)
    return [head if isinstance(head, nn.Module) else None for head in heads]


def kinds_of_layers(model: nn.Module, names: Collection[str]) -> dict[str, str]:
    """Name -> kind (`models.config.LINEARS`) of linear layers, whole ones or factors."""
    inside = {id(part) for head in classifiers(model) if head is not None for part in head.modules()}
    found = {}
    for name in names:
        first, *_ = parts = name.split(".")
        own = parts[-2] if parts[-1] in _FACTORS and len(parts) > 1 else parts[-1]
        if id(model.get_submodule(name)) in inside or first.startswith("head"):
            found[name] = "head"
        elif first in _STEMS:
            found[name] = "patch_embed"
        else:
            found[name] = _KIND_OF.get(own, "other")
    return found
