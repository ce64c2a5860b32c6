"""Train a vision transformer to a budget; end with a card of what it is worth and what it costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from effvit_train import _torchvision
from effvit_train._version import __version__

_torchvision.install()

__all__ = ["__version__", "load_model"]

if TYPE_CHECKING:
    from effvit_train.models import load_model


def __getattr__(name: str) -> object:
    # torch and timm take seconds to import: `effvit --help` must not pay for them.
    if name == "load_model":
        from effvit_train.models import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
