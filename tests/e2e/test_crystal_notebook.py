"""notebooks/crystal.ipynb runs from the first cell to the last; the outputs it is committed with are those of a run."""

from pathlib import Path

import pytest

from tests.support.notebooks import cells_of, run_notebook


def test_notebook_runs_and_keeps_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = cells_of("crystal.ipynb")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 15
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(cell["outputs"] for cell in code)
    assert sum(len(str(cell["outputs"])) for cell in code) < 10_000
    small = {"epochs=20": "epochs=2, n_train=32, n_val=16, n_test=16", "hidden_features=32": "hidden_features=8"}
    names = run_notebook("crystal.ipynb", tmp_path, monkeypatch, small)
    assert names["prediction"].score.isfinite().all()
    assert 0 < float(names["prediction"].parts["layer_1"]) < 1
    assert set(names["history"]) == {"loss", "mae"}
    assert names["summary"].recommended_scale > 0
    assert (tmp_path / "runs" / "notebook" / "formation_energy_peratom" / "best_model.pt").is_file()
