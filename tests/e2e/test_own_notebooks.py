"""notebooks/own_parts.ipynb and modules.ipynb run from the first cell to the last and keep their pictures."""

from pathlib import Path

import pytest

from tests.support.notebooks import cells_of, run_notebook


@pytest.mark.parametrize("name", ["own_parts.ipynb", "modules.ipynb"])
def test_kept_as_it_was_run(name: str) -> None:
    code = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]
    assert "%pip install anomaly_lib" in "".join(code[0]["source"])  # Colab's first cell, commented
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    kept = "".join(str(output.get("data", {})) for output in outputs)
    assert "image/png" in kept or "data:image/jpeg;base64" in kept


@pytest.mark.slow
def test_own_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_notebook("own_parts.ipynb", tmp_path, monkeypatch)
    assert len(names["result"]) == 2
    assert names["result"].anomalous.tolist() == [True, False]
    assert 0.5 < names["found"].metrics["image_auroc"] <= 1
    for name in ("report/index.html", "part.pt", "part.pt2", "part.json"):
        assert (tmp_path / name).is_file()


@pytest.mark.slow
def test_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_notebook("modules.ipynb", tmp_path, monkeypatch)
    assert names["prediction"].map.shape == (8, 128, 128)
    assert names["answer"].score.shape == (2,)
