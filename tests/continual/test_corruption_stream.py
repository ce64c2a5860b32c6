"""A stream of corruptions: which image is shown how, the same wherever it is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from driving import SMALL, card, exit_code, interrupted_run, result, run_in
from made_streams import TEST, TRAIN, UNUSED, VAL, Constant, prepared, refusal, stream_of

from effvit_train.audit.robustness.corruptions import KINDS, corrupt
from effvit_train.data.config import STREAM_KINDS, DatasetConfig
from effvit_train.data.corrupted import CorruptedSource, portions
from effvit_train.data.datamodule import DataModule
from effvit_train.models.factory import load_model
from effvit_train.predictions import predict

GENERATOR = np.random.default_rng(0)
MADE = prepared(
    GENERATOR.permutation(np.arange(300) % 3), GENERATOR.permutation(np.arange(300) % 4), ["a", "b", "c"]
)


def test_all_kinds_of_the_audit_can_be_tasks():
    assert STREAM_KINDS[0] == "none"
    assert sorted(STREAM_KINDS[1:]) == sorted(KINDS)


def test_every_split_is_dealt_out_class_by_class():
    portion = portions(MADE, 4, seed=0)
    for split in (TRAIN, VAL, TEST):
        for label in range(3):
            found = portion[(MADE.split == split) & (MADE.labels == label)]
            counts = np.bincount(found, minlength=4)
            assert counts.max() - counts.min() <= 1
    assert (portion[MADE.split == UNUSED] == -1).all()
    assert (portion == portions(MADE, 4, seed=0)).all()
    assert (portion != portions(MADE, 4, seed=1)).any()


def test_the_tasks_are_the_kinds_and_their_order_goes_by_seed():
    _, stream = stream_of(MADE, stream="corruption")
    assert stream.kind == "domain"
    assert [task.name for task in stream.tasks] == [
        "corruption=none", "corruption=gaussian_noise, severity 3", "corruption=motion_blur, severity 3",
        "corruption=fog, severity 3", "corruption=jpeg_compression, severity 3",
    ]  # fmt: skip
    keys = {"stream": "corruption", "stream_kinds": ["fog", "none"], "stream_severity": 5}
    made, stream = stream_of(MADE, **keys)
    assert [task.name for task in stream.tasks] == ["corruption=fog, severity 5", "corruption=none"]
    turned = {}
    for order in range(8):
        other, reordered = stream_of(MADE, stream_order=order, **keys)
        turned[reordered.tasks[0].name] = {task.name: task.test.tolist() for task in reordered.tasks}
        assert other.info.fingerprint == made.info.fingerprint
    # in either order each kind is tested on the same images
    first, second = turned.values()
    assert first == second == {task.name: task.test.tolist() for task in stream.tasks}
    assert len(stream_of(MADE, stream="corruption", tasks=16)[1].tasks) == 16


def test_other_images_are_another_data_set():
    prints = {MADE.info.fingerprint}
    for keys in ({}, {"stream_severity": 2}, {"tasks": 3}, {"split_seed": 1}):
        prints.add(stream_of(MADE, stream="corruption", **keys)[0].info.fingerprint)
    assert len(prints) == 5
    assert stream_of(MADE, stream="class", tasks=3)[0].info.fingerprint == MADE.info.fingerprint


@pytest.mark.parametrize("keep", [True, False])
def test_each_image_is_shown_under_its_kind_by_its_id_alone(keep):
    portion = np.array([0, 1, 2, -1] * 5)
    source = CorruptedSource(
        Constant(), portion, ["none", "gaussian_noise", "fog"], severity=4, seed=7, keep=keep
    )
    clean = torch.from_numpy(Constant().read(np.arange(20), 8))
    wanted = clean.numpy().copy()
    for number, kind in ((1, "gaussian_noise"), (2, "fog")):
        for k in np.flatnonzero(portion == number):
            wanted[k] = corrupt(clean[k], kind, 4, seed=7, ids=int(k)).numpy()
    assert (wanted[portion > 0] != clean.numpy()[portion > 0]).any(axis=(1, 2, 3)).all()
    assert (source.read(np.arange(20), 8) == wanted).all()
    for ids in ([5], [19, 3, 5, 5, 0], list(range(20)), []):
        assert (source.read(np.array(ids, dtype=np.int64), 8) == wanted[ids]).all()
    source.read(np.array([1]), 8)[:] = 0  # what a reader does with its images is its own affair
    assert (source.read(np.array([1]), 8) == wanted[[1]]).all()
    assert source.read(np.array([1]), 16).shape == (1, 1, 16, 16)


def images(module, ids):
    return torch.cat([batch.images for batch in module.loader_of(ids)])


def test_training_evaluation_and_test_read_the_same_images(tmp_path):
    config = DatasetConfig(stream="corruption", stream_kinds=["none", "contrast"], train_fraction=0.2)
    config.validate()
    data = DataModule(config, batch_size=16, seed=0, cache_dir=tmp_path)
    plain = DataModule(DatasetConfig(train_fraction=0.2), batch_size=16, seed=0, cache_dir=tmp_path)
    again = DataModule(config, batch_size=16, seed=3, cache_dir=tmp_path)  # another run on the same stream

    clean, contrast = data.stream.tasks
    for ids in (clean.train, clean.test):
        assert torch.equal(images(data, ids), images(plain, ids))
    for ids in (contrast.train, contrast.val, contrast.test):
        wanted = corrupt(images(plain, ids), "contrast", 3, seed=0, ids=ids.tolist())
        assert torch.equal(images(data, ids), wanted)
        assert torch.equal(images(again, ids), wanted)
    # training batches, and those that show an image of an earlier task again
    (batch,) = list(data.augmented_loader([np.concatenate([contrast.train[:4], clean.train[:4]])], 0))
    assert torch.equal(batch.images, images(data, batch.index.numpy()))


@pytest.mark.parametrize("audited", [{"canaries": 60}, {"shadow": (0, 2)}])
def test_an_image_looks_the_same_whether_an_audit_leaves_it_out_or_not(tmp_path, audited):
    config = DatasetConfig(stream="corruption", stream_kinds=["contrast", "none"])
    plain, data = (
        DataModule(config, batch_size=8, seed=0, cache_dir=tmp_path, **keys) for keys in ({}, audited)
    )
    left_out = np.flatnonzero((plain.prepared.split >= 0) & (data.prepared.split < 0))
    assert len(left_out) > 10
    for ids in (left_out, data.indices("train"), data.indices("test")):
        assert torch.equal(images(data, ids), images(plain, ids))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"stream_kinds": ["none", "fogg"]}, "dataset.stream_kinds=fogg: must be of none, gaussian_noise"),
        ({"stream_kinds": ["fog", "fog"]}, "dataset.stream_kinds=fog,fog: names a kind twice"),
        ({"stream_kinds": ["fog"]}, "dataset.stream_kinds=fog: names 1 kind, and each is a task; name two"),
        ({"stream_kinds": ["none", "fog"], "tasks": 3}, "dataset.stream_kinds=none,fog: names 2 kinds"),
        ({"tasks": 17}, "dataset.tasks=17: are more than the 16 kinds"),
        ({"stream_severity": 6}, "dataset.stream_severity=6: must be in [1, 6)"),
        (
            {"stream": "class", "stream_severity": 2},
            "dataset.stream_severity=2: is of dataset.stream=corruption",
        ),
    ],
)
def test_wrong_settings_are_refused_in_one_line(keys, line):
    assert refusal(DatasetConfig(**{"stream": "corruption", **keys}).validate).startswith(line)


def test_images_that_are_too_small_are_refused():
    small = prepared([0, 1] * 8, [TRAIN] * 12 + [TEST] * 4, "ab", size=7)
    assert refusal(lambda: stream_of(small, stream="corruption", tasks=2)).startswith(
        "dataset.stream=corruption: needs images of 8 px a side, and these have 7"
    )


QUICK = (
    *SMALL, "dataset.stream=corruption", "dataset.stream_kinds=[none,impulse_noise]", "recipe.batch_size=32",
    "trainer.max_epochs=4", "logger=none", "audit=none", "dataset.train_fraction=0.4", "dataset.num_workers=0",
    "recipe.lr=0.01",
)  # fmt: skip


@pytest.mark.slow
def test_a_run_is_tested_resumed_and_audited_on_the_same_images(tmp_path, monkeypatch, no_probe):
    run_in(tmp_path, monkeypatch, *QUICK, "run_dir=whole")
    assert interrupted_run(tmp_path, monkeypatch, "on_train_batch_end", 19, *QUICK, "run_dir=run") == 130
    run_in(tmp_path, monkeypatch, "resume=run", "dataset.num_workers=1")
    assert result(tmp_path / "run") == result(tmp_path / "whole")
    # the last row of the matrix, from the model that it ships and images that are made here
    run = tmp_path / "run"
    found = card(run)["provenance"]["continual"]
    plain = DataModule(DatasetConfig(train_fraction=0.4), batch_size=32, seed=0, cache_dir=tmp_path)
    saved = np.load(run / "predictions.npz")
    split = portions(plain._prepared, 2, seed=0)
    mean, std = (torch.tensor(getattr(plain.info, name)).view(1, -1, 1, 1) for name in ("mean", "std"))
    model = load_model(run)
    for number, kind in enumerate(["none", "impulse_noise"]):
        ids = plain.indices("test")[split[plain.indices("test")] == number]

        class Loader:
            def __iter__(self, ids=ids, kind=kind):
                for batch in plain.loader_of(ids):
                    if kind != "none":
                        shown = corrupt(batch.images, kind, 3, seed=0, ids=batch.index)
                        batch = batch._replace(images=shown)
                    yield batch

        logits, labels, _ = predict(model, lambda x: (x.float() / 255 - mean) / std, Loader())
        accuracy = float((logits.argmax(dim=1) == labels).double().mean())
        assert found["accuracy"][-1][number] == pytest.approx(accuracy)
        rows = np.isin(saved["index"], ids)
        assert np.allclose(saved["logits"][rows], logits.numpy(), atol=1e-4)
    from effvit_train.audit_command import audit_run
    from effvit_train.signals import Stop

    audit_run(run, ["audit=none"], Stop())
    assert np.array_equal(np.load(run / "predictions.npz")["logits"].argmax(1), saved["logits"].argmax(1))
    assert card(run)["provenance"]["continual"] == found


def test_the_keys_need_their_stream(tmp_path, monkeypatch, capsys):
    assert (
        exit_code(tmp_path, monkeypatch, "dataset.stream_kinds=[none,fog]", "logger=none", "run_dir=run") == 2
    )
    assert "is of a stream, and none is asked for" in capsys.readouterr().err
