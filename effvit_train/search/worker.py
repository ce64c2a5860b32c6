"""What a worker does: take a trial, evaluate it, tell; until there is none left."""

from __future__ import annotations

import time
from collections.abc import Callable

from effvit_train.errors import UserError
from effvit_train.search.study import FAILED, Outcome, SharedStudy, Turn

_PAUSE = 1.0  # seconds between two looks at what other workers of this machine are doing


def work(
    study: SharedStudy,
    evaluate: Callable[[Turn], Outcome],
    *,
    stopped: Callable[[], bool] = lambda: False,
    pause: float = _PAUSE,
) -> None:
    """Work on a study until it has all its trials, or `stopped()`.

    A worker with nothing to take stays while others of its machine have trials: it takes them up if they
    are killed. It does not wait for other machines.

    Args:
        study: shared.
        evaluate: what a trial is worth.
        stopped: asked between two trials.
        pause: seconds between two looks while waiting.

    Raises:
        UserError: `sweep.max_failures` of its trials in a row have failed.
    """
    failures = 0
    while not stopped():
        turn = study.take()
        if turn is None:
            if not study.busy_here():
                return
            time.sleep(pause)
            continue
        try:
            outcome = evaluate(turn)
        except BaseException:
            study.release(turn)
            raise
        study.finish(turn, outcome)
        failures = failures + 1 if outcome.state == FAILED else 0
        if failures >= study.definition.sweep.max_failures:
            raise UserError(
                f"{failures} trials in a row have failed, the last: {outcome.reason}", key="sweep.max_failures",
                value=failures, remedy="mend what they say, or type a larger number; the same command goes on",
            )  # fmt: skip
