"""`model.attention` in whole models: what is typed, the record, weights to start from, cuts, privacy, export."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_structure import cut_like_masked
from test_surgery import images
from timm.layers import Attention
from torch import nn
from torch.nn import functional as F

from effvit_train.audit.approximation import ATTENTION, OUTPUT, measure_approximation
from effvit_train.audit.growth import exponents, grow
from effvit_train.audit.operations import count_operations
from effvit_train.compress.prune import costs
from effvit_train.errors import UserError
from effvit_train.models import weights
from effvit_train.models.attention.kinds import KINDS, Kind
from effvit_train.models.config import AttentionArgs, ModelConfig
from effvit_train.models.factory import (
    build,
    create,
    exact_counterpart,
    inspect_model,
    load_model,
    save_model,
)
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import CUT, apply, cut_group, first_units
from effvit_train.privacy.engine import Clip, make_engine
from effvit_train.privacy.engine.checks import check

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 4}
ALL = [
    {"kind": "window", "window": 2},
    {"kind": "window", "window": 3, "shift": True},
    {"kind": "pooled", "stride": 2},
    {"kind": "linear", "kernel": "relu"},
    {"kind": "linear", "kernel": "elu"},
    {"kind": "performer", "features": 8},
    {"kind": "nystrom", "landmarks": [2, 2]},
    {"kind": "linformer", "rank": 4},
]
NAMES = [f"{entry['kind']} {list(entry.values())[1]}" for entry in ALL]
each_kind = pytest.mark.parametrize("entry", ALL, ids=NAMES)


def made(
    attention=None,
    *,
    name="vit_tiny_patch16_224",
    size=32,
    patch=8,
    classes=5,
    args=SMALL,
    attention_args=None,
    **settings,
):
    given = AttentionArgs(**(attention_args or {}))
    config = ModelConfig(
        name=name, args=args, patch_size=patch, attention=attention, attention_args=given, **settings
    )
    config.validate()
    torch.manual_seed(0)
    said: list[str] = []
    model, record = create(
        config, input_shape=(3, size, size), classes=[str(k) for k in range(classes)], mean=[0.5] * 3, std=[0.5] * 3,
        say=said.append,
    )  # fmt: skip
    return model, record, said


def kinds(record: ArchitectureRecord) -> list[str]:
    return [entry["kind"] for entry in record.kwargs.get("attention", [])]


def shaken(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


# --- what is typed -------------------------------------------------------------------------------

TYPED = {
    "window": ["window"] * 3,
    "[linear,null,exact]": ["linear", "exact", "exact"],
    "{0-1: linear}": ["linear", "linear", "exact"],
    "{0: linear, 2: {kind: window, window: 3}}": ["linear", "exact", "window"],
    "{kind: pooled, stride: 4}": ["pooled"] * 3,
    "exact": [],
    "null": [],
    "[linear,{kind: window, shift: true},exact]": ["linear", "window", "exact"],
    "[exact,exact,exact]": [],
}


@pytest.mark.parametrize("text", TYPED)
def test_forms(text):
    (override,) = OverridesParser.create().parse_overrides([f"model.attention={text}"])
    assert kinds(made(override.value())[1]) == TYPED[text]


def test_the_record_has_every_setting():
    args = {"window": 3, "stride": 1, "shift": True, "seed": 7, "features": 5}
    entries = made(["window", "pooled", "performer"], attention_args=args)[1].kwargs["attention"]
    assert entries == [
        {"kind": "window", "window": 3, "shift": True},
        {"kind": "pooled", "stride": 1},
        {"kind": "performer", "features": 5, "seed": 7},
    ]
    own = made(["window", {"kind": "window", "window": 2}, None], attention_args={"window": 4})[1]
    assert [entry.get("window") for entry in own.kwargs["attention"]] == [4, 2, None]


def test_defaults_follow_the_grid():
    """At 14 x 14: windows that divide it, 7 x 7 rows of 2 x 2 patches, landmarks of about 3 x 3."""
    found = {
        kind: made(kind, size=224, patch=16)[1].kwargs["attention"][0]
        for kind in ("window", "linformer", "nystrom", "performer")
    }
    assert found["window"]["window"] == 7
    assert found["linformer"]["rank"] == 49
    assert found["nystrom"]["landmarks"] == [5, 5]
    assert found["performer"]["features"] == 6  # a head's width
    large = {
        kind: made(kind, size=128, patch=2)[1].kwargs["attention"][0] for kind in ("linformer", "nystrom")
    }
    assert large["linformer"]["rank"] == 256
    assert large["nystrom"]["landmarks"] == [8, 8]
    windows = {
        grid: made("window", size=grid * 2, patch=2)[1].kwargs["attention"][0]["window"]
        for grid in (4, 7, 16)
    }
    assert windows == {4: 2, 7: 4, 16: 8}


WRONG = [
    ("windw", {}, r"model.attention=windw: must be one of exact, window, .*; did you mean 'window'\?"),
    (["linear", "exact"], {}, r"model.attention=\[linear,exact\]: names 2 blocks, the model has 3; one for each"),
    ([], {}, r"model.attention=\[\]: names no block"),
    ({}, {}, r"model.attention=\{\}: names no block"),
    ({"0-3": "linear"}, {}, r"model.attention=0-3: the model has blocks 0 to 2"),
    ({"0-1": "linear", 1: "window"}, {}, r"model.attention=0-1, 1: names block 1 twice"),
    ({"2-1": "linear"}, {}, r"model.attention=2-1: must name blocks, counted from 0"),
    ({-1: "linear"}, {}, r"model.attention=-1: must name blocks, counted from 0"),
    ({"first": "linear"}, {}, r"model.attention=first: must name blocks"),
    (3, {}, r"model.attention=3: must be one of exact, window"),
    ({"kind": "window", "stride": 2}, {}, r"model.attention: stride=2: is no setting of window; it takes window, shift"),
    ("window", {"rank": 2}, r"model.attention_args.rank=2: is no setting of window, but of linformer; window takes"),
    (None, {"rank": 2}, r"model.attention_args.rank=2: is no setting of exact attention, but of linformer; set model.att"),
    ("window", {"window": 0}, r"model.attention_args.window=0: must be a whole number of at least 1"),
    ("window", {"shift": 1}, r"model.attention_args.shift=1: must be true or false"),
    ("pooled", {"size": 5}, r"model.attention_args.size=5: must be a whole number from 1 to 4, the patches of a side"),
    ("pooled", {"size": 2, "stride": 2}, r"model.attention_args.size=2: cannot be combined with model.attention_args.stri"),
    ("linear", {"kernel": "cos"}, r"model.attention_args.kernel=cos: must be one of relu, elu"),
    ("nystrom", {"landmarks": 5}, r"model.attention_args.landmarks=5: are not the rectangles .* of 4 x 4 patches"),
    ("nystrom", {"landmarks": [5, 1]}, r"landmarks=\[5, 1\]: must be rows and columns, at most 4 and 4"),
    ("linformer", {"rank": 17}, r"model.attention_args.rank=17: must be a whole number from 1 to 16, the number of patc"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "args", "message"), WRONG)
def test_wrong_input_is_one_line(value, args, message):
    with pytest.raises(UserError, match=message) as caught:
        made(value, attention_args=args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "swin_tiny_patch4_window7_224", "args": {}, "size": 224, "patch": None},
         r"model.attention=linear: swin_tiny_patch4_window7_224: only a plain ViT"),
        ({"name": "resnet18", "args": {}, "size": 64, "patch": None}, r"resnet18: only a plain ViT"),
        ({"args": {**SMALL, "patch_drop_rate": 0.5}}, r"patch_drop_rate drops patches, and what is left is no grid"),
        ({"args": {**SMALL, "attn_drop_rate": 0.5}}, r"attn_drop_rate=0.5: linear has no probabilities"),
        ({"args": {**SMALL, "attn_layer": "diff"}}, r"an attention of their own kind, not timm's plain one"),
        ({"args": {**SMALL, "attention": "linear"}}, r"model.args.attention=linear: is set by another key; use model.att"),
    ],
)  # fmt: skip
def test_models_that_cannot_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        made("linear", **settings)


# --- built, saved, built again -------------------------------------------------------------------

BODIES = {
    "vit": {},
    "distilled": {"name": "deit_tiny_distilled_patch16_224"},
    "deit3": {"name": "deit3_small_patch16_224"},
    "scattering": {"stem": "scattering"},
    "flat": {"pool": "flat", "args": {**SMALL, "class_token": False}},
    "registers": {"args": {**SMALL, "reg_tokens": 3}},
}


@pytest.mark.parametrize("body", BODIES)
def test_the_record_builds_the_same_model(body, tmp_path: Path):
    for entry in (
        ["window", ALL[1], "linear"],
        ["pooled", "nystrom", "exact"],
        ["linformer", "performer", "exact"],
    ):
        model, record, _ = made(entry, **BODIES[body])
        shaken(model)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if "features" in name:
                    buffer.add_(1)  # what is loaded counts, not what is drawn
        save_model(model, record, tmp_path)
        assert json.loads((tmp_path / "model.json").read_text())["kwargs"]["attention"][0]["kind"] == entry[0]
        assert torch.equal(load_model(tmp_path)(images(double=False)), model(images(double=False)))
        inspect_model(tmp_path)


def test_a_record_that_cannot_be_is_no_model():
    record = made("linear")[1]
    for entries, message in (([{"kind": "cosine"}] * 3, "no kind"), ([{"kind": "linear"}], "1 kinds")):
        with pytest.raises(ValueError, match=message):
            build(dataclasses.replace(record, kwargs={**record.kwargs, "attention": entries}))


def test_exact_is_the_same_as_nothing():
    assert made("exact")[1].to_json() == made(None)[1].to_json()


# --- starting from exact weights -----------------------------------------------------------------


@pytest.fixture(scope="module")
def exact_run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exact")
    model, record, _ = made()
    save_model(shaken(model), record, path)
    return path


def own_of(model: nn.Module) -> set[str]:
    return {name for name in model.state_dict() if name.endswith((".features", "_rows.weight"))}


@each_kind
def test_an_exact_run_is_loaded_by_name(entry, exact_run):
    model, _, said = made(entry, weights=str(exact_run))
    state, wanted = model.state_dict(), safetensors.torch.load_file(exact_run / "model.safetensors")
    assert set(state) - own_of(model) == set(wanted)
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    (line,) = said
    assert line.startswith(f"model.attention: {entry['kind']} in blocks 0-2; ")
    if entry["kind"] == "linformer":  # 2 x 16 patches x 4 rows in 3 blocks
        assert "new: key_rows.weight, value_rows.weight (384 parameters, which begin as averages)" in line
    else:
        assert line.endswith("every weight is the loaded one")


def test_at_its_limit_the_swapped_model_is_the_exact_one(exact_run):
    for entry in (
        {"kind": "window", "window": 4},
        {"kind": "pooled", "stride": 1},
        {"kind": "linformer", "rank": 16},
    ):
        model = made(entry, weights=str(exact_run))[0].eval()
        x = images(double=False)
        assert torch.allclose(model(x), load_model(exact_run)(x), atol=1e-5)


def test_positions_and_classes_are_adapted_as_timm_does(exact_run):
    model, _, said = made("linear", size=48, classes=7, weights=str(exact_run))
    plain = made(None, size=48, classes=7, weights=str(exact_run))[0]
    assert model.pos_embed.shape == (1, 37, 24)
    assert torch.equal(model.pos_embed, plain.pos_embed)
    assert [line.partition(":")[0] for line in said] == ["model.weights", "model.attention"]


def test_a_file_of_foreign_weights(exact_run, tmp_path):
    torch.save({"state_dict": load_model(exact_run).state_dict()}, tmp_path / "foreign.pt")
    model = made("performer", weights=str(tmp_path / "foreign.pt"))[0]
    assert torch.equal(model.blocks[1].attn.qkv.weight, load_model(exact_run).blocks[1].attn.qkv.weight)


def test_published_weights(monkeypatch):
    """timm loads its own model; the attention is swapped in what it gives."""
    published = made()[0]
    monkeypatch.setattr(weights, "pretrained", lambda record, build, say: published)
    model = made("linear", pretrained=True)[0]
    assert model is published
    assert type(model.blocks[0].attn).__name__ == "Linear"


def test_a_swapped_run_is_continued(exact_run, tmp_path):
    model, record, _ = made("linformer", weights=str(exact_run))
    save_model(shaken(model), record, tmp_path)
    again, _, said = made("linformer", weights=str(tmp_path))
    assert all(
        torch.equal(a, b)
        for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert said == []


def test_from_one_kind_to_another(exact_run, tmp_path):
    model, record, _ = made(["linformer", "linformer", "linear"], weights=str(exact_run))
    save_model(shaken(model), record, tmp_path)
    other, _, said = made(["linformer", "window", "linformer"], weights=str(tmp_path))
    assert torch.equal(other.blocks[0].attn.key_rows.weight, model.blocks[0].attn.key_rows.weight)
    assert torch.equal(other.blocks[1].attn.qkv.weight, model.blocks[1].attn.qkv.weight)
    assert (
        "linformer in blocks 0, 2, window in blocks 1; new: key_rows.weight, value_rows.weight (128 par"
        in said[0]
    )
    exact, _, said = made(None, weights=str(tmp_path))
    assert type(exact.blocks[0].attn) is Attention
    assert "has linformer in blocks 0-1, linear in blocks 2; exact attention here" in said[0]


def pruned(path: Path, widths: dict[str, int], blocks=()) -> nn.Module:
    model, record, _ = made()
    entry = {"kind": CUT, "blocks": list(blocks), "widths": widths}
    record = dataclasses.replace(record, cuts=[entry])
    model = shaken(build(record))
    save_model(model, record, path)
    return model


def test_a_pruned_exact_run_keeps_its_cuts(tmp_path):
    widths = {"blocks.0.attn.heads": 2, "blocks.2.attn.head_width": 4, "blocks.0.mlp": 40, "embed": 20}
    source = pruned(tmp_path, widths, ["blocks.1"])
    for entry in (
        {"kind": "window", "window": 4},
        {"kind": "pooled", "stride": 1},
        {"kind": "linformer", "rank": 16},
    ):
        model, record, _ = made(entry, weights=str(tmp_path))
        x = images(double=False)
        assert torch.allclose(model.eval()(x), source(x), atol=1e-5)
        again = build(record)
        assert {n: t.shape for n, t in again.state_dict().items()} == {
            n: t.shape for n, t in model.state_dict().items()
        }
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.eval()(x), model(x))


def test_a_cut_that_a_kind_cannot_have_is_named(tmp_path):
    pruned(tmp_path, {"blocks.2.attn.head_width": 4})
    with pytest.raises(
        UserError, match=r"model.attention=performer in blocks 0-2: cannot take the weights of a model"
    ):
        made("performer", weights=str(tmp_path))
    with pytest.raises(UserError, match=r"model.weights=.*: holds a model that was cut out of"):
        made("linear", weights=str(tmp_path), args={**SMALL, "num_heads": 6})


# --- a table that others add to ------------------------------------------------------------------


class Mixer(nn.Module):
    """Token mixing without queries and keys."""

    def __init__(self, dim: int, grid: tuple[int, int], prefix: int, width: int = 2) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.prefix = prefix + width * grid[0]

    def forward(self, x, attn_mask=None, is_causal=False):
        return self.linear(x)


def test_one_line_adds_a_mixer(monkeypatch, exact_run):
    monkeypatch.setitem(KINDS, "mixer", Kind("test_attention_models:Mixer", keeps=False))
    model, record, said = made({0: "mixer", 1: "linear"}, weights=str(exact_run))
    assert record.kwargs["attention"][0] == {"kind": "mixer", "width": 2}
    assert model.blocks[0].attn.prefix == 9
    assert "new: linear.weight, linear.bias (600 parameters)" in said[0]
    assert "blocks.0.attn.qkv.weight" not in model.state_dict()
    # what has no exact counterpart stays as it is, and is not measured
    exact = exact_counterpart(model, record)
    assert [type(block.attn).__name__ for block in exact.blocks] == ["Mixer", "Attention", "Attention"]
    _, facts = measure_approximation(model, images(double=False), exact=exact)
    assert list(facts["attention_errors"]) == ["blocks.1.attn"]
    only, record, _ = made("mixer")
    assert exact_counterpart(only, record) is None
    assert set(read_structure(only).groups) == {f"blocks.{k}.mlp" for k in range(3)}


# --- the error, and the growth -------------------------------------------------------------------


def test_the_error_against_exact_attention(exact_run):
    model, record, _ = made("pooled", weights=str(exact_run))
    x = images(double=False)
    measured, facts = measure_approximation(model.eval(), x, exact=exact_counterpart(model, record))
    assert list(facts["attention_errors"]) == [f"blocks.{k}.attn" for k in range(3)]
    given: list[torch.Tensor] = []
    model.blocks[2].attn.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    logits = model(x)
    exact = load_model(exact_run)
    with torch.no_grad():
        one, two = exact.blocks[2].attn(given[0]), model.blocks[2].attn(given[0])
        by_hand = float((one - two).norm() / one.norm())
        whole = float((exact(x) - logits).norm() / exact(x).norm())
    assert facts["attention_errors"]["blocks.2.attn"] == pytest.approx(by_hand, rel=1e-5)
    assert measured.values[OUTPUT] == pytest.approx(whole, rel=1e-5)
    assert measured.values[ATTENTION] > 0.01
    same = made({"kind": "window", "window": 4}, weights=str(exact_run))
    measured, _ = measure_approximation(same[0].eval(), x, exact=exact_counterpart(*same[:2]))
    assert measured.values[ATTENTION] == 0


@pytest.mark.parametrize(
    ("entry", "exponent"),
    [("exact", 2), ({"kind": "pooled", "stride": 2}, 2), ({"kind": "pooled", "size": 2}, 1), ("window", 1), ("linear", 1),
     ("performer", 1), ({"kind": "nystrom", "landmarks": [2, 2]}, 1), ("linformer", 1)],
)  # fmt: skip
def test_attention_grows_as_its_name_says(entry, exponent):
    points, refused = grow(made(entry, size=128)[1])
    assert refused == []
    assert exponents(list(points.values()))["attention_macs"].value == pytest.approx(exponent, abs=0.12)


# --- cuts ----------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("group", ["heads", "head_width", "mlp", "embed", "all"])
def test_cut_is_masked(entry, group):
    dense = shaken(made(entry)[0].double())
    offered = {g.kind for g in read_structure(dense).groups.values()}
    fixed = entry["kind"] == "performer" or entry.get("kernel") == "elu"
    assert offered == {"heads", "mlp", "embed"} | (set() if fixed else {"head_width"})
    wanted = (*offered, "blocks") if group == "all" else (group,)
    if not offered & set(wanted):
        return
    cut, masked = cut_like_masked(dense, wanted)
    with torch.no_grad():
        assert torch.allclose(cut(images()), masked(images()), rtol=1e-7, atol=1e-7)


@each_kind
def test_macs_of_a_cut_model_are_foreseen(entry):
    model, record, _ = made(entry)
    structure = read_structure(model)
    macs = costs.macs(record, structure)
    assert macs.total(structure.sizes) == count_operations(model, record.input_shape).macs
    for kind, width in (("heads", 2), ("head_width", 3), ("mlp", 30), ("embed", 12)):
        now = read_structure(model)
        for group in list(now.groups.values()):
            if group.kind == kind:
                apply(model, cut_group(now, group, first_units(now, group, width)))
                now = read_structure(model)
    assert macs.total(read_structure(model).sizes) == count_operations(model, record.input_shape).macs


# --- privacy -------------------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
def test_gradients_are_those_of_a_loop(entry, engine):
    modules = nn.ModuleDict({"model": shaken(made(entry)[0].double()).train()})
    x, labels = images(3) * torch.tensor([0.3, 1.0, 2.0]).view(-1, 1, 1, 1).double(), torch.tensor([0, 1, 2])

    def losses_of(rows):
        def losses(batch):
            return F.cross_entropy(modules["model"](batch[0]), batch[1], reduction="none")

        return losses, (x[list(rows)], labels[list(rows)])

    errors = check(make_engine(engine, modules, Clip(0.5)), losses_of, 3)
    assert max(errors.values()) < 1e-8


# --- compiled and exported -----------------------------------------------------------------------


@each_kind
def test_export_with_any_batch_and_no_break_in_the_graph(entry):
    model, x = shaken(made(entry, args={**SMALL, "depth": 1})[0]), images(double=False)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    more = torch.cat([x, x])
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
