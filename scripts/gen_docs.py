"""Write the documentation that is generated from the code: `python scripts/gen_docs.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from effvit_train.card import MEASURES

TARGET = Path(__file__).resolve().parent.parent / "docs" / "measures.md"


def measures_markdown() -> str:
    """`docs/measures.md`: one table per axis of `card.MEASURES`."""
    lines = [
        "# Measures",
        "",
        "What the numbers of `card.json` mean. A measure that was not taken is `null` with a reason under",
        "`missing`. Generated from `effvit_train/card.py` by `python scripts/gen_docs.py`: edit it there.",
    ]
    axis = ""
    for key, measure in MEASURES.items():
        if key.partition("/")[0] != axis:
            axis = key.partition("/")[0]
            lines += [
                "",
                f"## {axis}",
                "",
                "| key | name | unit | better | definition |",
                "|---|---|---|---|---|",
            ]
        definition = measure.definition + (f" ({measure.reference})" if measure.reference else "")
        cells = (f"`{key}`", measure.label, measure.unit, measure.better, definition)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    text = measures_markdown()
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
