"""What an audit that was interrupted had found: kept in the run directory until the audit is done."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from effvit_train.card import Measured
from effvit_train.files import read_json, write_json

FOLDER = "audit"
Found = tuple[Measured, dict[str, Any]]


class Memory:
    """Pieces of one part of an audit, and in the end the part itself.

    Args:
        path: of its file.
        key: of everything that shapes what is found; what was found under another key is forgotten.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._content: dict[str, Any] = {"key": key, "pieces": {}, "found": None}
        with contextlib.suppress(OSError, ValueError):
            content = read_json(path)
            if isinstance(content, dict) and content.get("key") == key:
                self._content = content

    @property
    def pieces(self) -> dict[str, Any]:
        """By name."""
        return self._content["pieces"]

    def keep(self, name: str, piece: Any) -> None:
        """Keep a piece, a JSON value."""
        self.pieces[name] = piece
        write_json(self._path, self._content)

    @property
    def found(self) -> Found | None:
        """The part, if it is done."""
        content = self._content["found"]
        if content is None:
            return None
        return Measured(dict(content["values"]), dict(content["missing"])), content["facts"]

    def done(self, found: Found) -> None:
        """The part is done: its pieces are not needed any more."""
        measured, facts = found
        self._content |= {
            "pieces": {},
            "found": {"values": measured.values, "missing": measured.missing, "facts": facts},
        }
        write_json(self._path, self._content)
