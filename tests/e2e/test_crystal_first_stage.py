"""The first stage of the user's document on a checkpoint of his own: every command as it is written there.

`best_test_model.pt` is one of the original program's, with its pickled configuration; MatSciBERT is a small random BERT
in its place, found where a downloaded one is.
"""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import anomaly_lib
from anomaly_lib.systems.crystal.data.demo import demo_table, write_crystal_demo
from tests.support import crystal_originals as originals
from tests.support.programs import load_script

PROPERTY = "formation_energy_peratom"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scratch folder: dataset/, the user's checkpoint in work/, and a folder of weights."""
    root = tmp_path_factory.mktemp("first stage")
    write_crystal_demo(root / "dataset", count=60)
    (root / "work").mkdir()
    (root / "weights").mkdir()
    originals.tiny_bert(root / "weights" / "matscibert")
    net = originals.sage(layers_of_text=(1, 2))
    originals.best_test_model(root / "work", net, middle_fusion_layers="1,2")
    return root


@pytest.fixture(autouse=True)
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "work")
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(place / "weights"))


def said_by(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a line of the document (its programs lie in scripts/crystal) and give what it prints."""
    name, *words = command.split()
    folder = "" if name == "evaluate.py" else "scripts/crystal/"
    assert load_script(f"{folder}{name}").main(words) == 0
    return capsys.readouterr().out


def test_the_first_stage_as_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = said_by(
        "scale_checkpoint_weights.py --input_checkpoint best_test_model.pt "
        "--output_checkpoint best_test_model_scaled_12.0.pt --scale_factor 12.0",
        capsys,
    )
    assert len(re.findall(r"L2 norm [\d.]+ -> [\d.]+", said)) == 4  # weight and bias after both layers
    snippet = (  # the document's own look into a checkpoint
        "import torch; ckpt = torch.load('best_test_model_scaled_12.0.pt'); "
        "[print(k, v.item()) for k, v in ckpt['model'].items() if 'text_scale' in k]"
    )
    shown = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True).stdout
    assert shown.splitlines() == [f"middle_fusion_modules.layer_{place}.text_scale 1.0" for place in (1, 2)]
    said = said_by(  # without a property it is that of the original's tools
        "diagnose_fusion_effectiveness.py --checkpoint best_test_model_scaled_12.0.pt --root_dir ../dataset/", capsys
    )
    assert said.startswith("oracle: epoch chosen on the test split\n")
    assert re.findall(r"^(layer_\d): 60 crystals", said, re.MULTILINE) == ["layer_1", "layer_2"]
    said = said_by(
        "1.extract_alpha_final.py --checkpoint best_test_model_scaled_12.0.pt --root_dir ../dataset/ --dataset jarvis "
        f"--property {PROPERTY} --n_samples 40",
        capsys,
    )
    assert re.findall(r"^(layer_\d): alpha: mean", said, re.MULTILINE) == ["layer_1", "layer_2"]
    with np.load("alpha_values.npz", allow_pickle=False) as values:
        assert len(values["jids"]) == 40
        assert str(values["layer"]) == "layer_1"
        assert values["alphas"].shape == values["alphas_layer_2"].shape
        assert not np.allclose(values["alphas"], values["alphas_layer_2"], atol=1e-3)
    said_by("2.create_paper_alpha_figures.py", capsys)
    names = {path.name for path in Path("paper_figures").iterdir()}
    assert {"figure_gate_analysis.pdf", "figure_gate_analysis_layer_2.pdf", "element_alpha_statistics.csv",
            "element_alpha_statistics_layer_2.csv"} <= names  # fmt: skip
    said = said_by(
        "compare_fusion_models.py --model1 best_test_model.pt --model2 best_test_model_scaled_12.0.pt "
        "--root_dir ../dataset/ --n_samples 50",
        capsys,
    )
    ratios = re.findall(r"^node/text ratio before the gate norm +([\d.]+) +([\d.]+)", said, re.MULTILINE)
    assert len(ratios) == 2  # of both layers
    assert float(ratios[0][0]) == pytest.approx(12 * float(ratios[0][1]), rel=0.02)
    assert said.count("oracle_test_mae") == 2  # theirs was chosen on the test set


def test_evaluate_load_and_predict(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--data-path ../dataset --figures False --bootstrap 0 --output-dir out"
    theirs = said_by(f"evaluate.py --checkpoint best_test_model.pt {words}", capsys)
    said_by("convert_checkpoint.py --input best_test_model.pt --output ours.pt --root_dir ../dataset", capsys)
    ours = said_by("evaluate.py --checkpoint ours.pt --figures False --bootstrap 0 --output-dir out", capsys)
    assert re.findall(r"oracle_test_mae [\d.]+", theirs) == re.findall(r"oracle_test_mae [\d.]+", ours) != []
    row = demo_table(count=1, seed=5).rows[0]
    one, other = (
        anomaly_lib.load(path).predict(row.source, text=row.text) for path in ("best_test_model.pt", "ours.pt")
    )
    torch.testing.assert_close(one.score, other.score, rtol=0, atol=1e-5)
    elsewhere = anomaly_lib.load("ours.pt", weights=place / "weights" / "matscibert")
    torch.testing.assert_close(elsewhere.predict((row.source, row.text)).score, one.score, rtol=0, atol=1e-5)


def test_only_what_is_looked_at_is_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of tens of thousands of texts only those of the sample are encoded: a structure behind it may be damaged."""
    folder = place / "dataset" / "jarvis" / PROPERTY / "cif"
    last = sorted(folder.iterdir(), key=lambda path: path.name)[-1]
    kept = last.read_text()
    last.write_text("damaged")
    try:
        words = f"--checkpoint best_test_model.pt --root_dir ../dataset --property {PROPERTY} --n_samples"
        assert "20 crystals" in said_by(f"diagnose_fusion_effectiveness.py {words} 20", capsys)
        program = load_script("scripts/crystal/diagnose_fusion_effectiveness.py")
        assert program.main([*words.split(), "60"]) == 2
        assert last.name in capsys.readouterr().err
    finally:
        last.write_text(kept)


def test_mistakes_get_one_line(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(originals.trained(originals.alignn()), "graph.pt")
    (place / "other" / "jarvis" / "mine").mkdir(parents=True)
    data, graph = "--root_dir ../dataset", "--model1 best_test_model.pt --model2 graph.pt"
    extract = f"1.extract_alpha_final.py --checkpoint best_test_model.pt {data}"
    cases = {
        "diagnose_fusion_effectiveness.py --checkpoint best_test_model.pt": "it was trained: give --data-path",
        f"diagnose_fusion_effectiveness.py --checkpoint graph.pt {data}": "graph.pt: has no middle fusion",
        f"compare_fusion_models.py {graph} {data}": "graph.pt: has no middle fusion",
        "diagnose_fusion_effectiveness.py --checkpoint best_test_model.pt --root_dir ../other": (
            "it has mine; what it predicts is not in an original checkpoint: give --property here"
        ),
        f"{extract} --layer layer_9": "--layer layer_9: this model has layer_1, layer_2",
        f"{extract} --property gap": f"it has bulk_modulus_kv, {PROPERTY}, hse_bandgap-2",
        "scale_checkpoint_weights.py --input_checkpoint graph.pt --output_checkpoint x.pt": "no middle fusion to scale",
    }
    for command, said in cases.items():
        name, *words = command.split()
        assert load_script(f"scripts/crystal/{name}").main(words) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    monkeypatch.setenv("ANOMALY_LIB_WEIGHTS", str(place / "nothing"))
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "nothing"))
    words = ["--checkpoint", "best_test_model.pt", "--root_dir", "../dataset"]
    program = load_script("scripts/crystal/diagnose_fusion_effectiveness.py")
    assert program.main(words) == 2
    assert "matscibert needs the weights m3rg-iitd--matscibert" in capsys.readouterr().err
    assert program.main([*words, "--text-weights", str(place / "weights" / "matscibert"), "--n_samples", "5"]) == 0
