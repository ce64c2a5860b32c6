"""Pictures of what tokens stand for, against cases drawn by hand, and the card's section of them."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from effvit_train.audit.approximation import measure_approximation
from effvit_train.audit.complexity import measure_complexity
from effvit_train.audit.tokens import draw_dropped, draw_merged, measure_tokens, trace
from effvit_train.audit.transparency.attention import unsupported
from effvit_train.audit.transparency.measure import measure_transparency
from effvit_train.card import Card
from effvit_train.compress.distill.blocks import before, patches
from effvit_train.models.factory import build
from effvit_train.models.record import ArchitectureRecord
from effvit_train.models.surgery import apply
from effvit_train.models.tokens.change import Drop, Merge
from effvit_train.report.inputs import RunData
from effvit_train.report.tokens import section
from effvit_train.taps import Taps

MERGED = {"kind": "merge_tokens", "r": {"blocks.0": 5, "blocks.2": 4}, "proportional": True}
DROPPED = {"kind": "drop_tokens", "keep": {"blocks.0": 0.5, "blocks.1": 0.5}, "fuse": True}


def make(*cuts) -> tuple[nn.Module, ArchitectureRecord]:
    torch.manual_seed(0)
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 5}
    record = ArchitectureRecord(
        "vit_tiny_patch16_224", kwargs, (3, 32, 32), tuple("abcde"), (0.5,) * 3, (0.5,) * 3, list(cuts)
    )
    return build(record).eval(), record


def pixels(count: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def normalise(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 127.5 - 1


def test_merged_patches_have_one_colour_and_one_outline():
    # two rows of two patches; the first row is one token of mean (10 + 30) / 2, below are two of 200 and 250
    image = np.empty((1, 4, 4), dtype=np.uint8)
    image[0, :2, :2], image[0, :2, 2:], image[0, 2:, :2], image[0, 2:, 2:] = 10, 30, 200, 250
    drawn = draw_merged(image, np.array([2, 2, 0, 1]), (2, 2))
    assert drawn.shape == (112, 112, 3)
    assert set(np.unique(drawn[:55, :, 0])) == {20}  # no line between the first two
    assert set(np.unique(drawn[55, :, 0])) == {255}  # light below a dark region
    assert set(np.unique(drawn[56:, :55, 1])) == {200}
    assert set(np.unique(drawn[56:, 55, 2])) == {0}  # dark beside a light one
    assert set(np.unique(drawn[56:, 56:, 0])) == {250}


def test_dropped_patches_are_grey_and_struck_through():
    image = np.full((3, 4, 4), 100, dtype=np.uint8)
    image[0] = 160  # a mean of 120
    drawn = draw_dropped(image, np.array([False, True, False, False]), (2, 2))
    assert drawn[:56, :56].reshape(-1, 3).tolist()[0] == [160, 100, 100]
    grey = round(0.25 * 120 + 0.75 * 205)
    assert drawn[10, 80].tolist() == [grey] * 3
    assert drawn[10, 66].tolist() == [90] * 3  # on the diagonal
    assert (drawn[56:] == [160, 100, 100]).all()


def test_patches_are_followed_through_all_blocks():
    model, _ = make(MERGED)
    stages = trace(model, normalise(pixels()))
    assert [(stage.block, stage.tokens) for stage in stages] == [("blocks.0", 11), ("blocks.2", 7)]
    for stage in stages:
        assert all(len(set(row)) == stage.tokens for row in stage.places.tolist())
        assert not stage.gone.any()
    model, _ = make(DROPPED)
    stages = trace(model, normalise(pixels()))
    # 16: 8 stay, 8 are fused; of these 9 five stay, four are fused
    assert [(stage.block, stage.tokens) for stage in stages] == [("blocks.0", 9), ("blocks.1", 6)]
    assert stages[0].gone.sum(dim=1).tolist() == [8] * 5
    assert bool((stages[1].gone.sum(dim=1) >= 11).all())  # the first eight, and three or four more
    assert bool((stages[1].gone | ~stages[0].gone).all())  # gone is gone


@pytest.mark.parametrize("cut", [MERGED, DROPPED])
def test_the_card_shows_them(cut):
    model, _ = make(cut)
    facts = measure_tokens(model, normalise, pixels(), list(range(5)))
    assert facts["kind"] == cut["kind"]
    assert facts["blocks"][0] == {"block": "blocks.0", "given": 16, "left": 11 if cut is MERGED else 9}
    assert len(facts["examples"]) == 4
    shown = Image.open(io.BytesIO(base64.b64decode(facts["examples"][0]["stages"][0]["picture"])))
    assert shown.size == (112, 112)
    html = section(
        RunData(Card(run={}, model={}, measures={}, missing={}, provenance={"audit": {"tokens": facts}}))
    )
    assert html.count("data:image/png;base64,") == 4 * 3
    assert f"16 image tokens become {facts['blocks'][-1]['left']}" in html
    assert "http" not in html


def test_a_model_with_all_tokens_has_nothing_to_show():
    model, _ = make()
    assert measure_tokens(model, normalise, pixels(), list(range(5))) == {}
    empty = Card(
        run={},
        model={},
        measures={},
        missing={},
        provenance={"audit": {"tokens": {"blocks": [{"given": "x"}]}}},
    )
    assert section(RunData(empty)) == ""


@pytest.mark.parametrize("cut", [MERGED, DROPPED])
def test_features_are_brought_back_to_the_patches(cut):
    model, _ = make(cut)
    names = ["blocks.0", "blocks.1", "blocks.1.attn.qkv"]
    assert before(model, names[2]) == ("blocks.0",)
    assert before(model, "blocks.0.attn.qkv") == before(make()[0], names[2]) == ()
    taps = Taps(model, names)
    with torch.no_grad():
        model(normalise(pixels()))
    outputs = taps.take()
    (x, _), place = outputs["blocks.0"], trace(model, normalise(pixels()))[0].places
    assert patches(model, outputs["blocks.1"]).shape == (5, 16, 24)
    found = patches(model, outputs["blocks.0"])
    queries = patches(model, outputs["blocks.1.attn.qkv"], outputs["blocks.0"])
    for k in range(5):
        for patch in range(16):
            at = 1 + int(place[k, patch])
            assert torch.equal(found[k, patch], x[k, at])
            assert torch.equal(queries[k, patch], outputs["blocks.1.attn.qkv"][k, at])


@pytest.mark.parametrize("cut", [MERGED, DROPPED])
def test_other_parts_of_the_audit_take_such_a_model(cut):
    model, record = make(cut)
    exact, _ = make()
    assert "fewer from block to block" in unsupported(model, normalise(pixels(1)))
    measured, facts = measure_transparency(model, normalise, pixels(3), [0, 1, 2], seed=0, steps=4)
    assert facts["method"] == "integrated_gradients"
    assert measured.values["transparency/perturbation_auc"] is not None
    measured, facts = measure_approximation(model, normalise(pixels(3)), exact=exact)
    assert [row["tokens"] for row in facts["attention"]] == (
        [[17, 17], [12, 12], [12, 12]] if cut is MERGED else [[17, 17], [10, 10], [7, 7]]
    )
    assert measured.values["approximation/output_error"] > 0
    assert all(row["reason"].startswith("it gives (") for row in facts["layers"])
    measured, facts = measure_complexity(record)
    assert "uncounted_operators" not in facts
    assert not facts["growth"].get("refused")
    plain, _ = make()
    apply(plain, [Merge({}) if cut is MERGED else Drop({})])
    assert trace(plain, normalise(pixels(1))) == []
