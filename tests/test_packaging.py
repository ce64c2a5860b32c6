"""What the wheel holds, and that it works from any directory."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = set(setup["options"]["packages"].split())
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "effvit_train").rglob("__init__.py")}
    assert listed == found | {"effvit_train.conf"}


def test_constraints_pin_everything_that_is_needed():
    pins = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {name.split(">")[0].split("[")[0].lower().replace("_", "-") for name in wanted}
    assert names <= pins


def test_the_readme_is_the_only_place_of_the_test_command():
    assert "README.md" in (ROOT / ".ci" / "run").read_text()
    assert "-m pytest" in (ROOT / "README.md").read_text()


def test_every_option_that_the_readme_names_exists():
    from effvit_train.compose import GROUPS, group_options

    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    named = {row.split("`")[1].rstrip("="): row for row in rows}
    assert set(named) == set(GROUPS) - {"experiment"}
    for group, row in named.items():
        for option in group_options(group):
            assert f"`{option}`" in row, (group, option)


@pytest.mark.slow
def test_a_wheel_works_from_any_directory(tmp_path):
    wheels, target, empty = tmp_path / "wheels", tmp_path / "target", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(wheels), str(ROOT)], check=True, timeout=300)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(target), str(wheel)], check=True, timeout=300
    )
    assert (target / "effvit_train" / "conf" / "config.yaml").is_file()
    assert (target / "effvit_train" / "report" / "card.css").is_file()
    assert "effvit = effvit_train.cli:main" in next(target.glob("*.dist-info/entry_points.txt")).read_text()
    code = "import sys; from effvit_train.cli import main; main(sys.argv[1:])"

    def effvit(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments], cwd=empty, check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(target)}, timeout=300,
        ).stdout  # fmt: skip

    assert "vit_micro" in effvit("train", "--help")
    installed = effvit("train", "--cfg", "job", "compress=distill")
    clone = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--cfg", "job", "compress=distill"], check=True, capture_output=True,
        text=True, cwd=empty,
    ).stdout  # fmt: skip
    assert installed == clone
    effvit("train", "trainer.fast_dev_run=true", "run_dir=out", "logger=none")
    assert (empty / "out" / "card.html").is_file()
