"""Models: timm factory, architecture record, weights. Importing this package imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from effvit_train.models.factory import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> object:
    if name == "load_model":
        from effvit_train.models.factory import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
