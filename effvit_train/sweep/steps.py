"""A sweep of named steps instead of every combination: what `experiment=first_steps` runs.

Each job gets its step's overrides as if the user had typed them, so that the cards of a step are those of an
ordinary run and are compared with ordinary runs.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List  # noqa: UP035  (OmegaConf reads these of the schema at run time)

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, flag_override

from effvit_train.errors import UserError, did_you_mean

# A step that names another of these goes without what the user set below it: that was meant for the user's own.
_REPLACED = ("model", "recipe", "dataset")
_TARGET = "hydra_plugins.effvit_train.StepsSweeper"
_SWITCHED_OFF = ("", "none", "null", "[]", "[none]")


class StepsSweeper(Sweeper):
    """Runs every step with every combination of what the user typed, and with several seeds.

    Args:
        name: of the set, for what is printed.
        seeds: where the user typed none.
        steps: step -> the overrides that make it.
        only: the steps to run, empty for all.
    """

    def __init__(
        self, name: str, seeds: Sequence[int], steps: Mapping[str, Sequence[str]], only: Sequence[str]
    ) -> None:
        self.name = name
        self.seeds = list(seeds)
        self.steps = {step: list(overrides) for step, overrides in steps.items()}
        self.only = list(only)
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's call before `sweep`."""
        config = copy.deepcopy(config)
        with flag_override(config, ["readonly", "struct"], False):
            # jobs are composed with Hydra's overrides, and know nothing of this sweeper's
            mine = config.hydra.overrides.hydra
            config.hydra.overrides.hydra = [
                item for item in mine if not _key(item).startswith("hydra.sweeper")
            ]
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launch the jobs, step by step.

        Raises:
            UserError: `only` names another step, or the user typed what the steps are there to set.
        """
        assert self.config is not None
        assert self.launcher is not None
        typed = [item for item in arguments if _key(item) != "experiment"]
        if not any(_key(item) == "seed" for item in typed):
            typed.append("seed=" + ",".join(map(str, self.seeds)))
        for step in self.only:
            if step not in self.steps:
                hint = did_you_mean(step, self.steps) or f"one of {', '.join(self.steps)}"
                raise UserError("is no step", key="hydra.sweeper.only", value=step, remedy=hint)
        steps = {step: self.steps[step] for step in self.only or self.steps}
        named = expand(steps, combinations(typed), name=self.name)
        jobs = [overrides for _, overrides in named]
        self.validate_batch_is_legal(jobs)
        directory = Path(self.config.hydra.sweep.dir)
        directory.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, directory / "multirun.yaml")
        listed = ", ".join(dict.fromkeys(step for step, _ in named))
        print(f"{self.name}: {len(jobs)} runs: {listed}; below {directory}", flush=True)
        results = self.launcher.launch(jobs, initial_job_idx=0)
        for result in results:
            _ = result.return_value  # raises where the job failed
        return [results]


@dataclass
class StepsConf:
    """`hydra/sweeper: steps`."""

    _target_: str = _TARGET
    name: str = "steps"
    seeds: List[int] = field(default_factory=lambda: [1, 2, 3])  # noqa: UP006
    steps: Dict[str, List[str]] = field(default_factory=dict)  # noqa: UP006
    only: List[str] = field(default_factory=list)  # noqa: UP006


def register() -> None:
    """Make the sweeper known to Hydra; may be called again."""
    # Hydra takes sweepers whose target begins so, from its register, and then calls the class that stands there
    Plugins.instance().class_name_to_class[_TARGET] = StepsSweeper
    ConfigStore.instance().store(group="hydra/sweeper", name="steps", node=StepsConf, provider="effvit_train")


def expand(
    steps: Mapping[str, Sequence[str]], typed: Iterable[Sequence[str]], *, name: str = "steps"
) -> list[tuple[str, list[str]]]:
    """The jobs of a set of steps: (step, overrides), step by step, each job once.

    Args:
        steps: step -> its overrides.
        typed: the combinations of what the user typed.
        name: of the set, for the message.

    Raises:
        UserError: the user typed a key that every step sets.
    """
    if not steps:
        raise UserError("has no steps", key="hydra.sweeper.steps", remedy="name at least one")
    everywhere = set.intersection(*({_key(item) for item in step} for step in steps.values()))
    jobs: dict[frozenset[str], tuple[str, list[str]]] = {}
    given = [list(combination) for combination in typed]
    for step, own in steps.items():
        for combination in given:
            for item in combination:
                if _key(item) in everywhere:
                    raise UserError(
                        f"is what the steps of {name} set, one after the other", key=_key(item),
                        value=item.partition("=")[2], remedy="leave it out, or sweep without the experiment: -m",
                    )  # fmt: skip
            overrides = merge(combination, own)
            jobs.setdefault(frozenset(overrides), (step, overrides))
    return list(jobs.values())


def combinations(typed: Sequence[str]) -> list[list[str]]:
    """Every combination of the values that the user typed, each with one value per key; the last key varies fastest.

    Raises:
        UserError: values without an end, such as `interval(0, 1)`.
    """
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(typed)):
        key = override.get_key_element()
        values[key] = [f"{key}={value}" if key[0] != "~" or value else key for value in _values(override)]
    return [list(chosen) for chosen in itertools.product(*values.values())]


def _values(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise UserError(
            "has no end of values", key=override.key_or_group, value=override.get_value_string(),
            remedy="name them, e.g. a,b,c",
        )  # fmt: skip
    return list(override.sweep_string_iterator())


def merge(typed: Sequence[str], step: Sequence[str]) -> list[str]:
    """The overrides of one job: the user's that make sense in the step, then the step's.

    Settings of a technique stay where the step has it, those of a model or recipe where the step names no other.
    """
    own = {_key(item): item.partition("=")[2].strip("'\"") for item in step}
    chosen = {_key(item): item.partition("=")[2].strip("'\"") for item in typed} | own
    techniques = chosen.get("compress", "").strip("[]").replace(" ", "").split(",")

    def stays(key: str) -> bool:
        group, _, rest = key.partition(".")
        if key in own or (rest and group in _REPLACED and group in own):
            return False
        if rest and group == "compress":
            return rest.partition(".")[0] in techniques
        if rest and group == "privacy":
            return chosen.get("privacy", "") not in _SWITCHED_OFF
        return True

    return [*(item for item in typed if stays(_key(item))), *step]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition("@")[0]
