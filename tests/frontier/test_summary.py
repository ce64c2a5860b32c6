"""The page for those who decide: which run, by which rule, and what is said of it."""

import html
import json
import re

from made import make_run
from many import private_run, state, studied

from effvit_train import cli
from effvit_train.budgets import parse_budgets
from effvit_train.report.summary import english, japanese
from effvit_train.report.summary.choice import choose, within_chance
from effvit_train.report.summary.facts import TOPICS
from effvit_train.report.summary.sheet import about, kilowatt_hours, of_hundred, points, ratio, told
from effvit_train.report.summary.write import render

X, Y = "cost/latency_ms", "quality/accuracy"


def run(path, latency, accuracy, **more):
    values = {X: latency, Y: accuracy, **more.pop("values", {})}
    return make_run(path, values=values, id=path.name, model=more.pop("model", path.name), **more)


def chosen(top, *budgets):
    return choose(studied(top), x=X, y=Y, budgets=parse_budgets(budgets))


def page(top, *budgets, language="en", x=X):
    text = render(studied(top), x=x, y=Y, budgets=parse_budgets(budgets), language=language)
    words = html.unescape(re.sub(r"<[^>]+>", " ", text[text.index("<article") :])).replace("\u2060", "")
    return re.sub(r"\s+", " ", words)


def test_chance_explains_a_difference_or_not():
    # 96 and 93 of 100: Newcombe's interval is about (-0.04, 0.10); 96 and 80: (0.07, 0.26)
    assert within_chance(0.96, 0.93, 100)
    assert not within_chance(0.96, 0.80, 100)


def test_the_cheapest_of_those_that_are_as_good(tmp_path):
    run(tmp_path / "best", 5.0, 0.96)
    run(tmp_path / "equal", 2.0, 0.93)  # of 100 images: chance
    run(tmp_path / "fast", 1.0, 0.80)  # not chance
    choice = chosen(tmp_path)
    assert choice.chosen.arm.label.startswith("equal")
    assert choice.best.arm.label.startswith("best")
    assert choice.cheapest.arm.label.startswith("fast")
    assert (
        "the best accuracy is 96.0 % (best plain). This one has 93.0 %, a difference that chance explains, and is clearly better "
        "in latency: 2.0 ms against 5.0 ms."
    ) in page(tmp_path)


def test_accuracy_is_not_given_away_for_a_gain_within_the_scatter_of_times(tmp_path):
    run(tmp_path / "best", 1.0, 0.96)
    run(tmp_path / "equal", 0.91, 0.93)
    assert chosen(tmp_path).chosen.entry.run_dir.name == "best"
    run(tmp_path / "faster", 0.89, 0.93)
    assert chosen(tmp_path).chosen.entry.run_dir.name == "faster"


def test_images_one_by_one_tell_more_than_two_intervals(tmp_path):
    # 96 and 89 of 100: the intervals do not tell them apart; 7 images that only one gets right do: 2 / 2^7 = 0.016
    assert within_chance(0.96, 0.89, 100)
    for name, latency, wrong in (("best", 5.0, 4), ("worse", 1.0, 11)):
        predicted = [1] * wrong + [0] * (100 - wrong)
        make_run(tmp_path / name, model=name, values={X: latency}, labels=[0] * 100, predicted=predicted)
    assert chosen(tmp_path).chosen.entry.run_dir.name == "best"
    for name in ("best", "worse"):
        (tmp_path / name / "predictions.npz").unlink()
    assert chosen(tmp_path).chosen.entry.run_dir.name == "worse"


def test_budgets_come_first(tmp_path):
    run(tmp_path / "best", 5.0, 0.96)
    run(tmp_path / "fast", 1.0, 0.80)
    choice = chosen(tmp_path, "cost/latency_ms<=2")
    assert (choice.met, choice.meeting, choice.chosen.entry.run_dir.name) == (True, 1, "fast")
    assert choice.unbounded.entry.run_dir.name == "best"
    text = page(tmp_path, "cost/latency_ms<=2")
    assert "Recommended: fast, which meets every limit." in text
    assert "Latency of at most 2.0 ms was asked: it has 1.0 ms, met." in text


def test_where_nothing_meets_the_budgets_it_says_so_and_names_the_nearest(tmp_path):
    run(tmp_path / "a", 5.0, 0.96)
    run(tmp_path / "b", 3.0, 0.80)
    choice = chosen(tmp_path, "cost/latency_ms<=2", "privacy/epsilon<=8")
    assert not choice.met
    assert choice.chosen.entry.run_dir.name == "b"
    assert [(budget.key, nearest) for budget, nearest in choice.nearest] == [
        (X, 3.0),
        ("privacy/epsilon", None),
    ]
    text = page(tmp_path, "cost/latency_ms<=2", "privacy/epsilon<=8")
    assert "None of the models meets every limit. Nearest: b." in text
    assert "Recommended" not in text
    assert "No model has latency of at most 2.0 ms: the nearest value is 3.0 ms." in text
    assert "not known, and so not met (not measured)" in text
    japanese_text = page(tmp_path, "cost/latency_ms<=2", language="ja")
    assert "すべての条件を満たすモデルはありません。" in japanese_text
    assert "推奨するモデル" not in japanese_text


def test_the_run_nearest_to_the_mean_stands_for_an_arm(tmp_path):
    for seed, accuracy in ((1, 0.90), (2, 0.99), (3, 0.94)):  # mean 0.943
        run(tmp_path / str(seed), 1.0, accuracy, model="m", seed=seed)
    assert chosen(tmp_path).chosen.entry.run_dir.name == "3"
    text = page(tmp_path)
    assert "Trained 3 times with other random numbers: 90.0 % to 99.0 %." in text
    assert "Of 100 images that it had not seen, it gets 94 right (94.0 %)." in text


def test_one_run_in_plain_words(tmp_path):
    run(
        tmp_path / "a", 0.5, 0.97,
        values={"cost/size_mb": 0.8, "cost/memory_mb": 9.0, "cost/energy_j": 0.36, "robustness/pgd_accuracy": 0.31,
                "fairness/worst_group_accuracy": 0.88, "privacy/mia_auc": 0.52, "cost/throughput": 9334.0},
    )  # fmt: skip
    text = page(tmp_path)
    for sentence in (
        "This model: a.",
        "Of 100 images that it had not seen, it gets 97 right (97.0 %).",
        # Wilson for 97 of 100: 91.5 to 99.0 %
        "It was tested on 100 images: chance in their choice alone moves this by about ±4 (95 %).",
        "Guessing would get about 33 of 100 right.",
        "One image takes 0.50 ms on one: about 120,000 a minute, one after the other.",
        "Many at once: about 9,300 images a second.",
        "The file has 0.80 MB, and it needs 9.0 MB of memory to run.",
        "A million images take 0.10 kWh of electricity.",  # 360,000 J
        "Images altered on purpose, too little to notice: 31 of 100 right.",
        "The group that it serves worst: 88 of 100 right.",
        "No privacy guarantee",
        "in 52 of 100 pairs",
        "Blurred, noisy or badly lit images: cameras in use take worse images than those tested.",
    ):
        assert sentence in text, sentence
    text = page(tmp_path, language="ja")
    for sentence in (
        "学習に使っていない画像100枚のうち、97枚を正しく分類します（97.0 %）。",
        "100枚あたり±4枚ほど変わります",
        "画像1枚の処理に0.50 msかかります。1枚ずつ処理して、1分間に約120,000枚です。",
        "100万枚の処理に使う電力量は0.10 kWhです。",
        "プライバシーの保証はありません。",
        "テストはすべて学習データと同じ出所の画像によるものです。",
    ):
        assert sentence in text, sentence


def test_against_the_same_model_without_the_technique(tmp_path):
    run(tmp_path / "plain", 2.0, 0.96, model="m", values={"cost/size_mb": 4.0})
    run(tmp_path / "cut", 1.0, 0.94, model="m", compress=["prune"], values={"cost/size_mb": 1.0})
    text = page(tmp_path)
    assert "Recommended: m, with parts cut out." in text
    assert (
        "Against the same model without this treatment: 4.0 times smaller, 2.0 times faster, 2 points less accurate, which "
        "chance explains."
    ) in text
    assert "ファイルは4.0分の1、速さは2.0倍、正解率は2ポイント低い値（偶然の範囲内）です。" in page(
        tmp_path, language="ja"
    )


def test_privacy_tells_what_the_guarantee_means_and_what_the_search_has_spent(tmp_path):
    for name, accuracy in (("a", 0.9), ("b", 0.5)):
        state(private_run(tmp_path / name, epsilon=1.0986123, model=name, id=name, steps=0))
        card = json.loads((tmp_path / name / "card.json").read_text())
        card["measures"]["quality/accuracy"] = accuracy
        (tmp_path / name / "card.json").write_text(json.dumps(card))
    text = page(tmp_path, "privacy/epsilon<=2")
    assert "is right in at most 75 of 100 cases" in text  # odds of e^1.0986 = 3 to 1
    assert "It was chosen among 2 private trainings on the same data; together they spent ε" in text
    assert "100回のうち75回" in page(tmp_path, "privacy/epsilon<=2", language="ja")
    assert "If it was chosen among several private trainings, those count too." in page(tmp_path / "a")


def test_every_topic_has_words_in_both_languages():
    assert set(english._NOT_MEASURED) == set(japanese._NOT_MEASURED) == set(TOPICS)
    assert set(english._TECHNIQUES) == set(japanese._TECHNIQUES)


def test_what_was_not_measured_is_named_with_its_reason(tmp_path):
    run(tmp_path / "a", 1.0, 0.9)
    for language in ("en", "ja"):
        assert "no counter <here>" in page(tmp_path, language=language)


def test_no_number_to_choose_by(tmp_path):
    run(tmp_path / "a", 1.0, float("nan"))
    assert chosen(tmp_path).chosen is None
    assert "No run can be recommended. None has a number for accuracy." in page(tmp_path)
    assert "推奨できるモデルはありません。" in page(tmp_path, language="ja")


def test_names_are_text(tmp_path):
    run(tmp_path / "a", 1.0, 0.9, model="<script>alert(1)</script>")
    text = render(studied(tmp_path), x=X, y=Y, budgets=[], language="both")
    assert "<script" not in text
    assert text.count("<article") == 2


def test_how_numbers_are_told():
    assert [of_hundred(share) for share in (0.97, 0.0, 1.0, 0.9987, 0.002)] == [
        ("97", 100), ("0", 100), ("100", 100), ("999", 1000), ("2", 1000),
    ]  # fmt: skip
    assert [points(one) for one in (0.021, -0.0204, 0.004)] == ["2", "2", "0.4"]
    assert [ratio(one) for one in (3.84, 1.127, 0.5, 12.3)] == ["3.8", "1.13", "2.0", "12"]
    assert [about(one) for one in (136_324, 9_334, 0.449, 8.21, 0)] == [
        "140,000",
        "9,300",
        "0.45",
        "8.2",
        "0",
    ]
    assert kilowatt_hours(3.6) == "1.0"
    assert told("privacy/epsilon", 8.0) == "8.00"


def test_the_command_writes_both_languages_unless_told(tmp_path, capsys):
    run(tmp_path / "a", 1.0, 0.9)
    cli.main(["report", str(tmp_path / "a"), "--summary"])
    assert f"summary: {tmp_path / 'a' / 'summary.html'}" in capsys.readouterr().out
    assert (tmp_path / "a" / "summary.html").read_text().count("<article") == 2
    cli.main(["report", str(tmp_path), "--summary", "--language", "ja", "--out", str(tmp_path / "out")])
    assert '<article lang="ja">' in (tmp_path / "out" / "summary.html").read_text()
