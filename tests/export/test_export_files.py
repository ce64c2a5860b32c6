"""Files of every format: equal to the model, for any batch, and complete in themselves."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import safetensors
import torch
from torch import nn
from zoo import KINDS, SMALL, batches, facts_of, images_of, program_of, saved

from effvit_train.errors import MachineError, UserError
from effvit_train.export.facts import DYNAMIC, STATIC, Facts
from effvit_train.export.onnx_file import quantize, write_onnx
from effvit_train.export.parity import check, compare
from effvit_train.export.program import exported, write_program
from effvit_train.export.runtimes import open_runtime, torch_runner
from effvit_train.export.weights_file import load, write_weights
from effvit_train.models.changes import rebuild
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, load_model, load_weights, save_model


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A ViT in a run's two files, and in every format."""
    directory = tmp_path_factory.mktemp("vit")
    model, record = saved(directory)
    program = program_of(model, record)
    write_onnx(program, facts_of(directory), directory / "m.onnx")
    write_program(program, facts_of(directory), directory / "m.pt2")
    write_weights(directory / "model.safetensors", facts_of(directory), directory / "m.safetensors")
    return directory, model, record


def same(path, model, record, precision="fp32"):
    found = compare(batches(model, record), torch_runner(model), open_runtime(path, threads=1).run)
    check(found, precision)
    return found


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.safetensors"])
def test_every_format_gives_what_the_model_gives(vit, name):
    directory, model, record = vit
    found = same(directory / name, model, record)
    assert found.max_difference < 1e-5
    assert (found.equal_predictions, found.accuracy, found.reference_accuracy) == (1, 1, 1)
    assert (found.images, found.batch_sizes) == (96, (1, 2, 32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vit"])
def test_every_kind_of_the_zoo(tmp_path, kind):
    model, record = saved(tmp_path, kind)
    program = program_of(model, record)
    write_onnx(program, facts_of(tmp_path), tmp_path / "m.onnx")
    write_program(program, facts_of(tmp_path), tmp_path / "m.pt2")
    write_weights(tmp_path / "model.safetensors", facts_of(tmp_path), tmp_path / "m.safetensors")
    for name in ("m.onnx", "m.pt2", "m.safetensors"):
        found = same(tmp_path / name, model, record)
        assert found.largest_logit > 0.1
        assert found.equal_predictions == 1
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", facts_of(tmp_path, DYNAMIC))
    assert same(tmp_path / "q.onnx", model, record, DYNAMIC).max_difference < 0.2 * found.largest_logit


MLP = "blocks.1.mlp"
# Changes of a small ViT, as records hold them; what they come to differs by rounding where tokens or numbers do.
CHANGES = {
    "pruned": {"kind": "prune", "blocks": [], "widths": {MLP: 24}},
    "merged": {"kind": "merge_tokens", "r": {"blocks.0": 3, "blocks.1": 2}, "proportional": True},
    "dropped": {"kind": "drop_tokens", "keep": {"blocks.0": 0.6}, "fuse": True},
    "factored": {"kind": "lowrank", "layers": {f"{MLP}.fc1": 8, "blocks.0.attn.qkv": 8}},
    "int8": {
        "kind": "quantize", "dtype": "int8", "mode": "dynamic", "per_channel": True,
        "layers": [f"{MLP}.fc1", f"{MLP}.fc2"],
    },
    "several sizes": {"kind": "resolution", "sizes": [4, 8], "patches": [2], "patch": None},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_every_change_of_a_model(tmp_path, name):
    model, record = saved(tmp_path)
    rebuild(model, [CHANGES[name]])
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data += 0.05 * torch.randn_like(parameter)
    record.cuts.append(CHANGES[name])
    save_model(model, record, tmp_path)
    model = load_model(tmp_path)
    write_onnx(program_of(model, record), facts_of(tmp_path), tmp_path / "m.onnx")
    write_weights(tmp_path / "model.safetensors", facts_of(tmp_path), tmp_path / "m.safetensors")
    assert same(tmp_path / "m.onnx", model, record).max_difference < 1e-4
    assert same(tmp_path / "m.safetensors", model, record).max_difference == 0


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["window", "linear", "nystrom", "fourier", "wavelet"])
def test_other_attention(tmp_path, attention):
    torch.manual_seed(0)
    config = ModelConfig(attention=attention, args=SMALL)
    model, record = create(config, input_shape=(1, 16, 16), classes=["a", "b"], mean=[0.5], std=[0.5])
    save_model(model, record, tmp_path)
    model = load_model(tmp_path)
    write_onnx(program_of(model, record), facts_of(tmp_path), tmp_path / "m.onnx")
    assert same(tmp_path / "m.onnx", model, record).max_difference < 1e-4


@pytest.mark.parametrize("name", ["m.onnx", "m.pt2", "m.safetensors"])
def test_the_file_alone_tells_how_to_prepare_images(vit, name):
    directory, _, record = vit
    text = open_runtime(directory / name, threads=1).metadata
    assert Facts.from_text(text) == facts_of(directory)
    assert json.loads(text["effvit.input_shape"]) == [1, 8, 8]
    assert json.loads(text["effvit.classes"]) == ["class 0", "class 1", "class 2"]
    assert text["effvit.precision"] == "fp32"
    # what another program would do with it, by hand: (51 / 255 - 0.25) / 0.5 = -0.1
    mean, std = (np.array(json.loads(text[f"effvit.{key}"])) for key in ("mean", "std"))
    assert (51 / 255 - mean) / std == pytest.approx([-0.1])
    from effvit_train.predictions import normaliser

    prepared = normaliser(record)(torch.full((1, 1, 8, 8), 51, dtype=torch.uint8))
    assert prepared.flatten().tolist() == pytest.approx([-0.1] * 64, abs=1e-6)


def test_metadata_that_is_not_ours_is_none():
    assert Facts.from_text({}) is None
    assert (
        Facts.from_text({"effvit.record": "[]", "effvit.weights_sha256": "", "effvit.precision": ""}) is None
    )


def test_a_safetensors_file_is_a_whole_model(vit):
    directory, model, record = vit
    loaded, _ = load(directory / "m.safetensors")
    images = torch.from_numpy(images_of(record, 2))
    assert torch.equal(loaded(images), model(images))
    load_weights(model, directory / "m.safetensors")  # and a file of weights like the run's own
    with safetensors.safe_open(directory / "m.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"
    with pytest.raises(UserError, match=r"does not tell its architecture"):
        load(directory / "model.safetensors")


def test_nothing_of_this_machine_is_in_the_files(vit):
    directory, _, _ = vit
    package = "effvit_train/models", "site-packages", ".py"
    content = (directory / "m.onnx").read_bytes()
    assert not [name for name in package if name.encode() in content]
    with zipfile.ZipFile(directory / "m.pt2") as archive:
        text = b"".join(archive.read(name) for name in archive.namelist() if name.endswith(".json"))
    assert not [name for name in package if name.encode() in text]


def test_8_bits_differ_a_little(vit):
    directory, model, record = vit
    sizes = {}
    for precision in (DYNAMIC, STATIC):
        path = directory / f"{precision.split()[1]}.onnx"
        calibration = [images_of(record, 64, seed=1)] if precision == STATIC else ()
        quantize(directory / "m.onnx", path, facts_of(directory, precision), calibration)
        found = same(path, model, record, precision)
        assert 1e-4 < found.max_difference < 0.2 * found.largest_logit
        assert 0.8 < found.equal_predictions <= 1
        assert found.accuracy == found.equal_predictions  # the labels are the model's own answers
        text = open_runtime(path, threads=1).metadata
        assert Facts.from_text(text) == facts_of(directory, precision)
        sizes[precision] = path.stat().st_size
    assert max(sizes.values()) < (directory / "m.onnx").stat().st_size


def test_static_scales_come_of_the_calibration_images(vit, tmp_path):
    import onnx

    directory, _, record = vit
    scales = []
    for factor in (1, 100):
        path = tmp_path / f"{factor}.onnx"
        quantize(directory / "m.onnx", path, facts_of(directory, STATIC), [factor * images_of(record, 8)])
        values = {init.name: onnx.numpy_helper.to_array(init) for init in onnx.load(path).graph.initializer}
        scales.append(float(values["images_scale"]))
    assert scales[1] == pytest.approx(100 * scales[0])


def test_tampered_weights_are_found(vit, tmp_path):
    import onnx

    directory, model, record = vit
    file = onnx.load(directory / "m.onnx")
    head = next(init for init in file.graph.initializer if init.name == "head.bias")
    values = onnx.numpy_helper.to_array(head).copy()
    values[1] += 0.01
    head.CopyFrom(onnx.numpy_helper.from_array(values, "head.bias"))
    onnx.save(file, tmp_path / "t.onnx")
    with pytest.raises(
        MachineError, match=r"logits differ by up to 0\.01 on 96 test images, 0\.00\d+ is toler"
    ):
        same(tmp_path / "t.onnx", model, record)


def constant(rows):
    return lambda images: np.array(rows, np.float32)[: len(images)]


def test_parity_by_hand():
    images, labels = np.zeros((4, 1), np.float32), np.array([0, 1, 1, 0])
    reference = constant([[2, 0], [0, 3], [1, 0], [1, 0]])  # right, right, wrong, right
    other = constant([[2, 0.5], [0, 3], [0, 1], [1, 0]])  # the third flips to right
    found = compare([(images, labels)], reference, other)
    assert (found.max_difference, found.largest_logit, found.equal_predictions) == (1, 3, 0.75)
    assert (found.reference_accuracy, found.accuracy) == (0.75, 1)
    assert found.tolerance == pytest.approx(0.003)
    check(found, DYNAMIC)


def test_a_small_difference_may_not_change_the_accuracy():
    images, labels = np.zeros((4, 1), np.float32), np.zeros(4, np.int64)
    one, two = constant([[1, 0]] * 3 + [[1, 0.9999]]), constant([[1, 0]] * 3 + [[1, 1.0005]])
    with pytest.raises(MachineError, match=r"accuracy is 0\.7500 instead of 1\.0000"):
        check(compare([(images, labels)], one, two), "fp32")


@pytest.mark.parametrize("rows", [[[float("nan"), 0]], [[1, 0, 0]]])
def test_no_numbers_are_never_kept(rows):
    found = compare(
        [(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))], constant([[1, 0]]), constant(rows)
    )
    with pytest.raises(MachineError, match=r"no numbers"):
        check(found, DYNAMIC)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x).flatten(1)


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(2, -1)


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


def test_what_cannot_be_exported_says_so_in_one_line(vit, tmp_path):
    directory, _, _ = vit
    program = exported(Bessel(), torch.randn(2, 1, 8, 8))
    with pytest.raises(UserError, match=r"ONNX lacks the operator prims\.bessel_j0; --format torch_export"):
        write_onnx(program, facts_of(directory), tmp_path / "b.onnx")
    assert not list(tmp_path.iterdir())
    write_program(program, facts_of(directory), tmp_path / "b.pt2")
    for model in (Fixed(), Branching()):
        with pytest.raises(UserError, match=r"cannot be made into a graph: .*--format safetensors"):
            exported(model, torch.randn(2, 1, 8, 8))


def test_damaged_files_are_told(tmp_path):
    for name, who in (("a.onnx", "ONNX Runtime"), ("a.pt2", "PyTorch"), ("a.safetensors", "damaged")):
        (tmp_path / name).write_bytes(b"no model at all")
        with pytest.raises(UserError, match=who) as caught:
            open_runtime(tmp_path / name, threads=1)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"must end in \.onnx, \.pt2, \.safetensors"):
        open_runtime(tmp_path / "a.bin", threads=1)
