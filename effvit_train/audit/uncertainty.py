"""Doubt: which answers to withhold, which images come from elsewhere, and what several models make of an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from effvit_train.audit.attack.figures import auc, tpr_at_fpr
from effvit_train.card import Measured
from effvit_train.keys import stream_key

Floats = npt.NDArray[np.float64]
Score = Literal["msp", "energy", "entropy"]

OOD = "calibration/ood_auroc"
_CURVE = 100  # points of a risk-coverage curve that are kept


def doubt_of(logits: Tensor) -> Floats:
    """(N,) probability that the model gives to all classes but the most likely one, from logits (N, K).

    It is 1 - max softmax, computed without the subtraction: where the softmax has become 1 to the last
    digit, doubts still differ, and so does the order of the images.
    """
    z = logits.detach().to("cpu", torch.float64)
    others = (z - z.max(dim=1, keepdim=True).values).exp()
    others.scatter_(1, z.argmax(dim=1, keepdim=True), 0.0)
    total = others.sum(dim=1)
    return (total / (1 + total)).numpy()


@dataclass(frozen=True)
class Selective:
    """Answers by growing doubt: what is wrong among the first k (El-Yaniv & Wiener 2010).

    Attributes:
        risk: (N,) share of wrong answers among the k = 1..N least doubted ones. Among equal doubts the order
            is random, and the risk its expectation: it does not depend on the order of the images.
    """

    risk: Floats

    @classmethod
    def of(cls, doubt: npt.ArrayLike, right: npt.ArrayLike) -> Selective:
        """From doubts (N,) and which answers are right (N,); N at least 1."""
        values, truth = np.asarray(doubt, dtype=np.float64), np.asarray(right, dtype=np.bool_)
        if values.ndim != 1 or values.shape != truth.shape or not len(values) or np.isnan(values).any():
            raise ValueError(
                f"doubt {values.shape} and right {truth.shape} do not match, or are empty or NaN"
            )
        _, tied, size = np.unique(values, return_inverse=True, return_counts=True)
        wrong = np.bincount(tied, weights=~truth) / size  # of a random one of its ties, ascending doubt
        return cls(np.cumsum(np.repeat(wrong, size)) / np.arange(1, len(values) + 1))

    @property
    def aurc(self) -> float:
        """Mean risk over all coverages 1/N..1: the area under the curve (Geifman & El-Yaniv 2017)."""
        return float(self.risk.mean())

    @property
    def excess(self) -> float:
        """The area above that of the best order of the same answers, wrong ones last (Geifman et al. 2019)."""
        count = len(self.risk)
        wrong = round(self.risk[-1] * count)
        best = np.concatenate([np.zeros(count - wrong), np.arange(1, wrong + 1)]) / np.arange(1, count + 1)
        return self.aurc - float(best.mean())

    @property
    def generalized(self) -> float:
        """AUGRC: mean over coverages of wrong and answered, as a share of all images (Traub et al. 2024)."""
        count = len(self.risk)
        return float((self.risk * np.arange(1, count + 1) / count).mean())

    def answered(self, coverage: float) -> int:
        """How many answers are a share of at least `coverage`."""
        return max(1, math.ceil(coverage * len(self.risk) - 1e-9))  # 0.07 x 100 is 7.000000000000001

    def accuracy(self, coverage: float) -> float:
        """Share of right answers among the least doubted, of which there are `answered(coverage)`."""
        return float(1 - self.risk[self.answered(coverage) - 1])

    def curve(self) -> dict[str, list[float]]:
        """The risk at coverages of 1, 2, ... 100 %, or at every one where there are fewer images."""
        count = len(self.risk)
        kept = sorted({self.answered(point / _CURVE) for point in range(1, _CURVE + 1)})
        return {
            "coverage": [k / count for k in kept],
            "risk": [round(float(self.risk[k - 1]), 6) for k in kept],
        }


def ood_scores(logits: Tensor, score: Score = "msp") -> Floats:
    """(N,) how foreign each image looks, higher = more, from logits (N, K).

    `msp`: 1 - the largest probability (Hendrycks & Gimpel 2017). `energy`: -log sum exp of the logits (Liu et
    al. 2020); it needs logits, log-probabilities of an ensemble all have energy 0. `entropy`: of the
    probabilities, in nats.
    """
    if score not in get_args(Score):
        raise ValueError(f"score={score!r} is none of {', '.join(get_args(Score))}")
    if score == "msp":
        return doubt_of(logits)
    z = logits.detach().to("cpu", torch.float64)
    if score == "energy":
        return (-z.logsumexp(dim=1)).numpy()
    return torch.special.entr(z.softmax(dim=1)).sum(dim=1).numpy()


def ood_auroc(in_logits: Tensor, out_logits: Tensor, score: Score = "msp") -> tuple[Measured, dict[str, Any]]:
    """How well the model's own doubt tells images of another kind from test images.

    Args:
        in_logits: (N, K) of test images.
        out_logits: (M, K) of images that belong to none of the classes.
        score: see `ood_scores`.

    Returns:
        The measure, or why there is none, and for the provenance its 95 % interval and the share of foreign
        images that are found when 5 % of the test images are taken for such (1 - "FPR at 95 % TPR").

    Raises:
        ValueError: shapes that do not belong together, or an unknown score.
    """
    if in_logits.ndim != 2 or out_logits.ndim != 2 or in_logits.shape[1] != out_logits.shape[1]:
        raise ValueError(f"logits {tuple(in_logits.shape)} and {tuple(out_logits.shape)} do not match")
    if in_logits.shape[1] < 2 and score != "energy":
        return _no_ood("one class leaves nothing to doubt")
    for logits, what in ((in_logits, "test images"), (out_logits, "images from elsewhere")):
        if reason := unusable(logits, what):
            return _no_ood(reason)
    return ood_auroc_of_scores(ood_scores(in_logits, score), ood_scores(out_logits, score), score)


def ood_auroc_of_scores(
    inside: npt.ArrayLike, outside: npt.ArrayLike, score: str
) -> tuple[Measured, dict[str, Any]]:
    """The same from any score (N,) and (M,), higher = more foreign, such as `Predictive.mutual_information`."""
    own, foreign = np.asarray(inside, dtype=np.float64), np.asarray(outside, dtype=np.float64)
    for values, what in ((own, "test images"), (foreign, "images from elsewhere")):
        if not len(values):
            return _no_ood(f"there are no {what}")
        if bad := int(np.isnan(values).sum()):
            return _no_ood(f"the score of {bad} of {len(values)} {what} is not a number")
    scores = np.concatenate([own, foreign])
    truth = np.arange(len(scores)) >= len(own)
    area, found = auc(scores, truth), tpr_at_fpr(scores, truth, 0.05)
    facts = {
        "score": score, "images": len(own), "images_from_elsewhere": len(foreign),
        "intervals": {OOD: [area.low, area.high]},
        "found_at_5pct_false_alarms": {"value": found.value, "interval": [found.low, found.high]},
    }  # fmt: skip
    return Measured({OOD: area.value}), facts


def unusable(logits: Tensor, what: str) -> str:
    """Why these logits (N, K) give no figures; "" if they do."""
    if not len(logits):
        return f"there are no {what}"
    if bad := int((~logits.isfinite().all(dim=1)).sum()):
        return f"the logits of {bad} of {len(logits)} {what} are not finite"
    return ""


def _no_ood(reason: str) -> tuple[Measured, dict[str, Any]]:
    return Measured(missing={OOD: reason}), {}


@dataclass(frozen=True)
class Predictive:
    """What several models, or one model several times, make of N images. Entropies are in nats.

    Attributes:
        log_probabilities: (N, K) log of the mean of the probabilities; goes wherever logits go.
        members: how many there were.
        entropy: (N,) of the mean: all the uncertainty.
        expected_entropy: (N,) mean of the members' entropies: the part that each of them sees by itself.
    """

    log_probabilities: Tensor
    members: int
    entropy: Tensor
    expected_entropy: Tensor

    @property
    def mutual_information(self) -> Tensor:
        """(N,) how much the members contradict each other: the rest (Houlsby et al. 2011)."""
        return (self.entropy - self.expected_entropy).clamp_min(0.0)  # rounding alone makes it negative

    def facts(self) -> dict[str, Any]:
        """Means over the images, for the provenance; None where they are not finite."""
        means = {
            "entropy": self.entropy,
            "expected_entropy": self.expected_entropy,
            "mutual_information": self.mutual_information,
        }
        found = {name: float(each.mean()) for name, each in means.items()}
        return {
            "members": self.members,
            **{name: mean if math.isfinite(mean) else None for name, mean in found.items()},
        }


def ensemble(probabilities: Iterable[Tensor]) -> Predictive:
    """The mean of members' probabilities (Lakshminarayanan et al. 2017, section 2.4).

    Args:
        probabilities: (N, K) of each member, taken one at a time.

    Raises:
        ValueError: no member, different shapes, or rows that are not probabilities (logits, say). Rows with
            numbers that are not finite stay so.
    """
    total, own, members = torch.empty(0), torch.empty(0), 0
    for each in probabilities:
        p = each.detach().to("cpu", torch.float64)
        sums = p.sum(dim=-1)
        if p.ndim != 2 or (members and p.shape != total.shape):
            raise ValueError(f"member {members}: probabilities {tuple(p.shape)}, others {tuple(total.shape)}")
        if (p < 0).any() or ((sums - 1).abs() > 1e-2)[sums.isfinite()].any():  # 1e-2: of bfloat16
            raise ValueError(f"member {members}: rows are not probabilities")
        p = p / sums[:, None]
        entropy = torch.special.entr(p).sum(dim=1)
        total, own = (total + p, own + entropy) if members else (p, entropy)
        members += 1
    if not members:
        raise ValueError("an ensemble needs a member")
    mean = total / members
    # The smallest number of float32, not 0: its logarithm is finite, also for those who store it as float32.
    logs = mean.clamp_min(torch.finfo(torch.float32).tiny).log()
    return Predictive(logs, members, torch.special.entr(mean).sum(dim=1), own / members)


def dropout_layers(model: nn.Module) -> dict[str, float]:
    """Module name -> rate of what drops units, paths or attention weights in training; rates of 0 left out.

    Fused attention drops weights by the rate of its child `attn_drop`, in its own mode, without calling the
    child: the attention itself is named too. `PatchDropout` is not: it hides a part of the image, not of the
    model. Functional dropout inside a `forward` cannot be seen.
    """
    return {name: rate for name, module in model.named_modules() if (rate := _rate(module)) > 0}


def _rate(module: nn.Module) -> float:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    if isinstance(module, DropPath):
        return float(module.drop_prob or 0.0)
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout
    child = getattr(module, "attn_drop", None)
    if isinstance(child, nn.modules.dropout._DropoutNd):
        return child.p
    rate = getattr(module, "attn_drop_p", 0.0)  # timm's parallel blocks keep only the number
    return float(rate) if isinstance(rate, (int, float)) else 0.0


@contextmanager
def active_dropout(model: nn.Module) -> Iterator[None]:
    """Let dropout work in evaluation too; all other modules, normalisation above all, keep their mode.

    A layer is in training mode only while it is called: whoever calls `model.eval()` in between, as
    `predictions.predict` does, switches nothing off, and afterwards every mode is what it was.

    Raises:
        ValueError: there is no dropout with a rate above 0.
    """
    names = dropout_layers(model)
    if not names:
        raise ValueError("the model has no dropout that is active in training")
    hooks = []
    try:
        for name in names:
            module, switch = model.get_submodule(name), _Switch()
            hooks += [
                module.register_forward_pre_hook(switch.on),
                module.register_forward_hook(switch.off, always_call=True),
            ]
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Switch:
    """Training mode of one module, without its children, for the time of a call."""

    def __init__(self) -> None:
        self._before = False

    def on(self, module: nn.Module, inputs: Any) -> None:
        self._before, module.training = module.training, True

    def off(self, module: nn.Module, inputs: Any, output: Any) -> None:
        module.training = self._before


def mc_dropout(
    model: nn.Module, predict_logits: Callable[[], Tensor], passes: int = 20, seed: int = 0
) -> Predictive:
    """Mean of the probabilities of many passes with dropout on (Gal & Ghahramani 2016, section 4).

    Equal arguments give equal bits as long as the batches are the same; the global generators are as before.

    Args:
        model: with dropout, stochastic depth or attention dropout above 0.
        predict_logits: logits (N, K) of the images by this model; called once a pass.
        passes: how many.
        seed: of the masks.

    Raises:
        ValueError: the model has no active dropout, or `passes` is below 1.
    """
    if passes < 1:
        raise ValueError(f"passes={passes} is below 1")
    # `manual_seed` sets the generators of all GPUs
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []

    def each() -> Iterator[Tensor]:
        for number in range(passes):
            torch.manual_seed(stream_key("mc_dropout", seed, number))
            yield predict_logits().detach().double().softmax(dim=1)

    with active_dropout(model), torch.random.fork_rng(devices=devices), torch.no_grad():
        return ensemble(each())
