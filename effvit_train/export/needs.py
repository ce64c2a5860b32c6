"""Packages that a format needs and that `pip install effvit_train` alone does not bring."""

from __future__ import annotations

import importlib.util

from effvit_train.errors import UserError

REMEDY = "pip install 'effvit_train[export]'"


def need(key: str, value: str, *packages: str, remedy: str = REMEDY) -> None:
    """Raise `UserError` where packages are not installed.

    Args:
        key: what was typed that needs them.
        value: of it.
        packages: by the names they are imported by.
        remedy: how to install them.
    """
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    if absent:
        verb = "is" if len(absent) == 1 else "are"
        raise UserError(
            f"needs {', '.join(absent)}, which {verb} not installed", key=key, value=value, remedy=remedy
        )
