"""notebooks/promptad.ipynb runs from the first cell to the last, and is committed without outputs."""

import json
import runpy
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "promptad.ipynb"


def test_notebook_is_clean_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 15
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    script = tmp_path / "notebook.py"
    script.write_text("\n\n".join(code).replace("epochs=30", 'epochs=2, cache="ram", image_size=[64]'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = runpy.run_path(str(script))
    assert len(names["decision"]) == 10
    assert 0 <= names["result"].metrics["image_auroc"] <= 1
    assert (tmp_path / "runs" / "notebook_seg" / "checkpoint.pt").is_file()
