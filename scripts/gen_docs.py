"""Write the documentation that is generated from the code: `python scripts/gen_docs.py [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from effvit_train.axes.parts import PARTS
from effvit_train.measures import MEASURES

TARGET = Path(__file__).resolve().parent.parent / "docs" / "measures.md"


def measures_markdown() -> str:
    """`docs/measures.md`: one table per axis of `card.MEASURES`."""
    lines = [
        "# Measures",
        "",
        "What the numbers of `card.json` mean. A measure that was not taken is `null` with a reason under",
        "`missing`. Generated from `effvit_train/measures.py` by `python scripts/gen_docs.py`: edit it there.",
        "",
        "Taken: *always*, with `audit=quick` (the default of a training) or with `audit=full` (also later:",
        "`effvit audit RUN_DIR audit=full`).",
    ]
    axis = ""
    for key, measure in MEASURES.items():
        if key.partition("/")[0] != axis:
            axis = key.partition("/")[0]
            lines += [
                "",
                f"## {axis}",
                "",
                "| key | name | unit | better | taken | definition |",
                "|---|---|---|---|---|---|",
            ]
        definition = measure.definition + (f" ({measure.reference})" if measure.reference else "")
        cells = (f"`{key}`", measure.label, measure.unit, measure.better, _taken(key), definition)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _taken(key: str) -> str:
    """At which level of the audit; what the training itself knows has none."""
    if key.startswith(("quality/", "cost/")) or key in ("privacy/epsilon", "privacy/delta"):
        return "always"
    if key.startswith("privacy/"):
        return "with `audit.canaries`" if "lower_bound" in key else "quick"
    if key.startswith("continual/"):
        return "with `dataset.stream`"
    (part,) = (part for part in PARTS.values() if key in part.keys)
    return "quick" if part.quick else "full"


def main() -> int:
    text = measures_markdown()
    if "--check" in sys.argv[1:]:
        return int(not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text)
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
