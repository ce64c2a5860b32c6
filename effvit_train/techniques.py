"""The techniques that exist: found, not listed. Needs no torch."""

from __future__ import annotations

from functools import cache
from types import ModuleType

from effvit_train.parts import RECIPE_PARTS, Part, discover


@cache
def techniques() -> dict[str, ModuleType]:
    """Technique name -> its module, from `compress/` and `privacy/`."""
    return discover("effvit_train.compress", "effvit_train.privacy")


def all_parts() -> list[Part]:
    """Declarations of all techniques and of the recipe's features."""
    return [*RECIPE_PARTS, *(module.PART for module in techniques().values())]
