"""What is shown of a stream: on the page, in the terminal, in W&B, in plain words, and in comparisons."""

from __future__ import annotations

import html
import io
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from streams import NAMES, WITHIN, R, continual, stream_run

from effvit_train.arms import arms
from effvit_train.card import Card
from effvit_train.check_command import check
from effvit_train.cli import main
from effvit_train.collect import collect
from effvit_train.compare_command import compare
from effvit_train.data.stream import Stream, Task
from effvit_train.proportions import wilson
from effvit_train.report import continual as shown
from effvit_train.report.ab.outcome import compare_sides
from effvit_train.report.ab.sides import choose
from effvit_train.report.baseline import Baseline, find_baseline
from effvit_train.report.compare import Comparison
from effvit_train.report.frontier.study import several_streams, study
from effvit_train.report.html import render
from effvit_train.report.stream_facts import differ, stream_of
from effvit_train.report.stream_intervals import stream_interval
from effvit_train.report.summary.write import render as render_summary
from effvit_train.report.tracking import matrix_rows
from effvit_train.streaming import Streaming


def section(path) -> str:
    return render(path).partition("<h2>Continual learning</h2>")[2].partition("</section>")[0]


def words(markup: str) -> str:
    text = html.unescape(re.sub(r"<[^>]+>", " ", markup)).replace("\u00a0", " ").replace("\u2060", "")
    return re.sub(r"\s+", " ", text)


def table(markup: str, number: int) -> list[list[str]]:
    """The cells of one of the section's tables, a row each; headers of rows included."""
    found = re.findall(r"<table.*?</table>", markup, re.S)[number]
    return [
        [words(cell).strip() for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)]
        for row in re.findall(r"<tr>(.*?)</tr>", found, re.S)
    ]


def stream(**more):
    return stream_of(Card({}, {}, {}, {}, {"continual": continual(**more)}))


def test_the_matrix_holds_the_numbers_of_the_card(tmp_path):
    rows = table(section(stream_run(tmp_path / "a", continual())), 0)
    assert rows[1][1:] == ["1", "2", "3", "4"]
    for i, row in enumerate(rows[2:6]):
        assert row[0] == f"after {i + 1}"
        assert row[1:] == [f"{100 * R[i][j]:.1f}" if j <= i else "–" for j in range(4)]
    assert rows[6] == ["Forgotten", "60.0", "30.0", "−5.0", "–"]  # by hand from R


def test_the_matrix_is_a_table_with_headers_and_marks_beside_the_colour(tmp_path):
    found = section(stream_run(tmp_path / "a", continual()))
    heat = re.findall(r"<table.*?</table>", found, re.S)[0]
    assert heat.count('<th scope="col"') == 4
    assert heat.count('<th scope="row">') == 5
    assert heat.count('<th scope="colgroup" colspan="4">') == 1
    assert heat.count("num shade own") == 4  # the diagonal
    assert heat.count("num later") == 6  # above it
    assert 'title="after 1, on task 3: not trained yet"' in heat
    assert 'title="after 3, on task 2: 60.0 %"' in heat
    assert found.count('tabindex="0" role="region" aria-label="') == 3  # what scrolls can be reached by keys


def test_within_the_tasks_classes_where_it_differs(tmp_path):
    found = section(stream_run(tmp_path / "a", continual()))
    rows = table(found, 1)
    assert rows[5][1:] == [f"{100 * value:.1f}" for value in WITHIN[3]]
    assert rows[3][1:] == ["85.0", "80.0", "–", "–"]
    assert "task-incremental: the task is told" in found
    same = section(stream_run(tmp_path / "b", continual(within=R)))
    assert "task-incremental" not in same.lower()
    assert "class-incremental: among all classes seen so far" in same


def test_each_task_with_its_images_and_costs(tmp_path):
    rows = table(section(stream_run(tmp_path / "a", continual())), 2)
    assert rows[1] == ["1: classes 0, 1", "250", "100", "2", "90.0 %", "30.0 %", "35", "2.5 s", "nothing"]
    assert rows[4] == ["4: classes 6, 7", "253", "100", "2", "95.0 %", "95.0 %", "35", "5.5 s", "4.5 MB"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, "Most was forgotten of task 1 (classes 0, 1): 90.0 % of its test images were right at best, in the end "
             "30.0 %. Over the earlier tasks 28.3 points were lost on average."),
        # 2 of 10 images: Newcombe's interval holds 0
        ({"accuracy": [[0.9, 0], [0.7, 0.8]], "within": [], "names": NAMES[:2], "test": 10},
         "in the end 70.0 %, no more than chance explains. Over the earlier tasks 20.0 points were lost on average."),
        ({"accuracy": [[0.5, 0], [0.7, 0.8]], "within": [], "names": NAMES[:2]}, "Nothing was forgotten"),
        ({"kind": "data", "accuracy": [[0.5, 0.5], [0.7, 0.7]], "within": [], "names": ("portion 1", "portion 2")},
         "After portion 1, 50.0 % of the test images are right, after the last one, 70.0 %."),
    ],
)  # fmt: skip
def test_one_sentence_on_what_was_forgotten(more, told):
    assert told in shown.sentence(stream(**more))


def test_a_domain_stream_shows_tasks_to_come_in_brackets(tmp_path):
    matrix = [[0.6, 0.5], [0.55, 0.7]]
    found = continual("domain", matrix, matrix, ("light=1", "light=2"))
    text = section(stream_run(tmp_path / "a", found))
    assert table(text, 0)[2][1:] == ["60.0", "(50.0)"]
    assert "domain-incremental: among all classes" in text
    assert "not told which" in text


def test_a_data_stream_has_one_line_and_no_matrix(tmp_path):
    matrix = [[0.5, 0.5], [0.7, 0.7]]
    text = section(stream_run(tmp_path / "a", continual("data", matrix, matrix, ("portion 1", "portion 2"))))
    assert "heat" not in text
    assert table(text, 0)[2][:5] == ["2: portion 2", "251", "100", "2", "70.0 %"]
    assert "all test images" in text


def test_tasks_that_were_known_before_are_one_row(tmp_path):
    known = [[0.8, 0.7, 0.0], [0.8, 0.7, 0.0], [0.5, 0.6, 0.9]]
    text = section(stream_run(tmp_path / "a", continual("class", known, known, NAMES[:3], first=2)))
    rows = table(text, 0)
    assert [row[0] for row in rows[2:]] == ["before (knows 1–2)", "after 3", "Forgotten"]
    assert rows[4][1:3] == ["30.0", "10.0"]
    assert table(text, 1)[1][6:8] == ["known before", "–"]


def test_twenty_tasks(tmp_path):
    many = [[0.5 if j <= i else 0.0 for j in range(20)] for i in range(20)]
    text = section(stream_run(tmp_path / "a", continual("class", many, many, [f"t{k}" for k in range(20)])))
    assert table(text, 0)[21] == ["after 20", *["50"] * 20]
    assert "mean of the tasks so far" in text
    assert text.count("<polyline") == 4  # mean and first task, each with its swatch


@pytest.mark.parametrize(
    "found",
    [
        None, {}, "class", {"kind": "class"}, continual(accuracy=[[0.5]]), continual(names=NAMES[:1]),
        {**continual(), "accuracy": [[2.0] * 4] * 4}, {**continual(), "accuracy": [["x"] * 4] * 4},
        {**continual(), "tasks": "none"},
    ],
)  # fmt: skip
def test_no_section_without_a_whole_stream(found, run, tmp_path):
    path = run(tmp_path / "a")
    card = Card.read(path / "card.json")
    if found is not None:
        card.provenance["continual"] = found
    card.write(path / "card.json")
    assert "Continual learning" not in render(path)
    assert shown.line(card) == ""


def test_a_name_cannot_break_the_page(tmp_path):
    text = section(stream_run(tmp_path / "a", continual(names=("<b>", "<script>", "c", "d"))))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def printed(found) -> str:
    out = io.StringIO()
    card = Card({}, {}, {}, {}, {"continual": found})
    Console(file=out, width=80, color_system=None).print(shown.terminal_table(card))
    return out.getvalue()


def test_the_matrix_in_the_terminal_fits_into_80_columns():
    text = printed(continual())
    assert text.splitlines()[0] == "Accuracy in % (class-incremental: among all classes seen so far)"
    assert text.splitlines()[4].split() == ["after", "3", "40.0", "60.0", "60.0", "–"]
    ten = [[0.5 if j <= i else 0.0 for j in range(10)] for i in range(10)]
    text = printed(continual("class", ten, ten, [f"t{k}" for k in range(10)]))
    assert len(text.splitlines()) == 13  # nothing wraps: a title, a header, ten rows, an empty line
    eleven = [[0.5] * 11 for _ in range(11)]
    assert printed(continual("class", eleven, eleven, [f"t{k}" for k in range(11)])).strip() == ""


def test_rows_of_the_table_in_wandb():
    rows = matrix_rows(stream())
    assert len(rows) == 16
    assert rows[8] == [3, 1, "classes 0, 1", 0.4, 0.75]
    assert matrix_rows(stream(within=[]))[8][4] is None


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("en", "It learnt its data in 4 parts, one after the other. Of part 1 (classes 0, 1) it has forgotten most: it got "
               "90.0 % of its images right, and now 30.0 %."),
        ("ja", "データを4回に分けて、順に学習したモデルです。後の学習によって以前に学んだ内容を忘れることがあり、最も忘れたのは1回目の"
               "内容（classes 0, 1）です。その画像の正解率は90.0 %でしたが、現在は30.0 %です。"),
    ],
)  # fmt: skip
def test_plain_words(language, told, tmp_path):
    def page(path):
        found = study(collect([path]))
        return words(
            render_summary(found, x="cost/latency_ms", y="quality/accuracy", budgets=[], language=language)
        )

    assert told in page(stream_run(tmp_path / "a", continual()))
    assert ("one after the other" if language == "en" else "順に学習した") not in page(
        stream_run(tmp_path / "b")
    ).replace("a minute, one after the other", "")


def card_of(found) -> Card:
    return Card({}, {}, {}, {}, {} if found is None else {"continual": found})


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (continual(accuracy=WITHIN), ""),  # what came of it does not matter
        (None, "a class-incremental stream of 4 tasks against all data at once"),
        (continual("domain"), "a class-incremental stream of 4 tasks against a domain-incremental stream of 4 tasks"),
        (continual(names=NAMES[::-1], tasks=continual()["tasks"][::-1]), "the tasks come in another order"),
        (continual(names=("classes 0, 3", *NAMES[1:])), "task 1 is not the same: 'classes 0, 1' against 'classes 0, 3'"),
        (continual(test=90), "task 1 is not the same: other images in 'classes 0, 1'"),
        (continual(first=1), "0 against 1 tasks that were known before"),
    ],
)  # fmt: skip
def test_in_what_streams_differ(other, told):
    assert differ(card_of(continual()), card_of(other)) == told


def compared(tmp_path, capsys) -> str:
    compare([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")])
    return re.sub(r"\s+", " ", capsys.readouterr().out)


def test_compare_has_the_rows_of_one_stream(tmp_path, capsys):
    stream_run(tmp_path / "a", continual(), id="one", overrides=["continual=naive"])
    better = continual(accuracy=[[0.9, 0, 0, 0], [0.9, 0.8, 0, 0], [0.9, 0.8, 0.6, 0], [0.9, 0.8, 0.6, 0.5]])
    stream_run(tmp_path / "b", better, id="two", overrides=["continual=joint"])
    text = compared(tmp_path, capsys)
    assert "Forgetting 28.3 % 0.0 % ▼ −28.3 pp not tested" in text
    assert "Average accuracy 60.0 % 70.0 % ▲ +10.0 pp not tested" in text
    assert "different streams" not in text
    page = next((tmp_path / "out").glob("*.html")).read_text()
    assert "<h2>Continual learning</h2>" in page


@pytest.mark.parametrize(
    ("other", "why"),
    [(None, "against all data at once"), (continual(names=(*NAMES[:3], "x")), "task 4 is not the same")],
)
def test_compare_warns_in_a_line_where_the_streams_differ(other, why, tmp_path, capsys):
    stream_run(tmp_path / "a", continual(), id="one")
    stream_run(tmp_path / "b", other, id="two", overrides=["continual=joint"])
    text = compared(tmp_path, capsys)
    assert "The runs learnt from different streams (" in text
    assert why in text
    assert "Forgetting" not in text
    page = next((tmp_path / "out").glob("*.html")).read_text()
    assert "different streams" in page
    assert "Forgetting" not in page


def orders(tmp_path):
    """Two strategies over three orders: of the second, forgetting is 0.1 less in each."""
    for side, less in (("naive", 0.0), ("joint", 0.1)):
        for k in range(3):
            names = NAMES[k:] + NAMES[:k]
            matrix = [[0.9, 0, 0, 0], [0.9, 0.8, 0, 0], [0.9, 0.8, 0.7, 0]]
            lost = (0.3 + 0.01 * k - less, 0.3, 0.3)
            matrix.append([0.9 - lost[0], 0.8 - lost[1], 0.7 - lost[2], 0.6])
            stream_run(
                tmp_path / side / str(k), continual("class", matrix, matrix, names), id=f"{side}{k}",
                overrides=[f"continual={side}", f"dataset.stream_order={k}", "dataset.stream=class"],
                labels=[0, 1, 2, 0], predicted=[0, 1, 2, k % 2],
            )  # fmt: skip
    return tmp_path


def test_orders_of_a_stream_are_draws_as_seeds_are(tmp_path):
    found = arms(collect([orders(tmp_path)]).entries)
    assert [len(arm.entries) for arm in found] == [3, 3]
    a, b = choose(str(tmp_path / "naive"), str(tmp_path / "joint"))
    assert a.seeds == ["0 (order 0)", "0 (order 1)", "0 (order 2)"]
    outcome = compare_sides(a, b)
    assert outcome.pairs
    assert outcome.streams == ""
    row = next(row for row in outcome.measures if row.name == "continual/forgetting")
    assert row.difference == pytest.approx(-0.1 / 3)  # of one task of three
    assert several_streams(study(collect([tmp_path]))) == ""


def test_orders_that_are_on_one_side_only_are_different_streams(tmp_path):
    orders(tmp_path)
    a, b = choose(str(tmp_path / "naive" / "0"), str(tmp_path / "joint" / "1"))
    assert "task 1 is not the same" in compare_sides(a, b).streams


def checked(argv) -> int:
    with pytest.raises(SystemExit) as ended:
        check([str(word) for word in argv])
    return int(ended.value.code or 0)


def test_check_holds_runs_against_budgets_of_forgetting(tmp_path, capsys):
    path = stream_run(tmp_path / "a", continual())
    assert checked([path, "--budget", "continual/forgetting<=0.29"]) == 0
    assert checked([path, "--budget", "forgetting<=0.28"]) == 1
    capsys.readouterr()
    assert checked([path, "--budget", "continual/forward_transfer>=0"]) == 1
    assert (
        "classes that have not come yet cannot be predicted; leave this budget out" in capsys.readouterr().out
    )
    assert checked([stream_run(tmp_path / "b"), "--budget", "continual/forgetting<=1"]) == 1
    assert "train with dataset.stream=class" in capsys.readouterr().out


def test_a_run_on_another_stream_is_no_baseline(tmp_path):
    path = stream_run(tmp_path / "runs" / "a", continual(), compress=["distill"])
    stream_run(tmp_path / "runs" / "b")
    found = find_baseline(path, Card.read(path / "card.json"))
    assert found.card is None
    assert "learnt from another stream" in found.reason
    stream_run(tmp_path / "runs" / "c", continual())
    assert find_baseline(path, Card.read(path / "card.json")).run_dir == tmp_path / "runs" / "c"


def test_the_frontier_warns_of_several_streams(tmp_path, capsys):
    stream_run(tmp_path / "a", continual(), overrides=["dataset.stream=class"])
    stream_run(tmp_path / "b", continual("domain"), overrides=["dataset.stream=domain"])
    main(["report", str(tmp_path), "--y", "continual/average_accuracy", "--out", str(tmp_path)])
    assert "warning: the runs learnt from different streams" in capsys.readouterr().out
    main(["report", str(tmp_path), "--out", str(tmp_path)])
    assert "warning" not in capsys.readouterr().out


def test_curves_tell_the_accuracies_in_the_last_epoch_of_each_task():
    tasks = tuple(Task(name, *(np.arange(4),) * 3, (k,)) for k, name in enumerate(NAMES[:2]))
    streaming = Streaming(Stream("data", tasks, epochs=2), ["naive"], [], lambda task: 0, print)
    # as after a resume from the end of task 1: it has been begun and tested
    streaming.load_state_dict({"begun": 1, "accuracy": [[0.5, 0.25]]})
    module: Any = SimpleNamespace(figures={"privacy/epsilon": 1.0})

    def epoch(number: int) -> dict[str, float]:
        trainer: Any = SimpleNamespace(current_epoch=number)
        streaming.on_train_epoch_start(trainer, module)
        streaming.on_train_epoch_end(trainer, module)
        return dict(module.figures)

    assert epoch(0) == {"privacy/epsilon": 1.0}
    assert epoch(1) == {"privacy/epsilon": 1.0, "continual/accuracy_task_1": 0.5}
    streaming.load_state_dict({"begun": 2, "accuracy": [[0.5, 0.25], [0.4, 0.75]]})
    assert epoch(2) == {"privacy/epsilon": 1.0}  # the row of another epoch does not repeat them
    assert epoch(3)["continual/accuracy_task_2"] == 0.75


def half(low_high: tuple[float, float]) -> float:
    return (low_high[1] - low_high[0]) / 2


def test_intervals_from_the_test_images_of_each_task(tmp_path):
    card = Card.read(stream_run(tmp_path / "a", continual()) / "card.json")
    # of the average: four independent shares of 100 images, a quarter each
    four = sum(half(wilson(right, 100)) ** 2 for right in (30, 50, 65, 95))
    assert half(stream_interval(card, "continual/average_accuracy")) == pytest.approx(four**0.5 / 4)
    # of forgetting: the best and the last share of each of three tasks
    six = sum(half(wilson(right, 100)) ** 2 for right in (90, 30, 80, 50, 60, 65))
    found = stream_interval(card, "continual/forgetting")
    assert half(found) == pytest.approx(six**0.5 / 3)
    assert sum(found) / 2 == pytest.approx(0.85 / 3)
    assert stream_interval(card, "continual/forward_transfer") is None
    # portions are tested on the same images: their errors are one
    same = [[0.5, 0.5], [0.7, 0.7]]
    portions = continual("data", same, same, ("portion 1", "portion 2"))
    card = Card.read(stream_run(tmp_path / "b", portions) / "card.json")
    assert half(stream_interval(card, "continual/average_accuracy")) == pytest.approx(half(wilson(70, 100)))


def test_a_baseline_of_the_same_stream_is_better_or_worse_only_beyond_chance(tmp_path):
    cards = [
        Card.read(stream_run(tmp_path / name, found) / "card.json")
        for name, found in (
            ("a", continual()), ("near", continual(accuracy=[*R[:3], [0.32, 0.5, 0.65, 0.95]])),
            ("far", continual(accuracy=[*R[:3], [0.9, 0.8, 0.65, 0.95]])), ("other", continual("domain")),
        )
    ]  # fmt: skip

    def verdict(card: Card) -> tuple[str, str]:
        found = Comparison(card, Baseline(tmp_path, cards[0], "")).change("continual/forgetting")
        return found.verdict, found.word

    assert verdict(cards[1]) == ("unclear", "within noise")
    assert verdict(cards[2]) == ("better", "better")
    other = Card(cards[3].run, {}, {"continual/forgetting": 0.1}, {}, cards[3].provenance)
    assert verdict(other) == ("unclear", "other stream")
