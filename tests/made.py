"""Run directories made by hand, with cards, for tests of all that reads them."""

from pathlib import Path

import numpy as np

from effvit_train.card import Card, Measured
from effvit_train.models.record import ArchitectureRecord


def make_run(
    path: Path,
    *,
    compress=(),
    classes=("a", "b", "c"),
    predicted=None,
    labels=None,
    curves=True,
    values=None,
    kwargs=None,
    cuts=(),
    fingerprint="f" * 64,
    processor="one",
    epochs=3,
    seed=0,
    **run,
) -> Path:
    """Write a run directory; `predicted` and `labels` are class numbers."""
    path.mkdir(parents=True)
    classes = list(classes)
    measured = Measured(
        {"quality/accuracy": 0.9, "cost/params": 1000.0, "cost/latency_ms": 1.0, **(values or {})},
        {"cost/energy_j": "no counter <here>"},
    )
    count = 100
    if labels is not None:
        labels, predicted = np.asarray(labels), np.asarray(predicted)
        count = len(labels)
        logits = np.eye(len(classes), dtype=np.float32)[predicted]
        np.savez(path / "predictions.npz", logits=logits, labels=labels, index=np.arange(count))
        measured.values["quality/accuracy"] = float((predicted == labels).mean())
    facts = {
        "name": "x", "id": "ab12", "run_dir": str(path), "seed": seed, "status": "done", "model": "vit_micro",
        "dataset": "digits", "compress": list(compress), "privacy": "none", "epochs": epochs,
        "precision": "32-true", "started": "2026-11-24T02:08:50+00:00", "overrides": [],
        "fast_dev_run": False, **run,
    }  # fmt: skip
    Card.of(
        run=facts,
        model={"name": "vit", "input_shape": [1, 8, 8], "num_classes": len(classes), "params": 1000},
        measured=measured,
        provenance={
            "dataset": {"name": "digits", "fingerprint": fingerprint, "counts": {"train": 10, "test": count}},
            "machine": {"processor": processor},
        },
    ).write(path / "card.json")
    ArchitectureRecord(
        "vit", kwargs or {"depth": 4}, (1, 8, 8), tuple(classes), (0.5,), (0.5,), list(cuts)
    ).write(path / "model.json")
    if curves:
        rows = ["epoch,step,lr,train/loss,train/label,train/distill,val/loss,val/accuracy"]
        rows += [f"{e},{e * 10},0.1,{2 / (e + 1)},{1 / (e + 1)},{1 / (e + 1)},," for e in range(epochs - 1)]
        rows += [f"{epochs - 1},{epochs * 10},0.1,0.5,0.25,nan,0.4,0.875"]
        (path / "metrics.csv").write_text("\n".join(rows) + "\n")
    return path
