"""From Hydra's composed configuration to our validated objects; from its errors to our one line."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError
from yaml import YAMLError

from effvit_train import slurm
from effvit_train.config import Config
from effvit_train.errors import UserError, did_you_mean, first_line
from effvit_train.models.config import ModelConfig
from effvit_train.parts import check_composition
from effvit_train.privacy.config import PrivacyConfig
from effvit_train.runs import RunDir
from effvit_train.sweep import steps
from effvit_train.sweep.launchers import register_launchers
from effvit_train.sweep.settings import launcher_keys
from effvit_train.techniques import all_parts, techniques

GROUPS = (
    "model", "compress", "continual", "privacy", "dataset", "recipe", "trainer", "logger", "audit", "experiment",
)  # fmt: skip
# Groups that take one or several techniques.
MANY = ("compress", "continual")
# What a resumed run may change: how long and how it is watched, never what has been trained.
RESUMABLE = (
    "trainer.max_epochs", "trainer.checkpoint_every", "trainer.progress_bar", "trainer.log_every_n_steps",
    "dataset.num_workers", "dataset.root", "logger", "audit", "cache_dir", "update.root", "update.tolerance",
    "update.level", "update.budgets", "update.confident",
)  # fmt: skip
_SHORT_ID = secrets.token_hex(2)


def conf_dir() -> Path:
    """The directory of the configuration groups: beside the package in a clone, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    clone = package.parent / "conf"
    return clone if (clone / "config.yaml").is_file() else package / "conf"


def group_options(group: str) -> list[str]:
    """The options of a configuration group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def register() -> None:
    """Register schemas and resolvers with Hydra and OmegaConf; may be called again."""
    store = ConfigStore.instance()
    store.store(group="schema", name="config", node=Config, package="_global_")
    for name, module in techniques().items():
        if module.PART.schema is not None:
            store.store(group=f"schema/{module.PART.key}", name=name, node=module.PART.schema)
    steps.register()
    OmegaConf.register_new_resolver("short_id", lambda: _SHORT_ID, replace=True)
    OmegaConf.register_new_resolver("run_id", _run_id, replace=True)
    OmegaConf.register_new_resolver("run_name", _run_name, replace=True)
    OmegaConf.register_new_resolver("user_cache", _user_cache, replace=True)
    register_launchers()


def is_set(arguments: Iterable[str]) -> bool:
    """Whether this command line names an experiment that is a set of runs (`hydra.mode: MULTIRUN`)."""
    words = list(arguments)
    directories = [conf_dir()]
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("--config-dir", "-cd"):
            directories.append(Path(value or following))
    named = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("experiment=")]
    files = [folder / "experiment" / f"{name}.yaml" for name in named for folder in directories]
    return any(_is_set(OmegaConf.load(path)) for path in files if path.is_file())


def _is_set(experiment: Any) -> bool:
    return OmegaConf.select(experiment, "hydra.mode") == "MULTIRUN"


def refuse_set() -> None:
    """`UserError` in a job that should be one run and names a set of them."""
    if HydraConfig.initialized() and "steps" in HydraConfig.get().sweeper:
        name = HydraConfig.get().runtime.choices.get("experiment")
        raise UserError(
            "is a set of runs, not one", key="experiment", value=name,
            remedy=f"python train.py experiment={name}, neither swept nor part of another command",
        )  # fmt: skip


def parse_overrides(overrides: Iterable[str]) -> list[Override]:
    """Parse overrides; `UserError` for one that cannot be read."""
    parser = OverridesParser.create()
    parsed = []
    for override in overrides:
        try:
            parsed.extend(parser.parse_overrides([override]))
        except OverrideParseException:
            raise UserError(
                f"{override!r} cannot be read as an override",
                remedy="write key=value; quote lists and spaces",
            ) from None
    return parsed


def typed_keys(overrides: Iterable[str]) -> set[str]:
    """The keys and groups that these overrides set."""
    return {override.key_or_group for override in parse_overrides(overrides)}


def settings_of_swept_groups(arguments: Iterable[str]) -> list[str]:
    """The arguments of a sweep, with settings of a group that is swept written as choices of one.

    Hydra composes once without what is swept, to see whether all the rest can be; a setting of
    `compress=prune` cannot where `compress` is what is swept. What is itself a choice is left out then.
    """
    found = list(arguments)
    parsed = {item: parse_overrides([item])[0] for item in found if "=" in item and not item.startswith("-")}
    swept = {override.key_or_group for override in parsed.values() if override.is_sweep_override()}

    def written(item: str) -> str:
        key, _, value = item.partition("=")
        group, dot, _ = key.lstrip("+").partition(".")
        of_swept = item in parsed and not parsed[item].is_sweep_override() and dot and group in swept
        return f"{key}=choice({value})" if of_swept else item

    return [written(item) for item in found]


def load(
    cfg: DictConfig, overrides: list[str], say: Callable[[str], None], *, stored: bool = False
) -> Config:
    """Turn a composed configuration into validated objects; `stored`: one that was loaded before.

    Raises:
        UserError: an unknown key, an impossible value, a forbidden combination.
    """
    known = [field.name for field in fields(Config)]
    for key in cfg:
        if key not in known:
            hint = did_you_mean(str(key), known) or f"keys: {', '.join(known)}"
            raise UserError("unknown key", key=str(key), remedy=hint)
    typed = typed_keys(overrides)
    _check_techniques(cfg, overrides)
    config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    if not stored and architecture_replaced(config, typed):
        _replace_architecture(config, typed)
    _leave_out_privacy(config, typed)
    _convert_techniques(config)
    for section in (
        config.model, config.dataset, config.recipe, config.trainer, config.logger, config.audit, config.privacy,
        config.update, *config.compress.values(), *config.continual.values(),
    ):  # fmt: skip
        section.validate()
    if config.update.after is not None and not stored:
        raise UserError(
            "is what effvit update sets", key="update.after", value=config.update.after,
            remedy="effvit update RUN_DIR dataset=NAME",
        )  # fmt: skip
    in_tasks = config.dataset.stream is not None or (
        config.update.after is not None and not config.privacy.on
    )
    if config.continual and not in_tasks:
        raise UserError(
            "is for data that come in tasks", key="continual", value=",".join(config.continual),
            remedy="add e.g. dataset.stream=class",
        )  # fmt: skip
    if config.seed < 0:
        raise UserError("must be at least 0", key="seed", value=config.seed, remedy="e.g. seed=1")
    check_composition(config, all_parts(), typed, say)
    _absolute_paths(config)
    for part in all_parts():
        if part.resolve is not None and part.active(config):
            part.resolve(config)
    return config


def architecture_replaced(config: Config, typed: set[str]) -> bool:
    """Whether the model is not the group's own: its name was typed, or set by an experiment."""
    if "model.name" in typed:
        return True
    if not HydraConfig.initialized():
        return False
    group = conf_dir() / "model" / f"{HydraConfig.get().runtime.choices.get('model')}.yaml"
    return group.is_file() and OmegaConf.select(OmegaConf.load(group), "name") != config.model.name


def model_label(config: Config, overrides: list[str]) -> str:
    """The model as the user named it: the group's option, or a timm name."""
    if architecture_replaced(config, typed_keys(overrides)):
        return config.model.name
    return str(HydraConfig.get().runtime.choices["model"])


def _absolute_paths(config: Config) -> None:
    """A resume must find the same files from another directory."""
    for section, key in ((config, "cache_dir"), (config.dataset, "root"), (config.dataset, "labels_csv"),
                         (config.model, "weights"), (config.privacy, "secret"), (config.update, "after"),
                         (config.update, "root")):  # fmt: skip
        value = getattr(section, key)
        if value:
            setattr(section, key, os.path.abspath(os.path.expanduser(value)))


def load_resumed(run_dir: RunDir, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """The configuration of an earlier run, with the few overrides that a resume may make.

    Returns:
        The configuration, and the overrides of the first start.

    Raises:
        UserError: no such run, or an override that would change what has been trained.
    """
    if not run_dir.config.is_file():
        remedy = "give a run directory (it holds .hydra/config.yaml)"
        raise UserError("is not a run directory", key="resume", value=run_dir.path, remedy=remedy)
    try:
        stored = OmegaConf.load(run_dir.config)
        if not isinstance(stored, DictConfig):
            raise TypeError("it is no mapping")
        _check_inert(OmegaConf.to_container(stored, resolve=False), run_dir)
        cfg = OmegaConf.structured(Config)
        for group in MANY:
            for name in _of(group):
                if name in (stored.get(group) or {}):
                    cfg[group][name] = OmegaConf.structured(techniques()[name].PART.schema)
        cfg = OmegaConf.merge(cfg, stored)
        first = [str(item) for item in OmegaConf.load(run_dir.path / ".hydra" / "overrides.yaml")]
    except (OSError, TypeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(
            f"its configuration cannot be read ({' '.join(str(error).split())[:200]})", key="resume", value=run_dir.path,
            remedy="resume with the version that started it, or start anew",
        ) from None  # fmt: skip
    for override in parse_overrides(overrides):
        key = override.key_or_group
        if key in ("resume", "run_dir") or key.startswith("hydra"):
            continue
        if not any(key == allowed or key.startswith(f"{allowed}.") for allowed in RESUMABLE) or key in (
            "audit",
            "audit.canaries",
        ):
            raise UserError(
                "cannot change in a resumed run", key=key, value=override.value(),
                remedy=f"a resume takes {', '.join(RESUMABLE)}; for anything else start a new run",
            )  # fmt: skip
        try:
            OmegaConf.update(cfg, key, override.value())
        except OmegaConfBaseException as error:
            raise UserError(first_line(error), key=key, value=override.value()) from None
    assert isinstance(cfg, DictConfig)
    return cfg, first


def _check_inert(value: Any, run_dir: RunDir, path: str = "") -> None:
    """Refuse a stored configuration that holds more than values: a run directory may be somebody else's.

    Nothing here instantiates what a configuration names, techniques come from our own package; but
    what is stored holds neither targets nor interpolations, which could read the environment.
    """
    if isinstance(value, dict):
        for key, inner in value.items():
            where = f"{path}.{key}" if path else str(key)
            if str(key).startswith("_") and str(key).endswith("_"):
                raise _not_inert(f"{where}={inner}", run_dir)
            _check_inert(inner, run_dir, where)
    elif isinstance(value, list):
        for inner in value:
            _check_inert(inner, run_dir, path)
    elif isinstance(value, str) and "${" in value:
        raise _not_inert(f"{path}={value}", run_dir)


def _not_inert(what: str, run_dir: RunDir) -> UserError:
    return UserError(
        f"its configuration holds {what}, which is no value: refused", key="resume", value=run_dir.path,
        remedy="remove it from .hydra/config.yaml, and find out who wrote it",
    )  # fmt: skip


def explain(error: Exception, overrides: list[str]) -> UserError | None:
    """Our one line for an error of Hydra or OmegaConf; None for any other error."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MissingConfigException):
        return _missing_option(error)
    if isinstance(error, ValueError) and str(error).startswith("Config group override must be"):
        return _no_option(overrides)
    if isinstance(error, OverrideParseException):
        return UserError(
            f"{error.override!r} cannot be read as an override",
            remedy="write key=value; quote lists and spaces",
        )
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ValidationError) and cause.full_key:
        message = str(cause).splitlines()[0]
        wanted = re.search(r"could not be converted to (\w+)", message)
        kinds = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
        if "not a valid bool" in message:
            problem = "must be true or false"
        else:
            problem = f"must be {kinds.get(wanted[1], wanted[1])}" if wanted else message
        return UserError(
            problem, key=str(cause.full_key), value=cause.value, remedy="see python train.py --cfg job"
        )
    if isinstance(cause, OmegaConfBaseException) and cause.full_key and type(cause).__name__ in (
        "ConfigAttributeError", "ConfigKeyError",
    ):  # fmt: skip
        return _unknown_key(str(cause.full_key), overrides)
    if type(error).__module__.startswith(("hydra", "omegaconf")):
        return UserError(first_line(error), remedy="see python train.py --help")
    return None


def _missing_option(error: MissingConfigException) -> UserError:
    name = error.missing_cfg_file or ""
    group, _, option = name.rpartition("/")
    options = [o for o in (error.options or group_options(group)) if o]
    if not group:
        return UserError(first_line(error), remedy="see python train.py --help")
    hint = did_you_mean(option, options)
    return UserError(f"must be one of {', '.join(options) or '(none)'}", key=group, value=option, remedy=hint)


def _no_option(overrides: list[str]) -> UserError | None:
    """Of a group that is given what names no option, such as null."""
    for override in parse_overrides(overrides):
        group, value = override.key_or_group, override.value()
        if group in GROUPS and not isinstance(value, (str, list)):
            return UserError(f"must be one of {', '.join(group_options(group))}", key=group, value=value)
    return None


def _unknown_key(full_key: str, overrides: list[str]) -> UserError:
    parent, _, name = full_key.rpartition(".")
    if parent in MANY and name in _of(parent):
        return UserError(f"{name} is not switched on", key=full_key, remedy=f"add {parent}={name}")
    keys = launcher_keys(overrides) if parent == "hydra.launcher" else schema_keys(parent)
    if keys is None:
        return UserError(
            "unknown key", key=full_key, remedy=f"write +{full_key}=... to add a key of your own"
        )
    words = [*keys, *(group for group in GROUPS if group not in keys)] if not parent else keys
    near = (
        did_you_mean(name, words)
        .replace("'", "")
        .replace("did you mean ", f"did you mean {parent}." if parent else "did you mean ")
    )
    hint = near or f"allowed: {', '.join(words)}"
    return UserError("unknown key", key=full_key, remedy=hint)


def schema_keys(path: str) -> list[str] | None:
    """Keys that the schema allows under a dotted path; None where any key may stand."""
    node: Any = Config()
    for name in filter(None, path.split(".")):
        if isinstance(node, dict):
            module = techniques().get(name)
            if module is None or module.PART.schema is None:
                return None
            node = module.PART.schema()
        else:
            node = getattr(node, name, None)
    if not is_dataclass(node):
        return _of(path) if path in MANY else None
    return [field.name for field in fields(node)]


def _check_techniques(cfg: DictConfig, overrides: list[str]) -> None:
    for override in parse_overrides(overrides):
        group = override.key_or_group
        if group in MANY:
            value = override.value()
            names = [str(name) for name in value] if isinstance(value, list) else [str(value)]
            if "none" in names and len(names) > 1:
                raise UserError(
                    "none cannot be combined with another technique", key=group, value=",".join(names),
                    remedy="leave none out",
                )  # fmt: skip
            if len(set(names)) < len(names):
                raise UserError(
                    "names a technique twice", key=group, value=",".join(names), remedy="once is enough"
                )
    for group in MANY:
        for name in cfg[group]:
            if name not in _of(group):
                hint = did_you_mean(str(name), _of(group)) or f"one of {', '.join(_of(group))}"
                raise UserError("unknown technique", key=f"{group}.{name}", remedy=hint)


def _of(group: str) -> list[str]:
    """The techniques of a group."""
    return [name for name, module in techniques().items() if module.PART.key == group]


def _convert_techniques(config: Config) -> None:
    for given in (config.compress, config.continual):
        for name, value in given.items():
            schema = techniques()[name].PART.schema
            if schema is not None and not is_dataclass(value):
                given[name] = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), value))


def _replace_architecture(config: Config, typed: set[str]) -> None:
    """`model.name=X` replaces the group's architecture arguments; those typed stay."""
    config.model.args = {
        name: value for name, value in config.model.args.items() if f"model.args.{name}" in typed
    }
    settings = config.model.attention_args
    for key in vars(settings):
        if f"model.attention_args.{key}" not in typed:
            setattr(settings, key, None)
    for key in ("patch_size", "pos_std", "stem", "pool", "attention"):
        if f"model.{key}" not in typed:
            setattr(config.model, key, None)


def _leave_out_privacy(config: Config, typed: set[str]) -> None:
    """`privacy=none` is the last word on what an experiment says about privacy; what was typed stays."""
    if not config.privacy.on and "privacy" in typed:
        given = {k: v for k, v in vars(config.privacy).items() if f"privacy.{k}" in typed}
        config.privacy = PrivacyConfig(**given)


def _run_name(*, _root_: DictConfig) -> str:
    choices: dict[str, Any] = {}
    if HydraConfig.initialized():
        choices = dict(HydraConfig.get().runtime.choices)
        config = Config(model=ModelConfig(name=str(_root_.model.name)))
        if architecture_replaced(config, typed_keys(HydraConfig.get().overrides.task)):
            choices["model"] = str(_root_.model.name).replace("/", "_")
    techniques_on = "+".join(str(name) for name in (*_root_.compress, *_root_.continual)) or "plain"
    words = [
        str(choices.get("dataset") or _root_.dataset.name),
        str(choices.get("model") or "model"),
        techniques_on,
    ]
    return "-".join(words)


def _run_id() -> str:
    return slurm.run_id(HydraConfig.get().overrides.task if HydraConfig.initialized() else [], _SHORT_ID)


def _user_cache() -> str:
    import platformdirs

    return os.environ.get("EFFVIT_CACHE") or platformdirs.user_cache_dir("effvit_train")
