"""How the cost of a model grows with the number of tokens: its record, rebuilt for other image sizes.

On the meta device nothing is allocated and nothing computed, so that arithmetic and memory are known at any
size within a second. Exponents are slopes: 2 means that twice the tokens cost four times as much.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from effvit_train.audit.tally import count_tokens, take_tally
from effvit_train.errors import first_line
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord

FACTORS = (1, 2, 3, 4)  # of the image's sides: multiples stay divisible by the patch


@dataclass(frozen=True)
class Exponent:
    """A power law cost = c x size^value, fitted by least squares to the logarithms.

    Attributes:
        value: the exponent.
        stderr: its standard error, from the scatter of the points about the line; None with two points,
            through which every line goes.
        points: how many.
    """

    value: float
    stderr: float | None
    points: int

    def to_json(self) -> dict[str, Any]:
        """For the card's provenance."""
        return asdict(self)


@dataclass(frozen=True)
class Point:
    """A model at one image size.

    Attributes:
        input_shape: (C, H, W).
        tokens: see `count_tokens`.
        macs: of the whole model for one image.
        flops: 2 x MACs + elementwise work, Fourier transforms included.
        attention_macs: of attention products alone.
        mixing_flops: of what lets tokens see one another: attention products with their softmax, Fourier and
            wavelet mixers.
        peak_bytes: most memory that the activations of one image hold at once.
        weight_bytes: parameters and buffers.
    """

    input_shape: tuple[int, int, int]
    tokens: int | None
    macs: int
    flops: int
    attention_macs: int
    mixing_flops: int
    peak_bytes: int
    weight_bytes: int


def fit_exponent(sizes: Sequence[float], costs: Sequence[float]) -> Exponent:
    """Fit log cost = a + value x log size by least squares.

    The standard error is sqrt(RSS / (n - 2) / sum (log size - mean)^2). For costs that are counted and not
    measured it tells how far the growth is from a single power, and nothing about chance.

    Raises `ValueError` for fewer than two different sizes, or a size or cost that is not positive.
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2 or min(*sizes, *costs) <= 0:
        raise ValueError("an exponent takes two different sizes or more, all sizes and costs positive")
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    count = len(x)
    middle_x, middle_y = math.fsum(x) / count, math.fsum(y) / count
    spread = math.fsum((a - middle_x) ** 2 for a in x)
    slope = math.fsum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    rest = math.fsum((b - middle_y - slope * (a - middle_x)) ** 2 for a, b in zip(x, y, strict=True))
    stderr = math.sqrt(rest / (count - 2) / spread) if count > 2 else None
    return Exponent(slope, stderr, count)


def at_factor(record: ArchitectureRecord, factor: int) -> ArchitectureRecord:
    """The same architecture for images whose sides are `factor` times as long; cuts are kept."""
    channels, height, width = record.input_shape
    sides = height * factor, width * factor
    kwargs = dict(record.kwargs)
    if "img_size" in kwargs:  # architectures that take any size were built without it
        kwargs["img_size"] = sides[0] if sides[0] == sides[1] else list(sides)
    return dataclasses.replace(record, kwargs=kwargs, input_shape=(channels, *sides))


def meta_model(record: ArchitectureRecord) -> nn.Module:
    """The model of a record on the meta device, in evaluation mode; leaves the random state alone."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        warnings.simplefilter("ignore")
        return build(record).eval()


def point(model: nn.Module, input_shape: tuple[int, int, int]) -> Point:
    """What one image of this shape costs."""
    tally = take_tally(model, input_shape)
    return Point(
        input_shape=input_shape, tokens=count_tokens(model, input_shape), macs=tally.macs, flops=tally.flops,
        attention_macs=sum(layer.macs for layer in tally.of_kind("attention_products")),
        mixing_flops=sum(layer.flops for layer in tally.of_kind("attention_products", "spectral_mixing")),
        peak_bytes=tally.peak_bytes, weight_bytes=tally.weight_bytes,
    )  # fmt: skip


def grow(
    record: ArchitectureRecord, factors: Sequence[int] = FACTORS
) -> tuple[dict[int, Point], list[dict[str, Any]]]:
    """The record's model at multiples of its image sides, on the meta device.

    Returns the points by factor, and the factors that the architecture does not take, each with the reason.
    """
    points: dict[int, Point] = {}
    refused = []
    for factor in factors:
        larger = at_factor(record, factor)
        try:
            points[factor] = point(meta_model(larger), larger.input_shape)
        except Exception as error:  # the architecture's own layers complain in many ways
            refused.append({"factor": factor, "reason": first_line(error)})
    return points, refused


def sizes_of(points: Sequence[Point]) -> tuple[list[float], str]:
    """What growth is set against, and its name: `tokens`, or `pixels` where tokens are not known throughout.

    Pixels are, but for the class token, a constant times as many, which leaves exponents as they are.
    """
    tokens = [p.tokens for p in points if p.tokens is not None]
    if len(tokens) == len(points):
        return [float(count) for count in tokens], "tokens"
    return [float(p.input_shape[1] * p.input_shape[2]) for p in points], "pixels"


def exponents(points: Sequence[Point]) -> dict[str, Exponent]:
    """The exponents of `macs`, `flops`, `attention_macs`, `mixing_flops` and `peak_bytes` in the size.

    What a model has none of, it has no exponent of.
    """
    sizes, _ = sizes_of(points)
    found = {}
    for name in ("macs", "flops", "attention_macs", "mixing_flops", "peak_bytes"):
        costs = [float(getattr(p, name)) for p in points]
        if all(costs):
            found[name] = fit_exponent(sizes, costs)
    return found
