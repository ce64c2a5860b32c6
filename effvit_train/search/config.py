"""`sweep.*`: typed settings of a search, and where they come from. Needs neither torch nor Optuna."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from effvit_train.budgets import full_key, parse_budgets
from effvit_train.errors import UserError, at_least, did_you_mean, first_line, one_of

SAMPLERS = ("tpe", "nsga2", "random")
_SPACE = "sweep.space."


@dataclass
class SweepConfig:
    """`sweep.*`.

    Attributes:
        trials: how many there are in all, over all workers and starts; failed and stopped ones count.
        workers: processes that this command starts; each trains one trial at a time.
        objectives: measures of the card, each better in the direction that docs/measures.md says.
        budgets: bounds such as `cost/latency_ms<=5`; trials beyond them are not on the front.
        space: what is searched: for each key `{choices: [...]}` or `{low, high, log, step, int}`, and
            `when: {key: value}` for a key that counts only where another has that value.
        sampler: tpe (Ozaki et al. 2020) | nsga2 (Deb et al. 2002) | random.
        startup: trials drawn at random before tpe begins to learn from them.
        population: of a generation, with nsga2.
        seed: of the sampler; the trials' own is `seed`.
        storage: URL of a database that Optuna knows; null = a journal file in the study's directory.
        prune_after: share of a training before which no trial is stopped early; null = none is stopped.
        max_failures: failed trials in a row after which a worker gives up.
    """

    trials: int = 40
    workers: int = 1
    objectives: list[str] = field(default_factory=lambda: ["quality/accuracy", "cost/macs"])
    budgets: list[str] = field(default_factory=list)
    space: dict[str, Any] = field(default_factory=dict)
    sampler: str = "tpe"
    startup: int = 10
    population: int = 20
    seed: int = 0
    storage: Optional[str] = None
    prune_after: Optional[float] = 0.5
    max_failures: int = 5

    def validate(self) -> None:
        """Raise `UserError` for a value that cannot be; gives objectives their whole names."""
        for key, low in (
            ("trials", 1), ("workers", 1), ("startup", 1), ("population", 2), ("seed", 0), ("max_failures", 1),
        ):  # fmt: skip
            at_least(f"sweep.{key}", getattr(self, key), low)
        one_of("sweep.sampler", self.sampler, SAMPLERS)
        if not self.objectives:
            raise UserError(
                "names nothing to search for", key="sweep.objectives", value="[]",
                remedy="e.g. 'sweep.objectives=[quality/accuracy,cost/macs]'",
            )  # fmt: skip
        self.objectives = [full_key(name, key="sweep.objectives") for name in self.objectives]
        if len(set(self.objectives)) < len(self.objectives):
            raise UserError("names a measure twice", key="sweep.objectives", remedy="once is enough")
        parse_budgets(self.budgets, key="sweep.budgets")
        if self.prune_after is not None and not 0 <= self.prune_after < 1:
            raise UserError(
                "must be in [0, 1)",
                key="sweep.prune_after",
                value=self.prune_after,
                remedy="e.g. 0.5, or null",
            )


def sweep_options(directories: Iterable[Path]) -> dict[str, Path]:
    """The files `sweep/*.yaml` of the configuration directories, by option; later directories win."""
    return {
        path.stem: path for directory in directories for path in sorted((directory / "sweep").glob("*.yaml"))
    }


def read_sweep(option: str, directories: Sequence[Path], typed: Sequence[Override]) -> SweepConfig:
    """The settings of `sweep=OPTION` and the `sweep.KEY=VALUE` that were typed; the space is not checked here.

    Raises:
        UserError: no such option, an unknown key, a wrong type, an impossible value.
    """
    options = sweep_options(directories)
    if option not in options:
        hint = did_you_mean(option, options) or "e.g. sweep=pareto"
        raise UserError(f"must be one of {', '.join(options)}", key="sweep", value=option, remedy=hint)
    try:
        values = OmegaConf.to_container(OmegaConf.load(options[option]))
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{options[option]} cannot be read ({first_line(error)})") from None
    if not isinstance(values, dict):
        raise UserError(f"{options[option]} is no mapping", remedy="see docs/search.md")
    settings = {str(key): value for key, value in values.items()}
    for override in typed:
        _set(settings, override)
    return from_settings(settings)


def from_settings(settings: dict[str, Any]) -> SweepConfig:
    """Check plain settings against the schema."""
    known = [item.name for item in fields(SweepConfig)]
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, known) or f"allowed: {', '.join(known)}"
            raise UserError("unknown key", key=f"sweep.{key}", remedy=hint)
    space = settings.get("space") or {}
    if not isinstance(space, dict):
        raise UserError(
            "must be a mapping of keys", key="sweep.space", value=space, remedy="see docs/search.md"
        )
    config = OmegaConf.structured(SweepConfig)
    for key, value in settings.items():
        if key == "space":
            continue
        try:
            config[key] = value
        except OmegaConfBaseException as error:
            raise UserError(
                first_line(error), key=f"sweep.{key}", value=value, remedy="see docs/search.md"
            ) from None
    made = OmegaConf.to_object(config)
    assert isinstance(made, SweepConfig)
    made.space = {str(key): value for key, value in space.items()}  # its keys hold dots: not for OmegaConf
    made.validate()
    return made


def _set(settings: dict[str, Any], override: Override) -> None:
    key = override.key_or_group
    if override.is_sweep_override():
        raise UserError("one value only", key=key, remedy="a list is written '[a,b]'")
    if key.startswith(_SPACE):
        space = dict(settings.get("space") or {})
        name = key.removeprefix(_SPACE)
        if override.is_delete():
            if name not in space:
                raise UserError(
                    "is not in the space", key=key, remedy=f"it holds {', '.join(space) or 'nothing'}"
                )
            del space[name]
        else:
            space[name] = override.value()
        settings["space"] = space
        return
    if override.is_delete():
        raise UserError("cannot be left out", key=key, remedy="give another value")
    settings[key.removeprefix("sweep.")] = override.value()
