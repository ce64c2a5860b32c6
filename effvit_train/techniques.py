"""The techniques that exist: found, not listed. Needs no torch."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from effvit_train.parts import RECIPE_PARTS, Part, discover


@cache
def techniques() -> dict[str, ModuleType]:
    """Technique name -> its module, from `compress/`, `continual/` and `privacy/`."""
    return discover("effvit_train.compress", "effvit_train.continual", "effvit_train.privacy")


def all_parts() -> list[Part]:
    """Declarations of the recipe's features, of all techniques and of their features (`FEATURES`)."""
    parts = list(RECIPE_PARTS)
    for module in techniques().values():
        parts += [module.PART, *getattr(module, "FEATURES", ())]
    return parts
