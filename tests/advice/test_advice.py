"""Planted effects are found again, noise is not taken for one, and every rule fires on its numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from cards import BOTH, DISTILL, PLAIN, PRUNE, PRUNED, SQUARE, plant
from made import make_run
from rich.console import Console

from effvit_train import cli
from effvit_train.arms import Arm, Settings
from effvit_train.budgets import parse_budgets
from effvit_train.card import Card
from effvit_train.collect import Entry, collect
from effvit_train.report.advice.advice import advise_on, to_json
from effvit_train.report.advice.effects import order
from effvit_train.report.advice.points import Lever, Point, pairs_of
from effvit_train.report.advice.terminal import order_text, show

ACCURACY, MACS = "quality/accuracy", "cost/macs"


def told(entries, *budgets, **options):
    return advise_on(entries, parse_budgets(budgets), **options)


def effects_of(advice, key):
    return {one.lever.label: one for one in advice.effects if one.key == key}


def text_of(advice):
    console = Console(width=200, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    show(advice, console)
    return console.export_text()


def test_planted_effects_their_order_signs_and_interaction(tmp_path):
    private = {"accuracy": 0.80, "privacy": "dp_sgd", "epsilon": 8.0, "overrides": ["privacy=dp_sgd"]}
    advice = told(plant(tmp_path, [*SQUARE, private]))
    found = effects_of(advice, ACCURACY)
    # the mean of +2 alone and +3 beside pruning; of -1.5 alone and -0.5 beside the teacher
    assert found["distill"].estimate.value == pytest.approx(0.025, abs=0.002)
    assert found["prune target.macs=0.5"].estimate.value == pytest.approx(-0.01, abs=0.002)
    assert found["dp_sgd"].estimate.value == pytest.approx(-0.10, abs=0.002)
    assert [found[name].verdict for name in ("distill", "prune target.macs=0.5", "dp_sgd")] == [
        "better", "worse", "worse",
    ]  # fmt: skip
    assert len(found["distill"].pairs) == 2
    (ranked,) = [one for one in advice.orders if one.key == ACCURACY]
    assert [lever.technique if lever else None for lever in ranked.levers] == [
        "distill",
        None,
        "prune",
        "dp_sgd",
    ]
    assert ranked.parted == (True, True, True)
    assert ranked.comparisons == 6
    assert (
        order_text(ranked) == "accuracy, from vit_micro: distill > as it is > prune target.macs=0.5 > dp_sgd"
    )
    (both,) = [one for one in advice.interactions if one.key == ACCURACY]
    assert both.apart == pytest.approx(0.005, abs=0.002)
    assert both.together == pytest.approx(0.015, abs=0.002)
    assert both.estimate.value == pytest.approx(0.01, abs=0.003)
    assert both.estimate.p_value < 0.05
    macs = effects_of(advice, MACS)["prune target.macs=0.5"].estimate
    assert math.exp(macs.value) == pytest.approx(0.5)
    assert macs.interval() == (macs.value, macs.value)


def test_noise_that_hides_them_is_not_ranked(tmp_path):
    advice = told(plant(tmp_path, SQUARE, noise=0.08))
    assert {one.verdict for one in advice.effects if one.key == ACCURACY} == {"hidden"}
    (ranked,) = [one for one in advice.orders if one.key == ACCURACY]
    assert ranked.refused
    assert "no order: noise hides every difference (3 comparisons, 3 runs each)" in order_text(ranked)
    (both,) = [one for one in advice.interactions if one.key == ACCURACY]
    assert both.estimate.p_value > 0.05
    assert advice.plan.added == ()
    assert "Nothing else adds accuracy beyond doubt" in text_of(advice)


def test_one_seed_tells_no_spread_but_counts_and_the_test_images(tmp_path):
    labels = [0] * 50
    for name, right in (("plain", 30), ("distill", 48)):
        make_run(
            tmp_path / name, compress=[] if name == "plain" else [name], labels=labels, seed=1,
            predicted=[0] * right + [1] * (50 - right), values={MACS: 4e6},
            overrides=[] if name == "plain" else [f"compress={name}"],
        )  # fmt: skip
    advice = told(collect([tmp_path]).entries)
    found = effects_of(advice, ACCURACY)["distill"]
    assert (found.estimate.interval(), found.verdict) == (None, "untold")
    assert effects_of(advice, MACS)["distill"].verdict == "same"
    (chance,) = advice.chances
    assert (chance.images.only_here, chance.images.only_there) == (18, 0)
    text = text_of(advice)
    assert "18 images only the one with it gets right, 0 only the other (McNemar p = 7.6e-06)" in text
    assert "no order: a single run of an arm shows no spread" in text
    assert advice.experiments[0].kind == "seeds"
    assert advice.experiments[0].commands[1] == "python train.py -m compress=distill seed=2,3"


def test_an_arm_that_meets_every_budget_is_where_it_begins(tmp_path):
    narrow = {"accuracy": 0.80, "macs": 1e6, "overrides": ["model.args.embed_dim=32"]}
    advice = told(plant(tmp_path, [PLAIN, DISTILL, PRUNED, narrow]), "macs<=2.05M")
    pick, gain = advice.plan.rules
    assert pick.says == (
        "vit_micro + prune target.macs=0.5 meets every budget with the best accuracy, 89.1 %; "
        "next: vit_micro + args.embed_dim=32, 80.7 %."
    )
    assert gain.says.startswith("Add distill: accuracy +2.0 pp [")
    assert [lever.label for lever in advice.plan.added] == ["distill"]


def test_gap_close_gain(tmp_path):
    narrow = {"accuracy": 0.80, "macs": 1e6, "overrides": ["model.args.embed_dim=32"]}
    advice = told(plant(tmp_path, [PLAIN, DISTILL, PRUNED, narrow]), "macs<=2.05M,accuracy>=0.9")
    assert [lever.label for lever in advice.plan.added] == ["prune target.macs=0.5", "distill"]
    rules = [(rule.name, rule.says) for rule in advice.plan.rules]
    assert rules[0] == ("gap", "MACs of vit_micro is 4.00 M; wanted <= 2.05 M, −49 % away.")
    assert rules[1][0] == "close"
    assert rules[1][1].startswith("Add prune target.macs=0.5: the least loss of quality. Choices: prune")
    assert "args.embed_dim=32 closes 100 %, accuracy −10.0 pp" in rules[1][1]
    assert [name for name, _ in rules[2:]] == ["gap", "close", "gain"]
    first = advice.experiments[0]
    assert first.kind == "plan"
    assert first.commands == (
        "python train.py -m logger=none 'compress=[distill,prune]' compress.prune.target.macs=0.5 seed=1,2,3",
    )
    assert first.expected[ACCURACY].value == pytest.approx(0.9117, abs=0.003)  # 0.9067 - 1.5 + 2 points
    assert math.exp(first.expected[MACS].value) == pytest.approx(2e6)


def test_a_dial_is_turned_between_settings_that_were_run(tmp_path):
    arms = [PLAIN] + [
        {
            "accuracy": 0.9 - loss,
            "macs": 4e6 * share,
            "compress": ["prune"],
            "overrides": [f"{PRUNE}={share}"],
        }
        for share, loss in ((0.25, 0.04), (0.5, 0.02))
    ]
    advice = told(plant(tmp_path, arms), "macs<=3M,accuracy>=0.895")
    # 0.99 x 3 / 4, between 0.5 and 1: the loss is 2 points x log(0.742) / log(0.5)
    assert [lever.label for lever in advice.plan.added] == ["prune target.macs=0.742"]
    first = advice.experiments[0]
    assert "compress=prune compress.prune.target.macs=0.742 seed=1,2,3" in first.commands[0]
    loss = 0.02 * math.log(0.742) / math.log(0.5)
    assert first.expected[ACCURACY].value == pytest.approx(0.9 + 0.02 / 3 - loss, abs=0.002)
    assert math.exp(first.expected[MACS].value) == pytest.approx(0.742 * 4e6)


def test_what_would_lose_another_budget_is_not_added(tmp_path):
    wide = {"accuracy": 0.97, "macs": 9e6, "overrides": ["model.args.embed_dim=96"]}
    arms = [PLAIN, DISTILL, wide]
    assert [x.label for x in told(plant(tmp_path / "a", arms), "accuracy>=0.93").plan.added] == ["distill"]
    # without the other budget the wide one is picked; with it, only the teacher is left
    plan = told(plant(tmp_path / "b", arms), "accuracy>=0.95,macs<=5M").plan
    assert [lever.label for lever in plan.added] == ["distill"]
    assert [budget.text for budget in plan.unmet] == ["accuracy>=0.95"]


def test_a_dial_that_is_turned_already_is_turned_further(tmp_path):
    private = {
        "accuracy": 0.8, "privacy": "dp_sgd", "epsilon": 7.99, "overrides": ["privacy=dp_sgd", "privacy.epsilon=8"],
    }  # fmt: skip
    shallow = {**private, "macs": 2e6, "overrides": [*private["overrides"], "model.args.depth=2"]}
    advice = told(plant(tmp_path, [private, shallow]), "epsilon<=3")
    assert [lever.label for lever in advice.plan.added] == ["dp_sgd epsilon=3"]
    assert advice.experiments[0].commands == (
        "python train.py -m logger=none privacy=dp_sgd privacy.epsilon=3 seed=1,2,3",
    )
    assert advice.experiments[0].expected["privacy/epsilon"].value == 3.0
    assert ACCURACY not in advice.experiments[0].expected  # nothing tells what the smaller epsilon costs


def test_what_privacy_refuses_is_not_advised(tmp_path):
    private = {
        "accuracy": 0.8,
        "privacy": "dp_sgd",
        "epsilon": 8.0,
        "overrides": ["privacy=dp_sgd", "recipe=dp"],
    }
    open_ = {"accuracy": 0.9, "overrides": ["recipe=dp"]}
    advice = told(
        plant(tmp_path, [open_, private, {**open_, "compress": ["distill"], "accuracy": 0.95}]), "epsilon<=9"
    )
    assert advice.plan.start.label == "vit_micro + recipe=dp + dp_sgd"
    assert advice.plan.added == ()  # a teacher that is trained first would see private images
    (untried,) = advice.experiments
    assert untried.commands == (
        "python train.py -m logger=none privacy=dp_sgd recipe=dp compress=prune compress.prune.importance=magnitude "
        "seed=1,2,3",
    )


def test_no_loss_that_noise_hides_is_called_the_least(tmp_path):
    other = {"accuracy": 0.884, "macs": 2e6, "overrides": ["model.args.depth=2"]}
    advice = told(plant(tmp_path, [PLAIN, PRUNED, other], noise=0.01), "macs<=2.05M,accuracy>=0.99")
    (close,) = [rule.says for rule in advice.plan.rules if rule.name == "close"]
    assert "as measured, though noise hides whether another costs less" in close


def test_a_technique_without_its_partner_names_the_missing_run(tmp_path):
    private = {
        "accuracy": 0.8, "privacy": "dp_sgd", "epsilon": 3.0, "model": "vit_scatter",
        "overrides": ["model=vit_scatter", "recipe=dp", "privacy=dp_sgd", "privacy.epsilon=3",
                      "privacy.max_physical_batch=256"],
    }  # fmt: skip
    advice = told(plant(tmp_path, [*SQUARE, private]))
    (match,) = [one for one in advice.experiments if one.kind == "match"]
    assert match.commands == (
        "python train.py -m logger=none model=vit_scatter recipe=dp privacy=none seed=1,2,3",
    )
    assert "nothing tells what dp_sgd epsilon=3 does" in match.why
    assert "dp_sgd epsilon=3" not in effects_of(advice, ACCURACY)


def test_what_was_never_tried_and_what_was_never_tried_together(tmp_path):
    advice = told(plant(tmp_path, [PLAIN, DISTILL, PRUNED]), "epsilon<=3")
    kinds = [one.kind for one in advice.experiments]
    assert kinds.index("untried") < kinds.index("both")  # a budget asks for it
    (untried,) = [one for one in advice.experiments if one.kind == "untried"]
    assert untried.commands == (
        "python train.py experiment=first_steps logger=none privacy.epsilon=3 'hydra.sweeper.only=[open,private]'",
    )
    (both,) = [one for one in advice.experiments if one.kind == "both"]
    assert "'compress=[distill,prune]' compress.prune.target.macs=0.5" in both.commands[0]


def test_two_picks_that_noise_does_not_part_get_more_seeds(tmp_path):
    near = {"accuracy": 0.884, "macs": 2e6, "overrides": ["model.args.depth=2"]}
    advice = told(plant(tmp_path, [PLAIN, PRUNED, near], noise=0.01), "macs<=2.05M")
    assert "a difference that noise hides" in advice.plan.rules[0].says
    (seeds,) = [one for one in advice.experiments if one.kind == "seeds"]
    assert len(seeds.commands) == 2
    assert all("seed=4,5" in line for line in seeds.commands)


def test_times_under_other_conditions_are_not_compared(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / f"a{seed}", seed=seed, values={"cost/latency_ms": 1.0 + seed / 10})
        make_run(
            tmp_path / f"b{seed}", seed=seed, compress=["distill"], processor="another",
            values={"cost/latency_ms": 2.0 + seed / 10, ACCURACY: 0.95 + seed / 100},
        )  # fmt: skip
    advice = told(collect([tmp_path]).entries)
    assert "cost/latency_ms" not in {one.key for one in advice.effects}
    assert ACCURACY in {one.key for one in advice.effects}


@pytest.mark.parametrize("arms", [[PLAIN], [PLAIN, BOTH]])
def test_too_few_runs_print_the_small_set(arms, tmp_path, capsys):
    overrides = {"overrides": ["dataset=fashion_mnist", "dataset.root=/d", "model=vit_s", "recipe.lr=0.01"]}
    plant(
        tmp_path, [{**arm, "overrides": [*arm.get("overrides", ()), *overrides["overrides"]]} for arm in arms]
    )
    cli.main(["advise", str(tmp_path), "--budget", "macs<=1M"])
    out = capsys.readouterr().out
    assert "Too few runs to advise" in out
    wanted = (
        "experiment=first_steps logger=none dataset=fashion_mnist dataset.root=/d model=vit_s recipe.lr=0.01"
    )
    assert f"    python train.py {wanted}\n" in out
    assert "macs<=1M" in out


def test_other_data_are_left_out(tmp_path):
    plant(tmp_path / "a", SQUARE)
    make_run(tmp_path / "b", fingerprint="e" * 64)
    advice = told(collect([tmp_path]).entries)
    assert (advice.runs, advice.others) == (12, 1)


def test_json_holds_all_of_it_and_errors_are_one_line(tmp_path, capsys):
    plant(tmp_path, SQUARE)
    cli.main(["advise", str(tmp_path), "--json", "--budget", "macs<=2.05M,accuracy>=0.99"])
    out = json.loads(capsys.readouterr().out)
    assert out["runs"] == 12
    assert {arm["label"] for arm in out["arms"]} >= {"vit_micro", "vit_micro + distill"}
    effect = next(one for one in out["effects"] if (one["lever"], one["measure"]) == ("distill", ACCURACY))
    assert effect["interval"][0] < effect["difference"] < effect["interval"][1]
    ratio = next(one for one in out["effects"] if one["lever"].startswith("prune") and one["measure"] == MACS)
    assert ratio["ratio"] == pytest.approx(0.5)
    assert out["plan"]["unmet"] == ["accuracy>=0.99"]
    assert out == json.loads(
        json.dumps(to_json(told(collect([tmp_path]).entries, "macs<=2.05M,accuracy>=0.99")))
    )
    with pytest.raises(SystemExit) as caught:
        cli.main(["advise", str(tmp_path), "--budget", "mac<=1"])
    assert caught.value.code == 2
    assert "did you mean 'macs'" in capsys.readouterr().err


@pytest.mark.parametrize(("effect", "low", "high"), [(0.0, 0.0, 0.08), (0.03, 0.9, 1.0)])
def test_how_often_chance_alone_makes_an_order(effect, low, high):
    """Four arms, five seeds, a spread of half a point that arms share in part: 300 times, at 5 %."""
    draw, made = np.random.default_rng(0), 0
    base = ("data", "m", 1)
    for _ in range(300):
        shared = draw.normal(0, 0.005, 5)
        points = []
        for name in ("", "a", "b", "c"):
            accuracies = 0.9 + shared + draw.normal(0, 0.005, 5) + effect * bool(name == "a")
            entries = [
                Entry(Path(name), Card({"seed": seed}, {}, {ACCURACY: float(value)}, {}, {}))
                for seed, value in enumerate(accuracies)
            ]
            levers = frozenset({Lever(name)} if name else ())
            arm = Arm(Settings("data", "m", 1, (), ()), tuple(entries), name)
            points.append(Point(arm, base, levers))
        found = order(points[0], pairs_of(points), ACCURACY)
        made += not found.refused and found.levers[0] == (Lever("a") if effect else found.levers[0])
    assert low <= made / 300 <= high
