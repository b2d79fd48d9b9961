"""notebooks/weld.ipynb runs from the first cell to the last, and is committed without outputs."""

from pathlib import Path

import pytest

from tests.support.notebooks import cells_of, run_notebook


def test_the_notebook_is_clean() -> None:
    cells = cells_of("weld.ipynb")
    assert len(cells) <= 15
    assert all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = "d_model=16, sensor_hidden=16, video_frames=2, video_size=32, image_size=[32], views=2, audio_frames=32"
    few = "demo_train=8, demo_good=2, demo_defects=1"
    small = {
        "epochs=30": f"epochs=1, {tiny}, {few}",
        "quick_test=True": f"quick_test=True, {tiny.replace('d_model=16, sensor_hidden=16', 'hidden_dim=16')}",
    }
    names = run_notebook("weld.ipynb", tmp_path, monkeypatch, small)
    assert len(names["found"]) == len(names["runs"]) == 4
    assert list(names["table"].index) == [run.class_name for run in names["runs"]]
    assert names["answer"]["logits"].shape == (2, 12)
    assert (tmp_path / "runs" / "notebook_v4" / "best_model.pth").is_file()
