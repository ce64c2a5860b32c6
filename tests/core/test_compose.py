"""Composition, as Hydra does it, into our validated objects; and errors into one line."""

from __future__ import annotations

import itertools

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from effvit_train.compose import (
    GROUPS,
    conf_dir,
    explain,
    group_options,
    load,
    register,
    settings_of_swept_groups,
)
from effvit_train.errors import UserError
from effvit_train.privacy.config import PrivacyConfig


def composed(*overrides: str):
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=list(overrides))
    cfg.run_dir = cfg.name = ""  # they name the running job
    return load(cfg, list(overrides), print)


def refused(*overrides: str) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (Hydra's, OmegaConf's or ours)
        composed(*overrides)
    ours = explain(caught.value, list(overrides))
    assert ours is not None, caught.value
    return str(ours)


OPTIONS = [(group, option) for group in GROUPS for option in group_options(group)]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes_and_validates(group, option):
    composed(f"{group}={option}", *(["dataset.stream=class"] if group == "continual" else []))


def test_every_dataset_composes_with_every_model():
    for model, dataset in itertools.product(group_options("model"), group_options("dataset")):
        assert composed(f"model={model}", f"dataset={dataset}").trainer.max_epochs > 0


def test_tuned_values_follow_the_data_set_and_yield_to_the_user():
    assert composed().trainer.max_epochs == 150
    assert composed("dataset=fashion_mnist").trainer.max_epochs == 10
    assert composed("dataset=fashion_mnist", "trainer.max_epochs=3").trainer.max_epochs == 3
    assert composed("recipe=deit").trainer.max_epochs == 100  # another recipe: the tuning is not for it


def test_compress_takes_one_or_several():
    assert list(composed().compress) == []
    assert list(composed("compress=none").compress) == []
    assert composed("compress=distill").compress["distill"].temperature == 1.0
    config = composed("compress=[distill]", "compress.distill.temperature=3")
    assert config.compress["distill"].temperature == 3.0


def test_a_model_name_replaces_the_groups_arguments_but_not_those_typed():
    assert composed().model.args["depth"] == 4
    config = composed("model.name=vit_small_patch16_224", "model.args.depth=2")
    assert config.model.args == {"depth": 2}
    assert config.model.patch_size is None
    assert composed("model.name=vit_small_patch16_224", "model.patch_size=4").model.patch_size == 4


def test_a_model_name_replaces_a_stem_and_a_head_of_ours_too():
    group = composed("model=vit_scatter").model
    assert (group.stem, group.pool) == ("scattering", "flat")
    other = composed("model=vit_scatter", "model.name=vit_small_patch16_224", "model.pool=avg").model
    assert (other.stem, other.pool) == (None, "avg")


def test_an_experiment_without_privacy_is_what_privacy_none_says():
    assert composed("experiment=dp_fashion_mnist").privacy.epsilon == 3.0
    assert composed("experiment=dp_fashion_mnist", "privacy=none").privacy == PrivacyConfig()
    line = refused("experiment=dp_fashion_mnist", "privacy=none", "privacy.epsilon=2")
    assert line.startswith("privacy.epsilon=2.0: has no effect without differential privacy")


CASES = [
    ("recipe.lrr=1", "recipe.lrr: unknown key; did you mean recipe.lr?"),
    ("trainer.max_epochs=abc", "trainer.max_epochs=abc: must be a whole number"),
    ("trainer.max_epochs=0", "trainer.max_epochs=0: must be at least 1"),
    ("model=vit_ss", "model=vit_ss: must be one of"),
    ("model=vit_ss", "did you mean 'vit_s'?"),
    ("modle=vit_s", "modle: unknown key; did you mean model?"),
    ("+foo=1", "foo: unknown key"),
    ("compress.distill.weight=1", "compress.distill: distill is not switched on; add compress=distill"),
    ("compress=[none,distill]", "compress=none,distill: none cannot be combined"),
    ("compress=[distill,distill]", "compress"),
    ("seed=-1", "seed=-1: must be at least 0"),
    ("recipe.lr=", "recipe.lr"),
    ("dataset.val_fraction=1.5", "dataset.val_fraction=1.5: must be in [0, 1)"),
    ("dataset.on_bad_image=ignore", "dataset.on_bad_image=ignore: must be one of error, skip"),
    ("recipe.schedule=cosin", "did you mean 'cosine'?"),
    ("trainer.precision=fp8", "trainer.precision=fp8: must be one of"),
    ("trainer.checkpoint_every=5", "trainer.checkpoint_every=5: must be a time"),
    ("privacy=dp-sgd", "privacy=dp-sgd: must be one of dp_sgd, none; did you mean 'dp_sgd'?"),
]


@pytest.mark.parametrize(("override", "line"), CASES)
def test_a_wrong_override_is_one_line(override, line):
    message = refused(override)
    assert line in message
    assert "\n" not in message


def test_distill_is_validated_with_its_own_keys():
    assert "compress.distill.temperature=0" in refused("compress=distill", "compress.distill.temperature=0")
    message = refused("compress=distill", "compress.distill.temprature=3")
    assert message == "compress.distill.temprature: unknown key; did you mean compress.distill.temperature?"
    assert "compress.distill.weights" in refused("compress=distill", "compress.distill.weights=x.pt")


def test_pretrained_and_weights_exclude_each_other():
    assert "model.weights=x" in refused("model.pretrained=true", "model.weights=x")


def test_an_error_that_is_not_the_users_is_not_explained():
    assert explain(RuntimeError("boom"), []) is None
    assert isinstance(explain(UserError("x"), []), UserError)


def test_the_stored_configuration_is_plain_yaml():
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=["compress=distill"])
    assert "!!python" not in OmegaConf.to_yaml(cfg)


def test_settings_of_a_swept_group_are_choices_of_one():
    typed = [
        "-m", "compress=[prune],[distill,prune]", "compress.prune.target.macs=0.5", "model.args.depth=2",
        "+compress.prune.x='a b'", "compress.prune.rounds=1,2",
    ]  # fmt: skip
    assert settings_of_swept_groups(typed) == [
        *typed[:2], "compress.prune.target.macs=choice(0.5)", typed[3], "+compress.prune.x=choice('a b')", typed[5],
    ]  # fmt: skip
    fixed = ["-m", "compress=prune", "compress.prune.target.macs=0.5", "seed=1,2"]
    assert settings_of_swept_groups(fixed) == fixed
