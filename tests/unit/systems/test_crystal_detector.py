"""A trained crystal detector: what it takes, which parameters it uses, what it says of chosen samples."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import anomaly_lib
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import summary
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.metrics import mae
from anomaly_lib.systems.crystal import detector as crystal_detector
from anomaly_lib.systems.crystal.data.demo import demo_table, write_crystal_demo
from anomaly_lib.systems.crystal.data.structure import Crystal, write_cif
from anomaly_lib.systems.crystal.detector import CrystalDetector
from anomaly_lib.systems.crystal.options import Args, tiny
from anomaly_lib.systems.crystal.train import train
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.types import RunResult

ROWS = demo_table(count=4, seed=0).rows
TEXTS = [row.text for row in ROWS]
CRYSTALS = [row.source for row in ROWS if isinstance(row.source, Crystal)]


def trained(folder: Path, **changes: Any) -> RunResult:
    return train(tiny(output_dir=str(folder), epochs=1, device="cpu", **changes))


def write_poscar(path: Path, crystal: Crystal) -> None:
    rows = "\n".join(" ".join(f"{x:.10f}" for x in row) for row in crystal.lattice)
    sites = "\n".join(" ".join(f"{x:.10f}" for x in row) for row in crystal.frac_coords)
    names = list(dict.fromkeys(crystal.symbols))
    counts = " ".join(str(crystal.symbols.count(name)) for name in names)
    path.write_text(f"x\n1.0\n{rows}\n{' '.join(names)}\n{counts}\nDirect\n{sites}\n")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return trained(tmp_path_factory.mktemp("averaged"), ema_decay=0.9, select="last")


@pytest.fixture(scope="module")
def detector(averaged: RunResult) -> CrystalDetector:
    return anomaly_lib.load(averaged.checkpoint)


def test_files_crystals_and_pairs_are_the_same_input(detector: CrystalDetector, tmp_path: Path) -> None:
    salt = CRYSTALS[0]
    write_cif(tmp_path / "a.cif", salt)
    write_poscar(tmp_path / "POSCAR", salt)
    want = detector.predict((salt, TEXTS[0]))
    assert want.score.shape == (1,)
    assert want.anomalous is None
    assert {name: tuple(value.shape) for name, value in want.parts.items()} == {"layer_1": (1,)}
    for structure in (tmp_path / "a.cif", str(tmp_path / "a.cif"), tmp_path / "POSCAR"):
        torch.testing.assert_close(detector.predict((structure, TEXTS[0])).score, want.score, rtol=1e-3, atol=1e-3)
    many = detector.predict([(tmp_path / "a.cif", TEXTS[0]), *zip(CRYSTALS[1:], TEXTS[1:], strict=True)])
    assert many.score.shape == (4,)
    torch.testing.assert_close(many.score[:1], want.score, rtol=1e-3, atol=1e-3)
    other = detector.predict((salt, "The sample was pressed at 5 GPa."))
    assert not torch.allclose(other.score, want.score, atol=1e-4)  # the text is read


def test_a_prediction_equals_that_of_the_run(detector: CrystalDetector, averaged: RunResult) -> None:
    data = detector.load_data()
    rows = [data.rows[i] for i in data.split.test]
    found = detector.predict([(row.source, row.text) for row in rows]).score
    with open(averaged.run_dir / "predictions_best_val_model_test.csv", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["id"] for row in written] == [row.id for row in rows]
    np.testing.assert_allclose(found, [float(row["prediction"]) for row in written], atol=1e-4)
    target = np.array([float(row["target"]) for row in written])
    assert averaged.metrics["test_mae"] == pytest.approx(mae(found, target), abs=1e-5)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (3, "cannot predict int: give a structure file"),
        (np.zeros((3, 3)), "cannot predict ndarray"),
        ((CRYSTALS[0], CRYSTALS[1]), "cannot predict tuple"),
        ([CRYSTALS[0], None], "cannot predict NoneType"),
        ([], "no crystals"),
        (CRYSTALS[0], r"reads text and none was given: give text=, or install robocrystallographer: pip install"),
        ([(CRYSTALS[0], "x"), CRYSTALS[1]], "reads text and none was given"),
        ("nowhere.cif", "nowhere.cif: no such structure file"),
        (("nowhere.pdb", "x"), "no such structure file"),
    ],
)
def test_wrong_inputs_say_what_was_expected(detector: CrystalDetector, inputs: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        detector.predict(inputs)
    assert "\n" not in str(refused.value)
    assert "--" not in str(refused.value)


def test_the_text_may_stand_beside_the_structures(detector: CrystalDetector, tmp_path: Path) -> None:
    path = tmp_path / "POSCAR"
    write_poscar(path, CRYSTALS[0])
    want = detector.predict((path, TEXTS[0])).score
    assert torch.equal(detector.predict(str(path), text=TEXTS[0]).score, want)
    many = detector.predict(CRYSTALS[:3], text=TEXTS[:3]).score
    assert torch.equal(many, detector.predict(list(zip(CRYSTALS[:3], TEXTS[:3], strict=True))).score)
    for inputs, text, said in (
        (CRYSTALS[:2], TEXTS[:3], "text=: 3 descriptions for 2 structures"),
        (CRYSTALS[:2], TEXTS[0], "text=: 1 descriptions for 2 structures"),
        ((CRYSTALS[0], TEXTS[0]), TEXTS[0], "text=: the structures have descriptions already"),
        (CRYSTALS[0], [3], "cannot predict tuple"),
    ):
        with pytest.raises(UserError, match=said):
            detector.predict(inputs, text=text)


def test_what_has_no_description_is_described(
    detector: CrystalDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By robocrystallographer, which tests/unit/data/test_crystal_data.py runs where it is installed."""
    asked: list[str] = []

    def describe(crystal: Crystal) -> str:
        asked.append(crystal.name)
        return TEXTS[2]

    write_cif(tmp_path / "x.cif", CRYSTALS[0])
    want = detector.predict([(tmp_path / "x.cif", TEXTS[2]), (CRYSTALS[1], TEXTS[1])]).score
    monkeypatch.setattr(crystal_detector, "describe_with_robocrystallographer", describe)
    found = detector.predict([tmp_path / "x.cif", (CRYSTALS[1], TEXTS[1])]).score
    assert torch.equal(found, want)
    assert asked == [str(tmp_path / "x.cif")]


def test_a_model_without_text_refuses_one(tmp_path: Path) -> None:
    graph_only = anomaly_lib.load(trained(tmp_path, modality="graph", use_middle_fusion=False).checkpoint)
    assert graph_only.predict(CRYSTALS[0]).score.shape == (1,)
    with pytest.raises(UserError, match="text=: this model reads no text"):
        graph_only.predict(CRYSTALS[0], text=TEXTS[0])


def test_averaged_and_raw_parameters(detector: CrystalDetector, averaged: RunResult) -> None:
    content = torch.load(averaged.checkpoint, weights_only=True)
    raw = SYSTEMS.load(averaged.checkpoint, which="raw")
    name = "fc.weight"
    assert torch.equal(detector.model.state_dict()[name], content["ema"]["shadow"][name])
    assert torch.equal(raw.model.state_dict()[name], content["model"][name])
    assert not torch.equal(content["model"][name], content["ema"]["shadow"][name])
    assert (detector.facts.shown["ema"], raw.facts.shown["ema"]) == (True, False)
    assert raw.predict((CRYSTALS[0], TEXTS[0])).score != detector.predict((CRYSTALS[0], TEXTS[0])).score


def test_splits_and_other_data(detector: CrystalDetector, tmp_path: Path) -> None:
    write_crystal_demo(tmp_path, count=80)
    for split in ("train", "val", "test"):
        assert len(detector.items(Choice(split=split)).items) == {"train": 48}.get(split, 16)
    selection = detector.items(Choice(data_path=str(tmp_path), split="val", batch_size=5))
    assert selection.name == "jarvis formation_energy_peratom"
    scores = detector.score(selection)
    assert (len(scores), scores.kind, scores.split) == (16, "regression", "val")
    assert summary(scores)["val_mae"] == pytest.approx(mae(scores.scores, scores.labels))
    with pytest.raises(UserError, match=r"^dataset=class: has no effect without data_path="):
        detector.items(Choice(dataset="class"))


def test_graph_only_models_need_no_text(tmp_path: Path) -> None:
    result = train(
        Args(modality="graph", output_dir=str(tmp_path), epochs=1, n_train=32, n_val=16, n_test=16, hidden_features=16,
             device="cpu", figures=False, cache="ram")
    )  # fmt: skip
    detector = anomaly_lib.load(result.checkpoint)
    assert detector.facts.weights == {}
    alone, described = detector.predict(CRYSTALS), detector.predict(list(zip(CRYSTALS, TEXTS, strict=True)))
    assert torch.equal(alone.score, described.score)
    assert len(alone) == 4
    with pytest.raises(UserError, match="weights=x: hashed-text has none"):
        SYSTEMS.load(result.checkpoint, weights="x")


def test_classification_decides(tmp_path: Path) -> None:
    write_crystal_demo(tmp_path / "demo", count=60)
    source, target = (tmp_path / "demo" / one for one in ("jarvis/formation_energy_peratom", "class/stable"))
    target.parent.mkdir()
    source.rename(target)
    with open(target / "description.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.reader(stream))[1:]
    with open(target / "description.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["id", "y", "text"], *([r[0], int(float(r[2]) > -1), r[3]] for r in rows)])
    result = train(
        Args(data_path=str(tmp_path / "demo"), dataset="class", property="stable", classification=True, epochs=2,
             classification_threshold=0.45, hidden_features=16, alignn_layers=1, gcn_layers=1, batch_size=16,
             cache="ram", device="cpu", output_dir=str(tmp_path / "out"))
    )  # fmt: skip
    assert {"val_accuracy", "test_precision", "test_recall", "test_auroc"} <= set(result.metrics)
    assert (result.run_dir / "figures" / "scores.png").is_file()
    closing = read_json(result.run_dir / "run.json")["closing"]
    assert "decision: anomalous from score 0.45 on (classification_threshold of the training run)" in closing
    detector = anomaly_lib.load(result.checkpoint)
    scores = detector.score(detector.items())
    assert scores.kind == "classification"
    found = summary(scores, detector.decision)
    assert found["test_accuracy"] == pytest.approx(float(((scores.scores > 0.45) == scores.labels).mean()))
    assert found["test_accuracy"] == pytest.approx(result.metrics["test_accuracy"])
    prediction = detector.predict(list(zip(CRYSTALS, TEXTS, strict=True)))
    assert ((prediction.score > 0) & (prediction.score < 1)).all()
    assert prediction.threshold == 0.45
    assert prediction.anomalous.tolist() == (prediction.score >= 0.45).tolist()


def test_choosing_on_the_test_split_is_called_oracle(tmp_path: Path) -> None:
    result = trained(tmp_path, select="best-on-test")
    assert "oracle_test_mae" in result.metrics
    assert "test_mae" not in result.metrics
    closing = read_json(result.run_dir / "run.json")["closing"]
    assert "[oracle: epoch chosen on the test split]" in closing[0]
    detector = anomaly_lib.load(result.checkpoint)
    assert detector.facts.remarks() == ["oracle: epoch chosen on the test split"]
    assert summary(detector.score(detector.items()))["oracle_test_mae"] == pytest.approx(
        result.metrics["oracle_test_mae"]
    )
    assert "val_mae" in summary(detector.score(detector.items(Choice(split="val"))))


def test_a_run_opens_and_closes_as_all_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = tiny(output_dir=str(tmp_path), epochs=1, device="cpu", fusion_strategy="concat", figures=True)
    result = train(args)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "crystal formation_energy_peratom: both, 320 crystals"
    assert said[4] == "cost: 320 structures to make graphs of, 59 texts to encode; what is cached is not done again"
    assert said.count("fusion_strategy=concat has no meaning here") == 1
    assert sum(line.startswith("epoch 1/1: train_loss") for line in said) == 1
    assert any(line.startswith("Best Test MAE: ") for line in said)  # tools of the published program look for it
    assert (result.run_dir / "figures" / "parity.png").is_file()
    assert result.run_dir == tmp_path / "formation_energy_peratom"
    assert train(args).already_done
    assert not train(replace(args, resume="1")).already_done  # as published: goes on, and there is nothing left to do
    assert capsys.readouterr().out.splitlines()[-4:] == said[-4:]
