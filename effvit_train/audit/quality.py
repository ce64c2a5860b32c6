"""The axis `quality/*`: how right the model is on the test images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from effvit_train.card import Measured


def measure_quality(logits: Tensor, labels: Tensor) -> Measured:
    """Accuracy, balanced accuracy, top-5 accuracy and negative log-likelihood.

    Shapes: `logits` (N, K), `labels` (N,) in 0..K-1. A row with a number that is not finite counts
    as wrong. Raises `ValueError` for shapes or labels that do not belong together.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not match")
    count, classes = logits.shape
    measured = Measured()
    keys = ("accuracy", "balanced_accuracy", "top5", "nll")
    if count == 0:
        measured.missing |= {f"quality/{key}": "there are no test images" for key in keys}
        return measured
    # Double precision on the CPU: sums over many images, and equal results on every device.
    logits, labels = logits.detach().to("cpu", torch.float64), labels.detach().to("cpu", torch.int64)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels outside 0..{classes - 1}")
    finite = logits.isfinite().all(dim=1)
    right = finite & (logits.argmax(dim=1) == labels)
    measured.values["quality/accuracy"] = float(right.double().mean())
    totals = torch.bincount(labels, minlength=classes)
    hits = torch.bincount(labels, weights=right.double(), minlength=classes)
    seen = totals > 0
    measured.values["quality/balanced_accuracy"] = float((hits[seen] / totals[seen]).mean())
    if classes > 5:
        among = (logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1)
        measured.values["quality/top5"] = float((finite & among).double().mean())
    else:
        measured.missing["quality/top5"] = f"top-5 says nothing with {classes} classes"
    measured.values["quality/nll"] = float(torch.nn.functional.cross_entropy(logits, labels))
    return measured


def confusion_matrix(
    predicted: Tensor | np.ndarray, labels: Tensor | np.ndarray, num_classes: int
) -> np.ndarray:
    """Counts (K, K): row = true class, column = predicted class."""
    truth = np.asarray(labels, dtype=np.int64)
    guess = np.asarray(predicted, dtype=np.int64)
    if truth.shape != guess.shape or truth.ndim != 1:
        raise ValueError(f"predicted {guess.shape} and labels {truth.shape} do not match")
    for values in (truth, guess):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            raise ValueError(f"classes outside 0..{num_classes - 1}")
    flat = np.bincount(truth * num_classes + guess, minlength=num_classes**2)
    return flat.reshape(num_classes, num_classes)
