"""Faithfulness on models of which one knows what matters, and tokens left out against a forward by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from scipy import stats
from torch import Tensor, nn

from effvit_train.audit.transparency import faithfulness as f
from effvit_train.models.structure import read_structure
from effvit_train.models.surgery import apply, drop_block

SMALL: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5,
}  # fmt: skip
VIT = "vit_tiny_patch16_224"
KNOWN = [(0, 2), (3, 1)]  # the cells of a 4 x 4 grid that matter


class TwoCells(nn.Module):
    """Says class 0 with the log-odds 2 x (known cells that are seen). Images are ones, cells 2 x 2 pixels."""

    def forward(self, images: Tensor) -> Tensor:
        seen = sum(images[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(dim=(1, 2, 3)) for i, j in KNOWN)
        return torch.stack([2 * torch.as_tensor(seen), torch.zeros(len(images))], dim=1)


def odds(cells: int) -> float:
    return 1 / (1 + math.exp(-2 * cells))


def oracle(count: int) -> Tensor:
    relevance = torch.zeros(count, 4, 4)
    for cell in KNOWN:
        relevance[(slice(None), *cell)] = 1
    return relevance.flatten(1)


def areas(relevance: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    count = len(relevance)
    images, classes = torch.ones(count, 1, 8, 8), torch.zeros(count, dtype=torch.long)
    tie = torch.rand(count, 16, generator=torch.Generator().manual_seed(0))
    ends = (torch.full((count,), odds(0)), torch.full((count,), odds(2)))
    counts = f.counts_of(16, steps)
    curves = f.insertion_deletion(
        TwoCells(), images, classes, f.order_of(relevance, tie), (4, 4), counts, ends
    )
    return f.area(curves[0], counts), f.area(curves[1], counts)


def test_oracle_and_its_inverse_by_hand() -> None:
    none, one, both = odds(0), odds(1), odds(2)
    early = ((none + one) / 2 + (one + both) / 2 + 14 * both) / 16
    late = (14 * none + (none + one) / 2 + (one + both) / 2) / 16
    # deletion: what is hidden counts; both are gone after two steps, or stay until the last two
    gone = ((both + one) / 2 + (one + none) / 2 + 14 * none) / 16
    stays = (14 * both + (both + one) / 2 + (one + none) / 2) / 16
    inserted, deleted = areas(oracle(3), 16)
    assert inserted.tolist() == pytest.approx([early] * 3)
    assert deleted.tolist() == pytest.approx([gone] * 3)
    inserted, deleted = areas(-oracle(3), 16)
    assert inserted.tolist() == pytest.approx([late] * 3)
    assert deleted.tolist() == pytest.approx([stays] * 3)


@pytest.mark.parametrize("steps", [16, 8, 5])
def test_the_oracle_beats_chance_and_chance_beats_the_inverse(steps: int) -> None:
    chance = torch.rand(64, 16, generator=torch.Generator().manual_seed(1))
    best, random, worst = (areas(map_, steps) for map_ in (oracle(64), chance, -oracle(64)))
    assert best[0].mean() > random[0].mean() + 0.1 > worst[0].mean() + 0.2
    assert best[1].mean() < random[1].mean() - 0.1 < worst[1].mean() - 0.2


def test_a_map_that_says_nothing_is_the_random_map() -> None:
    tie = torch.rand(4, 9, generator=torch.Generator().manual_seed(2))
    assert torch.equal(f.order_of(torch.zeros(4, 9), tie), tie.argsort(dim=1, descending=True))


def test_order_by_hand() -> None:
    relevance, tie = torch.tensor([[0.0, 2.0, 0.0, 1.0]]), torch.tensor([[0.1, 0.2, 0.9, 0.3]])
    assert f.order_of(relevance, tie).tolist() == [[1, 3, 2, 0]]


def test_points_and_areas_by_hand() -> None:
    assert f.counts_of(16, 4) == [0, 4, 8, 12, 16]
    assert f.counts_of(2, 16) == [0, 1, 2]
    assert f.removal_counts(16) == [0, 1, 3, 4, 6, 8, 9, 11, 12, 14]
    assert f.removal_counts(4) == [0, 1, 2, 3]
    assert float(f.area(torch.tensor([0.0, 0.5, 1.0]), [0, 8, 16])) == 0.5
    assert float(f.area(torch.tensor([1.0, 1.0, 0.0]), [0, 3, 4])) == pytest.approx(3.5 / 4)
    assert float(f.area(torch.full((9,), 0.3), list(range(9)))) == pytest.approx(0.3)


def by_hand(model: Any, image: Tensor, kept: list[int], prefix: int) -> int:
    """What a model says of some patches of one image: the tokens are picked before the blocks."""
    with torch.no_grad():
        tokens = model._pos_embed(model.patch_embed(image[None]))
        tokens = tokens[:, [*range(prefix), *(prefix + patch for patch in kept)]]
        for block in model.blocks:
            tokens = block(tokens)
        return int(model.forward_head(model.norm(tokens)).argmax())


@pytest.mark.parametrize(
    ("name", "arguments", "prefix"),
    [
        (VIT, {}, 1),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        (VIT, {"reg_tokens": 2}, 3),
        (VIT, {"global_pool": "avg", "class_token": False}, 0),
    ],
)
def test_tokens_that_are_left_out_against_a_forward_by_hand(
    name: str, arguments: dict[str, Any], prefix: int
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **SMALL, **arguments).eval()
    images = torch.randn(70, 3, 16, 16)  # more than are taken at once
    with torch.no_grad():  # so that the class depends on the patches
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.patch_embed.proj.weight.normal_()
        model.head.bias -= model(images).mean(dim=0) * (2 if hasattr(model, "head_dist") else 1)
    order = torch.rand(70, 16).argsort(dim=1)
    classes = model(images).argmax(dim=1)
    counts = f.removal_counts(16)
    kept = f.kept_predictions(model, images, classes, order, counts)
    assert kept[:, 0].tolist() == [1.0] * 70
    assert 0.1 < kept[:, -1].mean() < 0.9
    for k in (0, 35, 69):
        for place, count in enumerate(counts):
            left = sorted(order[k].tolist()[count:])
            said = by_hand(model, images[k], left, prefix)
            assert bool(kept[k, place]) == (said == int(classes[k]))
    assert not model.norm_pre._forward_hooks


def test_rank_correlation_against_scipy() -> None:
    generator = torch.Generator().manual_seed(3)
    one = torch.randint(0, 4, (6, 20), generator=generator).float()  # with many ties
    other = torch.rand(6, 20, generator=generator)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one.numpy(), other.numpy(), strict=True)]
    assert f.rank_correlation(one, other).numpy() == pytest.approx(np.array(expected))
    line = torch.arange(5.0)[None]
    assert float(f.rank_correlation(line, line.exp())) == pytest.approx(1)
    assert float(f.rank_correlation(line, -line)) == pytest.approx(-1)
    assert float(f.rank_correlation(line, torch.zeros(1, 5))) == 0


def test_a_model_that_has_unlearnt_has_the_same_numbers_elsewhere() -> None:
    torch.manual_seed(0)
    model = timm.create_model(VIT, **SMALL)
    apply(model, drop_block(read_structure(model), "blocks.0"))
    before = copy.deepcopy(model.state_dict())
    unlearnt, again, another, second = (f.randomised(model, *of) for of in ((1,), (1, 0), (2,), (1, 1)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for (name, value), same, *others in zip(
        unlearnt.named_parameters(), *(m.parameters() for m in (again, another, second)), strict=True
    ):
        assert torch.equal(value, same)
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)
        if len(before[name].unique()) > 2:
            assert not torch.equal(value, before[name])
            assert not any(torch.equal(value, other) for other in others)
