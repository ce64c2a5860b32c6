"""Which steps were executed, on disk before they are: epsilon is never under-reported (contract C7).

Making a step again with the same stream publishes the same values: it counts once. Steps that were made with
another stream and whose outcome is lost count too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from effvit_train.errors import UserError
from effvit_train.files import read_json, sync_directory, write_json
from effvit_train.privacy.dp_sgd.accounting import History

FILE = "privacy.json"
_SCHEMA = 1


@dataclass
class Phase:
    """Steps `first` to `last - 1` of the training, with one stream.

    Attributes:
        stream: its id.
        noise_multiplier, sample_rate: of its steps.
        first, last: the steps; `last` may be ahead of what was executed.
    """

    stream: str
    noise_multiplier: float
    sample_rate: float
    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many."""
        return self.last - self.first


class Ledger:
    """The phases of a run.

    Args:
        path: of the file; it is read if it is there.
        block: steps that are written down ahead, at once.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, path: Path, block: int = 1) -> None:
        self.path, self.block = path, block
        self.planned: int | None = None
        self.phases: list[Phase] = []
        if path.exists():
            try:
                content = read_json(path)
                if content["schema"] != _SCHEMA:
                    raise ValueError
                self.planned = int(content["planned"])
                self.phases = [_phase(entry) for entry in content["phases"]]
            except (OSError, ValueError, TypeError, KeyError):
                raise UserError(
                    f"{path.name} is damaged: what was spent is not known", key="resume", value=path.parent,
                    remedy="give back the file, or start a new run",
                ) from None  # fmt: skip

    def open(self, phase: Phase, planned: int) -> None:
        """Take up a phase, or take it up again, at its `first` step."""
        self.planned = max(planned, self.planned or 0)
        known = self._of(phase.stream)
        if known is None:
            self.phases.append(phase)
        else:
            known.first = min(known.first, phase.first)
        self._write()

    def reserve(self, stream: str, step: int, end: int) -> None:
        """Write down that steps up to `step`, and a block ahead up to `end`, may have been executed."""
        phase = self._phase(stream)
        if step >= phase.last:
            phase.last = max(step + 1, min(step + self.block, end))
            self._write()

    def settle(self, stream: str, steps: int) -> None:
        """Of what this process wrote down ahead, steps from `steps` on were not executed."""
        phase = self._phase(stream)
        if steps < phase.last:
            phase.last = max(steps, phase.first)
            self._write()

    def others(self, stream: str) -> History:
        """What was spent with other streams."""
        return [(p.noise_multiplier, p.sample_rate, p.steps) for p in self.phases if p.stream != stream]

    def knows(self, stream: str) -> bool:
        """Whether steps may have been made with this stream."""
        return self._of(stream) is not None

    def noise(self, stream: str) -> float | None:
        """The multiplier of this stream, or of the latest one; None before the first."""
        phase = self._of(stream) or (self.phases[-1] if self.phases else None)
        return None if phase is None else phase.noise_multiplier

    def last(self, stream: str) -> int:
        """One more than the last step that may have been executed with this stream; 0 where none was."""
        phase = self._of(stream)
        return 0 if phase is None else phase.last

    def _of(self, stream: str) -> Phase | None:
        return next((phase for phase in self.phases if phase.stream == stream), None)

    def _phase(self, stream: str) -> Phase:
        found = self._of(stream)
        assert found is not None
        return found

    def _write(self) -> None:
        content = {
            "schema": _SCHEMA, "planned": self.planned, "phases": [asdict(phase) for phase in self.phases],
        }  # fmt: skip
        write_json(self.path, content)
        sync_directory(self.path.parent)


def _phase(entry: object) -> Phase:
    if not isinstance(entry, dict):
        raise ValueError
    phase = Phase(**entry)
    numbers = (phase.noise_multiplier, phase.sample_rate, phase.first, phase.last)
    if not isinstance(phase.stream, str) or not all(isinstance(n, (int, float)) for n in numbers):
        raise ValueError
    if not (phase.noise_multiplier > 0 and 0 < phase.sample_rate <= 1 and 0 <= phase.first <= phase.last):
        raise ValueError
    return phase
