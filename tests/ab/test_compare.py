"""`effvit compare`: verdicts on known cases, and what is said when the data do not decide."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made import make_run

from effvit_train import t_tests
from effvit_train.compare_command import compare
from effvit_train.errors import UserError
from effvit_train.paired import interval_unpaired
from effvit_train.report.ab import numbers, words
from effvit_train.report.ab.outcome import compare_sides
from effvit_train.report.ab.rows import of_runs, of_table
from effvit_train.report.ab.sides import choose
from effvit_train.report.ab.tested import Images
from effvit_train.report.ab.tested import Tested as Answers

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("cat", "dog", "owl")


def predicted(labels, wrong):
    """All right but for the images in `wrong`, which are taken for the next class."""
    found = np.array(labels)
    found[list(wrong)] = (found[list(wrong)] + 1) % 3
    return found


def pair(tmp_path, wrong_a, wrong_b, *, count=100, seeds=((1,), (1,)), **of_b):
    """Runs of both sides below `a` and `b`; `wrong_*` holds the wrong images of each run."""
    labels = np.arange(count) % 3
    for name, wrong, chosen in (("a", wrong_a, seeds[0]), ("b", wrong_b, seeds[1])):
        for seed, images in zip(chosen, wrong, strict=True):
            compress = ["distill"] if name == "b" else []
            make_run(
                tmp_path / name / str(seed), seed=seed, id=f"{name}{seed}", compress=compress, classes=CLASSES,
                labels=labels, predicted=predicted(labels, images), curves=False, **(of_b if name == "b" else {}),
            )  # fmt: skip
    return tmp_path / "a", tmp_path / "b"


def outcome(directories, **more):
    return compare_sides(*choose(*map(str, directories)), **more)


def test_two_models_by_hand(tmp_path):
    # 10 images only A gets wrong, 2 only B, 3 both: p = 2 x (1 + 12 + 66) / 2^12
    found = outcome(pair(tmp_path, [range(13)], [[10, 11, 12, 20, 21]]))
    table = found.headline.table
    assert (table.both, table.only_a, table.only_b, table.neither) == (85, 2, 10, 3)
    assert found.headline.accuracy.p_value == pytest.approx(158 / 4096)
    assert found.winner is found.b
    assert [flip.image for flip in found.flips.only_a] == [20, 21]
    assert {flip.image for flip in found.flips.only_b} == set(range(10))
    sentence = words.verdict(found)
    assert sentence.startswith(
        "B is better: 8.0 points more accurate on the same 100 test images (95 % interval +"
    )
    assert "McNemar p = 0.039" in sentence
    assert "these two models, not their settings (one run each; repeat both with seed=1,2,3)" in sentence


def test_a_better_a_has_its_own_lead_in_the_sentence(tmp_path):
    found = outcome(pair(tmp_path, [[]], [range(12)]))
    assert found.winner is found.a
    assert words.verdict(found).startswith(
        "A is better: 12.0 points more accurate on the same 100 test images (95 % interval +"
    )
    assert found.headline.accuracy.verdict == "worse"  # the table tells it of B


def test_a_difference_that_chance_explains_is_not_decided(tmp_path):
    found = outcome(pair(tmp_path, [range(6)], [range(5, 9)]))
    assert found.winner is None
    sentence = words.verdict(found)
    assert sentence.startswith(
        "Not decided: B is 2.0 points more accurate than A on the same 100 test images (B − A: "
    )
    assert "McNemar p = 0.73; about " in sentence  # 5 against 3: 2 x (1 + 8 + 28 + 56) / 2^8


def test_models_that_are_right_on_the_same_images(tmp_path):
    found = outcome(pair(tmp_path, [range(5)], [range(5)]))
    assert words.verdict(found).startswith("Not decided: A and B get the same images right, of 100")
    assert found.headline.needed is None
    turned = outcome(pair(tmp_path / "2", [range(5)], [range(5, 10)]))
    assert words.verdict(turned).startswith("Not decided: A and B get equally many images right")


def test_three_seeds_a_side_by_hand(tmp_path):
    # accuracies 0.80 0.79 0.78 against 0.90 0.89 0.86: differences 10, 10, 8 points
    wrong_a = [range(20), range(21), range(22)]
    wrong_b = [range(10), range(11), range(14)]
    found = outcome(pair(tmp_path, wrong_a, wrong_b, seeds=((1, 2, 3), (1, 2, 3))))
    row = found.headline.accuracy
    t = (28 / 3) / (2 / 3)  # mean over standard error
    assert (row.test, row.p_value) == (t_tests.PAIRED, pytest.approx(1 - t / np.sqrt(t**2 + 2)))
    assert found.pairs
    low, high = found.headline.over_images
    assert 0.03 < low < 0.093 < high < 0.17
    assert words.verdict(found).startswith(
        "B is better: over 3 seeds a side 9.3 points more accurate (95 % interval +"
    )
    assert "the choice of the 100 test images does not explain it" in words.verdict(found)


def test_other_seeds_or_private_runs_are_not_paired(tmp_path):
    wrong = [range(20), range(21), range(22)]
    other = outcome(pair(tmp_path, wrong, [range(9), range(11), range(12)], seeds=((1, 2, 3), (4, 5, 6))))
    assert other.headline.accuracy.test == t_tests.WELCH
    assert "A and B have other seeds" in words.scope(other)
    private = outcome(pair(tmp_path / "2", wrong, wrong, seeds=((1, 2, 3),) * 2, privacy="dp_sgd"))
    assert private.headline.accuracy.test == t_tests.WELCH
    assert "does not come from the seed" in words.scope(private)


def test_seeds_alone_do_not_decide_what_other_images_could_undo(tmp_path):
    # two images more in every run: the t-test has a difference, a hundred images have not
    wrong_a, wrong_b = [range(5), range(5), range(6)], [range(3), range(3), range(3)]
    found = outcome(pair(tmp_path, wrong_a, wrong_b, seeds=((1, 2, 3), (1, 2, 3))))
    assert found.headline.accuracy.p_value < 0.05
    assert found.winner is None
    assert words.verdict(found).startswith(
        "Not decided: over 3 seeds a side B is 2.3 points more accurate than A on these 100"
    )


def test_two_seeds_are_too_few(tmp_path):
    found = outcome(pair(tmp_path, [range(20), range(20)], [[], []], seeds=((1, 2), (1, 2))))
    assert (found.scope, found.winner, found.headline.accuracy.p_value) == ("few", None, None)
    assert "A has 2 runs and B has 2" in words.verdict(found)
    assert "3 seeds a side at least" in words.verdict(found)


def test_runs_without_spread_are_not_decided(tmp_path):
    found = outcome(pair(tmp_path, [range(20)] * 3, [range(2)] * 3, seeds=((1, 2, 3), (1, 2, 3))))
    assert found.winner is None
    assert "without any spread" in words.verdict(found)


def simulated(rng, count, accuracy_a, accuracy_b):
    """Two models on `count` images of which some are easy for both."""
    ease = rng.beta(4, 1, count) * 1.25
    right_a, right_b = (rng.random(count) < np.clip(ease * p, 0, 1) for p in (accuracy_a, accuracy_b))
    return right_a.astype(float), right_b.astype(float)


def test_pairs_without_a_difference_are_not_decided_in_90_of_100_trials():
    rng = np.random.default_rng(1)
    rows = [of_table("x", numbers.table_of(*simulated(rng, 400, 0.8, 0.8)), level=0.05) for _ in range(100)]
    assert sum(row.verdict == "unclear" for row in rows) >= 90
    different = [
        of_table("x", numbers.table_of(*simulated(rng, 4000, 0.8, 0.84)), level=0.05) for _ in range(20)
    ]
    assert sum(row.verdict == "better" for row in different) >= 18
    inside = [row.low <= 0 <= row.high for row in rows]
    assert sum(inside) >= 90


def images_of(rng, count, runs, *, interaction, between, gain=0.0):
    """Runs of two settings: each finds some images easier (`interaction`), each seed is luckier (`between`)."""
    ease, own = rng.normal(2, 2, count), rng.normal(0, interaction, count)
    labels = np.zeros(count, dtype=np.int64)
    sides = []
    for sign in (-0.5, 0.5):
        logit = ease + sign * (own + gain) + rng.normal(0, between, (runs, 1))
        wrong = (rng.random((runs, count)) > 1 / (1 + np.exp(-logit))).astype(np.int64)
        sides.append(tuple(Answers(np.arange(count), labels, said, None, None, None) for said in wrong))
    return Images(np.arange(count), labels, ["right", "wrong"], *sides)


def seeds_alone(images):
    accuracies = [images.right(side).mean(axis=1).tolist() for side in (images.a, images.b)]
    return of_runs("x", *accuracies, pairs=True, better="higher", level=0.05).verdict != "unclear"


def decided(images):
    """As the verdict has it: by the seeds, and by the choice of images."""
    if not seeds_alone(images):
        return False
    low, high = numbers.over_images(images, level=0.05)
    return not low <= 0 <= high


@pytest.mark.parametrize(("interaction", "between"), [(0.0, 0.0), (0.0, 0.4), (3.0, 0.0)])
def test_settings_without_a_difference_are_not_decided_in_90_of_100_trials(interaction, between):
    rng = np.random.default_rng(0)
    trials = [images_of(rng, 400, 5, interaction=interaction, between=between) for _ in range(100)]
    assert sum(map(decided, trials)) <= 10
    if (
        interaction
    ):  # what repeats over the seeds is here a matter of the images: the t-test alone says too much
        assert sum(map(seeds_alone, trials)) > 15
    different = [images_of(rng, 1000, 5, interaction=0.5, between=0.05, gain=0.8) for _ in range(20)]
    assert sum(map(decided, different)) >= 17


def test_one_of_many_classes_is_not_decided_by_chance():
    """Holm: any class of ten decided in at most 10 of 100 trials without a difference."""
    rng = np.random.default_rng(3)
    false = 0
    for _ in range(100):
        labels = np.arange(500) % 10
        said = [np.where(right > 0, labels, (labels + 1) % 10) for right in simulated(rng, 500, 0.7, 0.7)]
        a, b = ((Answers(np.arange(500), labels, one, None, None, None),) for one in said)
        rows = numbers.by_class(Images(np.arange(500), labels, [*"abcdefghij"], a, b), pairs=True, level=0.05)
        false += any(row.verdict != "unclear" for row in rows)
    assert false <= 10


def test_classes_and_groups_by_hand(tmp_path):
    # all of B's mistakes are dogs (1, 4, 7 ...): 12 of 33
    wrong = [3 * k + 1 for k in range(12)]
    group = {number: "left" if number < 60 else "right" if number < 95 else "few" for number in range(99)}
    found = outcome(pair(tmp_path, [[]], [wrong]), groups={"side": group})
    rows = {row.name: row for row in found.classes}
    assert (rows["dog"].images, rows["dog"].b) == (33, pytest.approx(21 / 33))
    assert rows["dog"].p_value == pytest.approx(2 / 2**12)
    assert rows["dog"].corrected == pytest.approx(6 / 2**12)  # the smallest of three
    assert (rows["dog"].verdict, rows["cat"].verdict) == ("worse", "unclear")
    (side,) = found.groups
    assert {row.name: row.images for row in side.rows} == {"left": 60, "right": 35}
    assert (side.small, side.small_images, side.without) == (1, 4, 1)
    assert side.rows[0].name == "left"


def test_scores_are_those_of_the_audit(tmp_path):
    import torch

    from effvit_train.audit.calibration import measure_calibration
    from effvit_train.audit.quality import measure_quality

    rng = np.random.default_rng(0)
    directories = pair(tmp_path, [range(20)], [range(9)], count=200)
    measured = []
    for directory in directories:
        file = directory / "1" / "predictions.npz"
        labels = np.load(file)["labels"]
        logits = (rng.normal(0, 1, (200, 3)) + 2 * np.eye(3)[labels]).astype(np.float32)
        np.savez(file, logits=logits, labels=labels, index=np.arange(200))
        tensors = torch.from_numpy(logits), torch.from_numpy(labels)
        measured.append(measure_quality(*tensors).values | measure_calibration(*tensors)[0].values)
    rows = {row.name: row for row in outcome(directories).measures}
    assert set(rows) == {"quality/balanced_accuracy", "quality/nll", "calibration/brier", "calibration/ece"}
    for key, row in rows.items():
        assert (row.a, row.b) == pytest.approx((measured[0][key], measured[1][key])), key
        assert row.low < row.difference < row.high
        assert row.p_value <= row.corrected


def test_outputs_that_are_not_finite_are_wrong_and_have_no_scores(tmp_path):
    directories = pair(tmp_path, [[]], [[]])
    file = directories[1] / "1" / "predictions.npz"
    content = dict(np.load(file))
    content["logits"][:7] = np.nan
    np.savez(file, **content)
    found = outcome(directories)
    assert found.headline.table.only_a == 7
    assert [row.name for row in found.measures] == ["quality/balanced_accuracy"]
    assert found.flips.only_a[0].said_b == -1


def test_other_test_images_of_one_set_are_not_paired(tmp_path):
    directories = pair(tmp_path, [range(30)], [range(2)])
    file = directories[1] / "1" / "predictions.npz"
    content = dict(np.load(file))
    np.savez(file, **{**content, "index": content["index"] + 50})
    found = outcome(directories)
    assert (found.images, found.headline.table, found.classes) == (None, None, [])
    ends = found.headline.accuracy.low, found.headline.accuracy.high
    assert ends == interval_unpaired(70, 100, 98, 100)
    assert (
        "on different images (100 and 100 test images; the test images of A and B are not the same)"
        in words.verdict(found)
    )
    (directories[0] / "1" / "predictions.npz").unlink()
    assert "predictions.npz is not in the run directory" in words.verdict(outcome(directories))


def test_other_data_sets_leave_only_the_costs(tmp_path):
    directories = pair(tmp_path, [[]], [[]], dataset="cifar10")
    card = directories[1] / "1" / "card.json"
    content = json.loads(card.read_text())
    content["provenance"]["dataset"]["name"] = "cifar10"
    card.write_text(json.dumps(content))
    found = outcome(directories)
    assert found.headline.accuracy is None
    assert words.verdict(found) == (
        "Not decided: A was tested on digits and B on cifar10, so that their accuracies cannot be compared."
    )
    assert {cost.key for cost in found.costs} >= {"cost/params", "cost/latency_ms"}


def test_another_fingerprint_is_told(tmp_path):
    found = outcome(pair(tmp_path, [[]], [[]], fingerprint="e" * 64))
    assert found.headline.table is not None
    assert "different fingerprints" in words.scope(found)


def test_costs_on_another_machine_carry_no_verdict(tmp_path):
    values = {"cost/latency_ms": 0.5, "cost/params": 500.0}
    found = {
        c.key: c.change for c in outcome(pair(tmp_path, [[]], [[]], processor="two", values=values)).costs
    }
    assert (found["cost/params"].word, found["cost/latency_ms"].word) == ("better", "other conditions")
    found = {c.key: c.change for c in outcome(pair(tmp_path / "2", [[]], [[]], values=values)).costs}
    assert found["cost/latency_ms"].word == "better"


def test_numbers_keep_the_units_that_they_are_read_by():
    assert words.value("cost/train_seconds", 155.0) == "2 min 35 s"
    assert words.value("cost/memory_mb", 1200.0) == "1.20 GB"
    assert (words.value("quality/nll", 0.29), words.value("quality/accuracy", 0.983)) == ("0.290", "98.3 %")
    assert words.signed("quality/accuracy", -0.0213) == "−2.1 pp"
    assert words.signed("quality/nll", 0.0311) == "+0.031"
    assert words.span("quality/accuracy", -0.0004, 0.012) == "−0.04 to +1.2"
    assert [words.p_value(p) for p in (0.0004, 0.0123, 0.9999, None)] == ["<0.001", "0.012", "1", "–"]


def run(capsys, *arguments):
    compare([*map(str, arguments)])
    return capsys.readouterr().out


def test_the_command_prints_a_table_and_writes_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = pair(tmp_path, [range(13)], [[10, 11, 12, 20, 21]], values={"cost/throughput": 500.0})
    (tmp_path / "p.yaml").write_text("currency: EUR\nper_hour: 0.18\n")
    out = run(capsys, a, b, "--images", "0", "--prices", "p.yaml")
    for text in ("Accuracy", "+8.0 pp", "McNemar p = 0.039", "2 images are right in A only, 10 in B only",
                 "page: compare-a1-b1.html", "0.100 EUR"):  # fmt: skip
        assert text in out
    page = (tmp_path / "compare-a1-b1.html").read_text()
    assert "B is better: 8.0" in page.replace("\u00a0", " ").replace("\u2060", "")
    assert "<script" not in page
    assert max(map(len, out.splitlines())) <= 80


def test_json_holds_everything_and_is_the_same_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a, b = pair(tmp_path, [range(13)], [[10, 11, 12, 20, 21]])
    first = run(capsys, a, b, "--json", "--images", "0")
    assert first == run(capsys, a, b, "--json", "--images", "0")
    told = json.loads(first)
    assert told["verdict"]["better"] == "B"
    assert told["accuracy"]["table"] == {"both": 85, "only_a": 2, "only_b": 10, "neither": 3}
    assert [flip["image"] for flip in told["flipped"]["only_a"]] == [20, 21]
    assert (told["flipped"]["only_a"][0]["class"], told["flipped"]["only_a"][0]["b"]) == ("owl", "cat")
    assert list(tmp_path.glob("*.html")) == []
    run(capsys, a, b, "--json", "--images", "0", "--out", "pages")
    assert len(list((tmp_path / "pages").glob("*.html"))) == 1


def test_the_level_is_that_of_every_interval_and_test(tmp_path):
    directories = pair(tmp_path, [range(13)], [[10, 11, 12, 20, 21]])
    strict = outcome(directories, level=0.01)
    assert strict.winner is None
    assert "99 % interval" in words.verdict(strict)
    assert strict.headline.accuracy.low < outcome(directories).headline.accuracy.low


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["a", "b", "--level", "0.7"], "--level=0.7: must be above 0"),
        (["a", "b", "--images", "-1"], "--images=-1: must be 0 or more"),
        (["a", "b", "--root", "nowhere"], "--root=nowhere: is no directory"),
        (["a", "nowhere"], "nowhere is no directory"),
        (["a", "b", "--prices", "none.yaml"], "--prices=none.yaml: cannot be read"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    pair(tmp_path, [[]], [[]])
    with pytest.raises(UserError) as caught:
        compare(arguments)
    assert says in str(caught.value)
    assert list(tmp_path.glob("*.html")) == []


def test_a_page_is_safe_whatever_a_class_is_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    labels = np.arange(30) % 2
    for name, wrong in (("a", [0]), ("b", [1, 2])):
        said = labels.copy()
        said[wrong] = 1 - said[wrong]
        make_run(
            tmp_path / name, id=name, classes=("<script>alert(1)</script>", "b"), labels=labels, predicted=said,
            model=f"<b>{name}",
        )  # fmt: skip
    run(capsys, "a", "b", "--images", "0")
    (page,) = tmp_path.glob("*.html")
    assert "<script" not in page.read_text()
    assert "<b>" not in page.read_text()


def test_the_numbers_need_no_torch(tmp_path):
    pair(tmp_path, [range(9)], [[]])
    code = (
        "import sys; from effvit_train.compare_command import compare; compare(['a', 'b', '--images', '0']);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert done.stdout.strip().endswith("False"), done.stderr
