"""Replay: what is shown again and when, what it takes, and what it is good for."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from driving import SMALL, card, exit_code, run_in

from effvit_train.config import Config
from effvit_train.continual.memory.rehearsal import Memory, remember
from effvit_train.continual.replay import ReplayConfig
from effvit_train.data.stream import Stream, StreamSelection, Task

NONE = np.zeros(0, dtype=np.int64)
STREAM = (*SMALL, "dataset.stream=class", "logger=none", "audit=none", "dataset.num_workers=0")


@pytest.fixture(autouse=True)
def _no_probe(no_probe):
    pass


def memory_of(*held: np.ndarray, share: float = 0.5, seed: int = 0) -> Memory:
    return Memory(held, 100, "balanced", share, seed, image_bytes=64)


def context_of(arrivals, labels, *, shape=(3, 4, 4), batch_size=8):
    """What a memory reads of a run."""
    config = Config()
    config.recipe.batch_size = batch_size
    tasks = [Task("", ids, NONE, NONE, tuple(np.unique(found))) for ids, found in zip(arrivals, labels)]  # noqa: B905
    all_labels = dict(zip(np.concatenate(arrivals).tolist(), np.concatenate(labels).tolist(), strict=True))
    return SimpleNamespace(
        config=config,
        info=SimpleNamespace(input_shape=shape),
        stream_of_tasks=Stream("class", tuple(tasks), 1),
        labels_of=lambda ids: np.array([all_labels[k] for k in ids.tolist()]),
    )


def test_pass_after_pass_without_repeats():
    held = np.arange(100, 123)  # 23 images, shown 5 at a time
    memory = memory_of(held)
    shown = np.concatenate([memory.ids(1, position, 5) for position in range(46)])
    passes = shown.reshape(10, 23)
    for one in passes:
        assert sorted(one.tolist()) == held.tolist()
    assert not (passes[0] == passes[1]).all()


def test_a_function_of_task_and_position_alone():
    memory = memory_of(np.arange(20), np.arange(20))
    there = {position: memory.ids(1, position, 7).tolist() for position in reversed(range(9))}
    again = memory_of(np.arange(20), np.arange(20))
    assert all(again.ids(1, position, 7).tolist() == there[position] for position in range(9))
    assert memory.ids(2, 0, 7).tolist() != there[0]
    assert memory_of(np.arange(20), seed=1).ids(1, 0, 7).tolist() != there[0]


def test_a_memory_smaller_than_its_share_of_a_batch_is_shown_more_than_once():
    shown = memory_of(np.arange(3)).ids(1, 0, 8)
    assert sorted(np.bincount(shown).tolist()) == [2, 3, 3]


def test_batches_hold_the_share_of_what_came_before_and_nothing_else():
    arrivals = [np.arange(30), np.arange(30, 60), np.arange(60, 90)]
    tasks = tuple(Task("", ids, NONE, NONE, (k,)) for k, ids in enumerate(arrivals))
    memory = remember(
        ReplayConfig(size=12, share=0.25), context_of(arrivals, [np.full(30, k) for k in range(3)]), "k"
    )
    selection = StreamSelection(Stream("class", tasks, 2), batch_size=8, seed=0, rehearsal=memory)
    for epoch in range(6):
        task = epoch // 2
        for number in range(len(selection)):
            ids = selection.batch(epoch, number)
            new, again = (ids, ids[:0]) if task == 0 else (ids[:6], ids[6:])
            assert set(new.tolist()) <= set(arrivals[task].tolist())
            assert set(again.tolist()) <= set(memory.held[task - 1].tolist())
            assert len(ids) == 8
    assert [len(ids) for ids in memory.held] == [12, 12, 12]
    assert memory.memory(1) == 12 * 3 * 4 * 4
    assert memory.facts() == {"selection": "balanced", "share": 0.25, "capacity": 12, "images": [12, 12, 12]}


@pytest.mark.parametrize("selection", ["balanced", "reservoir"])
def test_bytes_never_exceed_the_budget_logits_included(selection):
    random = np.random.default_rng(1)
    for _ in range(60):
        classes = int(random.integers(2, 12))
        sizes = random.integers(1, 50, random.integers(1, 6))
        arrivals = np.split(np.arange(sizes.sum()), np.cumsum(sizes)[:-1])
        labels = [random.integers(0, classes, len(ids)) for ids in arrivals]
        shape = (int(random.choice([1, 3])), *[int(random.integers(2, 9))] * 2)
        each = math.prod(shape) + 4 * classes
        budget = float(random.uniform(each, 60 * each)) / 1e6
        config = ReplayConfig(megabytes=budget, selection=selection)
        context = context_of(arrivals, labels, shape=shape)
        for logits in (0, classes):
            memory = remember(config, context, "continual.replay", logits=logits)
            for task, held in enumerate(memory.held):
                assert memory.memory(task) + 4 * logits * len(held) <= round(budget * 1e6)
            # and another image would not have fitted in
            assert (memory.capacity + 1) * (math.prod(shape) + 4 * logits) > round(budget * 1e6)


@pytest.mark.long
def test_it_forgets_less_than_naive_training(tmp_path, monkeypatch):
    arguments = (*STREAM, "model.args.embed_dim=64", "model.args.num_heads=4", "dataset.tasks=2",
                 "trainer.max_epochs=14", "recipe.batch_size=16", "recipe.lr=0.005")  # fmt: skip
    accuracy, forgetting = {}, {}
    for name in ("naive", "replay"):
        run_in(tmp_path, monkeypatch, *arguments, f"continual={name}", f"run_dir={name}")
        measures = card(tmp_path / name)["measures"]
        accuracy[name] = measures["continual/average_accuracy"]
        forgetting[name] = measures["continual/forgetting"]
    assert accuracy["replay"] > accuracy["naive"] + 0.1
    assert forgetting["replay"] < 0.2
    assert forgetting["naive"] > 0.5
    found = card(tmp_path / "replay")["provenance"]
    assert found["replay"] == {"selection": "balanced", "share": 0.5, "capacity": 200, "images": [200, 200]}
    assert [cost["memory_bytes"] for cost in found["continual"]["costs"]] == [200 * 64, 200 * 64]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["continual.replay.size=0"], "continual.replay.size=0: must be at least 1"),
        (["continual.replay.selection=herding"], "must be one of balanced, reservoir"),
        (["continual.replay.share=1"], "continual.replay.share=1.0: must be in (0, 1)"),
        (["continual.replay.megabytes=-1"], "continual.replay.megabytes=-1.0: must be above 0"),
        (
            ["continual.replay.size=5", "continual.replay.megabytes=1"],
            "and continual.replay.size=5 both tell how much is kept",
        ),
        (
            ["continual.replay.megabytes=0.00001"],
            "holds no image: one takes 64 bytes; at least continual.replay.megabytes=6.4e-05",
        ),
        (["continual.replay.share=0.01", "recipe.batch_size=16"], "of a batch of 16 images is less than one"),
        (["continual.replay.sise=5"], "did you mean"),
        (["continual=[replay,joint]"], "show earlier samples again in more than one way"),
        (["dataset.stream=null"], "continual=replay: is for data that come in tasks"),
    ],
)
def test_wrong_settings(arguments, said, tmp_path, monkeypatch, capfd):
    assert exit_code(
        tmp_path, monkeypatch, *STREAM, "continual=replay", "trainer.max_epochs=5", *arguments, "run_dir=run"
    ) == 2  # fmt: skip
    (line,) = capfd.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()
