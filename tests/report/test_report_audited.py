"""The audit's findings on the page: the right numbers, nothing without facts, no harm from bad ones."""

from __future__ import annotations

import base64
import copy
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_report_html import check, visible
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from effvit_train.audit.approximation import measure_approximation
from effvit_train.audit.calibration import measure_calibration
from effvit_train.audit.complexity import measure_complexity
from effvit_train.audit.fairness import measure_fairness
from effvit_train.audit.robustness.adversarial import AUTOATTACK
from effvit_train.audit.robustness.corruptions import KINDS
from effvit_train.audit.robustness.measure import CLEAN, adversarial_figures, corruption_figures
from effvit_train.audit.spectral import measure_spectral
from effvit_train.audit.transparency.measure import measure_transparency
from effvit_train.audit.uncertainty import ood_auroc
from effvit_train.card import Card
from effvit_train.models.record import ArchitectureRecord
from effvit_train.report import audited, audited_model
from effvit_train.report.audit_facts import (
    PARTS,
    count,
    interval,
    number,
    pair,
    picture,
    share,
    without_pictures,
)
from effvit_train.report.html import render
from effvit_train.report.inputs import RunData


def png(size=(4, 4)):
    buffer = io.BytesIO()
    Image.new("L", size, 128).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


AUDIT = {
    "calibration": {
        "images": 200, "confidence": 0.97, "accuracy": 0.9,
        "intervals": {"calibration/ece": [0.04, 0.1]},
        "if_calibrated": {"calibration/ece": {"mean": 0.013, "p95": 0.025}},
        "reliability": {"equal_width": [
            {"low": 0.0, "high": 0.5, "count": 0, "confidence": None, "accuracy": None, "interval": None},
            {"low": 0.5, "high": 1.0, "count": 200, "confidence": 0.97, "accuracy": 0.9, "interval": [0.85, 0.94]},
        ]},
        "selective": {"curve": {"coverage": [0.5, 1.0], "risk": [0.02, 0.1]}},
        "temperature": {
            "value": 1.5, "interval": [1.2, 1.9], "images": 100, "before": {"ece": 0.07}, "after": {"ece": 0.02},
        },
    },
    "ood": {
        "score": "msp", "images": 200, "images_from_elsewhere": 50, "intervals": {"calibration/ood_auroc": [0.8, 0.9]},
        "found_at_5pct_false_alarms": {"value": 0.4, "interval": [0.3, 0.5]},
    },
    "corruptions": {
        "images": 100, "clean_accuracy": 0.9, "severities": [1, 2, 3, 4, 5], "mean": 0.6, "interval": [0.55, 0.65],
        "accuracy": {"gaussian_noise": [0.8, 0.7, 0.6, 0.5, 0.4], "fog": [0.6, 0.6, 0.6, 0.6, 0.6]},
    },
    "adversarial": {
        "images": 100, "norm": "Linf", "epsilon": 8 / 255, "clean_accuracy": 0.9, "clean_interval": [0.83, 0.94],
        "pgd": {"accuracy": 0.3, "interval": [0.22, 0.4], "steps": 20},
        "autoattack": {"accuracy": 0.2, "interval": [0.13, 0.29], "after": {"apgd-ce": 0.25, "square": 0.2}},
    },
    "fairness": {
        "images": 112, "without_group": 3, "min_cell": 30, "worst_group": "north", "best_group": "south",
        "groups_without_images": ["west"], "groups_not_listed": 0,
        "groups": [
            {"group": "north", "images": 50, "accuracy": 0.8, "interval": [0.67, 0.89], "compared": True},
            {"group": "south", "images": 50, "accuracy": 0.9, "interval": [0.79, 0.96], "compared": True},
            {"group": "east", "images": 12, "accuracy": 0.5, "interval": [0.25, 0.75], "compared": False},
        ],
        "small_groups": {"groups": 1, "images": 12, "accuracy": 0.5, "interval": [0.25, 0.75]},
        "chance": {"fairness/accuracy_gap": {"mean": 0.06, "p95": 0.14, "p_value": 0.2}},
    },
    "transparency": {
        "method": "chefer", "images": 24, "hidden": "mean colour", "shares": {"cells": [0.0, 0.5, 1.0]},
        "methods": {
            "chefer": {"insertion_auc": {"value": 0.61, "interval": [0.51, 0.71]}},
            "random": {"insertion_auc": {"value": 0.4, "interval": None}},
        },
        "curves": {"chefer": {"insertion": [0.1, 0.8, 0.9]}, "random": {"insertion": [0.1, 0.3, 0.9]}},
        "unsupported": {"rollout": "its attention cannot be followed"},
        "examples": [{"id": 7, "class": 1, "confidence": 0.75, "image": png(), "maps": {"chefer": png()}}],
    },
    "complexity": {
        "kinds": {"mlp": {"share": 0.7}, "attention_products": {"share": 0.3}, "other": {"share": 0.0}},
        "growth": {
            "against": "tokens", "points": [
                {"input_shape": [1, 8, 8], "tokens": 17, "flops": 7.0e6, "peak_bytes": 50000},
                {"input_shape": [1, 16, 16], "tokens": 65, "flops": 31.0e6, "peak_bytes": 200000},
            ],
            "exponents": {"flops": {"value": 1.17, "stderr": 0.04}, "mixing_flops": {"value": 1.99, "stderr": None}},
            "refused": [{"factor": 3, "reason": "sizes do not fit"}],
        },
        "times": {"latency_in_size_exponent": {"value": 0.8, "stderr": 0.1}, "skipped": []},
        "roofline": {"memory_bound_share": {"1": 0.9}, "attained": 0.25},
    },
    "spectral": {
        "margins": {"of": "test images", "value": 3.8}, "layers": [
            {"name": "blocks.0.attn.qkv", "stable_rank": 7.5, "diagonal": False},
            {"name": "blocks.1.attn.qkv", "stable_rank": 9.5, "diagonal": False},
            {"name": "head", "stable_rank": 5.1, "diagonal": False},
            {"name": "norm", "stable_rank": 60.0, "diagonal": True},
        ],
    },
    "approximation": {
        "weights": [{"name": "blocks.0.mlp.fc1", "full_rank": 64, "rank": {"0.9": 16, "0.99": 32}}],
        "attention": [{"name": "blocks.0.attn", "tokens": [20, 20], "effective_rank": 5.0}],
        "layers": [{"name": "blocks.0", "local": 0.1, "propagated": 0.2}],
    },
}  # fmt: skip


@pytest.fixture
def shown(run, tmp_path):
    def show(audit, *, measures=None, missing=None, **options):
        path = run(tmp_path / f"run{len(list(tmp_path.iterdir()))}", **options)
        card = Card.read(path / "card.json")
        if audit is not None:
            card.provenance["audit"] = audit
        card.measures.update(measures or {})
        card.missing.update(missing or {})
        card.write(path / "card.json")
        return render(path)

    return show


def section(page, heading):
    return page.partition(f"<h2>{heading}</h2>")[2].partition("</section>")[0]


def without_images(page):
    """The page with its example images checked and taken out: they are the only thing that a `src` may be."""
    found = re.findall(r'<img src="([^"]*)"', page)
    for source in found:
        kind, _, code = source.partition(",")
        assert kind == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(code, validate=True))).verify()
    return re.sub(r'<img src="[^"]*"', "<img", page)


HEADINGS = (
    "Calibration",
    "Robustness",
    "Fairness",
    "Explanations",
    "Growth with the image",
    "Weights and attention",
)


def test_all_parts_at_once(shown):
    page = shown(AUDIT)
    check(without_images(page))
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    at = headings.index("Mistakes") + 1
    assert tuple(headings[at : at + len(HEADINGS)]) == HEADINGS


@pytest.mark.parametrize("audit", [None, {}, "no", [], {"calibration": None}, {"unknown": {"x": 1}}])
def test_nothing_where_nothing_was_audited(shown, audit):
    page = shown(audit)
    assert not set(HEADINGS) & set(re.findall(r"<h2>(.*?)</h2>", page))


@pytest.mark.parametrize("name", sorted(PARTS))
def test_a_part_with_only_a_reason_shows_the_reason(shown, name):
    key = PARTS[name]
    for audit in ({name: {"reason": "it was <too> slow"}}, {name: "it was <too> slow"}):
        assert "it was &lt;too&gt; slow" in shown(audit)
    # no facts: the measure's own reason
    assert "the <measure> failed".replace("<", "&lt;").replace(">", "&gt;") in section(
        shown({name: {"images": 0}}, measures={key: None}, missing={key: "the <measure> failed"}),
        _heading(name),
    )


def _heading(name):
    places = {
        "ood": 0,
        "calibration": 0,
        "corruptions": 1,
        "adversarial": 1,
        "fairness": 2,
        "transparency": 3,
        "complexity": 4,
    }
    return HEADINGS[places.get(name, 5)]


def test_calibration(shown):
    page = section(shown(AUDIT, measures={"calibration/ood_auroc": 0.85}), "Calibration")
    text = visible(page)
    # The plot is 240 wide from 46 and 204 high down to 216: the bin lies right of its middle, 0.9 of its height.
    assert 'class="right" x="166.5" y="32.4" width="119.0" height="183.6"' in page
    assert page.count('class="right"') == 1  # the empty bin shows nothing
    assert "confidence 50–100 % (mean 97.0 %): 200 images, 90.0 % right" in page
    assert "On average it is 97.0 % sure, and right in 90.0 %." in text
    assert (
        "shows a calibration error of 1.3 % by chance alone, and in one of twenty cases more than 2.5 %"
        in text
    )
    assert (
        "on 100 validation images is 1.50 (95 % interval 1.20–1.90): without it the model is too sure" in text
    )
    assert "from 7.0 % to 2.0 %" in text
    assert "50 images of none of its classes are told from test images with an AUROC of 0.850; 40.0 %" in text
    assert "wrong answers, % of the images answered 50: 2 %" in page


def test_corruptions_and_attacks(shown):
    page = section(shown(AUDIT), "Robustness")
    text = visible(page)
    assert "gaussian noise 80 70 60 50 40 60 fog 60 60 60 60 60 60" in text  # the last one is the mean
    assert 'style="--share:0.800" title="gaussian noise, 1: 80.0 %"' in page
    assert (
        "The same images unchanged: 90.0 %. Mean over all: 60.0 % (95 % interval 55.0–65.0). 100 images."
        in text
    )
    assert "no attack 90.0 % PGD, 20 steps 30.0 % APGD-CE 25.0 % then Square 20.0 % AutoAttack 20.0 %" in text
    assert "at most 8/255 (Linf)" in text
    assert "left:22.0%;width:18.0%" in page


def test_groups_too_small_ones_included(shown):
    page = section(shown(AUDIT), "Fairness")
    text = visible(page)
    assert "north 80.0 % of 50 south 90.0 % of 50 east 50.0 % of 12, too few" in text
    assert page.count('class="row faint"') == 1
    assert (
        "fewer than 30 images are not compared; 1 of them together: 50.0 % of 12 images, interval 25.0–75.0"
        in text
    )
    assert "Without test images: west. 3 images have no group." in text
    assert (
        "6.0 % on average and above 14.0 % in one of twenty cases; one as large as this has the probability 0.2"
        in text
    )


def test_groups_that_could_not_be_compared_are_shown_with_the_reason(shown):
    facts = copy.deepcopy(AUDIT["fairness"])
    key = "fairness/worst_group_accuracy"
    text = visible(
        section(shown({"fairness": facts}, measures={key: None}, missing={key: "fewer than two"}), "Fairness")
    )
    assert "Groups are not compared: fewer than two." in text
    assert "north 80.0 %" in text


def test_many_groups_fold_away(shown):
    rows = [
        {"group": f"g{i}", "images": 40, "accuracy": 0.5, "interval": [0.3, 0.7], "compared": True}
        for i in range(200)
    ]
    page = section(shown({"fairness": {"groups": rows, "min_cell": 30}}), "Fairness")
    assert "<summary>180 more</summary>" in page
    assert page.count('class="row"') == 200


def test_explanations(shown):
    page = section(shown(AUDIT, classes=("cat", "dog", "cow")), "Explanations")
    text = visible(page)
    assert page.count("data:image/png;base64,") == 2
    assert "dog (75.0 %)" in text
    assert "gradient-weighted relevance 0.61 ± 0.10 random map 0.40" in text
    assert "attention rollout: its attention cannot be followed." in text
    assert "gradient-weighted relevance, % of the image shown 50: 80 %" in page


@pytest.mark.parametrize(
    "code",
    [
        'x" onerror="alert(1)',
        "https://example.org/a.png",
        base64.b64encode(b"<svg onload=alert(1)>").decode(),
        "",
        7,
        None,
        "é",
    ],
)
def test_what_is_no_png_is_not_shown(shown, code):
    facts = copy.deepcopy(AUDIT["transparency"])
    facts["examples"][0]["image"] = code
    page = shown({"transparency": facts})
    check(page)
    assert "<img" not in page
    assert picture(code) is None


def test_growth(shown):
    page = section(shown(AUDIT), "Growth with the image")
    text = visible(page)
    assert "mlp 70.0 % attention products 30.0 %" in text
    assert "8 × 8 17 7.00 M 0.05 MB 16 × 16 65 31.0 M 0.20 MB" in text
    assert "FLOPs 1.17 ± 0.04, mixing of tokens 1.99, measured latency 0.80 ± 0.10" in text
    assert "90.0 % of the least time on this machine is in layers that memory bounds; 25.0 %" in text
    assert "Sides × 3: sizes do not fit." in text


def test_weights(shown):
    page = section(shown(AUDIT, measures={"spectral/log_norm_bound": 8.41}), "Weights and attention")
    text = visible(page)
    assert "attn.qkv, block 1: 9.5" in page
    assert "Outside the blocks: head 5.1." in text  # scales of normalisations are no matrices
    assert "mlp.fc1, block 0: 50 %" in page  # 32 of 64, at the highest energy
    assert "attn, block 0: 25 %" not in page.partition("Rank of attention")[0]
    assert "Rank of attention" in text
    assert "with all before it, block 0: 20 %" in page
    assert "The norm bound is 10^8.41, with a margin of 3.80 (test images)." in text


def test_names_cannot_break_the_page(shown):
    evil = "</style><script>alert(1)</script>\"'&\x00"

    def poisoned(value):
        if isinstance(value, dict):
            return {(k if k in KEPT else evil): poisoned(v) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(v) for v in value]
        return evil if isinstance(value, str) else value

    KEPT = set(re.findall(r'"([a-z_/0-9.]+)":', json.dumps(AUDIT))) - {
        "gaussian_noise",
        "apgd-ce",
        "random",
        "mlp",
    }
    page = shown(poisoned(AUDIT))
    check(page)
    assert "<script" not in page


def places(value, way=()):
    """Every fact, by the way to it; of lists the first two."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    )
    for key, inner in items:
        yield (*way, key)
        yield from places(inner, (*way, key))


SECTIONS = {
    "calibration": audited.calibration, "ood": audited.calibration, "corruptions": audited.robustness,
    "adversarial": audited.robustness, "fairness": audited.fairness, "transparency": audited_model.explanations,
    "complexity": audited_model.growth, "spectral": audited_model.weights, "approximation": audited_model.weights,
}  # fmt: skip
JUNK = {
    "text": "x",
    "null": None,
    "infinite": 1e400,
    "huge": 10**400,
    "negative": -1,
    "dict": {"a": "b"},
    "nested": [[None]],
}


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("name", SECTIONS)
def test_facts_of_another_shape_do_no_harm(name, junk):
    """Each fact in turn is replaced: the page must be made all the same."""
    measures = {"spectral/log_norm_bound": 1.0, "calibration/ood_auroc": 0.5}
    for way in places(AUDIT[name], (name,)):
        audit = {name: copy.deepcopy(AUDIT[name])}
        target = audit
        for step in way[:-1]:
            target = target[step]
        target[way[-1]] = JUNK[junk]
        card = Card({}, {}, measures, {}, {"audit": audit})
        assert not re.search(r"\b(nan|inf)\b", SECTIONS[name](RunData(card))), way
        for key in measures:
            interval(card, key)


def test_pictures_stay_out_of_the_tracker():
    kept = without_pictures({"audit": AUDIT, "teacher": None})
    assert "examples" not in kept["audit"]["transparency"]
    assert kept["audit"]["transparency"]["method"] == "chefer"
    assert "examples" in AUDIT["transparency"]
    assert without_pictures({"x": 1}) == {"x": 1}


def test_readers_take_nothing_else():
    assert [number(v) for v in (1, 2.5, True, "1", None, float("nan"), 10**400)] == [1.0, 2.5, *[None] * 5]
    assert [share(v) for v in (0, 1, 1.1, -0.1)] == [0.0, 1.0, None, None]
    assert [count(v) for v in (3, 3.0, 2.5, -1, "3")] == [3, 3, None, None, None]
    assert [pair(v) for v in ([1, 2], [2, 1], [1], (0, 0), "12")] == [
        (1.0, 2.0),
        None,
        None,
        (0.0, 0.0),
        None,
    ]


# What the audit really leaves: names must not drift apart.


def test_the_audits_own_facts_are_understood(shown):
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 3, 300))
    logits = torch.from_numpy(rng.normal(size=(300, 3))) + 2 * torch.eye(3, dtype=torch.float64)[labels]
    groups = rng.choice(["here", "there", "rare"], 300, p=[0.5, 0.45, 0.05])
    model = nn.Sequential()
    model.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6)) for _ in range(2)))
    right = rng.random((15, 5, 40)) < 0.6
    outcomes = {CLEAN: np.ones((1, 40), bool), **dict(zip(KINDS, right, strict=True))}
    attacked = {CLEAN: np.ones(40, bool), "pgd": right[0, 0]} | dict.fromkeys(AUTOATTACK, right[1, 0])
    found = {
        "calibration": measure_calibration(logits, labels, validation=(logits, labels)),
        "ood": ood_auroc(logits, logits / 3),
        "fairness": measure_fairness(logits.argmax(1), labels, list(groups), classes=["a", "b", "c"]),
        "corruptions": corruption_figures(outcomes, (1, 2, 3, 4, 5), (32, 32), seed=0),
        "adversarial": adversarial_figures(attacked, 8 / 255),
        "spectral": measure_spectral(model, torch.ones(5), train_images=10),
        "approximation": measure_approximation(model, torch.randn(2, 6)),
    }
    vit = VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=3, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2
    ).eval()
    images = torch.from_numpy(rng.integers(0, 256, (3, 1, 8, 8), dtype=np.uint8))
    found["transparency"] = measure_transparency(vit, lambda x: x / 255 - 0.5, images, np.arange(3), seed=0)
    record = ArchitectureRecord(
        "vit_tiny_patch16_224", {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2,
        "num_heads": 2, "num_classes": 3}, (1, 8, 8), ("a", "b", "c"), (0.5,), (0.5,), [],
    )  # fmt: skip
    found["complexity"] = measure_complexity(record, factors=(1, 2))
    audit = json.loads(json.dumps({name: facts for name, (_, facts) in found.items()}))
    values = {key: value for measured, _ in found.values() for key, value in measured.values.items()}
    page = shown(audit, measures=values, classes=("a", "b", "c"))
    check(without_images(page))
    assert page.count("data:image/png;base64,") == 3 * 4  # each image and three maps
    text = visible(page)
    for expected in (
        "Right as often as it says?", "Wrong among the surest images", "The best temperature on 300 validation images",
        "300 images of none of its classes", "there", "too few", "If groups did not matter",
        "jpeg compression", "PGD, 20 steps", "then FAB-T", "Stable rank", "Rank of the weights", "The norm bound is 10^",
        "How true the maps are to the model", "Probability of the class, image uncovered", "map of shuffled weights",
        "16 × 16 65", "mixing of tokens",
    ):  # fmt: skip
        assert expected in text, expected
    card = Card({}, {}, values, {}, {"audit": audit})
    for key in (
        "calibration/ece", "calibration/ood_auroc", "robustness/corruption_accuracy", "robustness/pgd_accuracy",
        "robustness/autoattack_accuracy", "fairness/worst_group_accuracy", "transparency/insertion_auc",
    ):  # fmt: skip
        low, high = interval(card, key)
        assert low <= values[key] <= high, key


def test_other_predictors_and_the_attack_on_members(shown, run, tmp_path):
    measures = {
        "quality/accuracy": 0.97,
        "quality/nll": 0.2,
        "calibration/ece": 0.03,
        "calibration/brier": 0.1,
    }
    page = shown(
        {
            "predictors": {
                "ensemble": {"members": 2, "measures": measures},
                "mc_dropout": {"reason": "no <dropout>"},
            }
        },
        measures={"privacy/mia_auc": 0.63},
    )
    told = visible(section(page, "Other predictors"))
    assert re.search(r"This model 90.0 % – – – Ensemble, 2 models 97.0 % 0.200 nats 3.0 % 0.100", told), told
    assert "Dropout left on: no <dropout>" in told.replace("&lt;", "<").replace("&gt;", ">")
    path = run(tmp_path / "attacked", values={"privacy/mia_auc": 0.63})
    card = Card.read(path / "card.json")
    attack = {
        "attack": "RMIA, online", "members": 851, "others": 850, "shadow_models": 4, "lira": {"auc": 0.61},
        "intervals": {"privacy/mia_auc": [0.6, 0.66]},
    }  # fmt: skip
    card.provenance["membership"] = {"attack": attack}
    card.write(path / "card.json")
    told = visible(section(render(path), "Membership"))
    for text in ("RMIA, online tells 851 training images from 850 others with an AUC of 0.630 (95 % interval 0.600–0.660)",
                 "beyond chance", "4 shadow models", "LiRA with the same models: 0.610"):  # fmt: skip
        assert text in told
    attack["intervals"] = {"privacy/mia_auc": [0.49, 0.66]}
    card.write(path / "card.json")
    assert "beyond chance" not in visible(section(render(path), "Membership"))


def test_the_table_of_measures_has_the_doubts_of_the_chart(tmp_path, run):
    """|0.80 - 0.82| = 0.02 < hypot(0.03, 0.03): the interval of the difference holds 0; 0.10 does not."""
    from effvit_train.report.baseline import Baseline
    from effvit_train.report.compare import Comparison

    def made(name, auc, params):
        path = run(
            tmp_path / name,
            values={"transparency/insertion_auc": auc, "spectral/log_norm_bound": auc, "cost/params": params},
        )
        card = Card.read(path / "card.json")
        facts = {"curves": {}, "intervals": {"transparency/insertion_auc": [auc - 0.03, auc + 0.03]}}
        card.provenance["audit"] = {"transparency": facts}
        return card

    before = made("before", 0.80, 1000.0)
    words = [
        Comparison(made(name, auc, 900.0), Baseline(None, before, ""))
        .change("transparency/insertion_auc")
        .word
        for name, auc in (("near", 0.82), ("far", 0.90))
    ]
    assert words == ["within noise", "better"]
    changed = Comparison(made("cut", 0.5, 900.0), Baseline(None, before, "")).change(
        "spectral/log_norm_bound"
    )
    assert changed.word == "other architecture"
