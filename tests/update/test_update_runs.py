"""`effvit update`, from a shipped model to a verdict."""

from __future__ import annotations

import json

import pytest
from driving import card, cuts, result, run_in, signal_at
from portions import DAY, DUSK, NIGHT, QUICK, effvit, verdict, write_set

from effvit_train.curves import Curves
from effvit_train.runs import RunState

MORE = ("update", "shipped", "dataset.root=more", "trainer.max_epochs=2")


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A model that tells a from b by day and at night: 1 test image in 10 is of the night."""
    base = tmp_path_factory.mktemp("shipped")
    old = {("train", DAY): 60, ("train", NIGHT): 20, ("val", DAY): 8, ("test", DAY): 135, ("test", NIGHT): 15}
    write_set(base / "old", old)
    write_set(base / "more", {("train", DAY): 40, ("val", DAY): 4, ("test", DAY): 100}, seed=1)
    dusk = {("train", DAY): 40, ("train", DUSK): 40, ("val", DAY): 4, ("test", DAY): 30, ("test", DUSK): 30}
    write_set(base / "dusk", dusk, seed=2)
    third = {("train", DAY): 30, ("val", DAY): 4, ("test", DAY): 60}
    write_set(base / "abc", third, classes=("a", "b", "c"))
    with pytest.MonkeyPatch.context() as patch:
        arguments = ("dataset=image_folder", "dataset.root=old", "trainer.max_epochs=8", "run_dir=shipped")
        assert effvit(base, patch, "train", *QUICK, *arguments) == 0
    assert card(base / "shipped")["measures"]["quality/accuracy"] == 1
    return base


@pytest.mark.slow
def test_a_good_update_is_promoted_and_judged_again(shipped, monkeypatch, capsys):
    assert effvit(shipped, monkeypatch, *MORE, "--run-dir", "good", "--budget", "cost/params<=10") == 0
    assert capsys.readouterr().out.count("verdict: promote") == 1
    good = shipped / "good"
    told = verdict(good)
    assert told["verdict"] == "promote"
    assert {name: pair["images"] for name, pair in told["compared"].items()} == {"old": 300, "new": 200}
    assert told["models"]["shipped"]["test"]["new"]["measures"]["quality/accuracy"] == 1
    page = (good / "update.html").read_text()
    assert "Promote" in page
    assert "http://" not in page
    assert "https://" not in page
    lineage = card(good)["provenance"]["lineage"]
    assert lineage == told["lineage"]
    assert lineage["parent"]["id"] == card(shipped / "shipped")["run"]["id"]
    assert (
        lineage["parent"]["data"]["fingerprint"]
        == card(shipped / "shipped")["provenance"]["dataset"]["fingerprint"]
    )
    assert (lineage["new_data"]["name"], lineage["earlier_images"], lineage["ancestors"]) == (
        "more",
        "all",
        [],
    )
    # both sets were looked at, and what the weights had seen came with them
    seen = [(entry["name"], entry["via"]) for entry in card(good)["provenance"]["seen"]]
    assert seen == [("old", "training"), ("more", "training"), ("old", "weights")]
    matrix = card(good)["provenance"]["continual"]["accuracy"]
    assert matrix[0] == [1, 1]  # of the shipped model

    # other budgets, and the same model: nothing is trained again
    before = (good / "model.safetensors").read_bytes()
    assert effvit(shipped, monkeypatch, "update", "--resume", "good", "--budget", "cost/params<1") == 1
    assert verdict(good)["reasons"] == ["cost/params: 1 breaks the budget < 1"]
    assert effvit(shipped, monkeypatch, "update", "--resume", "good", "--budget", "cost/latency_ms<=5") == 1
    assert "cost/latency_ms: budget <= 5.0 ms and not measured" in verdict(good)["reasons"][0]
    assert (good / "model.safetensors").read_bytes() == before
    # longer tasks would be other tasks; refused, and nothing is changed
    config = (good / ".hydra" / "config.yaml").read_text()
    assert effvit(shipped, monkeypatch, "update", "--resume", "good", "trainer.max_epochs=4") == 2
    assert "each task of this run is trained for 2 epochs; trainer.max_epochs=2" in capsys.readouterr().err
    assert (good / ".hydra" / "config.yaml").read_text() == config


@pytest.mark.slow
def test_one_that_forgets_a_group_is_held_and_names_it(shipped, monkeypatch):
    arguments = ("dataset.root=dusk", "trainer.max_epochs=4", "--tolerance", "0.2", "--run-dir", "worse")
    assert effvit(shipped, monkeypatch, "update", "shipped", *arguments) == 1
    told = verdict(shipped / "worse")
    assert told["verdict"] == "hold"
    (reason,) = told["reasons"]
    assert reason.startswith("light=night (old test set): worse, 100.0 % → ")
    assert "30 images" in reason


@pytest.mark.slow
def test_new_classes_grow_the_head_and_must_be_learnt(shipped, monkeypatch):
    third = ("update", "shipped", "dataset.root=abc", "continual=joint", "--tolerance", "0.05")
    assert effvit(shipped, monkeypatch, *third, "trainer.max_epochs=10", "--run-dir", "third") == 0
    assert cuts(shipped / "third") == [{"kind": "grow_head", "classes": ["c"]}]
    assert json.loads((shipped / "third" / "model.json").read_text())["classes"] == ["a", "b", "c"]
    models = verdict(shipped / "third")["models"]
    new = models["shipped"]["test"]["new"]
    assert new["measures"]["quality/accuracy"] == pytest.approx(2 / 3)
    assert new["missing"]["quality/nll"] == "the model does not know the class c"
    assert models["updated"]["test"]["new"]["measures"]["quality/accuracy"] > 0.95
    assert (
        effvit(shipped, monkeypatch, *third, "trainer.max_epochs=1", "recipe.lr=1e-9", "--run-dir", "lazy")
        == 1
    )
    (reason,) = verdict(shipped / "lazy")["reasons"]
    assert reason.endswith("though the shipped model does not know c")


@pytest.mark.slow
def test_interrupted_and_resumed(shipped, monkeypatch, capsys):
    assert effvit(shipped, monkeypatch, *MORE, "--run-dir", "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Curves, "on_train_batch_end", signal_at("on_train_batch_end", 7))
        assert effvit(shipped, patch, *MORE, "--run-dir", "halves") == 130
    assert not (shipped / "halves" / "update.json").exists()
    capsys.readouterr()
    # as any run, and it is judged as well
    run_in(shipped, monkeypatch, "resume=halves")
    assert "going on from step 7" in (told := capsys.readouterr().out)
    assert "verdict: promote" in told
    assert result(shipped / "halves") == result(shipped / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Curves, "on_train_batch_end", signal_at("on_train_batch_end", 2))
        assert effvit(shipped, patch, *MORE, "--run-dir", "again") == 130
    assert effvit(shipped, monkeypatch, "update", "--resume", "again") == 0
    assert result(shipped / "again") == result(shipped / "whole")


@pytest.mark.slow
def test_old_data_that_are_gone(shipped, monkeypatch, capsys):
    (shipped / "old").rename(shipped / "elsewhere")
    try:
        assert effvit(shipped, monkeypatch, *MORE, "continual=joint", "--run-dir", "no") == 2
        error = capsys.readouterr().err
        assert "continual=joint: looks at earlier training images, and these may not be used" in error
        assert not (shipped / "no").exists()
        assert effvit(shipped, monkeypatch, *MORE, "--run-dir", "alone") == 1
        (reason,) = verdict(shipped / "alone")["reasons"]
        assert reason.startswith("old test set: not tested (dataset.root=")
        alone = card(shipped / "alone")
        assert alone["provenance"]["continual"]["accuracy"][0][0] is None
        assert "not at hand" in alone["missing"]["continual/average_accuracy"]
        # where they are is told later: the verdict is taken again
        assert effvit(shipped, monkeypatch, "update", "--resume", "alone", "--old-root", "elsewhere") == 0
        assert verdict(shipped / "alone")["compared"]["old"]["images"] == 300
        joint = ("continual=joint", "--old-root", "elsewhere", "--run-dir", "found")
        assert effvit(shipped, monkeypatch, *MORE, *joint) == 0
    finally:
        (shipped / "elsewhere").rename(shipped / "old")


@pytest.mark.slow
def test_old_images_that_nobody_may_look_at(shipped, monkeypatch):
    for arguments in (
        (*MORE, "--old-images", "none", "--run-dir", "unseen"),
        ("update", "--resume", "unseen"),
    ):
        assert effvit(shipped, monkeypatch, *arguments) == 1
        (reason,) = verdict(shipped / "unseen")["reasons"]
        assert reason == "old test set: not tested (they were not to be used (--old-images none))"
    assert card(shipped / "unseen")["provenance"]["lineage"]["earlier_images"] == "none"


@pytest.mark.slow
def test_a_stream_is_not_taken_over(shipped, monkeypatch):
    stream = ("dataset.stream=corruption", "dataset.stream_kinds=[none,fog]", "dataset.stream_severity=2")
    arguments = ("dataset=image_folder", "dataset.root=old", "trainer.max_epochs=2", "run_dir=corrupted")
    assert effvit(shipped, monkeypatch, "train", *QUICK, "dataset.image_size=32", *arguments, *stream) == 0
    update = ("update", "corrupted", "dataset.root=more", "trainer.max_epochs=1", "--run-dir", "clean")
    assert effvit(shipped, monkeypatch, *update) in (0, 1)
    assert card(shipped / "clean")["provenance"]["continual"]["kind"] == "domain"


@pytest.mark.slow
def test_an_update_of_an_update(shipped, monkeypatch):
    assert effvit(shipped, monkeypatch, *MORE, "--run-dir", "first") == 0
    assert effvit(
        shipped, monkeypatch, "update", "first", "dataset.root=dusk", "continual=joint", "trainer.max_epochs=1",
        "--run-dir", "second",
    ) in (0, 1)  # fmt: skip
    lineage = card(shipped / "second")["provenance"]["lineage"]
    assert [one["run_dir"] for one in lineage["ancestors"]] == [str(shipped / "shipped")]
    assert lineage["parent"]["run_dir"] == str(shipped / "first")
    assert verdict(shipped / "second")["compared"]["old"]["images"] == 500  # those of old and of more


@pytest.mark.parametrize(("arguments", "words"), [
    (("dataset.root=more",), "no run is named"),
    (("nowhere", "dataset.root=more"), "RUN_DIR=nowhere: is no directory"),
    (("old", "dataset.root=more"), "no run at old"),
    (("shipped",), "dataset: no new data are named"),
    (("shipped", "dataset.root=missing"), "missing"),
    (("shipped", "dataset.root=more", "--budget", "cost/latency<=5"), "cost/latency"),
    (("shipped", "dataset.root=more", "--budget", "fast"), "--budget=fast: must be a measure"),
    (("shipped", "dataset.root=more", "model=vit_s"), "model=vit_s: is the shipped model's"),
    (("shipped", "dataset.root=more", "dataset.stream=class"), "an update is a stream of its own"),
    (("shipped", "dataset.root=more", "dataset.stream_kinds=[fog,snow]"), "an update is a stream of its own"),
    (("dataset.root=more", "nowhere"), "RUN_DIR=nowhere: is no directory"),
    (("shipped", "dataset.root=more", "nowhere"), "'nowhere' is no override"),
    (("shipped", "dataset.root=more", "dataset.image_size=16"), "the model takes images of 1x8x8, these are 1x16x16"),
    (("shipped", "dataset.root=more", "--tolerance", "2"), "update.tolerance=2.0: must be in [0, 1)"),
    (("shipped", "dataset.root=more", "compress=distill"), "compress.distill.teacher"),
    (("shipped", "dataset.root=more", "update.budgets=[]"), "is an option of effvit update"),
    (("shipped", "dataset.root=more", "--fast"), "'--fast' is no override"),
    (("--resume", "shipped"), "is no update"),
])  # fmt: skip
def test_wrong_arguments(shipped, arguments, words, monkeypatch, capsys):
    there = {path.name for path in shipped.iterdir()}
    where = () if "--resume" in arguments else ("--run-dir", "wrong")
    assert effvit(shipped, monkeypatch, "update", *arguments, *where) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1
    assert {path.name for path in shipped.iterdir()} == there


def test_a_run_that_is_not_finished(shipped, tmp_path, monkeypatch, capsys):
    (tmp_path / "half").mkdir()
    state = RunState.new()
    state.status = "interrupted"
    state.write(tmp_path / "half" / "state.json")
    assert effvit(tmp_path, monkeypatch, "update", "half", "dataset.root=more") == 2
    assert "RUN_DIR=half: is not a finished run, it is interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_epsilons_compose_and_break_a_budget(shipped, tmp_path, monkeypatch, capsys):
    private = ("privacy=dp_sgd", "privacy.epsilon=4", "privacy.accountant=rdp", "dataset.augment.hflip=false")
    assert effvit(
        shipped, monkeypatch, "train", *QUICK, *private, "dataset=image_folder", "dataset.root=old",
        "trainer.max_epochs=1", "run_dir=private",
    ) == 0  # fmt: skip
    spent = card(shipped / "private")["measures"]["privacy/epsilon"]
    assert 3 < spent <= 4
    update = ("update", "private", "dataset.root=more", "trainer.max_epochs=1")
    # what it may spend is known before: nothing is trained
    assert effvit(shipped, monkeypatch, *update, "--budget", "privacy/epsilon<=6", "--run-dir", "costly") == 1
    (reason,) = verdict(shipped / "costly")["reasons"]
    assert reason.startswith("privacy/epsilon: the shipped model has spent")
    assert "breaks the budget <= 6" in reason
    assert not (shipped / "costly" / "card.json").exists()
    capsys.readouterr()
    # with a larger budget it is trained, and the epsilons are added up
    wide = ("--budget", "privacy/epsilon<=9", "--tolerance", "0.6")
    effvit(shipped, monkeypatch, "update", "--resume", "costly", *wide)
    told = card(shipped / "costly")
    own = told["provenance"]["privacy"]["epsilon"]
    assert told["measures"]["privacy/epsilon"] == pytest.approx(spent + own)
    assert told["provenance"]["lineage"]["epsilon_before"]["epsilon"] == pytest.approx(spent)
    assert told["provenance"]["lineage"]["new_data"]["fingerprint"] is None
    assert told["provenance"]["dataset"]["counts"]["train"] == 80  # the new images alone
    budget = verdict(shipped / "costly")["budgets"][0]
    assert (budget["key"], budget["passed"]) == ("privacy/epsilon", True)
    # the noise is given, so that what it spends is known afterwards
    noise = ("privacy.epsilon=null", "privacy.noise_multiplier=0.8", "--budget", "privacy/epsilon<=3.5")
    assert effvit(shipped, monkeypatch, *update, *noise, "--run-dir", "noisy") == 1
    assert any("breaks the budget <= 3.50" in text for text in verdict(shipped / "noisy")["reasons"])

    # without privacy, its images are not shown again
    capsys.readouterr()
    assert effvit(shipped, monkeypatch, *update, "privacy=none", "continual=joint", "--run-dir", "no") == 2
    assert "they are private (privacy=dp_sgd)" in capsys.readouterr().err
    effvit(shipped, monkeypatch, *update, "privacy=none", "--run-dir", "open")
    assert card(shipped / "open")["provenance"]["lineage"]["earlier_images"] == "test"
    assert [task["train"] for task in card(shipped / "open")["provenance"]["continual"]["tasks"]] == [0, 80]
    for arguments, words in (
        (("continual=joint",), "continual=joint: is for updates without privacy"),
        (("--old-images", "all"), "a private update is trained on the new images alone"),
        (("dataset.root=abc",), "has classes that the model does not know (c)"),
    ):
        assert effvit(shipped, monkeypatch, *update, *arguments, "--run-dir", "no") == 2
        assert words in capsys.readouterr().err
        assert not (shipped / "no").exists()
