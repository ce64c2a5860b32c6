"""What weights have seen: counted by hand, then read back from every file that a run leaves."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors
import safetensors.torch
import torch
from driving import SMALL, data_of, interrupted_run, run_in

from effvit_train import checkpoint_file, load_model, seen
from effvit_train.models.config import ModelConfig

SHORT = (*SMALL, "recipe.batch_size=128", "trainer.max_epochs=2", "logger=none")
A, B = "pixels:" + "a" * 64, "files:" + "b" * 64


def entry(data=A, via="training", name="digits", images=100, epsilon=None, delta=1e-5):
    private = {} if epsilon is None else {"delta": delta}
    return {"name": name, "data": data, "images": images, "epsilon": epsilon, "via": via, **private}


def unknown(via, name=None):
    return {
        "name": name,
        "data": None,
        "images": None,
        "epsilon": None,
        "via": via,
        "declared": name is not None,
    }


def info(name="digits"):
    return SimpleNamespace(name=name, fingerprint=A, counts={"train": 100, "val": 7, "test": 9})


# --- by hand -----------------------------------------------------------------------------------


def test_training_is_seen_without_privacy():
    assert seen.of_training(info()) == [entry()]


def test_a_folder_with_a_name_that_does_harm():
    (found,) = seen.of_training(info("a\x1b[2Jb\udcff\n\u202e" + "x" * 500))
    assert found["name"] == "a?[2Jb???" + "x" * 191
    assert seen.checked([found]) == [found]


def test_foreign_data_are_named_as_far_as_somebody_declares_them():
    assert seen.foreign("in1k", "teacher") == [unknown("teacher", "in1k")]
    assert seen.foreign(None, "weights") == [unknown("weights")]


def test_what_is_inherited_came_by_another_way_and_each_is_there_once():
    grown = [entry(B), entry(A, "weights"), entry(A, "teacher"), unknown("weights", "in1k")]
    assert seen.inherited(grown, "teacher") == [
        entry(B, "teacher"),
        entry(A, "teacher"),
        unknown("teacher", "in1k"),
    ]
    assert grown[0]["via"] == "training"


def test_merged_in_their_order_without_duplicates():
    private = entry(A, epsilon=3.0)
    copy = entry(A, name="copy")
    lists = ([entry(B), entry(A)], [entry(A, "weights"), entry(B)], [private, copy, entry(A)])
    assert seen.merge(*lists) == [entry(B), entry(A), entry(A, "weights"), private, copy]
    several = [unknown("teacher", "in1k"), unknown("teacher", "in21k"), unknown("teacher")]
    assert seen.merge(several, several) == several
    assert seen.merge() == []


@pytest.mark.parametrize(
    "wrong",
    [
        None, {}, "[]", [None], [[]], [{}], [entry(via="elsewhere")], [entry(via=["training"])], [entry(name=None)],
        [entry(name="x" * 201)], [entry(name="a\nb")], [entry(name="\ud800")], [entry(name="\u202e")],
        [entry(data="<script>")], [entry(data="a" * 129)], [entry(data=A + "\n")], [entry(data=7)],
        [entry(images=True)], [entry(images=-1)], [entry(images=2**53)], [entry(images=1.0)], [entry(images=None)],
        [entry(epsilon=True)], [entry(epsilon=-1)], [entry(epsilon=float("nan"))], [entry(epsilon=float("inf"))],
        [entry(epsilon=1.0, delta=None)], [entry(epsilon=1.0, delta=2)], [entry(epsilon=1.0, delta=True)],
        [entry() | {"delta": 0.1}], [entry(epsilon=10**400)], [entry(epsilon="3")], [entry()] * 1001, [entry(), None],
        [unknown("weights", "in1k") | {"declared": False}], [unknown("weights") | {"declared": True}],
        [unknown("weights") | {"declared": 0}], [unknown("weights") | {"images": 5}],
        [unknown("weights") | {"epsilon": 1.0}], [unknown("weights") | {"name": 3}], [entry(data=None)],
    ],
)  # fmt: skip
def test_a_malformed_list_is_none(wrong):
    assert seen.checked(wrong) is None


def test_what_we_do_not_know_is_dropped():
    more = {"declared": True, "html": "<script>", "n": {"deep": []}}
    assert seen.checked([entry() | more, unknown("teacher") | {"x": 1}]) == [entry(), unknown("teacher")]
    assert seen.checked([]) == []


@pytest.mark.parametrize(
    "text", ["", "[", "null", "[]", "[" * 100_000, "1" * 5000, json.dumps([entry()]) + " " * (1 << 20)]
)
def test_hostile_text(text):
    assert seen.from_text(text) is None


def test_the_text_tells_the_same_entries():
    entries = [entry(epsilon=2.5, name="Ziffern é"), unknown("teacher", "in1k")]
    text = seen.to_text(entries)
    assert text.isascii()
    assert seen.from_text(text) == entries


def card(directory: Path, provenance: object, run: object = ...) -> Path:
    directory.mkdir(exist_ok=True)
    content = {"run": {} if run is ... else run, "provenance": provenance}
    (directory / "card.json").write_text(json.dumps(content))
    return directory


def test_a_card(tmp_path):
    dataset = {"name": "digits", "fingerprint": A, "counts": {"train": 100}}
    assert seen.of_run(card(tmp_path / "r", {"seen": [entry(B)], "dataset": dataset})) == [entry(B)]
    assert seen.of_run(card(tmp_path / "r", {"seen": [], "dataset": dataset})) is None
    assert seen.of_run(card(tmp_path / "r", {"seen": "all", "dataset": dataset})) is None


def test_an_older_card_tells_its_data_and_that_there_was_more(tmp_path):
    dataset = {"name": "digits", "fingerprint": A, "counts": {"train": 100}}
    assert seen.of_run(card(tmp_path / "r", {"dataset": dataset, "teacher": None})) == [entry()]
    assert seen.of_run(card(tmp_path / "r", {"dataset": dataset, "teacher": {"source": "self"}})) == [entry()]
    grown = card(tmp_path / "r", {"dataset": dataset, "teacher": {"source": "timm"}}, {"weights": "timm"})
    assert seen.of_run(grown) == [entry(), unknown("weights"), unknown("teacher")]


@pytest.mark.parametrize(
    "provenance",
    [
        None, [], {}, {"dataset": None}, {"dataset": {}}, {"dataset": {"counts": 3}},
        {"dataset": {"name": "d", "fingerprint": A, "counts": {}}},
        {"dataset": {"name": "d", "fingerprint": A, "counts": {"train": "many"}}},
    ],
)  # fmt: skip
def test_a_card_that_tells_nothing(provenance, tmp_path):
    assert seen.of_run(card(tmp_path / "r", provenance)) is None


def test_what_is_no_card(tmp_path):
    assert seen.of_run(tmp_path) is None
    for content in (b"", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"provenance": 1e999}'):
        (tmp_path / "card.json").write_bytes(content)
        assert seen.of_run(tmp_path) is None
    with open(tmp_path / "card.json", "wb") as file:  # a hole of 65 MB: not read at all
        file.truncate((1 << 26) + 1)
    assert seen.of_run(tmp_path) is None
    (tmp_path / "card.json").unlink()
    os.mkfifo(tmp_path / "card.json")  # would wait for ever
    assert seen.of_run(tmp_path) is None


def weights(path: Path, **metadata: str) -> Path:
    safetensors.torch.save_file({"w": torch.zeros(2)}, path, metadata=metadata)
    return path


def test_a_file(tmp_path):
    path = tmp_path / "w.safetensors"
    assert seen.of_file(weights(path, seen=seen.to_text([entry()]))) == [entry()]
    assert seen.of_file(weights(path, format="pt")) is None
    assert seen.of_file(weights(path, seen="[" * 100_000)) is None
    assert seen.of_file(weights(path, seen='[{"name": "\\ud800"}]')) is None
    assert seen.of_file(tmp_path) is None
    assert seen.of_file(tmp_path / "missing") is None
    for content in (b"", b"{}", b"\xff" * 8 + b"{", path.read_bytes()[:-1]):
        path.write_bytes(content)
        assert seen.of_file(path) is None


class Payload:
    """Unpickling this makes the directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code(zipped, tmp_path):
    content = {"state_dict": {"w": torch.zeros(1)}, "seen": Payload(tmp_path / "it-ran")}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    assert seen.of_file(tmp_path / "w.pt") is None
    assert not (tmp_path / "it-ran").exists()


def test_what_a_model_starts_from(tmp_path):
    assert seen.of_start(ModelConfig()) == []
    assert seen.of_start(ModelConfig(name="vit_tiny_patch16_224.augreg_in21k", pretrained=True)) == [
        unknown("weights", "timm's vit_tiny_patch16_224.augreg_in21k")
    ]
    (untagged,) = seen.of_start(ModelConfig(name="vit_tiny_patch16_224", pretrained=True))
    assert untagged["name"].startswith("timm's vit_tiny_patch16_224.")  # the default weights' own tag
    assert seen.of_start(ModelConfig(weights=str(tmp_path / "gone"))) == [unknown("weights")]
    path = weights(tmp_path / "model.safetensors", seen=seen.to_text([entry()]))
    assert seen.of_start(ModelConfig(weights=str(path))) == [entry(via="weights")]
    assert seen.of_start(ModelConfig(weights=str(tmp_path))) == [entry(via="weights")]
    # the file is what is loaded: a card beside it cannot unsay what it has seen
    card(tmp_path, {"seen": [entry(B)]})
    assert seen.of_start(ModelConfig(weights=str(tmp_path))) == [entry(B, "weights"), entry(via="weights")]


def test_a_checkpoint_is_taken_over_in_its_order():
    entries = [entry(), entry(B, "teacher")]
    stored: dict = {}
    seen.Seen([entry(), entry(A, "weights"), entry(B, "teacher")]).on_save_checkpoint(None, None, stored)  # type: ignore[arg-type]
    seen.Seen(entries).on_load_checkpoint(None, None, stored)  # type: ignore[arg-type]
    assert entries == stored["seen"] == [entry(), entry(A, "weights"), entry(B, "teacher")]


def test_a_folder_that_was_renamed_before_a_resume_is_listed_under_its_first_name():
    entries = [entry(name="renamed"), entry(B, "teacher"), unknown("weights", "in1k")]
    seen.Seen(entries).on_load_checkpoint(None, None, {"seen": [entry(), unknown("weights")]})  # type: ignore[arg-type]
    assert entries == [entry(), unknown("weights"), entry(B, "teacher"), unknown("weights", "in1k")]


@pytest.mark.parametrize("stored", [{}, {"seen": None}, {"seen": [entry(name="\x1b")]}])
def test_a_checkpoint_that_does_not_tell_is_unknown_data(stored):
    entries = [entry()]
    seen.Seen(entries).on_load_checkpoint(None, None, stored)  # type: ignore[arg-type]
    assert entries == [unknown("weights"), entry()]


# --- in runs -----------------------------------------------------------------------------------


def provenance(run: Path) -> dict:
    return json.loads((run / "card.json").read_text())["provenance"]


def told(run: Path) -> list:
    """What card, checkpoint and weights of a run say; they say the same."""
    listed = provenance(run)["seen"]
    assert checkpoint_file.read(run / "checkpoints" / "last.ckpt")["seen"] == listed
    with safetensors.safe_open(run / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"format", "seen"}
    assert json.loads(metadata["seen"]) == listed
    assert seen.of_run(run) == seen.of_file(run / "model.safetensors") == listed
    assert seen.of_file(run / "checkpoints" / "last.ckpt") == listed
    load_model(run)
    return listed


def own(run: Path, via="training") -> dict:
    data = provenance(run)["dataset"]
    return entry(data["fingerprint"], via, data["name"], data["counts"]["train"])


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Path:
    """A run on another split of the digits."""
    from effvit_train import measuring
    from effvit_train.card import Measured

    directory = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
        run_in(directory, patch, *SHORT, "dataset.split_seed=1", "run_dir=run")
    return directory / "run"


def test_a_plain_run(first):
    assert told(first) == [own(first)]
    assert own(first)["images"] > 0


@pytest.mark.parametrize("form", ["run", "safetensors", "checkpoint", "bare directory"])
def test_a_run_that_starts_from_another(form, first, tmp_path, monkeypatch, no_probe):
    source = {"run": first, "safetensors": tmp_path / "w", "checkpoint": tmp_path / "c"}.get(
        form, tmp_path / "d"
    )
    if form == "safetensors":
        shutil.copy(first / "model.safetensors", source)
    if form == "checkpoint":
        shutil.copy(first / "checkpoints" / "last.ckpt", source)
    if form == "bare directory":
        source.mkdir()
        shutil.copy(first / "model.safetensors", source)
    run_in(tmp_path, monkeypatch, *SHORT, "trainer.max_epochs=1", f"model.weights={source}", "run_dir=run")
    run = tmp_path / "run"
    assert told(run) == [own(run), own(first, "weights")]
    assert own(run)["data"] != own(first)["data"]


def test_hostile_weights_are_unknown_data(first, tmp_path, monkeypatch, no_probe):
    state = safetensors.torch.load_file(first / "model.safetensors")
    bad = [own(first) | {"name": "\x1b[2J<script>"}]
    safetensors.torch.save_file(state, tmp_path / "w", metadata={"seen": json.dumps(bad)})
    run_in(
        tmp_path,
        monkeypatch,
        *SHORT,
        "trainer.max_epochs=1",
        f"model.weights={tmp_path / 'w'}",
        "run_dir=run",
    )
    assert told(tmp_path / "run") == [own(tmp_path / "run"), unknown("weights")]


def test_a_resumed_run_keeps_its_list_when_what_it_started_from_is_gone(
    first, tmp_path, monkeypatch, no_probe
):
    source = Path(shutil.copytree(first, tmp_path / "source"))
    arguments = (*SHORT, f"model.weights={source}")
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 3, *arguments, "run_dir=run") == 130
    shutil.rmtree(source)
    for count in (3, 1):
        assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", count, "resume=run") == 130
    run_in(tmp_path, monkeypatch, "resume=run")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert told(run) == told(whole) == [own(run), own(first, "weights")]
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_checkpoint_from_before_there_were_lists(first, tmp_path, monkeypatch, no_probe):
    arguments = (*SHORT, f"model.weights={first}", "run_dir=run")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 3, *arguments) == 130
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = checkpoint_file.read(last)
    del content["seen"]
    checkpoint_file.write(content, last)
    run_in(tmp_path, monkeypatch, "resume=run")
    run = tmp_path / "run"
    assert told(run) == [own(first, "weights"), own(run)]


def test_what_a_technique_brings_is_added(tmp_path, monkeypatch, no_probe):
    from effvit_train.compress import distill

    attach = distill.attach

    def with_list(config, context):
        attachment = attach(config, context)
        attachment.provenance["seen"] = [entry(B, "teacher"), unknown("teacher", "in1k")]
        return attachment

    monkeypatch.setattr(distill, "attach", with_list)
    arguments = ("compress=distill", "compress.distill.kinds=[self]", "trainer.max_epochs=1", "run_dir=run")
    run_in(tmp_path, monkeypatch, *SHORT, *arguments)
    run = tmp_path / "run"
    assert told(run) == [own(run), entry(B, "teacher"), unknown("teacher", "in1k")]
    assert provenance(run)["teacher"]["source"] == "self"


def test_a_run_goes_on_from_a_renamed_folder(tmp_path, monkeypatch, no_probe):
    root, moved = tmp_path / "before", tmp_path / "after"
    arguments = (*SMALL, "dataset=image_folder", *data_of("image_folder", root, monkeypatch),
                 "recipe.batch_size=16", "trainer.max_epochs=2", "logger=none")  # fmt: skip
    run_in(tmp_path, monkeypatch, *arguments, "run_dir=whole")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 3, *arguments, "run_dir=run") == 130
    root.rename(moved)
    run_in(tmp_path, monkeypatch, "resume=run", f"dataset.root={moved}")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert provenance(run)["dataset"]["name"] == "after"
    assert told(run) == told(whole) == [own(whole)]
    assert own(whole)["name"] == "before"
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
