"""`privacy.*`: typed settings of differentially private training. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from effvit_train.errors import UserError, at_least, between, one_of

ENGINES = ("bookkeeping", "opacus_ghost", "opacus_hooks", "vmap")
CLIPPINGS = ("flat", "per_layer", "automatic")
ACCOUNTANTS = ("prv", "rdp")
NOISE_SOURCES = ("philox", "shake256")
DEFAULT_EPSILON = 8.0
LEAST_NOISE = 0.01  # below it the accountants find no bound


@dataclass
class PrivacyConfig:
    """`privacy.*`. The guarantee and its unit are those of contract C7 (docs/privacy.md).

    Attributes:
        mechanism: none | dp_sgd.
        epsilon: what may be spent on the whole training: the noise is chosen for it. Neither this nor
            `noise_multiplier` is 8.
        delta: of the guarantee; `auto` is 1 / N^1.1 for N training images.
        noise_multiplier: sigma, instead of `epsilon`: standard deviation of the noise over `max_grad_norm`.
        accountant: prv (Gopi et al. 2021) | rdp (Mironov et al. 2019).
        max_grad_norm: C, what one image may contribute to a step, in the 2-norm.
        clipping: flat | per_layer | automatic (Bu et al. 2023).
        engine: how per-image gradients are clipped: bookkeeping | opacus_ghost | opacus_hooks | vmap.
        max_physical_batch: images that are in memory with their activations at once; null = 32.
        multiplicity: views of each image that are averaged before clipping (De et al. 2022, section 3.2).
        max_epsilon: training stops before more is spent; null = it runs to its end.
        secret: file that selection and noise derive from; null makes one in the run directory.
        noise_source: philox (128-bit key) | shake256 (cryptographic).
        public: names of data sets that weights or teachers may have seen, because they are public.
    """

    mechanism: str = "none"
    epsilon: Optional[float] = None
    delta: Any = "auto"
    noise_multiplier: Optional[float] = None
    accountant: str = "prv"
    max_grad_norm: float = 1.0
    clipping: str = "flat"
    engine: str = "bookkeeping"
    max_physical_batch: Optional[int] = None
    multiplicity: int = 1
    max_epsilon: Optional[float] = None
    secret: Optional[str] = None
    noise_source: str = "philox"
    public: list[str] = field(default_factory=list)

    @property
    def on(self) -> bool:
        """Whether training is private."""
        return self.mechanism != "none"

    @property
    def target(self) -> float | None:
        """The epsilon that the noise is chosen for; None where the noise is given."""
        return None if self.noise_multiplier is not None else self.epsilon or DEFAULT_EPSILON

    def delta_of(self, images: int) -> float:
        """delta for N training images."""
        return float(images**-1.1) if self.delta == "auto" else float(self.delta)

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be."""
        one_of("privacy.mechanism", self.mechanism, ("none", "dp_sgd"))
        if not self.on:
            self._check_idle()
            return
        if self.epsilon is not None and self.noise_multiplier is not None:
            raise UserError(
                "is chosen for privacy.epsilon: both cannot be given", key="privacy.noise_multiplier",
                value=self.noise_multiplier, remedy="leave one of them out",
            )  # fmt: skip
        for key in ("epsilon", "noise_multiplier", "max_grad_norm", "max_epsilon"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise UserError("must be positive", key=f"privacy.{key}", value=value, remedy="e.g. 1.0")
        if self.noise_multiplier is not None and self.noise_multiplier < LEAST_NOISE:
            raise UserError(
                f"is too little to promise anything: at least {LEAST_NOISE:g}", key="privacy.noise_multiplier",
                value=self.noise_multiplier, remedy="e.g. privacy.noise_multiplier=1.0",
            )  # fmt: skip
        self._check_delta()
        one_of("privacy.accountant", self.accountant, ACCOUNTANTS)
        one_of("privacy.clipping", self.clipping, CLIPPINGS)
        one_of("privacy.engine", self.engine, ENGINES)
        one_of("privacy.noise_source", self.noise_source, NOISE_SOURCES)
        at_least("privacy.max_physical_batch", self.max_physical_batch, 1)
        at_least("privacy.multiplicity", self.multiplicity, 1)

    def _check_delta(self) -> None:
        if self.delta == "auto":
            return
        try:
            self.delta = float(self.delta)
        except (TypeError, ValueError):
            raise UserError(
                "must be auto or a number", key="privacy.delta", value=self.delta, remedy="e.g. 1e-5"
            ) from None
        between("privacy.delta", self.delta, 1e-300, 1.0, example="1e-5")

    def _check_idle(self) -> None:
        idle = PrivacyConfig()
        for key, value in vars(self).items():
            if value != getattr(idle, key):
                raise UserError(
                    "has no effect without differential privacy", key=f"privacy.{key}", value=value,
                    remedy="add privacy=dp_sgd",
                )  # fmt: skip
