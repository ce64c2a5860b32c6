"""What the benchmarks of the training loop share."""

from __future__ import annotations

import re
from pathlib import Path

import effvit_train  # noqa: F401  isort: skip
from hydra import compose, initialize_config_dir

from effvit_train.build import Built, build
from effvit_train.compose import conf_dir, load, register
from effvit_train.config import Config


def build_run(overrides: list[str], directory: str) -> tuple[Config, Built]:
    """Compose and build what `python train.py OVERRIDES run_dir=DIRECTORY` would train, without a teacher."""
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=overrides)
    cfg.name, cfg.run_dir = "bench", directory
    config = load(cfg, overrides, print)
    return config, build(config, precision=None, train=_no_teacher, say=lambda line: None)


def peak_mb() -> float:
    """Peak resident set of this process, in MiB; not getrusage's, which is inherited from whoever started it."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def _no_teacher(*_: object) -> Path:
    raise AssertionError("plain training needs no teacher")
