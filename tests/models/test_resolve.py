"""What is built for which image: the rules of `patch_size=auto`, and one line for each wrong request."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from effvit_train.errors import UserError
from effvit_train.models.config import ModelConfig
from effvit_train.models.factory import build
from effvit_train.models.geometry import Geometry, auto_patch, auto_window
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.resolve import meta_build, resolve

GROUPS = sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 224, 224)]
VIT = Geometry(image_size=224, patch=16)
SWIN = Geometry(image_size=224, patch=4, span=8, window=7)


def asked(
    shape: tuple[int, int, int] = (3, 32, 32), classes: int = 10, **config: object
) -> ArchitectureRecord:
    return resolve(
        ModelConfig(**config),  # type: ignore[arg-type]
        input_shape=shape,
        classes=[f"c{i}" for i in range(classes)],
        mean=[0.5] * shape[0],
        std=[0.25] * shape[0],
    )


# size -> patch: the first four are the issue's own pairs
@pytest.mark.parametrize(
    ("size", "patch"), [(8, 2), (28, 4), (32, 4), (224, 16), (64, 8), (96, 8), (112, 8), (256, 16), (384, 16)]
)
def test_auto_patch_of_a_vit(size: int, patch: int) -> None:
    assert auto_patch(size, VIT) == patch


# last stage of a four-stage pyramid: ceil(size / patch / 8) = 1 (8 pixels allow no more), 2, 2, 2, 7
@pytest.mark.parametrize(("size", "patch"), [(8, 1), (28, 2), (32, 2), (64, 4), (224, 4)])
def test_auto_patch_of_a_pyramid(size: int, patch: int) -> None:
    assert auto_patch(size, SWIN) == patch


def test_auto_patch_keeps_what_the_model_was_made_for() -> None:
    assert auto_patch(224, Geometry(224, 32)) == 32
    assert auto_patch(224, Geometry(224, 8)) == 8
    assert auto_patch(224, Geometry(518, 14)) == 14  # DINOv2's patches: 16 tokens per side


def test_auto_patch_gives_up_on_a_large_prime() -> None:
    assert auto_patch(97, VIT) is None  # 1 would mean 9,409 tokens


@pytest.mark.parametrize(("grid", "window"), [(56, None), (14, None), (7, None), (4, None), (16, 8), (8, 8)])
def test_window_tiles_the_grid(grid: int, window: int | None) -> None:
    assert auto_window(grid, 7) == window


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("group", GROUPS, ids=lambda path: path.stem)
def test_every_group_follows_the_image(group: Path, shape: tuple[int, int, int]) -> None:
    record = asked(shape, **yaml.safe_load(group.read_text()))
    assert record.kwargs["img_size"] == shape[1]
    assert record.kwargs["in_chans"] == shape[0]
    assert record.kwargs["num_classes"] == 10
    assert shape[1] % record.kwargs["patch_size"] == 0
    model = meta_build(record.name, record.kwargs)
    assert model(torch.empty(2, *shape, device="meta")).shape == (2, 10)


def test_the_groups_of_the_issue_are_there() -> None:
    assert {g.stem for g in GROUPS} >= {
        "vit_micro",
        "vit_ti",
        "vit_s",
        "vit_b",
        "deit_s",
        "deit3_s",
        "swin_t",
    }


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_swin_runs_for_real(shape: tuple[int, int, int]) -> None:
    record = asked(shape, name="swin_tiny_patch4_window7_224", args={"depths": [1, 1, 1, 1], "embed_dim": 48})
    model = build(record).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 10)


def test_null_keeps_timms_own_patch() -> None:
    record = asked((3, 32, 32), name="vit_tiny_patch16_224", patch_size=None)
    assert "patch_size" not in record.kwargs
    assert meta_build(record.name, record.kwargs).patch_embed.patch_size == (16, 16)


def test_convolutional_networks_get_no_image_size() -> None:
    record = asked((3, 32, 32), name="resnet18")
    assert set(record.kwargs) == {"num_classes", "in_chans", "drop_rate", "drop_path_rate"}


def test_rates_that_the_architecture_does_not_know_are_left_out() -> None:
    assert "drop_path_rate" not in asked((3, 64, 64), name="vgg11").kwargs


def test_drop_path_overrides_timms_default() -> None:
    # Swin's own default is 0.1: the record says what was meant
    assert asked(name="swin_tiny_patch4_window7_224").kwargs["drop_path_rate"] == 0.0


def test_resolving_draws_no_random_numbers() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    asked(name="vit_tiny_patch16_224", args={"depth": 2})
    assert torch.equal(before, torch.get_rng_state())


def test_the_record_survives_json(tmp_path: Path) -> None:
    record = asked((1, 28, 28), name="swin_tiny_patch4_window7_224")
    record.write(tmp_path / "model.json")
    assert ArchitectureRecord.read(tmp_path / "model.json") == record


WRONG = [
    ({"name": "vit_tinny_patch16_224"}, "model.name", "did you mean 'vit_tiny_patch16_224'?"),
    ({"name": "vit_tiny_patch16_224.nope"}, "model.name", "augreg_in21k"),
    ({"name": "hf-hub:someone/something"}, "model.name", "no such model"),
    ({"patch_size": 5}, "model.patch_size", "allowed: 1, 2, 4, 8, 16, 32"),
    ({"shape": (1, 28, 28), "patch_size": None}, "model.patch_size", "allowed: 1, 2, 4, 7, 14, 28"),
    ({"shape": (3, 97, 97)}, "model.patch_size", "dataset.image_size=96"),
    ({"name": "mixer_b16_224", "shape": (1, 28, 28)}, "model.name", "dataset.image_size=32"),
    ({"name": "resnet18", "patch_size": 4}, "model.patch_size", "model.patch_size=null"),
    ({"name": "pvt_v2_b0", "shape": (1, 8, 8)}, "model.name", "dataset.image_size=224"),
    ({"args": {"dept": 3}}, "model.args.dept", "did you mean 'depth'?"),
    ({"args": {"embed_dim": 65}}, "model.args", "divisible by num_heads"),
    ({"args": {"num_classes": 3}}, "model.args.num_classes", "use dataset.num_classes"),
    ({"args": {"checkpoint_path": "x"}}, "model.args.checkpoint_path", "use model.weights"),
    ({"args": {"depth": float("nan")}}, "model.args", "must be numbers"),
    ({"args": {"global_pool": "", "depth": 1}}, "model.args.global_pool", "use model.pool"),
    ({"name": "vgg11", "shape": (3, 64, 64), "drop_path_rate": 0.1}, "model.drop_path_rate", "at 0"),
]


@pytest.mark.parametrize(("config", "key", "says"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_request_is_one_line(config: dict[str, object], key: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        asked(**config)  # type: ignore[arg-type]
    assert caught.value.key == key
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
