"""Selective prediction by brute force, AUROC against scikit-learn, dropout and ensembles as predictors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import timm
import torch
from sklearn import metrics
from timm.models.mlp_mixer import MlpMixer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from effvit_train.audit.uncertainty import (
    OOD,
    Selective,
    active_dropout,
    doubt_of,
    dropout_layers,
    ensemble,
    mc_dropout,
    ood_auroc,
    ood_auroc_of_scores,
    ood_scores,
)
from effvit_train.data.datamodule import Batch
from effvit_train.predictions import predict


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- selective prediction


def brute(doubt: list[float], right: list[bool]) -> np.ndarray:
    """Risks at k = 1..N: the mean over all orders of the images by doubt."""
    risks = []
    for order in itertools.permutations(range(len(doubt))):
        if all(doubt[a] <= doubt[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum([not right[i] for i in order])
            risks.append(wrong / np.arange(1, len(doubt) + 1))
    return np.mean(risks, axis=0)


@pytest.mark.parametrize("seed", range(6))
def test_the_risk_is_the_mean_over_all_orders(seed: int) -> None:
    rng = np.random.default_rng(seed)
    doubt, right = rng.integers(0, 4, 6) / 4, rng.random(6) < 0.6
    found = Selective.of(doubt, right)
    expected = brute(doubt.tolist(), right.tolist())
    assert found.risk == pytest.approx(expected)
    assert found.aurc == pytest.approx(expected.mean())
    assert found.generalized == pytest.approx((expected * np.arange(1, 7) / 6).mean())


def test_aurc_without_ties_by_a_loop() -> None:
    rng = np.random.default_rng(0)
    doubt = rng.random(500)
    right = rng.random(500) > doubt
    ranked = right[np.argsort(doubt)]
    risks = [1 - ranked[:k].mean() for k in range(1, 501)]
    found = Selective.of(doubt, right)
    assert found.aurc == pytest.approx(np.mean(risks))
    assert found.accuracy(0.8) == pytest.approx(ranked[:400].mean())
    assert found.accuracy(0.07) == pytest.approx(ranked[:35].mean())
    best = np.sort(~right)  # right ones first
    assert found.excess == pytest.approx(np.mean(risks) - np.mean(np.cumsum(best) / np.arange(1, 501)))
    curve = found.curve()
    assert len(curve["risk"]) == len(curve["coverage"]) == 100
    assert curve["coverage"][-1] == 1
    assert curve["risk"][-1] == pytest.approx(1 - right.mean(), abs=1e-6)


def test_by_hand_and_at_the_ends() -> None:
    found = Selective.of([0.1, 0.2, 0.3, 0.4], [True, True, False, True])
    assert found.risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4])
    assert found.accuracy(0.5) == 1
    assert found.answered(0.51) == 3
    assert Selective.of(np.arange(100), [True] * 100).answered(0.07) == 7  # 0.07 x 100 is 7.000000000000001
    assert found.accuracy(0) == 1  # never fewer than one answer
    assert Selective.of([0.5], [False]).aurc == 1
    assert Selective.of([0.5] * 4, [True, False, True, False]).risk.tolist() == [0.5] * 4
    assert Selective.of([0.1, 0.2], [True, False]).excess == 0
    for doubt, right in (([], []), ([0.1], [True, False]), ([math.nan], [True])):
        with pytest.raises(ValueError, match="do not match"):
            Selective.of(doubt, right)


def test_doubts_differ_where_the_softmax_is_one() -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0], [60.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert logits.double().softmax(1).max(1).values[:2].tolist() == [1.0, 1.0]
    assert doubt_of(logits) == pytest.approx([2 * math.exp(-50), 2 * math.exp(-60), 2 / 3], rel=1e-12)
    z = noise(200, 7).double()
    assert doubt_of(z) == pytest.approx((1 - z.softmax(1).max(1).values).numpy())


# --- images from elsewhere


@pytest.mark.parametrize("score", ["msp", "energy", "entropy"])
def test_auroc_against_scikit_learn(score) -> None:
    inside, outside = 3 * noise(300, 6), 1.5 * noise(200, 6, seed=1)
    measured, facts = ood_auroc(inside, outside, score)
    truth = np.repeat([0, 1], [300, 200])
    z = torch.cat([inside, outside]).double()
    p = z.softmax(1)
    by_hand = {
        "msp": 1 - p.max(1).values, "energy": -z.exp().sum(1).log(), "entropy": -(p * p.log()).sum(1),
    }[score]  # fmt: skip
    assert measured.values[OOD] == pytest.approx(metrics.roc_auc_score(truth, by_hand), abs=1e-9)
    low, high = facts["intervals"][OOD]
    assert low < measured.values[OOD] < high
    assert measured.values[OOD] > 0.6  # larger logits are surer
    fpr, tpr, _ = metrics.roc_curve(truth, by_hand, drop_intermediate=False)
    assert facts["found_at_5pct_false_alarms"]["value"] == pytest.approx(tpr[fpr <= 0.05].max())
    assert (facts["images"], facts["images_from_elsewhere"]) == (300, 200)


def test_scores_by_hand() -> None:
    z = torch.tensor([[math.log(3.0), 0.0]])  # probabilities 3/4 and 1/4, sum of exponentials 4
    assert ood_scores(z, "msp") == pytest.approx([0.25])
    assert ood_scores(z, "energy") == pytest.approx([-math.log(4)])
    assert ood_scores(z, "entropy") == pytest.approx([-0.75 * math.log(0.75) - 0.25 * math.log(0.25)])


def test_what_cannot_be_told_has_a_reason() -> None:
    z = noise(5, 3)
    bad = z.clone()
    bad[1, 2] = math.inf
    for inside, outside, reason in (
        (z[:0], z, "there are no test images"),
        (z, z[:0], "there are no images from elsewhere"),
        (z, bad, "the logits of 1 of 5 images from elsewhere are not finite"),
        (z[:, :1], z[:, :1], "one class leaves nothing to doubt"),
    ):
        measured, facts = ood_auroc(inside, outside)
        assert (measured.values, measured.missing, facts) == ({}, {OOD: reason}, {})
    assert "not a number" in ood_auroc_of_scores([0.0, math.nan], [1.0], "own")[0].missing[OOD]
    with pytest.raises(ValueError, match="do not match"):
        ood_auroc(z, z[:, :2])
    with pytest.raises(ValueError, match="none of msp, energy, entropy"):
        ood_auroc(z, z, "odd")  # type: ignore[arg-type]


# --- ensembles


def test_an_ensemble_by_hand() -> None:
    one, other = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    found = ensemble([one, other])
    assert found.log_probabilities.exp().tolist() == [[0.5, 0.5], [0.5, 0.5]]
    # the first image: each is sure, and of the opposite; the second: both are unsure and agree
    assert found.entropy.tolist() == pytest.approx([math.log(2), math.log(2)])
    assert found.expected_entropy.tolist() == pytest.approx([0, math.log(2)])
    assert found.mutual_information.tolist() == pytest.approx([math.log(2), 0])
    assert found.facts() == pytest.approx({
        "members": 2, "entropy": math.log(2), "expected_entropy": math.log(2) / 2,
        "mutual_information": math.log(2) / 2,
    })  # fmt: skip


def test_the_nll_of_an_ensemble_is_below_the_mean_of_its_members() -> None:
    logits, labels = noise(3, 100, 5), torch.arange(100) % 5
    found = ensemble(z.softmax(1) for z in logits)
    nll = torch.nn.functional.cross_entropy
    own = [float(nll(z, labels)) for z in logits]
    assert float(nll(found.log_probabilities, labels)) < np.mean(own)  # Jensen
    assert torch.allclose(found.log_probabilities.exp().sum(1), torch.ones(100, dtype=torch.float64))
    alone = ensemble([logits[0].softmax(1)])
    assert torch.allclose(alone.log_probabilities, logits[0].double().log_softmax(1), atol=1e-6)
    assert float(alone.mutual_information.max()) == 0


def test_probabilities_of_zero_have_finite_logarithms_and_nan_stays() -> None:
    found = ensemble([torch.tensor([[1.0, 0.0], [math.nan, math.nan]])])
    assert found.log_probabilities[0].float().isfinite().all()
    assert not found.log_probabilities[1].isfinite().any()
    assert found.facts()["entropy"] is None


def test_what_is_no_ensemble_is_refused() -> None:
    p = torch.tensor([[0.5, 0.5]])
    for members in ([], [p, p[:, :1]], [p, torch.tensor([[2.0, -1.0]])], [torch.tensor([[0.4, 0.4]])]):
        with pytest.raises(ValueError, match=r"member"):
            ensemble(members)


# --- dropout


def vit(**rates: float) -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, in_chans=1, num_classes=3, embed_dim=12, depth=2,
        num_heads=2, **rates,
    )  # fmt: skip
    return model.eval()


def outcomes(model: nn.Module) -> Callable[[], Tensor]:
    images = noise(8, 1, 16, 16)
    return lambda: model(images)


RATES = [
    {"drop_rate": 0.3}, {"proj_drop_rate": 0.3}, {"attn_drop_rate": 0.3}, {"drop_path_rate": 0.3}, {"pos_drop_rate": 0.3}
]  # fmt: skip


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("rates", RATES, ids=lambda rates: next(iter(rates)))
def test_every_kind_of_dropout_of_a_vit_works(rates: dict[str, float], fused: bool) -> None:
    model = vit(**rates)
    for block in model.blocks:
        block.attn.fused_attn = fused
    run = outcomes(model)
    before, modes = run(), {name: module.training for name, module in model.named_modules()}
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = mc_dropout(model, run, passes=5, seed=1)
    assert torch.equal(state, torch.get_rng_state())
    assert first.members == 5
    assert float(first.mutual_information.max()) > 0
    again, other = mc_dropout(model, run, passes=5, seed=1), mc_dropout(model, run, passes=5, seed=2)
    assert torch.equal(first.log_probabilities, again.log_probabilities)
    assert not torch.equal(first.log_probabilities, other.log_probabilities)
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert torch.equal(run(), before)  # and no hook is left


def test_which_layers_drop() -> None:
    found = dropout_layers(vit(attn_drop_rate=0.1, drop_path_rate=0.2))
    assert found == pytest.approx({
        **{f"blocks.{i}.attn{child}": 0.1 for i in range(2) for child in ("", ".attn_drop")},
        **{f"blocks.1.drop_path{i}": 0.2 for i in (1, 2)},  # the first block's rate is 0
    })  # fmt: skip
    assert dropout_layers(nn.MultiheadAttention(4, 2, dropout=0.2)) == {"": 0.2}
    assert dropout_layers(vit(patch_drop_rate=0.5)) == {}
    parallel = timm.create_model(
        "vit_tiny_patch16_224", block_fn=timm.models.vision_transformer.ParallelScalingBlock,
        attn_drop_rate=0.1, depth=1,
    )  # fmt: skip
    assert set(dropout_layers(parallel)) == {"blocks.0", "blocks.0.attn_drop"}


def test_swin_and_mixer() -> None:
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=16, in_chans=1, num_classes=3, patch_size=2, window_size=4,
        embed_dim=8, depths=(1, 1), num_heads=(1, 2), attn_drop_rate=0.2,
    ).eval()  # fmt: skip
    mixer = MlpMixer(
        img_size=16, in_chans=1, num_classes=3, patch_size=4, embed_dim=8, num_blocks=1, proj_drop_rate=0.2
    ).eval()
    for model in (swin, mixer):
        nn.init.normal_(model.get_classifier().weight)  # timm starts a mixer's at 0
        assert float(mc_dropout(model, outcomes(model), passes=3).mutual_information.max()) > 0


def test_everything_but_dropout_stays_in_evaluation() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Dropout(0.5), nn.Linear(256, 3)).eval()
    mean = model[1].running_mean.clone()
    images = noise(8, 1, 16, 16)
    mc_dropout(model, lambda: model(images), passes=3)
    assert torch.equal(model[1].running_mean, mean)


def test_a_predictor_that_asks_for_evaluation_mode_does_not_switch_it_off() -> None:
    """`predictions.predict` calls `model.eval()`; without the hooks every pass would be the same."""
    model = vit(drop_rate=0.5)
    batch = Batch(torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.zeros(4), torch.arange(4))
    found = mc_dropout(model, lambda: predict(model, lambda x: x.float() + 1, [batch])[0], passes=4)
    assert float(found.mutual_information.max()) > 0


def test_the_mean_is_that_of_the_probabilities_of_the_passes() -> None:
    model = vit(drop_rate=0.5)
    run, seen = outcomes(model), []

    def recorded() -> Tensor:
        seen.append(run().softmax(1))
        return seen[-1].log()

    found = mc_dropout(model, recorded, passes=6)
    assert torch.allclose(found.log_probabilities.exp(), torch.stack(seen).double().mean(0), atol=1e-6)


def test_a_training_model_and_an_exception_leave_everything_as_it_was() -> None:
    model = vit(drop_rate=0.5).train()
    with active_dropout(model):
        model(noise(2, 1, 16, 16))
    assert all(module.training for module in model.modules())
    model.eval()
    with pytest.raises(RuntimeError), active_dropout(model):
        model(noise(2, 3, 16, 16))  # three channels
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_model_without_dropout_is_refused() -> None:
    model = vit()
    with pytest.raises(ValueError, match="no dropout that is active in training"):
        mc_dropout(model, outcomes(model))
    with pytest.raises(ValueError, match="passes=0"):
        mc_dropout(vit(drop_rate=0.1), outcomes(model), passes=0)
