"""What follows when a run's card has been written again: its page, and its W&B run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from effvit_train.card import Card
from effvit_train.config import Config
from effvit_train.report.baseline import Baseline, find_baseline
from effvit_train.report.html import write_html
from effvit_train.report.tracking import start
from effvit_train.runs import RunDir, RunState


def publish(run_dir: RunDir, card: Card, config: Config, say: Callable[[str], None]) -> Baseline:
    """Write `card.html`, and put the card into the W&B run of the training where there is one.

    Args:
        run_dir: of the run.
        card: that stands in it.
        config: of the training.
        say: prints one line.

    Returns:
        What the card is compared with.
    """
    baseline = find_baseline(run_dir.path, card)
    write_html(run_dir.path, baseline=baseline)
    if config.logger.enabled and (run_dir.path / "wandb").is_dir():
        tracker = start(
            config.logger, run_dir=run_dir.path, run_id=RunState.read(run_dir.state).id, name=str(card.run["name"]),
            settings=asdict(config), resumed=True, say=say, private=config.privacy.on,
        )  # fmt: skip
        tracker.card(card)
        tracker.finish()
    return baseline
