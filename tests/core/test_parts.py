from __future__ import annotations

import pytest

from effvit_train.config import Config
from effvit_train.errors import UserError
from effvit_train.parts import MIXES_SAMPLES, RECIPE_PARTS, Part, check_composition

STRICT = Part(
    name="strict",
    key="privacy",
    active=lambda config: True,
    refuses={MIXES_SAMPLES: "clips each sample by itself"},
)


def _config(mixup: float) -> Config:
    config = Config()
    config.recipe.mixup = mixup
    return config


def test_what_the_user_typed_is_refused_by_name_with_the_reason():
    with pytest.raises(UserError) as caught:
        check_composition(_config(0.8), [STRICT, *RECIPE_PARTS], {"recipe.mixup"}, print)
    assert str(caught.value) == (
        "recipe.mixup=0.8: cannot be combined with privacy=strict, which clips each sample by itself; "
        "leave out recipe.mixup or privacy=strict"
    )


def test_what_only_a_default_brought_in_is_switched_off_with_one_line():
    config, lines = _config(0.8), []
    check_composition(config, [STRICT, *RECIPE_PARTS], {"privacy"}, lines.append)
    assert config.recipe.mixup == 0
    assert lines == ["recipe.mixup switched off: privacy=strict clips each sample by itself"]


def test_what_is_not_active_is_no_conflict():
    lines: list[str] = []
    check_composition(_config(0.0), [STRICT, *RECIPE_PARTS], {"recipe.mixup"}, lines.append)
    assert lines == []


def test_what_cannot_be_switched_off_is_refused_even_if_not_typed():
    fixed = Part(name="bn", key="model", active=lambda c: True, does=frozenset({MIXES_SAMPLES}))
    with pytest.raises(UserError, match="privacy=strict"):
        check_composition(_config(0.0), [STRICT, fixed], set(), print)
