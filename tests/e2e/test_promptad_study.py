"""scripts/promptad/study_options.py at tiny scale: one training a class, every option measured, the study goes on."""

import json
from pathlib import Path

import pytest

from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.systems.promptad import train
from scripts.promptad import study_options


def test_study_measures_every_option_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANOMALY_LIB_DATA", raising=False)
    folder = tmp_path / "out" / "data" / "demo"
    write_demo(folder, categories=["grid", "woven"], size=64, train=4, test_good=3, per_defect=1)
    scale = ["--epochs", "2", "--shot", "2", "--resolution", "32", "--backbone", "tiny-clip", "--tasks", "cls"]
    place = ["--output-dir", str(tmp_path / "out"), "--results", str(tmp_path / "rows.json")]
    command = [*place, *scale, "--classes", "grid", "woven"]
    assert study_options.main(command) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    plain = [study_options.EXP, *(name for name in study_options.VARIANTS if "ViT" not in name)]
    assert sorted(rows) == sorted(f"demo|{c}|cls|{v}" for c in ("grid", "woven") for v in [*plain, study_options.MULTI])
    # The row "default" is what the training itself reports.
    same = study_options.Args(output_dir=place[1], epochs=2, shot=2, resolution=32, backbone="tiny-clip")
    alone = train.train(study_options.options(same, folder, "cls", "grid"))
    assert rows["demo|grid|cls|default"]["image_auroc"] == pytest.approx(alone.metrics["image_auroc"], abs=1e-4)
    assert rows["demo|grid|cls|default"]["textual_auroc"] == rows["demo|grid|cls|`--memory-views all`"]["textual_auroc"]
    table = study_options.table_of(rows, "demo")
    assert len(table.splitlines()) == 2 + len(plain) + 1

    monkeypatch.setattr(train, "train", lambda args: pytest.fail("trained again"))
    assert study_options.main(command) == 0
