"""An audit of a real run: every key a number or a reason, parts kept, the same again, and what is refused."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from driving import SMALL, exit_code, run_in
from PIL import Image

from effvit_train import cli
from effvit_train.audit.robustness import measure as robustness
from effvit_train.axes import parts
from effvit_train.axes.memory import FOLDER, Memory
from effvit_train.axes.parts import PARTS
from effvit_train.axes.run import LATER, LEFT_OUT
from effvit_train.card import Measured
from effvit_train.config import AXES
from effvit_train.measures import MEASURES
from effvit_train.signals import Interrupted

FEW = (
    "audit.corrupted_images=8", "audit.attacked_images=4", "audit.explained_images=4", "audit.latency_runs=1",
    "audit.throughput_runs=1", "trainer.num_threads=1",
)  # fmt: skip
TIMED = ("cost/", "complexity/latency_exponent", "complexity/memory_bound_share")


def folder(root: Path) -> list[str]:
    """Two classes told by brightness, from two places, of which one is darker; 290 senders of few images."""
    rows = []
    for k in range(240):
        label, place = ("bright", "dark")[k % 2], ("north", "south")[k // 2 % 2]
        low = {"bright": 120, "dark": 40}[label] - (30 if place == "south" else 0)
        pixels = np.random.default_rng(k).integers(low, low + 90, (16, 16, 3), dtype=np.uint8)
        path = root / label / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append({"path": f"{label}/{k}.png", "label": label, "place": place, "sender": f"s{k % 60}"})
    with open(root / "labels.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [
        "dataset=image_folder",
        f"dataset.root={root}",
        "dataset.image_size=16",
        "dataset.test_fraction=0.4",
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run without an audit."""
    directory = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        run_in(
            directory, patch, *SMALL, *folder(directory / "images"), "logger=none", "trainer.max_epochs=3",
            "recipe.batch_size=16", "dataset.num_workers=0", "audit=none", *FEW, "run_dir=run",
        )  # fmt: skip
    return directory / "run"


def card(path: Path) -> dict:
    return json.loads((path / "card.json").read_text())


def audited(path: Path, *overrides: str) -> dict:
    cli.audit([str(path), *FEW[:5], *overrides])
    return card(path)


def refused(path: Path, capsys, *overrides: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.audit([str(path), *overrides])
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_the_table_the_parts_and_the_schema_agree():
    assert tuple(PARTS) == AXES
    keys = [key for part in PARTS.values() for key in part.keys]
    assert len(keys) == len(set(keys))
    elsewhere = ("quality/", "cost/", "privacy/", "continual/")
    assert set(keys) == {key for key in MEASURES if not key.startswith(elsewhere)}


def test_without_an_audit_each_key_says_how_to_get_it(trained):
    found = card(trained)
    assert found["provenance"]["audit"] == {}
    assert found["missing"]["calibration/ece"] == LATER.format(level="none")
    assert found["measures"]["quality/accuracy"] is not None


@pytest.mark.slow
@pytest.mark.long
def test_a_full_audit_fills_the_card_and_gives_the_same_again(trained):
    first = audited(trained, "audit=full", "audit.min_cell=10")
    assert not (trained / FOLDER).exists()
    for key in MEASURES:
        value = first["measures"][key]
        assert (value is None) == (key in first["missing"]), key
        assert value is None or math.isfinite(value)
    for name in AXES:
        if name not in ("predictors", "tokens"):  # which have nothing to tell of a plain model alone
            assert name in first["provenance"]["audit"]
    missing = {key for key in first["missing"] if not key.startswith(("cost/", "privacy/"))}
    assert missing - {"complexity/latency_exponent", "calibration/ece_scaled", "spectral/log_norm_bound"} == {
        "quality/top5", "approximation/attention_error", "approximation/output_error",
    }  # fmt: skip
    assert "the measure failed" not in json.dumps(first["missing"])
    again = audited(trained, "audit=full", "audit.min_cell=10")
    for key in MEASURES:
        if not key.startswith(TIMED):
            assert again["measures"][key] == first["measures"][key], key
    quick = audited(trained, "audit=quick", "audit.min_cell=10")  # what it does not measure stays
    assert quick["measures"]["robustness/pgd_accuracy"] == first["measures"]["robustness/pgd_accuracy"]
    assert quick["provenance"]["audit"]["corruptions"] == first["provenance"]["audit"]["corruptions"]
    assert "Robustness" in (trained / "card.html").read_text()


def test_groups_by_hand(trained):
    found = audited(trained, "audit.parts=[fairness]", "audit.groups=[place,sender]", "audit.min_cell=5")
    assert found["missing"].get("transparency/insertion_auc", LEFT_OUT) in (
        LEFT_OUT,
        LATER.format(level="none"),
    )
    facts = found["provenance"]["audit"]["fairness"]
    assert facts["column"] == "place"
    predictions = np.load(trained / "predictions.npz")
    right = predictions["logits"].argmax(axis=1) == predictions["labels"]
    with open(trained.parent / "images" / "labels.csv", newline="") as file:
        place = [row["place"] for row in csv.DictReader(file)]  # ids are in the order of the table
    where = np.array(place)[predictions["index"]]
    shares = [right[where == name].mean() for name in ("north", "south")]
    assert found["measures"]["fairness/worst_group_accuracy"] == pytest.approx(min(shares))
    assert found["measures"]["fairness/accuracy_gap"] == pytest.approx(max(shares) - min(shares))
    assert {row["group"]: row["images"] for row in facts["groups"]} == {
        name: int((where == name).sum()) for name in ("north", "south")
    }
    assert set(facts["others"]) == {"sender"}
    assert "fairness/accuracy_gap" in facts["others"]["sender"]["missing"]  # no sender has five test images


@pytest.mark.long
def test_an_interrupted_audit_goes_on_where_it_was(trained, monkeypatch):
    asked: list[str] = []
    original = robustness.corruption_outcomes

    def outcomes(predict, images, labels, ids, kind, **settings):
        asked.append(kind)
        if len(asked) == 4:
            raise Interrupted(15)
        return original(predict, images, labels, ids, kind, **settings)

    monkeypatch.setattr(robustness, "corruption_outcomes", outcomes)
    with pytest.raises(SystemExit) as caught:
        audited(trained, "audit.parts=[calibration,corruptions]")
    assert caught.value.code == 130
    assert (trained / FOLDER / "calibration.json").exists()
    audited(trained, "audit.parts=[calibration,corruptions]")
    assert len(asked) == 4 + 16 - 3  # three of sixteen parts were kept
    interrupted = card(trained)
    asked[:] = [""] * 10
    whole = audited(trained, "audit.parts=[calibration,corruptions]")
    assert (
        whole["measures"]["robustness/corruption_accuracy"]
        == interrupted["measures"]["robustness/corruption_accuracy"]
    )
    assert whole["provenance"]["audit"] == interrupted["provenance"]["audit"]


def test_what_was_kept_under_other_settings_is_forgotten(tmp_path):
    memory = Memory(tmp_path / "part.json", "a")
    memory.keep("piece", [1])
    assert Memory(tmp_path / "part.json", "a").pieces == {"piece": [1]}
    assert Memory(tmp_path / "part.json", "b").pieces == {}
    memory.done((Measured({"x": 1.0}, {"y": "why"}), {"z": 2}))
    measured, facts = Memory(tmp_path / "part.json", "a").found
    assert (measured.values, measured.missing, facts) == ({"x": 1.0}, {"y": "why"}, {"z": 2})
    (tmp_path / "part.json").write_text("{")
    assert Memory(tmp_path / "part.json", "a").found is None


def test_a_measure_that_fails_is_null_with_the_reason(trained, monkeypatch, capsys):
    def fails(*arguments, **settings):
        raise ZeroDivisionError("by nothing")

    monkeypatch.setattr(parts.calibration, "measure_calibration", fails)
    found = audited(trained, "audit.parts=[calibration]")
    assert found["missing"]["calibration/aurc"] == "the measure failed: ZeroDivisionError: by nothing"
    assert "calibration: the measure failed" in capsys.readouterr().out


def test_other_predictors_are_told_beside_the_model(trained, tmp_path):
    found = audited(trained, "audit.parts=[predictors]", f"audit.ensemble=[{trained}]", "audit.mc_dropout=2")
    facts = found["provenance"]["audit"]["predictors"]
    accuracy = found["measures"]["quality/accuracy"]
    assert facts["ensemble"]["measures"]["quality/accuracy"] == accuracy  # of the same model twice
    assert "no dropout" in facts["mc_dropout"]["reason"]


@pytest.mark.long
def test_foreign_images(trained):
    found = audited(trained, "audit.parts=[ood]", "audit.ood=digits")
    assert 0 <= found["measures"]["calibration/ood_auroc"] <= 1
    assert found["provenance"]["audit"]["ood"]["data"] == "360 test images of digits"
    nothing = audited(trained, "audit.parts=[ood]")
    assert nothing["missing"]["calibration/ood_auroc"] == "no other data set was named (audit.ood=digits)"


REFUSED = [
    (["model=vit_s"], "model=vit_s: cannot change what was trained"),
    (["audit=ful"], "audit=ful: must be one of full, none, quick"),
    (["audit.parts=[calibratio]"], "audit.parts=calibratio: must be one of calibration"),
    (["audit.groups=[plac]"], "audit.groups=plac: is not a column of the table; did you mean 'place'?"),
    (["audit.ood=cifar100"], "audit.ood=cifar100: must be one of auto"),
    (["audit.corrupted_images=0"], "audit.corrupted_images=0: must be at least 1"),
    (["audit.ensemble=[nowhere]"], "no architecture record at nowhere"),
]


@pytest.mark.parametrize(("overrides", "line"), REFUSED)
def test_a_wrong_setting_is_one_line(trained, capsys, overrides, line):
    before = (trained / "card.json").read_bytes()
    assert line in refused(trained, capsys, "audit.latency_runs=1", *overrides)
    assert (trained / "card.json").read_bytes() == before


def test_no_run_is_one_line(tmp_path, capsys):
    assert "no card at" in refused(tmp_path, capsys)


def test_a_training_audits_as_it_is_told(tmp_path, monkeypatch, no_probe):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    typed = (*SMALL, "logger=none", "trainer.max_epochs=1", "dataset.num_workers=0", "run_dir=run")
    run_in(tmp_path, monkeypatch, *typed, "audit.mc_dropout=2", "model.drop_rate=0.2")
    found = card(tmp_path / "run")
    assert set(found["provenance"]["audit"]) == {"calibration", "fairness", "spectral", "predictors"}
    assert found["provenance"]["audit"]["predictors"]["mc_dropout"]["members"] == 2
    assert found["missing"]["robustness/pgd_accuracy"] == LATER.format(level="quick")
    assert found["missing"]["fairness/accuracy_gap"].startswith("the data set has no groups")


def test_a_training_that_is_stopped_in_its_audit_goes_on_with_it(tmp_path, monkeypatch, no_probe):
    typed = (*SMALL, "logger=none", "trainer.max_epochs=1", "dataset.num_workers=0", "run_dir=run")
    with monkeypatch.context() as patch:

        def stopped(*arguments, **settings):
            raise Interrupted(15)

        patch.setattr(parts.spectral, "measure_spectral", stopped)
        assert exit_code(tmp_path, monkeypatch, *typed) == 130
    assert (tmp_path / "run" / FOLDER / "calibration.json").exists()
    assert not (tmp_path / "run" / "card.json").exists()
    run_in(tmp_path, monkeypatch, "resume=run")
    found = card(tmp_path / "run")
    assert found["measures"]["spectral/mean_stable_rank"] > 0
    assert not (tmp_path / "run" / FOLDER).exists()


def test_an_audit_tells_the_wandb_run_of_the_training(tmp_path, monkeypatch, no_probe):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    typed = (*SMALL, "trainer.max_epochs=1", "dataset.num_workers=0", "audit=none", "run_dir=run")
    run_in(tmp_path, monkeypatch, *typed)
    before = set((tmp_path / "run" / "wandb").glob("offline-run-*"))
    found = audited(tmp_path / "run", "audit.parts=[calibration]")
    (log,) = set((tmp_path / "run" / "wandb").glob("offline-run-*")) - before
    assert log.name.endswith(before.pop().name.rpartition("-")[2])  # one run, continued
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)]
    summary = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["summary"]
    assert summary["calibration/ece"] == pytest.approx(found["measures"]["calibration/ece"])
