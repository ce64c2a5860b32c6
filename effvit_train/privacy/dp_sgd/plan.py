"""One plan couples sampling, clipping, noise and accounting, so that they cannot disagree."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from effvit_train.errors import UserError
from effvit_train.privacy.config import PrivacyConfig
from effvit_train.privacy.dp_sgd.accounting import History, epsilon, find_noise, most_steps


@dataclass(frozen=True)
class Plan:
    """What is done in every step of a private training.

    Attributes:
        images: N, slots of the training split.
        batch: expected batch size, over all processes: each image is in a batch with probability B / N.
        steps: T, of the whole training.
        noise_multiplier: sigma.
        max_grad_norm: C.
        clipping: flat | per_layer | automatic.
        multiplicity: views of an image.
        delta, accountant: of the guarantee.
    """

    images: int
    batch: int
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    clipping: str
    multiplicity: int
    delta: float
    accountant: str

    @property
    def sample_rate(self) -> float:
        """q = B / N."""
        return self.batch / self.images

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients: sigma C."""
        return self.noise_multiplier * self.max_grad_norm

    def history(self, steps: int) -> History:
        """The accountant's history of `steps` steps of this plan."""
        return [(self.noise_multiplier, self.sample_rate, steps)]

    def epsilon(self, before: History, steps: int) -> float:
        """Spent by `before` and `steps` steps of this plan."""
        return epsilon([*before, *self.history(steps)], self.delta, self.accountant)


def check_plan(config: PrivacyConfig, *, images: int, batch: int, steps: int) -> None:
    """Raise `UserError` for a training that cannot keep to its targets, before it begins."""
    plan = make_plan(config, images=images, batch=batch, steps=steps)
    limit = config.max_epsilon
    if limit is not None and plan.epsilon([], 1) > limit:
        raise UserError(
            f"a single step spends {plan.epsilon([], 1):.3g}", key="privacy.max_epsilon", value=limit,
            remedy="a larger noise_multiplier or max_epsilon",
        )  # fmt: skip


def make_plan(
    config: PrivacyConfig,
    *,
    images: int,
    batch: int,
    steps: int,
    start: int = 0,
    before: History = (),
    noise: float | None = None,
    known: bool = False,
    planned: int | None = None,
) -> Plan:
    """The plan of a training, or of the rest of one.

    Args:
        config: `privacy`.
        images: N.
        batch: expected batch size over all processes.
        steps: of the whole training.
        start: steps that are not made any more, because a checkpoint holds their outcome.
        before: what was executed with other noise than this plan's, kept or lost.
        noise: multiplier of the steps so far; it is kept where the target allows it.
        known: steps were made with this very plan: it is what it was.
        planned: steps of the training as it was first planned.

    Raises:
        UserError: the target cannot be met.
    """
    delta = config.delta_of(images)
    plan = Plan(
        images=images,
        batch=batch,
        steps=steps,
        noise_multiplier=noise or config.noise_multiplier or math.nan,
        max_grad_norm=config.max_grad_norm,
        clipping=config.clipping,
        multiplicity=config.multiplicity,
        delta=delta,
        accountant=config.accountant,
    )
    target = config.target
    if target is None or known:
        return plan
    if noise is not None:
        if plan.epsilon(before, steps - start) <= target:
            return plan
        if planned is not None and steps > planned:
            most = most_steps(
                target,
                delta,
                config.accountant,
                sigma=noise,
                rate=plan.sample_rate,
                steps=steps,
                before=before,
            )
            raise UserError(
                f"{steps:,} steps would spend more than privacy.epsilon={target:g} with the noise that the run has",
                key="trainer.max_epochs",
                remedy=f"at most {start + most:,} steps can be made",
            )
    found = find_noise(
        target, delta, config.accountant, rate=plan.sample_rate, steps=steps - start, before=before
    )
    if found is None:
        spent = epsilon(before, delta, config.accountant)
        raise UserError(
            f"{spent:.3g} is spent already" if before else "no noise is enough for it",
            key="privacy.epsilon", value=target, remedy="a larger epsilon, or fewer epochs",
        )  # fmt: skip
    return dataclasses.replace(plan, noise_multiplier=found)
