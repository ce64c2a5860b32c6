"""The axis `robustness/*`: accuracy under corruptions and under attack, with 95 % intervals.

Pure functions from outcomes, which image is right under what, to figures. Outcomes of one kind of corruption, or
of one attack, are a part of their own, to be saved when it is there: `measure_*` take the parts that are known and
tell each new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from effvit_train.audit.robustness.adversarial import (
    AUTOATTACK,
    STANDARD,
    default_budget,
    stands,
    withstands,
)
from effvit_train.audit.robustness.corruptions import KINDS, corrupt
from effvit_train.audit.robustness.scale import SEVERITIES, Scale
from effvit_train.audit.robustness.victim import wrong
from effvit_train.card import Measured
from effvit_train.keys import stream_key
from effvit_train.proportions import wilson

Outcomes = npt.NDArray[np.bool_]
Parts = Mapping[str, Outcomes]
Predict = Callable[[Tensor], Tensor]

CORRUPTION_KEYS = ("robustness/corruption_accuracy", "robustness/corruption_drop")
ADVERSARIAL_KEYS = ("robustness/pgd_accuracy", "robustness/autoattack_accuracy")
CLEAN = "clean"  # the part without corruption or attack

_RESAMPLES = 2000


def measure_corruptions(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int] | Tensor,
    *,
    seed: int,
    kinds: Sequence[str] = KINDS,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 256,
    known: Parts | None = None,
    tell: Callable[[str, Outcomes], None] | None = None,
) -> tuple[Measured, dict[str, Any]]:
    """Accuracy over kinds and severities of corruption, and what it is below that of the same images unchanged.

    Both keys are null unless all 15 kinds in 5 severities were taken: a mean over fewer is another measure. The
    facts hold what there is.

    Args:
        predict: uint8 images (B, C, H, W) to logits (B, K).
        images: (n, C, H, W) uint8.
        labels: (n,) in 0..K-1.
        ids: (n,) of the images.
        seed: of the corruptions and the intervals.
        kinds: of `KINDS`.
        severities: of 1..5.
        batch_size: images at a time.
        known: outcomes by kind (S, n), and of `CLEAN` (1, n), from an earlier call with the same arguments.
        tell: called with each part that was not known.

    Returns:
        The measures, and facts for the card's provenance (see `corruption_figures`).

    Raises:
        ValueError: for shapes that do not match, or a kind or severity that there is not.
    """
    parts = dict(known or {})
    if len(images):
        for kind in (CLEAN, *kinds):
            if kind not in parts:
                parts[kind] = corruption_outcomes(
                    predict,
                    images,
                    labels,
                    ids,
                    kind,
                    seed=seed,
                    severities=severities,
                    batch_size=batch_size,
                )
                if tell is not None:
                    tell(kind, parts[kind])
    chosen = {kind: parts[kind] for kind in (CLEAN, *kinds) if kind in parts}
    return corruption_figures(chosen, severities, (images.shape[-2], images.shape[-1]), seed=seed)


@torch.no_grad()
def corruption_outcomes(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int] | Tensor,
    kind: str,
    *,
    seed: int,
    severities: Sequence[int] = SEVERITIES,
    batch_size: int = 256,
) -> Outcomes:
    """Which images are right under one kind of corruption, (S, n); under `CLEAN`, (1, n).

    Arguments as in `measure_corruptions`.
    """
    numbers = [int(one) for one in ids]
    if images.ndim != 4 or labels.shape != images.shape[:1] or len(numbers) != len(images):
        raise ValueError(
            f"images {tuple(images.shape)}, labels {tuple(labels.shape)} and {len(numbers)} ids do not match"
        )
    right = np.zeros((1 if kind == CLEAN else len(severities), len(images)), dtype=np.bool_)
    for row in range(len(right)):
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            shown = images[part]
            if kind != CLEAN:
                shown = corrupt(shown, kind, severities[row], seed=seed, ids=numbers[part])
            logits = predict(shown)
            right[row, part] = ~wrong(logits, labels[part].to(logits.device)).cpu().numpy()
    return right


def corruption_figures(
    parts: Parts, severities: Sequence[int], size: tuple[int, int], *, seed: int
) -> tuple[Measured, dict[str, Any]]:
    """The measures and facts that follow from outcomes.

    Facts: `images`; `clean_accuracy` and its Wilson `clean_interval`; `accuracy` by kind, one number per severity;
    `mean`, `drop` and their intervals, from a bootstrap over images (which share all corruptions); `parameters`,
    the published size whose parameters were taken; `lengths`, what lengths in px were multiplied by.

    Args:
        parts: outcomes by kind (S, n), and of `CLEAN` (1, n).
        severities: of the rows.
        size: height and width of the images, px.
        seed: of the bootstrap.
    """
    measured = Measured()
    if CLEAN not in parts or parts[CLEAN].size == 0:
        measured.missing |= dict.fromkeys(CORRUPTION_KEYS, "there are no images to corrupt")
        return measured, {"images": 0}
    clean = parts[CLEAN][0]
    kinds = {kind: outcomes for kind, outcomes in parts.items() if kind != CLEAN}
    scale = Scale.of(*size)
    facts: dict[str, Any] = {
        "images": len(clean),
        "clean_accuracy": float(clean.mean()),
        "clean_interval": list(wilson(int(clean.sum()), len(clean))),
        "severities": list(severities),
        "accuracy": {kind: [float(row.mean()) for row in outcomes] for kind, outcomes in kinds.items()},
        "parameters": scale.published,
        "lengths": scale.lengths,
    }
    if kinds:
        share = np.concatenate(list(kinds.values())).mean(
            axis=0
        )  # (n,) of the corruptions that each survives
        drop = clean - share
        facts["mean"], facts["drop"] = float(share.mean()), float(drop.mean())
        facts["interval"] = list(bootstrap(share, seed=seed))
        facts["drop_interval"] = list(bootstrap(drop, seed=seed))
    if set(kinds) == set(KINDS) and tuple(severities) == SEVERITIES:
        measured.values |= dict(zip(CORRUPTION_KEYS, (facts["mean"], facts["drop"]), strict=True))
    else:
        reason = f"only {len(kinds)} of {len(KINDS)} kinds in {len(severities)} of 5 severities were taken"
        measured.missing |= dict.fromkeys(CORRUPTION_KEYS, reason)
    return measured, facts


def measure_adversarial(
    model: nn.Module,
    normalise: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    ids: Sequence[int] | Tensor,
    *,
    seed: int,
    epsilon: float | None = None,
    dataset: str = "",
    attacks: Sequence[str] = ("pgd", "autoattack"),
    batch_size: int = 128,
    known: Parts | None = None,
    tell: Callable[[str, Outcomes], None] | None = None,
) -> tuple[Measured, dict[str, Any]]:
    """Accuracy under PGD and under AutoAttack, each by itself, L-infinity.

    Args:
        model: left as it is found.
        normalise: pixels 0..255 to what the model sees; differentiable.
        images: (n, C, H, W) uint8.
        labels: (n,) in 0..K-1.
        ids: (n,) of the images.
        seed: of the attacks.
        epsilon: budget in 0..1; None: `default_budget`.
        dataset: name of a known set, for that.
        attacks: `pgd`, `autoattack`, or both.
        batch_size: images at a time.
        known: which images (n,) stand, by attack (`CLEAN`, `pgd`, and those of `AUTOATTACK`), from an earlier call
            with the same arguments.
        tell: called with each part that was not known.

    Returns:
        The measures, and facts for the card's provenance (see `adversarial_figures`).

    Raises:
        ValueError: for shapes that do not match, or an attack or epsilon that cannot be.
    """
    unknown = [name for name in attacks if name not in ("pgd", "autoattack")]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not pgd or autoattack")
    if epsilon is None:
        epsilon = default_budget(min(images.shape[-2:]), dataset)
    parts = dict(known or {})

    def part(name: str, after: str) -> None:
        if name in parts:
            return
        if name == CLEAN:
            left = stands(model, normalise, images, labels, batch_size=batch_size)
        else:
            left = withstands(
                name, model, normalise, images, labels, ids, torch.from_numpy(parts[after]), seed=seed,
                epsilon=epsilon, batch_size=batch_size,
            )  # fmt: skip
        parts[name] = left.numpy()
        if tell is not None:
            tell(name, parts[name])

    if len(images):
        part(CLEAN, "")
        if "pgd" in attacks:
            part("pgd", CLEAN)
        if "autoattack" in attacks:
            for name, after in zip(AUTOATTACK, (CLEAN, *AUTOATTACK), strict=False):
                part(name, after)
    return adversarial_figures(parts, epsilon, attacks)


def adversarial_figures(
    parts: Parts, epsilon: float, attacks: Sequence[str] = ("pgd", "autoattack")
) -> tuple[Measured, dict[str, Any]]:
    """The measures and facts that follow from which images (n,) stand after each attack.

    Facts: `images`, `norm`, `epsilon`, `clean_accuracy`; of `pgd` and `autoattack` the accuracy and its Wilson
    interval; PGD's steps and their size; AutoAttack's accuracy `after` each of its attacks.

    Args:
        parts: by attack, and `CLEAN`.
        epsilon: budget in 0..1.
        attacks: those that were asked for.
    """
    measured = Measured()
    last = {"pgd": "pgd", "autoattack": AUTOATTACK[-1]}
    keys = dict(zip(last, ADVERSARIAL_KEYS, strict=True))
    if CLEAN not in parts or parts[CLEAN].size == 0:
        measured.missing |= dict.fromkeys(ADVERSARIAL_KEYS, "there are no images to attack")
        return measured, {"images": 0}
    count = len(parts[CLEAN])
    facts: dict[str, Any] = {
        "images": count,
        "norm": "Linf",
        "epsilon": epsilon,
        "clean_accuracy": float(parts[CLEAN].mean()),
        "clean_interval": list(wilson(int(parts[CLEAN].sum()), count)),
    }
    for name, key in keys.items():
        if name not in attacks or last[name] not in parts:
            measured.missing[key] = f"{name} was not run"
            continue
        standing = parts[last[name]]
        measured.values[key] = float(standing.mean())
        facts[name] = {
            "accuracy": float(standing.mean()),
            "interval": list(wilson(int(standing.sum()), count)),
        }
    if "pgd" in facts:
        facts["pgd"] |= {"steps": STANDARD.pgd_steps, "step": STANDARD.pgd_share * epsilon}
    if "autoattack" in facts:
        facts["autoattack"]["after"] = {name: float(parts[name].mean()) for name in AUTOATTACK}
    return measured, facts


def bootstrap(values: npt.ArrayLike, *, seed: int) -> tuple[float, float]:
    """The 95 % percentile interval for the mean of (n,) values, over resamples of them (Efron 1979).

    The same values and seed give the same interval. It knows only the values that it has seen: where all are
    equal it has no width.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"values {numbers.shape} must be (n,) with n >= 1")
    generator = np.random.Generator(np.random.PCG64(stream_key("bootstrap", seed)))
    means = [numbers[generator.integers(0, len(numbers), len(numbers))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def stratified(labels: Tensor | npt.ArrayLike, n: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of n of N images with the classes in proportion, ascending; all where n >= N.

    Each class gets the whole part of its share n N_k / N; what is left goes, one each, to the classes with the
    largest remainders (ties by a draw). Which images of a class, is drawn too: a function of (labels, n, seed).

    Args:
        labels: (N,) integers.
        n: at least 1.
        seed: of the draws.
    """
    classes = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if classes.ndim != 1 or n < 1:
        raise ValueError(f"labels {classes.shape} must be (N,), and n={n} at least 1")
    if n >= len(classes):
        return np.arange(len(classes))
    found, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    generator = np.random.Generator(np.random.PCG64(stream_key("stratified", seed)))
    quota, remainder = np.divmod(counts * n, len(classes))
    order = np.lexsort((generator.random(len(found)), -remainder))
    quota[order[: n - quota.sum()]] += 1
    drawn = generator.random(len(classes))
    chosen = []
    for number, share in enumerate(quota):
        members = np.flatnonzero(inverse == number)
        chosen.append(members[np.argsort(drawn[members], kind="stable")][:share])
    return np.sort(np.concatenate(chosen)).astype(np.int64)
