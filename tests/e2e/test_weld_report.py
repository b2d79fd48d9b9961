"""What a weld run and its evaluation write down: classes as a table, the defect of each run, intervals."""

import csv
from pathlib import Path

import evaluate as evaluate_script
from anomaly_lib.systems.registry import SYSTEMS


def test_classes_stand_in_tables_and_every_prediction_names_its_defect(tmp_path: Path) -> None:
    result = SYSTEMS["causal_film"].train(SYSTEMS["causal_film"].tiny(epochs=1, output_dir=str(tmp_path / "run")))
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "the best single modality, " in log
    assert "95 % of 1000 resamples of 2 good and 11 defective welds" in log
    out = tmp_path / "evaluation"
    words = ["--checkpoint", str(result.checkpoint), "--output-dir", str(out), "--report", str(tmp_path / "page")]
    assert evaluate_script.main([*words, "--no-figures"]) == 0
    trained, evaluated = ((place / "classes.csv").read_text() for place in (tmp_path / "run", out))
    assert trained == evaluated
    rows = list(csv.DictReader(trained.splitlines()))
    assert [rows[0]["class"], rows[0]["n"], rows[0]["auroc"]] == ["good", "2", ""]
    assert len(rows) == 12
    predictions = list(csv.DictReader((out / "predictions.csv").read_text().splitlines()))
    assert {row["defect"] for row in predictions} == {row["class"] for row in rows}
    assert all((row["defect"] == "good") == (row["label"] == "0") for row in predictions)
    page = (tmp_path / "page" / "index.html").read_text()
    assert "classes of demo-best" in page
    assert "excessive_convexity" in page
