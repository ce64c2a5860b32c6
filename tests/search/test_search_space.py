"""What is typed: settings, dimensions, conditions, and the study that they make."""

from __future__ import annotations

import json

import pytest

from effvit_train.compose import parse_overrides
from effvit_train.errors import UserError
from effvit_train.search.command import is_search, read_command
from effvit_train.search.definition import NAME, Definition, join, without_password
from effvit_train.search.space import entry_of, make_space


class Highest:
    """Draws the last choice and the upper end."""

    def suggest_categorical(self, name, choices):
        return choices[-1]

    def suggest_float(self, name, low, high, *, step, log):
        return high

    def suggest_int(self, name, low, high, *, step, log):
        return high


PRUNE = {
    "compress.prune.target.macs": {"low": 0.2, "high": 0.912345, "when": {"compress": "prune"}},
    "compress": {"choices": ["none", ["distill", "prune"]]},
}


def test_a_condition_is_met_by_a_value_in_a_list_and_drawn_after_it():
    drawn = make_space(PRUNE, {}).suggest(Highest())
    assert drawn == ["compress=[distill,prune]", "compress.prune.target.macs=0.9123"]
    without = {**PRUNE, "compress": {"choices": ["prune", "none"]}}
    assert make_space(without, {}).suggest(Highest()) == ["compress=none"]
    condition = {key: PRUNE[key] for key in ("compress.prune.target.macs",)}
    assert make_space(condition, {"compress": "[prune]"}).suggest(Highest()) == [
        "compress.prune.target.macs=0.9123"
    ]
    assert make_space(condition, {"compress": "none"}).suggest(Highest()) == []


def test_every_key_and_choice_is_probed_with_what_it_depends_on():
    assert make_space(PRUNE, {}).probes() == [
        ["compress=none"],
        ["compress=[distill,prune]"],
        ["compress=[distill,prune]", "compress.prune.target.macs=0.2"],
    ]


def test_whole_numbers_stay_whole():
    space = make_space({"a": {"low": 2, "high": 8, "step": 2}, "b": {"low": 2, "high": 8, "int": False}}, {})
    assert space.suggest(Highest()) == ["a=8", "b=8"]
    assert [dimension.whole for dimension in space.dimensions] == [True, False]


@pytest.mark.parametrize(
    ("typed", "entry"),
    [
        ("a=1,2", {"choices": ["1", "2"]}),
        ("compress=none,[distill,prune]", {"choices": ["none", "[distill,prune]"]}),
        ("a=choice(x,y)", {"choices": ["x", "y"]}),
        ("a=range(1,4)", {"choices": ["1", "2", "3"]}),
        ("a=interval(0,1)", {"low": 0.0, "high": 1.0, "int": False}),
        ("a=tag(log,interval(1e-4,1e-2))", {"low": 1e-4, "high": 1e-2, "int": False, "log": True}),
        ("a=int(interval(1,8))", {"low": 1, "high": 8, "int": True}),
    ],
)
def test_hydras_own_ways_to_write_a_sweep(typed, entry):
    (override,) = parse_overrides([typed])
    assert entry_of(override) == entry


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"low": 2, "high": 1}, r"sweep.space.a: low \(2\) must be below high \(1\)"),
        ({"low": 0, "high": 1, "log": True}, r"a logarithm needs low above 0, not 0"),
        ({"low": 1}, r"sweep.space.a.high=null: must be a number"),
        ({"low": 1, "high": "x"}, r"sweep.space.a.high=x: must be a number"),
        ({"lwo": 1, "high": 2}, r"sweep.space.a.lwo: unknown key; did you mean 'low'\?"),
        ({"choices": []}, r"sweep.space.a.choices=\[\]: must be a list"),
        ({"choices": [1, 1]}, r"names a choice twice"),
        ({"choices": [1], "low": 2}, r"has choices and a range"),
        (3, r"sweep.space.a=3: must be \{choices: .*a fixed value is typed as a=3"),
        ({"low": 0, "high": 1, "when": {"b": 1}}, r"when.b: is neither searched nor typed"),
        ({"low": 0.5, "high": 1, "int": True}, r"int needs whole numbers"),
    ],
)
def test_entries_that_cannot_be_are_one_line(entry, message):
    with pytest.raises(UserError, match=message):
        make_space({"a": entry}, {})


def test_conditions_in_a_circle_are_refused():
    entry = {"choices": [1, 2]}
    with pytest.raises(UserError, match="go in a circle"):
        make_space({"a": {**entry, "when": {"b": 1}}, "b": {**entry, "when": {"a": 1}}}, {})
    with pytest.raises(UserError, match=r"when.b=3: is never met: b is one of 1 2"):
        make_space({"a": {**entry, "when": {"b": 3}}, "b": entry}, {})


def test_what_is_typed_takes_the_place_of_the_files_space(tmp_path):
    words = ["sweep=pareto", "sweep.trials=7", f"run_dir={tmp_path}"]
    plain, typed, directory = read_command(words)
    assert directory == tmp_path
    assert typed == {"trials"}
    assert set(plain.sweep.space) == {"recipe.lr", "compress", "compress.prune.target.macs"}
    assert plain.sweep.trials == 7
    study, typed, _ = read_command([*words, "recipe.lr=0.001", "compress=none,distill", "model=vit_s"])
    assert typed == {"trials", "overrides"}
    assert study.fixed == ("recipe.lr=0.001", "model=vit_s")
    assert study.sweep.space == {"compress": {"choices": ["none", "distill"]}}  # nothing to prune any more
    study, typed, _ = read_command(
        [*words, "~sweep.space.recipe.lr", "sweep.space.model.args.depth={low:2,high:6}"]
    )
    assert typed == {"trials", "space"}
    assert set(study.sweep.space) == {"compress", "compress.prune.target.macs", "model.args.depth"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=pareta"], r"sweep=pareta: must be one of pareto; did you mean 'pareto'"),
        (["sweep=pareto", "sweep.trails=3"], r"sweep.trails: unknown key; did you mean 'trials'"),
        (["sweep=pareto", "sweep.trials=0"], r"sweep.trials=0: must be at least 1"),
        (["sweep=pareto", "sweep.trials=many"], r"sweep.trials=many: "),
        (["sweep=pareto", "sweep.sampler=nsga3"], r"must be one of tpe, nsga2, random"),
        (["sweep=pareto", "sweep.prune_after=1"], r"must be in \[0, 1\)"),
        (["sweep=pareto", "sweep.objectives=[]"], r"names nothing to search for"),
        (["sweep=pareto", "sweep.objectives=[accuracy,quality/accuracy]"], r"names a measure twice"),
        (
            ["sweep=pareto", "sweep.budgets=[cost/macs]"],
            r"sweep.budgets=cost/macs: must be a measure, one of",
        ),
        (["sweep=pareto", "sweep.seed=1,2"], r"sweep.seed: one value only"),
        (["sweep=pareto", "-m"], r"-m: a search runs many trials as it is; leave it out"),
        (["sweep=pareto", "hydra.run.dir=x"], r"hydra.run.dir: a search names its directories itself"),
        (["sweep.trials=3"], r"sweep: is needed; e.g. sweep=pareto"),
        (["sweep=pareto", "sweep.space={}"], r"there is nothing to search"),
    ],
)
def test_wrong_input_is_one_line(words, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_command([*words, f"run_dir={tmp_path}"])


def test_a_users_own_option(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "space: {seed: {choices: [1, 2]}}\nobjectives: [accuracy]\n"
    )
    study, _, _ = read_command(["--config-dir", str(tmp_path), "sweep=mine", f"run_dir={tmp_path}"])
    assert study.sweep.objectives == ["quality/accuracy"]
    assert study.flags == ("--config-dir", str(tmp_path))


def command(tmp_path, *words):
    wanted, typed, directory = read_command(["sweep=pareto", f"run_dir={tmp_path}", *words])
    return join(directory, wanted, typed)


def test_the_same_directory_joins_the_same_study(tmp_path):
    first = command(tmp_path, "model=vit_s", "sweep.trials=5")
    assert command(tmp_path) == first
    assert command(tmp_path, "model=vit_s", "sweep.trials=5") == first
    more = command(tmp_path, "sweep.trials=9", "sweep.workers=3")
    assert (more.study, more.sweep.trials, more.sweep.workers) == (first.study, 9, 3)
    again = command(tmp_path)  # more trials are kept, how many workers is a matter of the command
    assert (again.sweep.trials, again.sweep.workers) == (9, 1)
    assert is_search([f"resume={tmp_path}"])
    assert read_command([f"resume={tmp_path}"])[0].option == "pareto"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model=vit_ti", r"was begun with model=vit_s, not model=vit_ti"),
        ("sweep.seed=4", r"sweep.seed=4: the study in .* was begun with 0"),
        ("recipe.lr=1,2", r"searches recipe.lr otherwise"),
        ("sweep.objectives=[accuracy]", r"was begun with \['quality/accuracy', 'cost/macs'\]"),
        ("sweep.storage=sqlite:///x", r"sweep.storage=sqlite:///x: the study in .* was begun with None"),
    ],
)
def test_another_study_in_the_same_directory_is_refused(tmp_path, word, message):
    command(tmp_path, "model=vit_s")
    with pytest.raises(UserError, match=message):
        command(tmp_path, word)


def test_who_comes_second_takes_what_the_first_has_written(tmp_path, monkeypatch):
    first = command(tmp_path)
    stored = (tmp_path / NAME).read_text()
    monkeypatch.setattr(type(tmp_path), "exists", lambda self: False)  # as seen just before
    assert command(tmp_path) == first
    assert (tmp_path / NAME).read_text() == stored
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_password_is_not_written(tmp_path):
    url = "postgresql://me:secret@host:5432/db"
    assert without_password(url) == "postgresql://me:***@host:5432/db"
    assert without_password("sqlite:////tmp/a@b.db") == "sqlite:////tmp/a@b.db"
    assert without_password(None) is None
    assert command(tmp_path, f"sweep.storage={url}").sweep.storage == url
    assert "secret" not in (tmp_path / NAME).read_text()
    assert command(tmp_path, f"sweep.storage={url}").sweep.storage == url
    with pytest.raises(UserError, match=r"has a password, which was not kept; give sweep.storage=URL again"):
        command(tmp_path)


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"schema": 7}))
    with pytest.raises(UserError, match="is not a study"):
        Definition.read(tmp_path / NAME)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run, not a study"):
        command(tmp_path)
