"""The card: what a model is worth and what it costs, one number per key, measured or null.

`MEASURES` is the one table of keys: unit, which way is better, definition, reference. Reports and
documentation are generated from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json

SCHEMA = 1
Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Measure:
    """One row of the table of measures."""

    unit: str
    better: Better
    label: str
    definition: str
    reference: str = ""


MEASURES: dict[str, Measure] = {
    "quality/accuracy": Measure(
        "fraction", "higher", "Accuracy", "Share of test images whose most likely class is right."
    ),
    "quality/balanced_accuracy": Measure(
        "fraction", "higher", "Balanced accuracy",
        "Mean of the accuracy within each class that has test images.",
    ),
    "quality/top5": Measure(
        "fraction", "higher", "Top-5 accuracy",
        "Share of test images whose class is among the five most likely; null with five classes or fewer.",
    ),
    "quality/nll": Measure(
        "nats", "lower", "Negative log-likelihood", "Mean over test images of -log p(true class)."
    ),
    "cost/params": Measure("parameters", "lower", "Parameters", "Parameters of the shipped model."),
    "cost/macs": Measure(
        "MACs/image", "lower", "MACs",
        "Multiply-accumulates for one image, attention products included: what vision papers print as FLOPs.",
        "Dosovitskiy et al. 2021; Touvron et al. 2021",
    ),
    "cost/flops": Measure(
        "FLOPs/image", "lower", "FLOPs",
        "2 x MACs plus the elementwise work of one image: one per addition, multiplication, comparison, root "
        "or transcendental function of an element (softmax 5, LayerNorm 7, GELU 5 per element); moving data "
        "is free.",
    ),
    "cost/latency_ms": Measure(
        "ms", "lower", "Latency",
        "Median time of one image, batch 1, after warm-up, in a fresh process; threads, precision and runs "
        "are in the provenance.",
    ),
    "cost/latency_p95_ms": Measure("ms", "lower", "Latency p95", "95th percentile of the same times."),
    "cost/throughput": Measure(
        "images/s", "higher", "Throughput", "Images per second at the batch size in the provenance."
    ),
    "cost/memory_mb": Measure(
        "MB", "lower", "Inference memory",
        "Peak memory that the loaded model and the inference of one image add to a fresh process whose "
        "libraries are loaded (resident set on a CPU, allocated memory on CUDA).",
    ),
    "cost/size_mb": Measure("MB", "lower", "File size", "Size of model.safetensors (1 MB = 10^6 bytes)."),
    "cost/energy_j": Measure(
        "J/image", "lower", "Energy",
        "Energy of the device per image, in batches, from its hardware counter (NVML); null without one.",
    ),
    "cost/train_seconds": Measure(
        "s", "lower", "Training time",
        "Wall-clock seconds spent in fit, over all resumes; a teacher's own not counted.",
    ),
    "cost/eer": Measure(
        "ratio", "lower", "Efficient error rate",
        "Mean of four ratios to ViT-B/16 at 224 in 32 bits: parameters, bits per parameter, MACs (printed as "
        "FLOPs there) and file size. Despite its name it holds no error: read it beside the accuracy.",
        "Papa et al. 2023, arXiv 2309.02031",
    ),
    "privacy/epsilon": Measure(
        "nats", "lower", "Privacy loss epsilon",
        "Upper bound of the privacy loss at delta: of one image of the training split, zero-out adjacency, over this "
        "training and those of its teachers and starting weights.",
        "Abadi et al. 2016; Gopi et al. 2021; Mironov et al. 2019",
    ),
    "privacy/delta": Measure(
        "probability", "lower", "Privacy delta", "Probability that epsilon does not bound: summed likewise."
    ),
    "privacy/epsilon_lower_bound": Measure(
        "nats", "lower", "Epsilon at least",
        "What canaries (mislabelled images, planted by coins) prove about this training with 95 % confidence: it is not "
        "private for any smaller epsilon.",
        "Steinke et al. 2023, arXiv 2305.08846",
    ),
    "privacy/mia_auc": Measure(
        "AUC", "lower", "Membership attack",
        "Area under the ROC curve of a threshold on the log-odds of the label, training images against test images; 0.5 "
        "is chance.",
        "Yeom et al. 2018; Carlini et al. 2022",
    ),
    "privacy/mia_tpr_at_1pct_fpr": Measure(
        "fraction", "lower", "Members found at 1 %",
        "Share of training images that the same attack recognises when 1 % of the test images are taken for them.",
        "Carlini et al. 2022",
    ),
}  # fmt: skip


@dataclass
class Measured:
    """Numbers taken, and the reasons for those that could not be."""

    values: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def merge(self, other: Measured) -> None:
        """Take over everything in `other`."""
        self.values.update(other.values)
        self.missing.update(other.missing)


@dataclass
class Card:
    """`card.json`. See DESIGN in docs for what `run`, `model` and `provenance` hold."""

    run: dict[str, Any]
    model: dict[str, Any]
    measures: dict[str, float | None]
    missing: dict[str, str]
    provenance: dict[str, Any]

    @classmethod
    def of(
        cls, *, run: dict[str, Any], model: dict[str, Any], measured: Measured, provenance: dict[str, Any]
    ) -> Card:
        """Build a card with a number or a reason for every key of `MEASURES`."""
        measures: dict[str, float | None] = {}
        missing: dict[str, str] = {}
        for key in {**MEASURES, **measured.values}:
            value = measured.values.get(key)
            if value is not None and math.isfinite(value):
                measures[key] = value
            else:
                measures[key] = None
                missing[key] = measured.missing.get(
                    key, "not measured" if value is None else f"not a finite number: {value}"
                )
        return cls(run, model, measures, missing, provenance)

    def to_json(self) -> dict[str, Any]:
        """The content of `card.json`."""
        return {
            "schema": SCHEMA, "run": self.run, "model": self.model, "measures": self.measures,
            "missing": self.missing, "provenance": self.provenance,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Card:
        """Check and take over the content of a `card.json`; raises `ValueError` when it is not one."""
        if not isinstance(value, Mapping) or value.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        sections = ("run", "model", "measures", "missing", "provenance")
        absent = [name for name in sections if not isinstance(value.get(name), dict)]
        if absent:
            raise ValueError(f"not a card: no {', '.join(absent)}")
        unexplained = [k for k, v in value["measures"].items() if v is None and k not in value["missing"]]
        if unexplained:
            raise ValueError(f"null without a reason: {', '.join(unexplained)}")
        return cls(**{name: dict(value[name]) for name in sections})

    def write(self, path: Path) -> None:
        """Write `card.json` atomically."""
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Card:
        """Read a `card.json`; `UserError` when it is missing or is not a card."""
        try:
            return cls.from_json(read_json(path))
        except FileNotFoundError:
            raise UserError(f"no card at {path}", remedy="give a directory of a finished run") from None
        except ValueError as error:
            raise UserError(
                f"{path} is not a card of effvit_train ({error})", remedy="give another run"
            ) from None
