"""Every technique with a kill, distillation, pruning and private training: as docs/composition.md says."""

from __future__ import annotations

import matrix
import pytest


@pytest.mark.long
@pytest.mark.parametrize("column", matrix.COLUMNS)
@pytest.mark.parametrize("technique", matrix.TECHNIQUES)
def test_what_goes_with_what(technique, column, tmp_path_factory, monkeypatch):
    root = tmp_path_factory.getbasetemp() / "matrix"
    root.mkdir(exist_ok=True)
    matrix.prepare(root, monkeypatch)
    directory = root / f"{len(list(root.iterdir()))}"
    directory.mkdir()
    assert matrix.outcome(technique, column, directory, monkeypatch) == matrix.read()[technique, column]


def test_the_table_tells_all_of_them():
    assert set(matrix.read()) == {(t, c) for t in matrix.TECHNIQUES for c in matrix.COLUMNS}
