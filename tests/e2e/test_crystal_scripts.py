"""Every command of the user's document, at demo scale, through the real entry points."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import anomaly_lib
from anomaly_lib.systems.crystal.data.dataset import read_table
from anomaly_lib.systems.crystal.data.demo import write_crystal_demo
from anomaly_lib.systems.crystal.data.structure import read_crystal
from anomaly_lib.systems.crystal.data.text import reduced_formula
from anomaly_lib.systems.crystal.scales import initial_scale
from tests.support.crystal_originals import tiny_bert

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--epochs", "2", "--hidden_features", "16", "--alignn_layers", "4", "--gcn_layers", "1"]
SMALL += ["--batch_size", "16", "--cache", "ram", "--device", "cpu", "--figures", "False"]
PROPERTY = "formation_energy_peratom"
MIDDLE = ["--use_middle_fusion", "True", "--middle_fusion_use_gate_norm", "True",
          "--middle_fusion_use_learnable_scale", "True", "--middle_fusion_initial_scale", "12.0"]  # fmt: skip


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("script_under_test", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["script_under_test"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def train(*words: str) -> int:
    return script("train_with_cross_modal_attention.py").main([*words, *SMALL])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crystals")
    write_crystal_demo(folder, count=60)
    return folder


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Example 3: gate norm and learnable scale."""
    out = tmp_path_factory.mktemp("fusion_improved")
    common = ["--dataset", "jarvis", "--property", PROPERTY, "--root_dir", str(dataset), "--output_dir", str(out)]
    assert train(*common, *MIDDLE, "--middle_fusion_layers", "2", "--learning_rate", "0.001") == 0
    return out / PROPERTY


def test_run_folder_holds_what_users_look_for(run: Path, dataset: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {
        "best_model.pt", "best_val_model.pt", "checkpoint.pt", "config.json", "history_train.json", "history_val.json",
        "predictions_best_val_model_test.csv", "predictions_last_epoch_val.csv", "prediction_results_test_set.csv",
        "run.json", "metrics.jsonl",
    } <= names  # fmt: skip
    assert "best_test_model.pt" not in names  # choosing on the test set is only done when asked for
    rows = (run / "predictions_best_val_model_test.csv").read_text().splitlines()
    assert rows[0] == "id,target,prediction"
    assert len(rows) == 1 + 6
    predicted = np.array([float(row.split(",")[2]) for row in rows[1:]])
    target = np.array([float(row.split(",")[1]) for row in rows[1:]])
    record = json.loads((run / "run.json").read_text())
    assert np.abs(predicted - target).mean() == pytest.approx(record["metrics"]["test_mae"], abs=1e-5)
    assert (predicted < 0).any()  # formation energies are not cut off at 0


def test_the_documents_one_liner_prints_the_scale(run: Path) -> None:
    snippet = (
        f"import torch; ckpt = torch.load({str(run / 'best_model.pt')!r}); "
        "[print(k, v.item()) for k, v in ckpt['model'].items() if 'text_scale' in k]"
    )
    shown = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True).stdout
    name, value = shown.split()
    assert name == "middle_fusion_modules.layer_2.text_scale"
    assert 11 < float(value) < 13
    assert float(value) != 12.0


def test_scale_is_logged_every_epoch(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "text_scale_evolution.png"
    words = ["--checkpoint_dir", str(run), "--output_plot", str(plot)]
    assert script("scripts/crystal/monitor_text_scale.py").main(words) == 0
    assert "layer_2: 2 points, epoch 1 to 2" in capsys.readouterr().out
    assert initial_scale(run) == 12.0
    assert "start (12)" in plot.with_suffix(".svg").read_text()
    assert plot.stat().st_size > 5000


def test_diagnosis_compare_and_scaling(
    run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best, scaled = run / "best_model.pt", tmp_path / "scaled.pt"
    words = ["--input_checkpoint", str(best), "--output_checkpoint", str(scaled), "--scale_factor", "12.0"]
    assert script("scripts/crystal/scale_checkpoint_weights.py").main(words) == 0
    key = "middle_fusion_modules.layer_2.text_transform.3.weight"
    one, other = (torch.load(path, weights_only=True)["model"][key] for path in (best, scaled))
    torch.testing.assert_close(other, one * 12)
    diagnose = script("scripts/crystal/diagnose_fusion_effectiveness.py")
    assert diagnose.main(["--checkpoint", str(best), "--root_dir", str(dataset), "--n_samples", "20"]) == 0
    text = capsys.readouterr().out
    assert "layer_2: 20 crystals" in text
    assert "cosine(atoms, text) BEFORE fusion" in text
    assert "recommended --middle_fusion_initial_scale" in text
    compare = script("scripts/crystal/compare_fusion_models.py")
    words = ["--model1", str(best), "--model2", str(scaled), "--root_dir", str(dataset), "--n_samples", "20"]
    assert compare.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    before = next(line for line in lines if line.startswith("cosine before fusion")).split()
    ratio = next(line for line in lines if line.startswith("node/text ratio before")).split()
    assert float(before[-3]) == pytest.approx(float(before[-2]), abs=1e-3)  # a factor cannot change this cosine
    assert float(ratio[-3]) == pytest.approx(12 * float(ratio[-2]), rel=0.02)


def test_alphas_and_paper_figures(
    run: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--checkpoint", str(run / "best_model.pt"), "--root_dir", str(dataset), "--dataset", "jarvis"]
    extract = script("scripts/crystal/1.extract_alpha_final.py")
    assert extract.main([*words, "--property", PROPERTY, "--n_samples", "500"]) == 0
    with np.load("alpha_values.npz", allow_pickle=False) as saved:
        assert len(saved["jids"]) == 60
        assert saved["offsets"][-1] == len(saved["alphas"]) == len(saved["atom_types"])
        assert ((saved["alphas"] > 0) & (saved["alphas"] < 1)).all()
    assert script("scripts/crystal/2.create_paper_alpha_figures.py").main([]) == 0
    written = {path.name for path in Path("paper_figures").iterdir()}
    assert {
        "figure_gate_analysis.pdf", "figure_alpha_by_element.pdf", "figure_alpha_heatmap_materials.pdf",
        "element_alpha_statistics.csv",
    } <= written  # fmt: skip
    table = Path("paper_figures/element_alpha_statistics.csv").read_text().splitlines()
    assert table[0] == "Element,Mean,Std,Count"
    means = [float(row.split(",")[1]) for row in table[1:]]
    assert means == sorted(means)


def test_own_structures_become_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CIF files and ALIGNN's id_prop.csv in, described crystals in the published layout out; nothing is done twice."""
    write_crystal_demo(tmp_path / "demo", count=4)
    cifs = tmp_path / "demo" / "jarvis" / PROPERTY / "cif"
    names = sorted(path.name for path in cifs.iterdir())
    (tmp_path / "id_prop.csv").write_text("".join(f"{name},{0.5 * i}\n" for i, name in enumerate(names)))
    words = ["--structures", str(cifs), "--targets", str(tmp_path / "id_prop.csv"), "--property", "mine"]
    words += ["--root_dir", str(tmp_path / "out")]
    describe = script("scripts/crystal/describe_structures.py")
    assert describe.main(words) == 0
    table = read_table(tmp_path / "out", "jarvis", "mine")
    assert [(row.id, row.target) for row in table.rows] == [(Path(n).stem, 0.5 * i) for i, n in enumerate(names)]
    for row in table.rows:
        original = read_crystal(cifs / f"{row.id}.cif")
        assert isinstance(row.source, Path)
        copy = read_crystal(row.source)
        np.testing.assert_allclose(copy.frac_coords, original.frac_coords, atol=1e-6)
        assert copy.symbols == original.symbols
        assert row.text.startswith(reduced_formula(original.symbols) + " crystallizes in a ")
    before = (tmp_path / "out" / "jarvis" / "mine" / "description.csv").read_text()
    assert describe.main(words) == 0
    assert "0 structures described (4 were already)" in capsys.readouterr().out
    assert (tmp_path / "out" / "jarvis" / "mine" / "description.csv").read_text() == before
    (tmp_path / "id_prop.csv").write_text("a.cif,high\n")
    assert describe.main(words) == 2
    assert "line 1: expected a file name and a number" in capsys.readouterr().err


EXAMPLES = {
    "1 gate norm": ["--use_middle_fusion", "True", "--middle_fusion_layers", "2", "--middle_fusion_use_gate_norm",
                    "True", "--middle_fusion_use_learnable_scale", "False"],
    "2 learnable scale": ["--use_middle_fusion", "True", "--middle_fusion_use_gate_norm", "False",
                          "--middle_fusion_use_learnable_scale", "True", "--middle_fusion_initial_scale", "12.0"],
    "4 two layers": [*MIDDLE, "--middle_fusion_layers", "2,3"],
    "5 everything": [*MIDDLE, "--use_cross_modal", "True", "--cross_modal_num_heads", "4",
                     "--cross_modal_hidden_dim", "256"],
    "hse": [*MIDDLE, "--property", "hse_bandgap-2", "--use_cross_modal", "True"],
    "bulk": [*MIDDLE, "--property", "bulk_modulus_kv"],
    "trouble": ["--middle_fusion_initial_scale", "20.0", "--learning_rate", "0.0005", "--use_contrastive", "True",
                "--contrastive_weight", "0.1", "--warmup_steps", "2000", "--weight_decay", "1e-5"],
    "words": ["--use_fine_grained_attention", "True", "--cross_modal_tokens", "True", "--late_fusion_type", "adaptive",
              "--text_max_tokens", "64"],
    "improved, paper": ["--use_middle_fusion", "t", "--use_improved_middle_fusion", "y", "--protocol", "paper",
                        "--late_fusion_type", "gated", "--resume", "1", "--mask_stopwords", "0"],
}  # fmt: skip


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_examples_of_the_document(name: str, dataset: Path, tmp_path: Path) -> None:
    words = EXAMPLES[name]
    prop = words[words.index("--property") + 1] if "--property" in words else PROPERTY
    assert train("--property", prop, "--root_dir", str(dataset), *words, "--output_dir", str(tmp_path)) == 0
    record = json.loads((tmp_path / prop / "run.json").read_text())
    assert np.isfinite(record["metrics"]["test_mae"])
    if name == "trouble":
        assert record["args"]["warmup_steps"] == 2000
        rates = [json.loads(line)["lr"] for line in (tmp_path / prop / "metrics.jsonl").read_text().splitlines()]
        assert max(rates) <= 0.0005 * (1 + 1e-9)
    scales = [key for key in record["metrics"] if key.startswith("text_scale_")]
    assert len(scales) == (2 if name == "4 two layers" else 1 if "--use_middle_fusion" in words else 0)


def test_killed_and_resumed_equals_uninterrupted(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomaly_lib.systems.crystal import train as crystal

    words = ["--property", PROPERTY, "--root_dir", str(dataset), *MIDDLE, "--middle_fusion_dropout", "0.3",
             "--graph_dropout", "0.1", "--ema_decay", "0.9"]  # fmt: skip
    assert train(*words, "--output_dir", str(tmp_path / "whole")) == 0
    original, calls = crystal.train_epoch, []

    def stops_in_the_second_epoch(*args: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            original(*args)  # type: ignore[arg-type]  # the work of this epoch is lost
            raise KeyboardInterrupt
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(crystal, "train_epoch", stops_in_the_second_epoch)
    assert train(*words, "--output_dir", str(tmp_path / "killed")) == 130
    assert json.loads((tmp_path / "killed" / PROPERTY / "run.json").read_text())["status"] == "interrupted"
    monkeypatch.setattr(crystal, "train_epoch", original)
    assert train(*words, "--output_dir", str(tmp_path / "killed")) == 0
    whole, resumed = (
        torch.load(tmp_path / name / PROPERTY / "checkpoint.pt", weights_only=True) for name in ("whole", "killed")
    )
    for part in ("model", "optimizer", "scheduler", "ema"):
        assert str(whole[part]) == str(resumed[part])
    for key, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][key]), key
    assert (tmp_path / "whole" / PROPERTY / "predictions_last_epoch_test.csv").read_text() == (
        tmp_path / "killed" / PROPERTY / "predictions_last_epoch_test.csv"
    ).read_text()


@pytest.mark.slow
def test_sigkilled_at_random_moments_ends_the_same(dataset: Path, tmp_path: Path) -> None:
    words = ["--property", PROPERTY, "--root_dir", str(dataset), *MIDDLE, *SMALL, "--epochs", "8"]
    main = script("train_with_cross_modal_attention.py").main
    assert main([*words, "--output_dir", str(tmp_path / "whole")]) == 0
    command = [sys.executable, str(ROOT / "tests" / "support" / "killing.py")]
    command += [str(ROOT / "train_with_cross_modal_attention.py"), "6", "3.0"]
    done = subprocess.run(
        [*command, *words, "--output_dir", str(tmp_path / "killed")], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) >= 2
    whole, killed = (tmp_path / name / PROPERTY for name in ("whole", "killed"))
    for name in ("checkpoint.pt", "best_model.pt"):
        one, other = (torch.load(folder / name, weights_only=True) for folder in (whole, killed))
        assert one["epoch"] == other["epoch"]
        for key, value in one["model"].items():
            assert torch.equal(value, other["model"][key]), (name, key)
    for name in ("metrics.jsonl", "history_val.json", "prediction_results_test_set.csv"):
        assert (whole / name).read_text() == (killed / name).read_text(), name


def test_mistakes_get_one_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--output_dir", str(tmp_path)]
    cases = {
        ("--root_dir", str(tmp_path / "nowhere")): "no folder",
        ("--root_dir", str(dataset), "--property", "gap"): "it has bulk_modulus_kv",
        ("--root_dir", str(dataset), "--use_middle_fusion", "True", "--middle_fusion_layers", "2,7"): "layer 7",
        ("--root_dir", str(dataset), "--use_cross_modal", "maybe"): "True or False",
        ("--root_dir", str(dataset), "--backbone", "matscibert"): "weights",
        ("--root_dir", str(dataset), "--classification", "1"): "targets 0 and 1",
        ("--root_dir", str(dataset), "--num_heads", "4"): "unknown option",
        ("--root_dir", str(dataset), "--weights", "bert"): "--weights bert: hashed-text has none",
        ("--root_dir", str(dataset), "--property", "gap", "--on_error", "skip"): "--property gap: no folder",
    }
    for words, said in cases.items():
        assert train(*words, *out) == 2, words
        error = capsys.readouterr().err
        assert said in error, (words, error)
        assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_without_options_fusion_helps(tmp_path: Path) -> None:
    assert script("train_with_cross_modal_attention.py").main(["--output_dir", str(tmp_path), "--device", "cpu"]) == 0
    metrics = json.loads((tmp_path / PROPERTY / "run.json").read_text())["metrics"]
    alone = min(metrics["graph_only_test_mae"], metrics["text_only_test_mae"])
    assert metrics["test_mae"] < 0.5 * alone
    assert alone < metrics["mean_predictor_test_mae"]


def test_evaluate_reaches_the_recorded_numbers(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--checkpoint", str(run / "best_model.pt"), "--output_dir", str(tmp_path), "--figures", "False"]
    assert script("evaluate.py").main([*words, "--bootstrap", "0"]) == 0
    text = capsys.readouterr().out
    assert "equals what training recorded" in text
    assert "test_mae" in text


@pytest.mark.parametrize("words", [["--modality", "text"], ["--use_fine_grained_attention", "True"]])
def test_local_bert_is_read_once_and_cached(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anomaly_lib.backbones.huggingface import HuggingFaceBackbone

    calls: list[int] = []
    original = HuggingFaceBackbone.encode_texts

    def counted(self: HuggingFaceBackbone, texts: list[str], **options: int) -> dict[str, torch.Tensor]:
        calls.append(len(texts))
        return original(self, texts, **options)

    monkeypatch.setattr(HuggingFaceBackbone, "encode_texts", counted)
    common = ["--backbone", "matscibert", "--weights", str(tiny_bert(tmp_path / "bert")), "--n_train", "20", "--n_val",
              "10", "--n_test", "10", *words, "--compare", "False", "--text_max_tokens", "64"]  # fmt: skip
    main = script("train_with_cross_modal_attention.py").main
    small = [*SMALL, "--cache", "disk", "--cache_dir", str(tmp_path / "cache")]
    assert main([*common, *small, "--output_dir", str(tmp_path / "a")]) == 0
    first = sum(calls)
    assert main([*common, *small, "--output_dir", str(tmp_path / "b"), "--fresh"]) == 0
    assert first > 0
    assert sum(calls) == first  # the second run reads the cache
    detector = anomaly_lib.load(tmp_path / "a" / PROPERTY / "best_model.pt")
    data = detector.load_data()
    row = data.rows[data.split.test[0]]
    want = detector.predict_batch(data.batch(data.split.test[:1])).score
    torch.testing.assert_close(detector.predict((row.source, row.text)).score, want, rtol=1e-3, atol=1e-3)
