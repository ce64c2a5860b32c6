"""Save, load, rebuild."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors
import torch

import effvit_train
from effvit_train.errors import UserError
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import build, create, embed_width, load_model, save_model
from effvit_train.models.record import ArchitectureRecord

SMALL = ModelConfig(args={"embed_dim": 32, "depth": 2, "num_heads": 2})


def made(config: ModelConfig = SMALL) -> tuple[torch.nn.Module, ArchitectureRecord]:
    return create(config, input_shape=(1, 8, 8), classes=["a", "b", "c"], mean=[0.3], std=[0.3])


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, record = made()
    save_model(model, record, tmp_path)
    state = torch.get_rng_state()
    loaded = effvit_train.load_model(tmp_path)
    assert torch.equal(state, torch.get_rng_state())
    assert not loaded.training
    images = torch.randn(3, 1, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    model, record = made()
    save_model(model, record, tmp_path / "a")
    save_model(model.to(memory_format=torch.channels_last), record, tmp_path / "b")
    one, two = (tmp_path / d / "model.safetensors" for d in "ab")
    assert one.read_bytes() == two.read_bytes()


def test_metadata_is_in_the_file_in_the_same_order_every_time(tmp_path: Path) -> None:
    model, record = made()
    metadata = {"seen": '[{"name": "é"}]', "a": "1", "z": "2"}
    contents = set()
    for _ in range(10):  # the library's own order is one of 24
        save_model(model, record, tmp_path, metadata=metadata)
        contents.add((tmp_path / "model.safetensors").read_bytes())
    (content,) = contents
    assert content[8:].startswith(b'{"__metadata__":{"a":"1","format":"pt","seen":')
    assert int.from_bytes(content[:8], "little") % 8 == 0
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}
    loaded = load_model(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    model, record = made()
    model.blocks[1].mlp.fc1.weight = model.blocks[0].mlp.fc1.weight
    save_model(model, record, tmp_path)
    loaded = load_model(tmp_path)
    assert torch.equal(loaded.blocks[1].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


def test_seeded_builds_are_equal() -> None:
    _, record = made()
    torch.manual_seed(5)
    one = build(record).state_dict()
    torch.manual_seed(5)
    two = build(record).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_unknown_cuts_are_refused() -> None:
    _, record = made()
    with pytest.raises(ValueError, match="unknown change 'fold'"):
        build(dataclasses.replace(record, cuts=[{"kind": "fold"}]))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    model, record = made()
    save_model(model, record, tmp_path)
    other = dataclasses.replace(record, kwargs={**record.kwargs, "depth": 3})
    other.write(tmp_path / "model.json")
    with pytest.raises(UserError, match=r"lacks blocks\.2\.norm1\.weight"):
        load_model(tmp_path)
    record.write(tmp_path / "model.json")
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(UserError, match="damaged"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="no architecture record"):
        load_model(tmp_path / "nowhere")


def test_an_unbuildable_record_is_one_line(tmp_path: Path) -> None:
    model, record = made()
    save_model(model, record, tmp_path)
    dataclasses.replace(record, name="no_such_model").write(tmp_path / "model.json")
    with pytest.raises(UserError, match="cannot rebuild"):
        load_model(tmp_path)


def test_embed_width() -> None:
    model, _ = made()
    assert embed_width(model) == 32
    swin, _ = made(ModelConfig(name="swin_tiny_patch4_window7_224", args={"depths": [1, 1, 1, 1]}))
    assert embed_width(swin) == 768  # 96 doubled three times
    with pytest.raises(ValueError, match="how wide"):
        embed_width(torch.nn.Linear(2, 2))


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, effvit_train.models, effvit_train.audit; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_positions_start_with_the_standard_deviation_asked_for():
    from effvit_train.models.config import ModelConfig
    from effvit_train.models.factory import create

    shape = {"input_shape": (3, 32, 32), "classes": list("ab"), "mean": [0.5] * 3, "std": [0.5] * 3}
    for std, expected in ((None, 0.02), (1.0, 1.0)):
        model, _ = create(ModelConfig(name="vit_tiny_patch16_224", pos_std=std), **shape)
        assert model.pos_embed.std().item() == pytest.approx(expected, rel=0.05)
    model, _ = create(ModelConfig(name="swin_tiny_patch4_window7_224", pos_std=1.0), **shape)  # has none
    assert not hasattr(model, "pos_embed")
