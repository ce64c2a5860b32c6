"""Tasks of a stream by hand, and the batches that a selection makes of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from driving import exit_code
from made_streams import TEST, TRAIN, VAL, prepared, refusal, stream_of

from effvit_train.data import stream as streams
from effvit_train.data.stream import StreamSelection, _even

# twelve images of four classes: one of each class in every split, and a second one to train on
LABELS = [0, 1, 2, 3] * 4
SPLIT = [TRAIN] * 8 + [VAL] * 4 + [TEST] * 4
MADE = prepared(LABELS, SPLIT, "abcd")


def test_classes_by_hand():
    made, stream = stream_of(MADE, 6, stream="class", tasks=2)
    assert [task.name for task in stream.tasks] == ["classes a, b", "classes c, d"]
    assert [task.train.tolist() for task in stream.tasks] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [task.val.tolist() for task in stream.tasks] == [[8, 9], [10, 11]]
    assert [task.test.tolist() for task in stream.tasks] == [[12, 13], [14, 15]]
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3)]
    assert [stream.seen(k) for k in (0, 1)] == [2, 4]
    assert (stream.kind, stream.epochs) == ("class", 3)
    assert [stream.task_at(epoch) for epoch in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 1]
    assert made.labels.tolist() == LABELS
    # ten classes in four tasks: 3, 3, 2 and 2
    ten = prepared(list(range(10)) * 2, [TRAIN] * 10 + [TEST] * 10, "abcdefghij")
    assert [len(task.classes) for task in stream_of(ten, stream="class", tasks=4)[1].tasks] == [3, 3, 2, 2]


def test_classes_are_numbered_in_the_order_in_which_they_come():
    labels, split = [0, 0, 0, 1, 1, 2, 0, 1, 2], [TRAIN] * 6 + [TEST] * 3
    three = prepared(labels, split, ["ape", "bee", "cat"])
    orders = set()
    for seed in range(40):
        made, stream = stream_of(three, stream="class", tasks=3, stream_order=seed)
        names = made.info.classes
        orders.add(names)
        assert [three.info.classes[k] for k in labels] == [names[k] for k in made.labels]
        assert [task.classes for task in stream.tasks] == [(0,), (1,), (2,)]
        assert [task.name for task in stream.tasks] == [f"classes {name}" for name in names]
        # 3, 2 and 1 training images of ape, bee and cat
        count = {"ape": 3, "bee": 2, "cat": 1}
        assert made.info.class_counts["train"] == [count[name] for name in names]
        again = stream_of(three, stream="class", tasks=3, stream_order=seed)[0]
        assert again.info.classes == names
    assert len(orders) == 6  # all of them


@pytest.mark.parametrize("order", [None, 0, 1])
@pytest.mark.parametrize("kind", ["class", "data", "domain", "corruption"])
def test_every_training_image_is_in_one_task_and_no_test_image_in_any(kind, order):
    generator = np.random.default_rng(0)
    labels, split = generator.permutation(np.arange(400) % 10), generator.permutation(np.arange(400) % 4)
    columns = {"place": [f"p{k}" for k in generator.integers(0, 7, 400)]}
    made = prepared(labels, split, "abcdefghij", **columns)
    keys = {"tasks": 3, "stream_order": order} | ({"stream_group": "place"} if kind == "domain" else {})
    _, stream = stream_of(made, stream=kind, **keys)
    for number, part in enumerate(("train", "val", "test")):
        ids = [getattr(task, part) for task in stream.tasks]
        assert all((np.diff(one) > 0).all() for one in ids)
        wanted = np.flatnonzero(split == number).tolist()
        if part == "train" or kind != "data":
            assert sorted(np.concatenate(ids).tolist()) == wanted
        else:  # portions are all tested on the same images
            assert [one.tolist() for one in ids] == [wanted] * 3
    if kind == "domain":
        places = [
            {columns["place"][i] for part in ("train", "val", "test") for i in getattr(task, part)}
            for task in stream.tasks
        ]
        assert sum(map(len, places)) == len(set().union(*places)) == 7


def test_domains_are_the_values_of_a_column_and_are_never_divided():
    place = ["rome", "oslo", "rome", "bern"] * 4
    made = prepared([0, 1] * 8, SPLIT, "ab", place=place)
    _, stream = stream_of(made, stream="domain", stream_group="place")
    assert [task.name for task in stream.tasks] == ["place=bern", "place=oslo", "place=rome"]
    assert [task.train.tolist() for task in stream.tasks] == [[3, 7], [1, 5], [0, 2, 4, 6]]
    assert [task.test.tolist() for task in stream.tasks] == [[15], [13], [12, 14]]
    # rome comes in one piece though it is half of the images
    _, stream = stream_of(made, stream="domain", stream_group="place", tasks=2)
    assert [task.name for task in stream.tasks] == ["place=bern, oslo", "place=rome"]
    assert stream.seen(0) == 2  # labels 0 and 1: of the classes that bern and oslo have, the last is number 1


def test_domains_that_are_numbers_come_in_their_order():
    day = ["10", "9", "spare", "-1"] * 4
    _, stream = stream_of(prepared([0, 1] * 8, SPLIT, "ab", day=day), stream="domain", stream_group="day")
    assert [task.name for task in stream.tasks] == ["day=-1", "day=9", "day=10", "day=spare"]


def test_groups_are_put_together_to_tasks_of_about_one_size():
    def sizes(counts, tasks):
        names = [chr(97 + k) for k in range(len(counts))]
        values = np.array([name for name, count in zip(names, counts, strict=True) for _ in range(count)])
        parts = _even(names, values, tasks)
        assert [name for part in parts for name in part] == names  # in their order, each once
        return [sum(counts[names.index(name)] for name in part) for part in parts]

    assert sizes([1] * 6, 3) == [2, 2, 2]
    assert sizes([4, 1, 1, 1, 1], 2) == [4, 4]
    assert sizes([1, 1, 1, 1, 4], 2) == [4, 4]
    assert sizes([9, 1, 1], 3) == [9, 1, 1]  # none is empty
    assert sizes([1, 1, 9], 3) == [1, 1, 9]
    generator = np.random.default_rng(1)
    for _ in range(50):
        counts = generator.integers(1, 10, 30).tolist()
        found = sizes(counts, 5)
        assert len(found) == 5
        assert max(abs(size - sum(counts) / 5) for size in found) <= max(counts)


def test_portions_differ_by_order_and_repeat():
    made = prepared([0, 1] * 30, [TRAIN] * 50 + [TEST] * 10, "ab")
    found = []
    for order in (None, 0, 1, 1):
        _, stream = stream_of(made, stream="data", tasks=5, stream_order=order)
        assert [len(task.train) for task in stream.tasks] == [10] * 5
        found.append(tuple(tuple(task.train.tolist()) for task in stream.tasks))
    assert found[0] == found[1]
    assert found[2] == found[3] != found[1]


def _passes(stream, selection, batches):
    """New ids of each task, in the order in which they are shown."""
    shown = {}
    for epoch in range(stream.epochs * len(stream.tasks)):
        for number in range(batches):
            shown.setdefault(stream.task_at(epoch), []).extend(selection.batch(epoch, number).tolist())
    return shown


def test_all_tasks_have_as_many_steps_and_each_pass_shows_each_new_image_once():
    labels = [0] * 30 + [1] * 18 + [0, 1]  # tasks of 30 and 18 images: 24 in the mean, 6 batches of 4
    made = prepared(labels, [TRAIN] * 48 + [TEST] * 2, "ab")
    _, stream = stream_of(made, 6, stream="class", tasks=2)
    selection = StreamSelection(stream, batch_size=4, seed=0)
    assert len(selection) == 6
    shown = _passes(stream, selection, 6)
    for task, ids in shown.items():
        own = stream.tasks[task].train.tolist()
        assert len(ids) == 3 * 6 * 4
        for start in range(0, len(ids) - len(own) + 1, len(own)):  # whole passes
            assert sorted(ids[start : start + len(own)]) == own
        assert set(Counter(ids).values()) <= {len(ids) // len(own), len(ids) // len(own) + 1}
        assert ids[: len(own)] != ids[len(own) : 2 * len(own)]  # in another order
    other = StreamSelection(stream, batch_size=4, seed=1)
    assert other.batch(0, 0).tolist() != selection.batch(0, 0).tolist()
    assert (
        StreamSelection(stream, batch_size=4, seed=0).batch(5, 3).tolist() == selection.batch(5, 3).tolist()
    )


class _Again:
    """Shows image 0 again, in a quarter of each batch."""

    share = 0.25

    def ids(self, task, position, count):
        self.asked = (task, position, count)
        return np.zeros(count, dtype=np.int64)

    def memory(self, task):
        return 0


@pytest.mark.parametrize("rehearsal", [None, _Again()])
def test_processes_partition_the_batch_of_one(rehearsal, monkeypatch):
    made = prepared([0] * 40 + [1] * 40 + [0, 1], [TRAIN] * 80 + [TEST] * 2, "ab")
    _, stream = stream_of(made, 4, stream="class", tasks=2)

    def batches(rank, world, size):
        monkeypatch.setattr(streams, "rank_and_world", lambda: (rank, world))
        selection = StreamSelection(stream, batch_size=size, seed=0, rehearsal=rehearsal)
        assert len(selection) == 5
        return [selection.batch(epoch, k).tolist() for epoch in range(4) for k in range(5)]

    whole, first, second = batches(0, 1, 8), batches(0, 2, 4), batches(1, 2, 4)
    for all_of_it, a, b in zip(whole, first, second, strict=True):
        assert len(a) == len(b) == 4
        assert sorted(all_of_it) == sorted(a + b)


def test_shown_again_are_a_share_of_each_batch_but_in_the_first_task():
    made = prepared([0] * 40 + [1] * 40 + [0, 1], [TRAIN] * 80 + [TEST] * 2, "ab")
    _, stream = stream_of(made, 4, stream="class", tasks=2)
    rehearsal = _Again()
    selection = StreamSelection(stream, batch_size=8, seed=0, rehearsal=rehearsal)
    assert (selection.batch(1, 4) < 40).all()
    assert len(set(selection.batch(1, 4).tolist())) == 8
    batch = selection.batch(3, 4)
    assert (batch[:6] >= 40).all()
    assert batch[6:].tolist() == [0, 0]
    assert rehearsal.asked == (1, 9, 2)  # the last of the ten batches of its task


def test_joint_training_has_all_images_so_far():
    made = prepared([0] * 8 + [1] * 8 + [2] * 8 + [0, 1, 2], [TRAIN] * 24 + [TEST] * 3, "abc")
    _, stream = stream_of(made, 9, stream="class", tasks=3)
    selection = StreamSelection(stream, batch_size=4, seed=0, cumulative=True)
    assert len(selection) == 2
    shown = _passes(stream, selection, 2)
    assert [sorted(set(shown[task])) for task in range(3)] == [
        list(range(8 * (task + 1))) for task in range(3)
    ]


def test_what_cannot_be_parted_is_refused_in_one_line():
    table = prepared(LABELS, SPLIT, "abcd", place=["rome", "oslo"] * 8)
    lines = [
        refusal(lambda: stream_of(MADE, 7, stream="class", tasks=2)),
        refusal(lambda: stream_of(MADE, stream="class", tasks=5)),
        refusal(lambda: stream_of(MADE, stream="data", tasks=9)),
        refusal(lambda: stream_of(MADE, stream="domain", stream_group="place")),
        refusal(lambda: stream_of(table, stream="domain", stream_group="plase")),
        refusal(lambda: stream_of(table, stream="domain")),
        refusal(lambda: stream_of(table, stream="domain", stream_group="place", tasks=3)),
        refusal(lambda: stream_of(prepared([0, 1, 0], [TRAIN, TRAIN, TEST], "ab"), stream="class", tasks=2)),
    ]
    for line, wanted in zip(
        lines,
        [
            "trainer.max_epochs=7: cannot be shared equally by 2 tasks; e.g. trainer.max_epochs=8",
            "dataset.tasks=5: are more than the 4 classes; at most dataset.tasks=4",
            "dataset.tasks=9: are more than the 8 training images",
            "dataset.stream_group=place: is not a column of the data set's table; the data set has none",
            "dataset.stream_group=plase: is not a column of the data set's table; did you mean 'place'?",
            "dataset.stream_group=null: names the column that parts the domains; columns: place",
            "dataset.tasks=3: must be 2 to 2, the values of place",
            "dataset.stream: the task classes b has no test images; fewer dataset.tasks",
        ],
        strict=True,
    ):
        assert line.startswith(wanted)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("dataset.tasks=3",), "dataset.tasks=3: is of a stream, and none is asked for"),
        (("dataset.stream_order=1",), "dataset.stream_order=1: is of a stream"),
        (("continual=naive",), "continual=naive: is for data that come in tasks"),
        (("dataset.stream=clas",), "dataset.stream=clas: must be one of class, domain, data, corruption"),
        (("dataset.stream=class", "dataset.stream_group=x"), "dataset.stream_group=x: names the domains"),
        (("dataset.stream=class", "dataset.tasks=1"), "dataset.tasks=1: must be at least 2"),
        (("dataset.stream=class", "trainer.max_epochs=7"), "trainer.max_epochs=7: cannot be shared equally"),
        (("dataset.stream=domain", "dataset.stream_group=x"), "dataset.stream_group=x: is not a column"),
        (("dataset.stream=class", "continual=niave"), "continual=niave: must be one of"),
    ],
)
def test_the_command_refuses_with_exit_code_2(arguments, line, tmp_path, monkeypatch, capsys):
    assert exit_code(tmp_path, monkeypatch, "logger=none", "run_dir=run", *arguments) == 2
    (told,) = [one for one in capsys.readouterr().err.splitlines() if one]
    assert told.startswith(f"error: {line}")
    assert not (tmp_path / "run").exists()
