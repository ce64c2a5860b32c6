"""Checkpoint files: whole or known to be damaged, and never code."""

from __future__ import annotations

import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch

from effvit_train import checkpoint_file
from effvit_train.checkpoint_file import DamagedError, find, read, write
from effvit_train.errors import UserError
from effvit_train.runs import RunDir


def content(step: int) -> dict:
    generator = torch.Generator().manual_seed(step)
    return {
        "architecture": {"name": "x"},
        "position": {"epochs": 1, "batches": 0, "step": step, "images_per_step": 8},
        "state_dict": {"w": torch.randn(40, 40, generator=generator), "n": torch.tensor(step)},
    }


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run with three checkpoints: steps 3 (last), 2 (previous) and 1 (best)."""
    run = RunDir(tmp_path)
    write(content(1), run.best)
    write(content(2), run.last, run.previous)
    write(content(3), run.last, run.previous)
    return run


def step_of(found: checkpoint_file.Found | None) -> int:
    assert found is not None
    step = found.content["position"]["step"]
    assert torch.equal(found.content["state_dict"]["w"], content(step)["state_dict"]["w"])
    return step


class Payload:
    """Unpickling this makes a directory."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_what_is_written_is_read_and_the_one_before_is_kept(run):
    assert step_of(find(run)) == 3
    assert read(run.previous)["position"]["step"] == 2
    assert torch.load(run.last, weights_only=True)["position"]["step"] == 3  # torch needs none of our code
    assert not list(run.last.parent.glob(".*"))


def test_fifty_truncations_are_told_from_a_good_file(run):
    whole = run.last.read_bytes()
    lengths = {0, 1, len(whole) - 1, len(whole) - 33, len(whole) - 65, len(whole) - 66}
    lengths |= set(random.Random(0).sample(range(len(whole)), 50 - len(lengths)))
    for length in sorted(lengths):
        run.last.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            read(run.last)
        assert step_of(find(run)) == 2, length


def test_two_hundred_flipped_bits_are_noticed(run):
    whole = run.last.read_bytes()
    for bit in random.Random(1).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        run.last.write_bytes(damaged)
        found = find(run)
        assert step_of(found) == 2, bit
        assert found.path == run.previous
        assert found.passed_over[0].startswith("last.ckpt was ") or "is cut short" in found.passed_over[0]


def test_the_reason_is_named_and_the_next_good_one_is_taken(run):
    run.last.write_bytes(b"")
    run.previous.write_bytes(run.previous.read_bytes()[:-100])
    found = find(run)
    assert step_of(found) == 1
    assert found.passed_over == [
        "last.ckpt is empty",
        "previous.ckpt is cut short or was changed: it does not end in a checksum",
    ]
    run.last.unlink()  # a kill between the two renames of a save
    assert find(run).passed_over[0] == "last.ckpt is missing"


def test_no_file_is_a_run_that_starts_and_no_good_file_is_refused(run, tmp_path):
    assert find(RunDir(tmp_path / "other")) is None
    for path in (run.last, run.previous, run.best):
        path.write_bytes(b"x")
    with pytest.raises(
        UserError,
        match=r"resume=.*no good checkpoint.*last.ckpt is cut short.*best.ckpt is cut short.*remove checkpoints/",
    ):
        find(run)


def test_a_pickle_in_its_place_is_passed_over_and_does_not_run(run, tmp_path):
    marker = tmp_path / "it-ran"
    for protocol in (2, 4):
        run.last.write_bytes(pickle.dumps(Payload(marker), protocol))
        assert step_of(find(run)) == 2
    torch.save({"state_dict": Payload(marker), "architecture": {}, "position": {}}, run.last)
    assert step_of(find(run)) == 2
    assert not marker.exists()


def test_a_pickle_with_our_checksum_is_refused_and_does_not_run(run, tmp_path):
    marker = tmp_path / "it-ran"
    write({**content(9), "callbacks": Payload(marker)}, run.last)
    with zipfile.ZipFile(run.last) as archive:  # the payload is there
        assert any(b"mkdir" in archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    with pytest.raises(UserError, match="holds Python objects, which could run code: refused"):
        find(run)
    assert not marker.exists()


def test_a_whole_file_of_something_else_is_refused(run):
    write({"weights": torch.zeros(1)}, run.last)
    with pytest.raises(UserError, match="is not a checkpoint of effvit_train"):
        find(run)


def test_a_failed_write_leaves_what_was_there(run, monkeypatch):
    def full(self, data):
        self.error = OSError(28, "No space left on device")
        raise self.error

    monkeypatch.setattr(checkpoint_file._Hashed, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: .*last.ckpt"):
        write(content(4), run.last, run.previous)
    assert step_of(find(run)) == 3
    assert read(run.previous)["position"]["step"] == 2
    assert not list(run.last.parent.glob(".*"))
