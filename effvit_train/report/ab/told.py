"""A comparison as JSON: everything that the page shows, in full numbers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from effvit_train.report.ab import words
from effvit_train.report.ab.cards import Cost
from effvit_train.report.ab.flips import Flip
from effvit_train.report.ab.outcome import Outcome
from effvit_train.report.ab.rows import Row
from effvit_train.report.ab.sides import Side


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Plain values; what there is not is null."""
    headline, winner = outcome.headline, outcome.winner
    table, chance, found = headline.table, headline.over_images, outcome.flips
    classes = outcome.images.classes if outcome.images is not None else []
    return {
        "level": outcome.level,
        "verdict": {
            "decided": winner is not None, "better": winner.name if winner is not None else None,
            "sentence": words.verdict(outcome), "of": outcome.scope, "note": words.scope(outcome),
        },
        "a": _side(outcome.a), "b": _side(outcome.b), "paired_by_seed": outcome.pairs,
        "test_images": None if outcome.images is None else len(outcome.images.labels),
        "not_paired_by_image": outcome.why_not or None, "different_streams": outcome.streams or None,
        "accuracy": None if headline.accuracy is None else {
            **_row(headline.accuracy), "needed": headline.needed,
            "interval_over_test_images": None if chance is None else list(chance),
            "table": None if table is None else asdict(table),
        },
        "flipped": None if found is None else {
            "only_a": [_flip(one, classes) for one in found.only_a],
            "only_b": [_flip(one, classes) for one in found.only_b],
            "both_wrong_differently": found.both_wrong,
        },
        "measures": [_row(row) for row in outcome.measures],
        "classes": [_row(row) for row in outcome.classes],
        "groups": {
            one.column: {
                "groups": [_row(row) for row in one.rows], "too_small": one.small,
                "images_in_too_small": one.small_images, "images_without_group": one.without,
            }
            for one in outcome.groups
        },
        "no_groups": outcome.no_groups or None,
        "costs": [_cost(cost) for cost in outcome.costs],
        "not_tested": [_cost(cost) for cost in outcome.others],
        "cost_per_million_images": None if outcome.priced is None else {
            "currency": outcome.priced.currency, "a": outcome.priced.a, "b": outcome.priced.b,
            "parts": {name: {"a": a, "b": b} for name, (a, b) in outcome.priced.parts.items()},
            "change": outcome.priced.change and str(outcome.priced.change),
            "reason": outcome.priced.reason or None, "notes": outcome.priced.notes,
        },
    }  # fmt: skip


def _side(side: Side) -> dict[str, Any]:
    return {
        "label": side.label, "runs": [str(entry.run_dir) for entry in side.entries],
        "ids": [entry.card.run.get("id") for entry in side.entries], "seeds": side.seeds,
    }  # fmt: skip


def _row(row: Row) -> dict[str, Any]:
    return {
        "name": row.name, "a": row.a, "b": row.b, "difference": row.difference, "low": row.low, "high": row.high,
        "p_value": row.p_value, "p_corrected": row.corrected, "test": row.test, "b_is": words.word(row),
        "images": row.images,
    }  # fmt: skip


def _cost(cost: Cost) -> dict[str, Any]:
    change = cost.change
    return {
        "name": cost.key, "a": cost.a, "b": cost.b, "b_is": None if change is None else change.word,
        "reason": cost.reason or None,
    }  # fmt: skip


def _flip(flip: Flip, classes: list[str]) -> dict[str, Any]:
    def name(said: int) -> str | None:
        return classes[said] if said >= 0 else None

    return {
        "image": flip.image, "class": name(flip.label), "a": name(flip.said_a), "b": name(flip.said_b),
        "right_in_a": flip.share_a, "right_in_b": flip.share_b, "gain": flip.gain,
    }  # fmt: skip
