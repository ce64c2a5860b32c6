"""Files made by somebody else: refused in one line, and what they carry does not run."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from driving import SMALL, exit_code, run_in

from effvit_train import checkpoint_file, cli, load_model
from effvit_train.errors import UserError

SHORT = (*SMALL, "trainer.max_epochs=1", "logger=none")


class Payload:
    """Unpickling this makes the directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(marker)))


def torch_zip(path: Path, marker: Path) -> None:
    torch.save({"state_dict": {"w": torch.zeros(1)}, "x": Payload(marker)}, path)


def torch_legacy(path: Path, marker: Path) -> None:
    torch.save({"x": Payload(marker)}, path, _use_new_zipfile_serialization=False)


FORMS: dict[str, Callable[[Path, Path], None]] = {
    "pickle": pickled, "torch zip": torch_zip, "torch legacy": torch_legacy,
}  # fmt: skip


@pytest.fixture(params=FORMS)
def hostile(request, tmp_path):
    """A file that makes `marker` when it is unpickled, which was tried; and a look at whether it did."""
    form, marker = FORMS[request.param], tmp_path / "it-ran"
    probe = tmp_path / "probe"
    form(probe, marker)
    pickle.loads(probe.read_bytes()) if form is pickled else torch.load(probe, weights_only=False)
    assert marker.is_dir()
    marker.rmdir()

    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        form(path, marker)

    yield make
    assert not marker.exists()


@pytest.fixture(scope="module")
def run_of_ours(tmp_path_factory):
    """A finished run."""
    from effvit_train import measuring
    from effvit_train.card import Measured

    directory = tmp_path_factory.mktemp("ours")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "measure_cost", lambda *a, **k: (Measured({"cost/params": 1.0}), {}))
        run_in(directory, patch, *SHORT, "run_dir=run")
    return directory / "run"


@pytest.fixture
def run(run_of_ours, tmp_path):
    """A copy of it."""
    import shutil

    return Path(shutil.copytree(run_of_ours, tmp_path / "run"))


def one_line(capfd) -> str:
    err = capfd.readouterr().err
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    return line


def test_as_checkpoint(hostile, run, monkeypatch, capfd):
    for name in ("last", "best", "previous"):
        hostile(run / "checkpoints" / f"{name}.ckpt")
    assert exit_code(run.parent, monkeypatch, f"resume={run}", "trainer.max_epochs=2") == 2
    assert "no good checkpoint" in one_line(capfd)


def test_as_checkpoint_with_our_checksum(run, tmp_path, monkeypatch, capfd):
    marker = tmp_path / "it-ran"
    last = run / "checkpoints" / "last.ckpt"
    content = checkpoint_file.read(last)
    checkpoint_file.write({**content, "callbacks": Payload(marker)}, last)
    assert exit_code(run.parent, monkeypatch, f"resume={run}", "trainer.max_epochs=2") == 2
    assert "holds Python objects, which could run code: refused" in one_line(capfd)
    assert not marker.exists()


def test_as_weights_file(hostile, tmp_path, monkeypatch, capfd):
    hostile(tmp_path / "weights.pt")
    assert exit_code(tmp_path, monkeypatch, *SHORT, "model.weights=weights.pt") == 2
    assert f"model.weights={tmp_path}/weights.pt: " in one_line(capfd)
    assert not (tmp_path / "runs").exists()


def test_as_the_weights_of_a_run(hostile, run):
    hostile(run / "model.safetensors")
    with pytest.raises(UserError, match=r"model.safetensors is damaged"):
        load_model(run)


def test_as_a_teacher_of_ours(hostile, run, monkeypatch, capfd):
    hostile(run / "model.safetensors")
    arguments = (*SHORT, "compress=distill", f"compress.distill.teacher={run}")
    assert exit_code(run.parent, monkeypatch, *arguments) == 2
    assert f"{run}/model.safetensors is damaged" in one_line(capfd)


def test_as_the_weights_of_a_foreign_teacher(hostile, tmp_path, monkeypatch, capfd):
    hostile(tmp_path / "teacher.pt")
    arguments = (*SHORT, "compress=distill", "compress.distill.teacher=test_resnet",
                 "compress.distill.weights=teacher.pt")  # fmt: skip
    assert exit_code(tmp_path, monkeypatch, *arguments) == 2
    assert f"compress.distill.weights={tmp_path}/teacher.pt: " in one_line(capfd)


def test_as_a_cached_teacher(hostile, tmp_path, monkeypatch, no_probe, capfd):
    arguments = (*SHORT, "compress=distill", "compress.distill.trained.max_epochs=1",
                 "compress.distill.trained.min_steps=1", f"cache_dir={tmp_path / 'cache'}")  # fmt: skip
    run_in(tmp_path, monkeypatch, *arguments)
    (weights,) = (tmp_path / "cache" / "teachers").glob("*/model.safetensors")
    hostile(weights)
    capfd.readouterr()
    assert exit_code(tmp_path, monkeypatch, *arguments) == 2
    assert f"{weights} is damaged" in one_line(capfd)


def test_as_cached_logits(run, tmp_path, monkeypatch, capfd):
    marker = tmp_path / "it-ran"
    array = io.BytesIO()
    np.save(array, np.array([[Payload(marker)]], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(run / "predictions.npz", "w") as archive:
        for name in ("logits.npy", "labels.npy", "index.npy"):
            archive.writestr(name, array.getvalue())
    cli.main(["report", str(run)])
    assert "predictions.npz cannot be read" in (run / "card.html").read_text()
    assert not marker.exists()


@pytest.mark.parametrize("name", ["card.json", "model.json", "state.json"])
def test_where_json_should_be(name, hostile, run, monkeypatch, capfd):
    hostile(run / name)
    if name == "card.json":
        with pytest.raises(SystemExit) as caught:
            cli.main(["report", str(run)])
        assert caught.value.code == 2
        assert "is not a card" in one_line(capfd)
    elif name == "model.json":
        with pytest.raises(UserError, match=r"model\.json"):
            load_model(run)
    else:
        assert exit_code(run.parent, monkeypatch, f"resume={run}") == 2
        assert "is not the state of a run" in one_line(capfd)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        (None, {"checkpoint_path": "{file}"}),
        (None, {"pretrained": True, "pretrained_cfg_overlay": {"file": "{file}"}}),
        (None, {"pretrained": True, "pretrained_cfg": {"file": "{file}", "architecture": "vit"}}),
        ("local-dir:{directory}", {}),
        ("hf-hub:somebody/something", {}),
    ],
)
def test_a_record_that_would_read_other_files_is_refused(name, kwargs, hostile, run):
    hostile(run / "evil.pth")
    record = json.loads((run / "model.json").read_text())
    text = json.dumps({**record["kwargs"], **kwargs}).replace("{file}", str(run / "evil.pth"))
    record["kwargs"] = json.loads(text)
    record["name"] = name.format(directory=run) if name else record["name"]
    (run / "model.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"model\.json: .*: refused"):
        load_model(run)


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ("  _target_: os.mkdir\n  path: '{marker}'\n", "model.args._target_=os.mkdir"),
        ("  extra: ${{oc.env:HOME}}\n", "model.args.extra=${oc.env:HOME}"),
        ("  extra: !!python/object/apply:os.mkdir ['{marker}']\n", "python/object/apply:os.mkdir"),
    ],
)
def test_a_stored_configuration_holds_values_and_no_more(lines, named, run, tmp_path, monkeypatch, capfd):
    marker = tmp_path / "it-ran"
    config = run / ".hydra" / "config.yaml"
    text = config.read_text()
    assert "  args:\n" in text
    indented = "".join(f"  {line}\n" for line in lines.format(marker=marker).splitlines())
    config.write_text(text.replace("  args:\n", f"  args:\n{indented}", 1))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert exit_code(run.parent, monkeypatch, f"resume={run}", "trainer.max_epochs=2") == 2
    line = one_line(capfd)
    assert line.startswith(f"error: resume={run}: its configuration ")
    assert named in line
    assert not marker.exists()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_technique_that_is_not_ours_is_refused(run, monkeypatch, capfd):
    config = run / ".hydra" / "config.yaml"
    text = config.read_text()
    assert "compress: {}" in text
    config.write_text(text.replace("compress: {}", "compress:\n  os.system:\n    command: 'true'"))
    assert exit_code(run.parent, monkeypatch, f"resume={run}", "trainer.max_epochs=2") == 2
    assert "unknown technique" in one_line(capfd)
