"""One process a run directory, whoever it is and however it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from effvit_train import lock
from effvit_train.errors import UserError
from effvit_train.lock import Holder, RunLock, holder

HOLD = """
import sys, time
from pathlib import Path
from effvit_train.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def left_behind(path: Path, **changes) -> Path:
    """A lock file of a process that ended without removing it."""
    with RunLock(path) as held:
        found = replace(held.holder, **changes)
    file = path / lock.NAME
    file.write_text(json.dumps(asdict(found)))
    return file


def test_a_second_process_is_refused_by_name_and_a_killed_one_is_not_in_the_way(tmp_path, other):
    with (
        pytest.raises(UserError, match=rf"is running \(process {other.pid} on this machine, since 20"),
        RunLock(tmp_path),
    ):
        pass
    found = holder(tmp_path)
    assert found is not None
    assert found.pid == other.pid
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert (tmp_path / lock.NAME).exists()
    assert holder(tmp_path) is None
    with RunLock(tmp_path) as mine:
        assert mine.holder.pid == os.getpid()
    assert not (tmp_path / lock.NAME).exists()


def test_the_same_process_is_refused_too(tmp_path):
    with RunLock(tmp_path):
        with pytest.raises(UserError, match=f"process {os.getpid()}"), RunLock(tmp_path):
            pass
        assert holder(tmp_path).pid == os.getpid()  # and asking does not unlock it
        assert not subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True).stdout
    with RunLock(tmp_path):
        pass


def test_a_lock_of_another_machine_without_signs_of_life_is_taken_over_after_a_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    left_behind(tmp_path, host="elsewhere", pid=7)
    said = []
    start = time.monotonic()
    with RunLock(tmp_path, said.append):
        assert time.monotonic() - start >= 0.5
    assert len(said) == 1
    assert "was held by process 7 on elsewhere" in said[0]


def test_signs_of_life_from_another_machine_refuse(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 5.0)
    file = left_behind(tmp_path, host="elsewhere", pid=7)
    threading.Timer(0.3, os.utime, (file,)).start()
    with pytest.raises(UserError, match="process 7 on elsewhere"), RunLock(tmp_path, lambda line: None):
        pass
    assert Holder(**json.loads(file.read_text())).host == "elsewhere"


def test_a_lock_that_is_long_dead_or_of_the_same_job_needs_no_wait(tmp_path, monkeypatch):
    file = left_behind(tmp_path, host="elsewhere")
    os.utime(file, (0, 0))
    said = []
    with RunLock(tmp_path, said.append):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    left_behind(tmp_path, host="elsewhere", job="17")  # queued again, on another node
    with RunLock(tmp_path, said.append):
        pass
    assert said == []


def test_the_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with RunLock(tmp_path):
        os.utime(tmp_path / lock.NAME, (0, 0))
        end = time.monotonic() + 5
        while os.stat(tmp_path / lock.NAME).st_mtime < 1e9:
            assert time.monotonic() < end
            time.sleep(0.01)
