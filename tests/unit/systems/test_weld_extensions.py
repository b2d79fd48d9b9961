"""The table of the extension study on numbers small enough to check by hand, and the forms and pictures of a model."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from anomaly_lib.models.adapters import LoRALinear, add_adapters
from anomaly_lib.systems.weld.data.manifest import select_runs
from anomaly_lib.systems.weld.inputs import build_features
from anomaly_lib.systems.weld.supcon.detector import QuadDetector
from anomaly_lib.systems.weld.supcon.knn import Bank
from anomaly_lib.systems.weld.supcon.options import Args, tiny
from anomaly_lib.systems.weld.supcon.task import build, classes_of, open_runs
from scripts.weld.studies.explanations import explain, over_time, photo_relevance, pixels_found
from scripts.weld.studies.extensions import table, verdict
from scripts.weld.studies.forms import FORMS, deployment
from scripts.weld.studies.of_plain import Plain, measure_plain
from scripts.weld.studies.options import EXTENSIONS, MEASURED, TRAINED, VARIANTS, ExtensionArgs


def row(variant: str, seed: int, value: float, **more: object) -> dict[str, object]:
    return {"variant": variant, "seed": seed, "image_auroc": value, **more}


def test_a_verdict_needs_more_than_the_spread_of_the_seeds() -> None:
    assert verdict(np.array([0.05, 0.06, 0.055])) == "helps"
    assert verdict(np.array([-0.05, -0.06, -0.055])) == "hurts"
    assert verdict(np.array([0.05, 0.01, 0.09])) == "cannot tell (+)"  # 0.05 -+ 4.30 * 0.04 / sqrt(3)
    assert verdict(np.array([0.04, -0.09, -0.01])) == "cannot tell (-)"
    assert verdict(np.array([1e-4, -4e-4, 0.0])) == "no difference"
    assert verdict(np.array([0.3])) == "one seed tells nothing"


def test_the_table_pairs_seeds_and_says_what_is_missing() -> None:
    rows = [
        row("plain", 0, 0.8, knn_accuracy=0.5, trained_parameters=1200, seconds=3.0),
        row("plain", 1, 0.6, seconds=5.0),
    ]
    rows += [row("align", 1, 0.7), row("align", 0, 0.9)]
    wrong = {"name": "ECE", "value": 0.3, "reference": 0.1, "better": "lower"}
    rows += [row("temperature", seed, 0.8, judged=wrong, further={"ECE after": 0.3}) for seed in (0, 1)]
    lines = table(rows, ["temperature", "lora", "align", "plain"])
    assert lines[2] == "| none | plain | 0.700 ± 0.100 | 0.500 ± 0.000 | - | - | - | 1,200 | 4.0 |  |"
    assert lines[3].startswith("| adapters | lora | not measured |")
    assert lines[4] == "| temporal aligner | align | 0.800 ± 0.100 | - | - | AUROC +0.100 ± 0.000 | helps | - | - |  |"
    assert "| ECE +0.200 ± 0.000 | hurts |" in lines[5]
    assert lines[5].endswith("| ECE after 0.300 ± 0.000 |")
    assert len({line.count("|") for line in lines}) == 1


def test_every_extension_of_the_document_has_a_row_and_real_options() -> None:
    assert len(TRAINED) - 1 + len(MEASURED) == 11  # the ten; calibration and uncertainty stand apart
    assert set(EXTENSIONS) == {*VARIANTS, *(name for names in MEASURED.values() for name in names)}
    assert set(FORMS) == {"float32", *MEASURED["deployment"]}
    for changes in VARIANTS.values():
        own = ExtensionArgs().of_model(**changes)
        assert isinstance(own, Args)
        assert {name: getattr(own, name) for name in changes} == changes


@pytest.fixture(scope="module")
def detector() -> QuadDetector:
    """Untrained: what it says is as good a witness."""
    args = tiny(views=2)
    features = build_features(args, torch.device("cpu"))
    torch.manual_seed(0)
    found = QuadDetector(args, build(args, features), features, Bank(torch.zeros(1, 1), torch.zeros(1)), epoch=0)
    train = select_runs(open_runs(args), "train")
    found.bank = Bank(found.encode(train)["features"], classes_of(train))
    return found


def test_a_weld_is_explained_in_pictures(detector: QuadDetector, tmp_path) -> None:
    (run,) = [one for one in open_runs(detector.args) if one.split == "test" and one.class_name == "porosity"]
    said = explain(detector, run, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{run.run_id}_{name}.png" for name in ("view0", "view1", "attention")
    }
    assert set(said["modality_contribution"]) == {"video", "images", "audio", "sensors"}
    assert all(0 < place < 1 for place in said["attention_peak"].values())
    weights = over_time(detector, run)
    assert weights["sensors"].shape == (1, detector.args.sensor_steps)
    assert 0 < pixels_found(detector, [run]) < 1
    assert np.isnan(pixels_found(detector, [one for one in open_runs(detector.args) if not one.label]))


def test_grad_cam_looks_at_the_blocks_that_learnt() -> None:
    args = tiny(views=2, encoder_training="last", trained_encoders=["images"])
    features, runs = build_features(args, torch.device("cpu")), open_runs(args)[:1]
    maps = []
    for _ in range(2):
        torch.manual_seed(0)
        task = build(args, features)
        assert task.tops is not None
        if maps:  # as if its blocks had learnt
            torch.nn.init.normal_(next(p for p in task.tops.parameters() if p.ndim == 2), std=0.5)
        detector = QuadDetector(args, task, features, Bank(torch.zeros(1, 1), torch.zeros(1)), epoch=0)
        maps.append(photo_relevance(detector, runs[0]))
    assert maps[0].shape[0] == 2
    assert not torch.equal(*maps)


def test_the_plain_model_is_measured_in_other_use(detector: QuadDetector, tmp_path) -> None:
    runs = {split: select_runs(open_runs(detector.args), split) for split in ("train", "val", "test")}
    plain = Plain(ExtensionArgs(passes=2), detector, [detector], runs, tmp_path)
    alone = measure_plain(plain, "temperature")
    assert alone["image_auroc"] == round(plain.auroc, 4)
    assert set(alone["further"]) == {"ECE before", "ECE after", "T"}
    assert measure_plain(plain, "ensemble")["image_auroc"] == pytest.approx(plain.auroc, abs=1e-4)  # of twins
    assert measure_plain(plain, "mc-dropout")["image_auroc"] != plain.auroc


@pytest.mark.slow
def test_every_form_of_a_model_is_a_file_that_answers_alike(detector: QuadDetector, tmp_path) -> None:
    rows = {
        one["form"]: one for one in deployment(detector, open_runs(detector.args), tmp_path, pruning=0.5, repeats=1)
    }
    assert set(rows) == set(FORMS)
    assert {path.name for path in tmp_path.iterdir()} == {
        "float32.pt",
        "int8.pt",
        "pruned.pt",
        "model.pt2",
        "model.onnx",
    }
    for name in ("torch.export", "onnx"):
        assert rows[name]["largest_change"] < 1e-5
        assert rows[name]["auroc"] == rows["float32"]["auroc"]
    assert rows["int8"]["bytes"] < rows["float32"]["bytes"]
    assert 0 < rows["int8"]["largest_change"] < 0.02 < rows["pruned"]["largest_change"]


def test_lora_is_folded_into_what_is_deployed(detector: QuadDetector, tmp_path) -> None:
    """A file holds the plain layers alone, whose weights have the learnt product in them."""
    task = copy.deepcopy(detector.task)
    adapted = add_adapters(task.model, ["fusion"], rank=2)
    for path in adapted:
        nn.init.normal_(task.model.get_submodule(path).up, std=0.2)
    lora = copy.copy(detector)
    lora.task = task
    (row,) = deployment(lora, open_runs(lora.args), tmp_path, pruning=0.5, names=["float32"], repeats=1)
    assert row["largest_change"] < 1e-5
    written = torch.load(tmp_path / "float32.pt", weights_only=True)
    plain = detector.task.model.state_dict()
    assert list(written) == list(plain)
    assert all((written[f"{path}.weight"] - plain[f"{path}.weight"]).abs().max() > 0.01 for path in adapted)
    assert not any(isinstance(one, LoRALinear) and one.merged for one in task.model.modules())
