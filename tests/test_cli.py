"""The command line: help, completion, version, speed of the first answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from effvit_train import __version__, cli
from effvit_train.compose import GROUPS, group_options

ROOT = Path(__file__).resolve().parents[1]


def test_help_lists_groups_options_and_three_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.train(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for group in GROUPS:
        for option in group_options(group):
            assert option in text
    assert text.count("python train.py") >= 3


def test_version_and_commands(capsys):
    for arguments, expected in ((["--version"], __version__), ([], "effvit train")):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 0
        assert expected in capsys.readouterr().out


def test_help_and_a_wrong_override_answer_without_torch():
    code = """
import sys
from effvit_train import cli
sys.argv = ["train.py"]
try:
    cli.train({arguments!r})
except SystemExit:
    pass
print("torch" in sys.modules)
"""
    for arguments in (["--help"], ["recipe.lrr=1"], ["trainer.max_epochs=x"], ["--cfg", "job"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments=arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=60,
        )
        assert done.stdout.strip().endswith("False"), (arguments, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("program", "line", "expected"),
    [
        ([str(ROOT / "train.py")], "python train.py model=vit_", "model=vit_micro"),
        ([str(ROOT / "train.py")], "python train.py recipe.batch", "recipe.batch_size="),
        (
            ["-c", "from effvit_train.cli import main; main()"],
            "effvit train compress=dis",
            "compress=distill",
        ),
    ],
)
def test_tab_completion(program, line, expected):
    done = subprocess.run(
        [sys.executable, *program, "-sc", "query=bash"], capture_output=True, text=True, cwd=ROOT, timeout=60,
        env={**os.environ, "COMP_LINE": line},
    )  # fmt: skip
    assert expected in done.stdout.split()


def test_a_users_own_configuration(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\ntrainer:\n  max_epochs: 7\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "max_epochs: 7" in done.stdout


def test_torchvision_imports_and_its_operators_raise_clearly():
    code = """
import effvit_train, warnings
warnings.simplefilter("error")
import torchvision, timm, torchmetrics, torch
from torchvision import transforms
try:
    print(torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5))
except Exception as error:
    print(type(error).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in ("NotImplementedError", "tensor([0])")
