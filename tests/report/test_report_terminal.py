"""The table in the terminal and the commands that it ends with."""

import io

import pytest
from rich.console import Console

from effvit_train.card import Card
from effvit_train.report.baseline import Baseline
from effvit_train.report.commands import repeat_command
from effvit_train.report.terminal import card_table, next_commands

NONE = Baseline(None, None, "nothing there")


def shown(card, baseline, width=80):
    console = Console(width=width, no_color=True, record=True, file=io.StringIO())
    console.print(card_table(card, baseline))
    return console.export_text()


def card_of(path):
    return Card.read(path / "card.json")


def test_table_without_a_baseline_gives_values_and_reasons(tmp_path, run):
    text = shown(card_of(run(tmp_path / "a", compress=["distill"])), NONE)
    assert "Quality" in text
    assert "90.0 %  95 % interval 82.6–94.5" in text  # Wilson, 90 of 100
    assert "1.0 ms" in text
    assert "– no counter <here>" in text
    assert "No baseline: nothing there." in text


def test_table_against_a_baseline_needs_no_colour(tmp_path, run):
    other = run(tmp_path / "b", values={"cost/latency_ms": 3.0, "quality/accuracy": 0.5})
    text = shown(card_of(run(tmp_path / "a", compress=["distill"])), Baseline(other, card_of(other), ""))
    line = next(line for line in text.splitlines() if line.startswith("Latency "))
    assert line.split() == ["Latency", "1.0", "ms", "3.0", "ms", "▼", "3.0×", "less", "better"]
    assert "▲ +40.0 pp better" in text
    assert "= same" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_table_takes_keys_and_markup_it_does_not_know(tmp_path, run):
    card = card_of(run(tmp_path / "a", model="[red]x", values={"privacy/epsilon": 2.5}))
    text = shown(card, NONE)
    assert "[red]x" in text
    assert "Privacy" in text
    assert "2.50" in text


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({"overrides": []}, "python train.py compress=distill"),
        (
            {
                "overrides": [
                    "model=vit_s",
                    "dataset.root=my data",
                    "seed=3",
                    "run_dir=runs/x",
                    "compress=none",
                ]
            },
            "python train.py model=vit_s 'dataset.root=my data' seed=3 compress=distill",
        ),
        (
            {
                "compress": ["distill"],
                "overrides": ["compress=distill", "compress.distill.weight=0.5", "seed=1"],
            },
            "python train.py seed=1 compress=none",
        ),
        (
            {"fast_dev_run": True, "overrides": ["trainer.fast_dev_run=true", "compress=distill"]},
            "python train.py compress=distill",
        ),
        ({"status": "interrupted", "run_dir": "runs/x/1"}, "python train.py resume=runs/x/1"),
        (
            {"privacy": "dp_sgd", "overrides": ["experiment=x", "privacy=dp_sgd", "privacy.epsilon=3"]},
            "python train.py experiment=x privacy=none",
        ),
    ],
)
def test_next_command(tmp_path, run, facts, first):
    found = next_commands(card_of(run(tmp_path / "a", **facts)), NONE)
    assert found[0][0] == first
    assert all(why for _, why in found)


def test_next_commands_with_a_baseline(tmp_path, run):
    other = run(tmp_path / "b", run_dir="runs/b")
    baseline = Baseline(other, card_of(other), "")
    overrides = ["model=vit_s", "compress=distill", "seed=5"]
    card = card_of(run(tmp_path / "a", compress=["distill"], overrides=overrides, run_dir="runs/a"))
    assert [command for command, _ in next_commands(card, baseline)] == [
        "python train.py -m model=vit_s compress=none,distill seed=1,2,3",
        "effvit report runs/a runs/b",
    ]


def test_settings_of_a_technique_are_not_swept_over_none(tmp_path, run):
    other = run(tmp_path / "b", run_dir="runs/b")
    overrides = ["compress=distill", "compress.distill.weight=0.5"]
    card = card_of(run(tmp_path / "a", compress=["distill"], overrides=overrides, run_dir="runs/a"))
    assert [command for command, _ in next_commands(card, Baseline(other, card_of(other), ""))] == [
        "python train.py -m compress=distill compress.distill.weight=0.5 seed=1,2,3",
        "python train.py -m compress=none seed=1,2,3",
        "effvit report runs/a runs/b",
    ]


def test_repeat_command_leaves_out_the_directory(tmp_path, run):
    overrides = ["compress=[distill]", "run_dir=runs/a", "hydra.sweep.dir=x", "+experiment=e", "seed=2"]
    card = card_of(run(tmp_path / "a", overrides=overrides))
    assert repeat_command(card) == "python train.py 'compress=[distill]' +experiment=e seed=2"
