"""What a trial's process leaves behind, without training: curves, state, card; SIGINT ends it after a step."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from effvit_train.card import Card, Measured
from effvit_train.errors import UserError
from effvit_train.runs import RunDir, RunState

EPOCHS = 10


def main(arguments: dict[str, str]) -> int:
    again = "resume" in arguments
    run = RunDir(Path(arguments["resume" if again else "run_dir"]))
    if not again:
        if arguments.get("recipe.lr") == "13":
            print("error: recipe.lr=13: must be less; e.g. 1e-3", file=sys.stderr)
            return 2
        run.config.parent.mkdir(parents=True)
        lines = [f"{key}: {value}" for key, value in arguments.items()]
        run.config.write_text(f"trainer: {{max_epochs: {EPOCHS}}}\n" + "\n".join(lines) + "\n")
    typed = dict(line.split(": ") for line in run.config.read_text().splitlines()[1:])
    state = RunState.read(run.state) if again else RunState.new()
    state.status, state.resumes = "running", state.resumes + again
    state.write(run.state)
    asked = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    accuracy = float(typed["recipe.lr"])  # a straight line up to it
    for epoch in range(state.epochs + 1, EPOCHS + 1):
        rows = [f"{e},{e},{accuracy * e / EPOCHS}" for e in range(1, epoch + 1)]
        run.metrics.write_text("epoch,step,val/accuracy\n" + "\n".join(rows) + "\n")
        state.epochs = epoch
        state.write(run.state)
        if typed.get("dies") == str(epoch) and not again:
            signal.raise_signal(signal.SIGKILL)
        time.sleep(float(typed.get("pause", 0)))
        if asked:
            state.status = "interrupted"
            state.write(run.state)
            return 130
    state.status = "done"
    state.write(run.state)
    values = {"quality/accuracy": 0.123, "cost/macs": float(typed.get("macs", 100))}
    Card.of(run={}, model={}, measured=Measured(values), provenance={}).write(run.card)
    return 0


if __name__ == "__main__":
    pairs = [argument.partition("=") for argument in sys.argv[1:]]
    try:
        sys.exit(main({key: value for key, _, value in pairs}))
    except UserError as error:
        sys.exit(f"error: {error}")
