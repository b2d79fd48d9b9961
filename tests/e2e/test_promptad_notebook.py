"""notebooks/promptad.ipynb runs from the first cell to the last, and is committed without outputs."""

from pathlib import Path

import pytest

from tests.support.notebooks import cells_of, run_notebook


def test_notebook_is_clean_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of("promptad.ipynb")
    assert len(cells) <= 15
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    small = {"epochs=30": 'epochs=2, cache="ram", image_size=[64]'}
    names = run_notebook("promptad.ipynb", tmp_path, monkeypatch, small)
    assert len(names["decision"]) == 10
    assert 0 <= names["result"].metrics["image_auroc"] <= 1
    assert (tmp_path / "runs" / "notebook_seg" / "checkpoint.pt").is_file()
