from __future__ import annotations

import os

import pytest

from effvit_train.errors import UserError
from effvit_train.runs import RunDir, RunState, discard, ensure_writable, machine, versions


def test_state_round_trip(tmp_path):
    state = RunState.new()
    state.write(tmp_path / "state.json")
    assert RunState.read(tmp_path / "state.json") == state
    assert state.status == "running"
    assert RunState.new().id != state.id


@pytest.mark.parametrize("content", ["{", "[]", '{"status": "done"}', '{"bogus": 1}'])
def test_what_is_no_state_is_refused(tmp_path, content):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(UserError, match="is not the state of a run"):
        RunState.read(tmp_path / "state.json")


def test_discard_removes_what_hydra_made_and_empty_parents(tmp_path):
    run = tmp_path / "runs" / "name" / "stamp"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text("x")
    discard(run)
    assert not (tmp_path / "runs").exists()
    assert tmp_path.exists()


def test_discard_leaves_an_empty_directory_of_the_users_alone(tmp_path):
    (tmp_path / "mine" / "a" / ".hydra").mkdir(parents=True)
    discard(tmp_path / "mine" / "a")
    assert list((tmp_path / "mine").iterdir()) == []


def test_discard_keeps_other_runs_and_anything_that_started(tmp_path):
    run, other = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    (run / ".hydra").mkdir(parents=True)
    other.mkdir()
    (other / "card.json").write_text("{}")
    discard(other)
    assert other.exists()
    RunState.new().write(RunDir(run).state)
    discard(run)
    assert run.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"run_dir=.*cannot be written"):
        ensure_writable(tmp_path / "x")


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match=r"run_dir=.*cannot be written"):
        ensure_writable(tmp_path / "x" / "y")


def test_versions_and_machine_are_filled():
    assert versions()["torch"].startswith("2.")
    assert machine()["cores"] == os.cpu_count()
