"""Run directories made by hand."""

import pytest
from made import make_run


@pytest.fixture
def run():
    return make_run
