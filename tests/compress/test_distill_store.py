"""What is stored is what is found: right records, whole records, records of the right sample."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from effvit_train.compress.distill import store as store_module
from effvit_train.compress.distill.store import Format, Store

IDS = np.arange(3, 300, 3)  # 99 samples
LAYOUT = Format(10, 10, "float32")


def log_probs(count: int, classes: int = 10, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, 3, (count, classes)).astype(np.float32)
    return x - np.logaddexp.reduce(x, axis=1, keepdims=True)


def opened(path: Path, layout: Format = LAYOUT, key: str = "k", say=lambda line: None) -> Store:
    return Store(path / "cache", {"key": key}, IDS, layout, say)


def test_all_classes_in_fp32_come_back_bit_for_bit(tmp_path):
    said = log_probs(99)
    kept = opened(tmp_path).write(said, IDS, 4)
    assert np.array_equal(kept, said)
    found, there = opened(tmp_path).read(IDS[::-1], 4)  # another process, another order
    assert there.all()
    assert np.array_equal(found, said[::-1])
    assert not opened(tmp_path).read(IDS, 3)[1].any()  # another view


def test_a_record_by_hand(tmp_path):
    # p = 1/2, 1/4, 1/8, 1/8, two kept: the others share a quarter equally
    layout = Format(4, 2, "float32")
    said = np.log(np.array([[1 / 8, 1 / 2, 1 / 8, 1 / 4]], dtype=np.float32))
    assert np.allclose(np.exp(layout.decode(layout.encode(said))), [[1 / 8, 1 / 2, 1 / 8, 1 / 4]])
    said = np.log(np.array([[0.2, 0.5, 0.05, 0.25]], dtype=np.float32))
    assert np.allclose(np.exp(layout.decode(layout.encode(said))), [[0.125, 0.5, 0.125, 0.25]])
    assert layout.record.itemsize == 4 + 2 * 2 + 4 + 2 * 4
    # 4 bytes of checksum, then TinyViT's record: K indices of 2 bytes and K values of 2 bytes, and the rest
    assert Format(1000, 100, "float16").record.itemsize == 4 + 100 * 4 + 4


def test_top_k_in_fp16_is_near_and_a_distribution():
    said = log_probs(50, classes=1000)
    found = Format(1000, 100, "float16")
    found = found.decode(found.encode(said))
    assert np.abs(np.exp(found).sum(axis=1) - 1).max() < 2e-3
    top = np.argsort(-said, axis=1)[:, :100]
    difference = np.take_along_axis(found, top, 1) - np.take_along_axis(said, top, 1)
    assert np.abs(difference).max() < 2**-11 * 16  # half a unit in the last place of numbers below 16
    assert np.array_equal(found.argmax(axis=1), said.argmax(axis=1))


def test_a_probability_of_nothing_stays_a_number():
    layout = Format(3, 3, "float16")
    said = np.array([[0.0, -1e6, -np.inf]], dtype=np.float32)
    assert np.isfinite(layout.decode(layout.encode(said))).all()


def test_the_first_writer_wins(tmp_path):
    first, second = log_probs(99), log_probs(99, seed=1)
    one, other = opened(tmp_path), opened(tmp_path)
    one.write(first[:50], IDS[:50], 0)
    kept = other.write(second, IDS, 0)
    assert np.array_equal(kept[:50], first[:50])
    assert np.array_equal(kept[50:], second[50:])
    assert np.array_equal(one.read(IDS, 0)[0], kept)


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    said = log_probs(99)
    opened(tmp_path).write(said, IDS, 0)
    (file,) = (tmp_path / "cache").rglob("*.bin")
    good, size = file.read_bytes(), 44
    assert len(good) == 99 * size
    for position in np.random.default_rng(0).integers(0, len(good) * 8, 200).tolist():
        bad = bytearray(good)
        bad[position // 8] ^= 1 << position % 8
        file.write_bytes(bad)
        reader = opened(tmp_path)
        found, there = reader.read(IDS, 0)
        assert np.flatnonzero(~there).tolist() == [position // 8 // size]
        assert np.array_equal(found[there], said[there])
        assert reader.damaged == 1
    for length in (0, 1, size, 10 * size + 7, len(good) - 1):
        file.write_bytes(good[:length])
        assert opened(tmp_path).read(IDS, 0)[1].sum() == length // size
    reader = opened(tmp_path)
    reader.write(said, IDS, 0)  # and mended
    assert opened(tmp_path).read(IDS, 0)[1].all()


def test_a_record_at_the_wrong_place_is_no_record(tmp_path):
    said = log_probs(99)
    opened(tmp_path).write(said, IDS, 0)
    (file,) = (tmp_path / "cache").rglob("*.bin")
    data = file.read_bytes()
    file.write_bytes(data[44:88] + data[:44] + data[88:])  # two samples exchanged
    assert np.flatnonzero(~opened(tmp_path).read(IDS, 0)[1]).tolist() == [0, 1]
    other = file.parent.parent / "variant-00001"
    other.mkdir()
    (other / file.name).write_bytes(data)  # another view's
    assert not opened(tmp_path).read(IDS, 1)[1].any()


@pytest.mark.parametrize("damage", ["{", "[]", '{"key": "other"}', None])
def test_a_directory_that_is_of_something_else_is_built_again(damage, tmp_path):
    opened(tmp_path).write(log_probs(99), IDS, 0)
    key = tmp_path / "cache" / "key.json"
    if damage is None:
        key.unlink()
    else:
        key.write_text(damage)
    said: list[str] = []
    assert not opened(tmp_path, say=said.append).read(IDS, 0)[1].any()
    assert "is damaged or of something else: built again" in said[0]
    assert json.loads(key.read_text()) == {"key": "k"}


def test_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_SHARD_BYTES", 440)  # ten records
    said = log_probs(99)
    opened(tmp_path).write(said[20:45], IDS[20:45], 0)
    found, there = opened(tmp_path).read(IDS, 0)
    assert np.flatnonzero(there).tolist() == list(range(20, 45))
    assert np.array_equal(found[there], said[20:45])
    opened(tmp_path).write(said, IDS, 0)
    assert np.array_equal(opened(tmp_path).read(IDS, 0)[0], said)
    sizes = [file.stat().st_size for file in sorted((tmp_path / "cache").rglob("*.bin"))]
    assert sizes == [440] * 9 + [9 * 44]


def test_a_full_disk_costs_a_line(tmp_path, monkeypatch):
    said: list[str] = []
    store = opened(tmp_path, say=said.append)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    kept = store.write(log_probs(5), IDS[:5], 0)
    store.write(log_probs(5), IDS[:5], 0)
    assert np.array_equal(kept, log_probs(5))  # what would have been stored
    assert len(said) == 1
    assert "not written (No space left on device); training goes on without it" in said[0]
    monkeypatch.undo()
    store.write(log_probs(5), IDS[:5], 0)
    assert store.read(IDS[:5], 0)[1].all()


WRITER = """
import sys, numpy as np
from pathlib import Path
from effvit_train.compress.distill.store import Format, Store
ids = np.arange(3, 300, 3)
store = Store(Path(sys.argv[1]), {"key": "k"}, ids, Format(10, 10, "float32"), print)
said = np.full((99, 10), float(sys.argv[2]), dtype=np.float32)
for start in range(0, 99, 7):
    kept = store.write(said[start:start + 7], ids[start:start + 7], 0)
    assert (kept == kept[:, :1]).all()
"""


def test_processes_that_write_at_the_same_time_leave_whole_records(tmp_path):
    jobs = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "cache"), str(value)])
        for value in (1, 2)
    ]
    assert [job.wait(60) for job in jobs] == [0, 0]
    found, there = opened(tmp_path).read(IDS, 0)
    assert there.all()
    assert set(np.unique(found)) <= {1.0, 2.0}
    assert (found == found[:, :1]).all()
