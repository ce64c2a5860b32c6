"""Weights from files and from timm's cache, adapted to another image, patch, channel or class count."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import nn

from effvit_train.errors import UserError
from effvit_train.models import weights
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import create, save_model

ARGS = {"embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def source() -> nn.Module:
    """A ViT for 3x32x32, patch 4 (8x8 tokens), 10 classes."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, num_classes=10, **ARGS)


@pytest.fixture(scope="module")
def file(source: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "source.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    return path


def loaded(
    path: Path, shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, said: list[str] | None = None, **config: object
) -> nn.Module:  # fmt: skip
    config = {"args": ARGS, "patch_size": 4, **config}
    model, _ = create(
        ModelConfig(weights=str(path), **config),  # type: ignore[arg-type]
        input_shape=shape, classes=[str(i) for i in range(classes)],
        mean=[0.5] * shape[0], std=[0.5] * shape[0], say=(said if said is not None else []).append,
    )  # fmt: skip
    return model


def equal_but(model: nn.Module, source: nn.Module, *adapted: str) -> bool:
    one, two = model.state_dict(), source.state_dict()
    assert one.keys() == two.keys()
    return all(torch.equal(one[k], two[k]) for k in one if k not in adapted)


def test_the_same_shape_is_taken_as_it_is(file: Path, source: nn.Module) -> None:
    said: list[str] = []
    assert equal_but(loaded(file, said=said), source)
    assert said == []


def test_positions_follow_the_image_size(file: Path, source: nn.Module) -> None:
    model = loaded(file, shape=(3, 48, 48))  # 8x8 -> 12x12 tokens and the class token
    by_hand = resample_abs_pos_embed(source.pos_embed.data, new_size=[12, 12], num_prefix_tokens=1)
    assert model.pos_embed.shape == (1, 145, 32)
    assert torch.equal(model.pos_embed.data, by_hand)
    assert equal_but(model, source, "pos_embed")


def test_patches_follow_the_patch_size(file: Path, source: nn.Module) -> None:
    model = loaded(file, shape=(3, 64, 64), patch_size=8)  # 8x8 tokens as before
    by_hand = resample_patch_embed(source.patch_embed.proj.weight.data, [8, 8])
    assert torch.equal(model.patch_embed.proj.weight.data, by_hand)
    assert equal_but(model, source, "patch_embed.proj.weight")


def test_colours_become_grey_and_back(file: Path, source: nn.Module, tmp_path: Path) -> None:
    grey = loaded(file, shape=(1, 32, 32))
    kernel = source.patch_embed.proj.weight.data
    # an image of three equal channels gives the same tokens as the one channel
    torch.testing.assert_close(grey.patch_embed.proj.weight.data, kernel.sum(dim=1, keepdim=True))
    assert equal_but(grey, source, "patch_embed.proj.weight")
    torch.save(grey.state_dict(), tmp_path / "grey.pt")
    colour = loaded(tmp_path / "grey.pt")
    by_hand = grey.patch_embed.proj.weight.data.repeat(1, 3, 1, 1) / 3
    torch.testing.assert_close(colour.patch_embed.proj.weight.data, by_hand)


def test_other_classes_get_a_new_head(file: Path, source: nn.Module) -> None:
    said: list[str] = []
    model = loaded(file, classes=7, said=said)
    assert model.head.weight.shape == (7, 32)
    one, two = model.state_dict(), source.state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one if not k.startswith("head."))
    assert len(said) == 1
    assert "10 classes" in said[0]
    assert "7 here: new head" in said[0]


def test_a_file_without_a_head_gets_one(source: nn.Module, tmp_path: Path) -> None:
    body = {k: v for k, v in source.state_dict().items() if not k.startswith("head.")}
    torch.save(body, tmp_path / "body.pt")
    said: list[str] = []
    model = loaded(tmp_path / "body.pt", said=said)
    assert torch.equal(model.pos_embed.data, source.pos_embed.data)
    assert "no classes" in said[0]


def test_swin_windows_are_resampled(tmp_path: Path) -> None:
    args = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, patch_size=4, num_classes=5, **args
    )
    torch.save(model.state_dict(), tmp_path / "swin.pt")
    ours = loaded(
        tmp_path / "swin.pt", shape=(3, 32, 32), classes=5, name="swin_tiny_patch4_window7_224",
        args=args, patch_size="auto",
    )  # fmt: skip
    table = ours.layers[0].blocks[0].attn.relative_position_bias_table
    assert table.shape == (15 * 15, 1)  # window 8: (2*8-1)^2 offsets, where the file has 13^2
    assert torch.equal(ours.layers[3].blocks[0].mlp.fc1.weight, model.layers[3].blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"model": s},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"state_dict": {k: v * 0 for k, v in s.items()}, "state_dict_ema": s},
        lambda s: {"state_dict": {f"model._orig_mod.{k}": v for k, v in s.items()}},
    ],
    ids=["model", "ddp", "ema wins", "lightning, compiled"],
)
def test_wrappers_are_taken_off(wrap, source: nn.Module, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.save(wrap(source.state_dict()), tmp_path / "wrapped.pt")
    assert equal_but(loaded(tmp_path / "wrapped.pt"), source)


def test_a_run_directory_is_a_source(source: nn.Module, tmp_path: Path) -> None:
    model, record = create(
        ModelConfig(args=ARGS), input_shape=(3, 32, 32), classes=list("abcdefghij"), mean=[0.5] * 3, std=[0.5] * 3
    )  # fmt: skip
    save_model(model, record, tmp_path)
    assert equal_but(loaded(tmp_path), model)


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(source: nn.Module, tmp_path: Path) -> None:
    torch.save({"model": source.state_dict(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "trap.pt")
    with pytest.raises(UserError, match="could run code") as caught:
        loaded(tmp_path / "trap.pt")
    assert caught.value.key == "model.weights"
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "sprung").exists()
    torch.save(source, tmp_path / "module.pt")
    with pytest.raises(UserError, match="could run code"):
        loaded(tmp_path / "module.pt")


@pytest.mark.parametrize("content", [b"", b"hello, this is no checkpoint", b"PK\x03\x04broken"])
def test_what_is_no_file_of_weights(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError) as caught:
        loaded(tmp_path / "x.pt")
    assert caught.value.key == "model.weights"
    assert "\n" not in str(caught.value)


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        loaded(tmp_path / "none.pt")
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        loaded(tmp_path)
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(UserError, match="no state dict"):
        loaded(tmp_path / "empty.pt")


@pytest.mark.parametrize(
    ("args", "classes", "says"),
    [
        ({**ARGS, "depth": 3}, 10, "lacks blocks.2.norm1.weight"),
        ({**ARGS, "depth": 3}, 4, "lacks blocks.2.norm1.weight"),  # a new head excuses nothing else
        ({**ARGS, "depth": 1}, 10, "has also blocks.1."),
        ({**ARGS, "embed_dim": 48}, 10, "is 1x1x32 instead of 1x1x48"),
    ],
)
def test_other_architectures_are_refused(file: Path, args: dict[str, int], classes: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        loaded(file, classes=classes, args=args)
    assert caught.value.key == "model.weights"
    assert says in str(caught.value)


# --- timm's published weights ------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and a hub that nobody answers for."""
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


def published(
    shape: tuple[int, int, int] = (3, 32, 32), name: str = "test_vit"
) -> tuple[nn.Module, list[str]]:
    said: list[str] = []
    model, _ = create(
        ModelConfig(name=name, pretrained=True), input_shape=shape, classes=list("abc"),
        mean=[0.5] * shape[0], std=[0.5] * shape[0], say=said.append,
    )  # fmt: skip
    return model, said


def test_published_weights_come_from_the_cache(hub: Path) -> None:
    torch.manual_seed(0)
    original = timm.create_model("test_vit")  # timm's small test model: 160 pixels, patch 16, 1000 classes
    cfg = timm.get_pretrained_cfg("test_vit")
    folder = hub / f"models--{cfg.hf_hub_id.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123456789"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123456789")
    safetensors.torch.save_file(original.state_dict(), snapshot / "model.safetensors")
    model, said = published((1, 32, 32))
    by_hand = resample_abs_pos_embed(original.pos_embed.data, new_size=[8, 8], num_prefix_tokens=1)
    assert torch.equal(model.pos_embed.data, by_hand)
    kernel = resample_patch_embed(original.patch_embed.proj.weight.data, [4, 4]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(model.patch_embed.proj.weight.data, kernel)
    assert torch.equal(model.blocks[0].attn.qkv.weight, original.blocks[0].attn.qkv.weight)
    assert model.head.weight.shape[0] == 3
    assert said == ["model.pretrained: 1000 classes there, 3 here: new head"]


def test_an_unreachable_hub_is_one_line_and_no_wait(hub: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=r"model\.weights=FILE") as caught:
        published()
    assert caught.value.key == "model.pretrained"
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


def test_a_silent_network_is_waited_for_briefly(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: time.sleep(3))
    start = time.monotonic()
    with pytest.raises(UserError, match="cannot be reached"):
        published()
    assert time.monotonic() - start < 2.5


def test_a_model_without_published_weights(hub: Path) -> None:
    name = next(
        n
        for n in ("vit_base_patch16_18x2_224", "deit3_small_patch16_224")
        if not timm.get_pretrained_cfg(n).has_weights
    )
    with pytest.raises(UserError, match="publishes no weights"):
        published((3, 224, 224), name=name)
