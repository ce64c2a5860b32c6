"""What a study is: written once into its directory, the same for every worker that joins it."""

from __future__ import annotations

import contextlib
import os
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from effvit_train.errors import UserError
from effvit_train.files import read_json, write_json
from effvit_train.search.config import SweepConfig, from_settings
from effvit_train.search.objectives import Objective, make_objectives
from effvit_train.search.space import Space, make_space

SCHEMA = 1
NAME = "sweep.json"
# What may differ from one command to the next; the rest is what has been searched.
CHANGEABLE = ("trials", "workers", "prune_after", "max_failures")


@dataclass(frozen=True)
class Definition:
    """A study.

    Attributes:
        study: name in the storage.
        option: `sweep=OPTION`.
        sweep: its settings.
        fixed: overrides that all trials share, as typed.
        fixed_values: key -> value of those.
        flags: arguments of Hydra's for each trial, such as `--config-dir DIR`.
        directory: where the first command was typed: relative paths in overrides count from there.
    """

    study: str
    option: str
    sweep: SweepConfig
    fixed: tuple[str, ...]
    fixed_values: dict[str, str]
    flags: tuple[str, ...]
    directory: str

    @property
    def space(self) -> Space:
        """What is searched."""
        return make_space(self.sweep.space, self.fixed_values)

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised."""
        return make_objectives(self.sweep.objectives)

    def to_json(self) -> dict[str, Any]:
        """The content of `sweep.json`; a password in the storage's URL is left out."""
        settings = asdict(self.sweep) | {"storage": without_password(self.sweep.storage)}
        return {"schema": SCHEMA, **asdict(replace(self, sweep=SweepConfig())), "sweep": settings}

    @classmethod
    def read(cls, path: Path) -> Definition:
        """Read `sweep.json`; `UserError` when it is not one."""
        try:
            found = dict(read_json(path))
            if found.pop("schema") != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            sweep = from_settings(found.pop("sweep"))
            fixed, flags = tuple(found.pop("fixed")), tuple(found.pop("flags"))
            return cls(sweep=sweep, fixed=fixed, flags=flags, **found)
        except (OSError, TypeError, ValueError, KeyError) as error:
            raise UserError(
                f"{path} is not a study ({error})", remedy="give another run_dir, or the one of a study"
            ) from None


def new_name() -> str:
    """A name for a new study: a database may hold several."""
    return f"effvit-{secrets.token_hex(6)}"


def join(directory: Path, wanted: Definition, typed: set[str]) -> Definition:
    """Begin the study in `directory`, or join the one that is there.

    Args:
        directory: of the study; is made.
        wanted: what this command line says.
        typed: settings of `sweep.*` that were typed, without `sweep.`; `overrides` where anything else was.

    Returns:
        The study, with what of `CHANGEABLE` was typed now.

    Raises:
        UserError: the study there is another one.
    """
    path = directory / NAME
    if not path.exists() and _begin(path, wanted):
        return wanted
    stored = Definition.read(path)
    _same(directory, stored, wanted, typed)
    changes = {key: getattr(wanted.sweep, key) for key in CHANGEABLE if key in typed}
    kept = {key: value for key, value in changes.items() if key != "workers"}
    if kept:
        write_json(path, replace(stored, sweep=replace(stored.sweep, **kept)).to_json())
    if "storage" in typed:
        changes["storage"] = wanted.sweep.storage  # with its password, if it has one
    elif "***" in (stored.sweep.storage or ""):
        raise UserError(
            "has a password, which was not kept", key="sweep.storage", value=stored.sweep.storage,
            remedy="give sweep.storage=URL again",
        )  # fmt: skip
    return replace(stored, sweep=replace(stored.sweep, **changes))


def without_password(url: str | None) -> str | None:
    """The URL with `***` for its password."""
    head, at, tail = (url or "").rpartition("@")
    scheme, slashes, user = head.partition("://")
    if not at or not slashes or ":" not in user:
        return url
    return f"{scheme}://{user.partition(':')[0]}:***@{tail}"


def _begin(path: Path, wanted: Definition) -> bool:
    """Write the definition unless another worker was faster; the file appears whole."""
    own = path.with_name(f".{NAME}.{secrets.token_hex(4)}")
    write_json(own, wanted.to_json())
    with contextlib.ExitStack() as stack:
        stack.callback(own.unlink)
        try:
            os.link(own, path)
        except FileExistsError:
            return False
    return True


def _same(directory: Path, stored: Definition, wanted: Definition, typed: set[str]) -> None:
    remedy = "leave it out to go on with that study, or give another run_dir"
    if wanted.option != stored.option:
        raise UserError(
            f"the study in {directory} was begun with sweep={stored.option}", key="sweep", value=wanted.option,
            remedy=remedy,
        )  # fmt: skip
    for key in sorted(typed - {*CHANGEABLE, "overrides", "space"}):
        before, now = stored.to_json()["sweep"][key], wanted.to_json()["sweep"][key]
        if before != now:
            raise UserError(
                f"the study in {directory} was begun with {before}",
                key=f"sweep.{key}",
                value=now,
                remedy=remedy,
            )
    if not typed & {"overrides", "space"}:
        return
    if wanted.sweep.space != stored.sweep.space:
        differ = {
            key
            for key in {*wanted.sweep.space, *stored.sweep.space}
            if wanted.sweep.space.get(key) != stored.sweep.space.get(key)
        }
        raise UserError(
            f"the study in {directory} searches {', '.join(sorted(differ))} otherwise", key="sweep.space",
            remedy=remedy,
        )  # fmt: skip
    if (wanted.fixed, wanted.flags) != (stored.fixed, stored.flags):
        before = " ".join([*stored.flags, *stored.fixed]) or "no overrides"
        raise UserError(
            f"the study in {directory} was begun with {before}, not {' '.join([*wanted.flags, *wanted.fixed])}",
            key="run_dir", value=directory, remedy=remedy,
        )  # fmt: skip
