"""docs/measures.md is what the table of measures says."""

from __future__ import annotations

import runpy
from pathlib import Path

from effvit_train.card import MEASURES

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "gen_docs.py"))
    text = (ROOT / "docs" / "measures.md").read_text(encoding="utf-8")
    assert text == script["measures_markdown"](), "run python scripts/gen_docs.py"
    assert all(f"| `{key}` | {measure.label} | {measure.unit} |" in text for key, measure in MEASURES.items())
