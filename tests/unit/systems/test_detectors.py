"""Trained detectors on one class and on HDMAP's domains: what they honour, refuse, draw, decide and say."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anomaly_lib
from anomaly_lib.data.base import ImageDataset, select
from anomaly_lib.detect.choice import Choice
from anomaly_lib.detect.scores import summary
from anomaly_lib.errors import UserError
from anomaly_lib.files import read_json
from anomaly_lib.metrics import auroc, f1_max_threshold, threshold_metrics
from anomaly_lib.models.detectors import PatchCore
from anomaly_lib.systems.detectors.data import image_transform, open_class
from anomaly_lib.systems.detectors.hdmap.conditions import args_of, training_names, values_of
from anomaly_lib.systems.detectors.hdmap.demo_maps import write_hdmap_demo
from anomaly_lib.systems.detectors.hdmap.detector import TransferDetector, open_domains
from anomaly_lib.systems.detectors.hdmap.reader import load_split
from anomaly_lib.systems.detectors.hdmap.transfer import source_decision
from anomaly_lib.systems.detectors.inputs import Inputs
from anomaly_lib.systems.registry import SYSTEMS


def write_class(root: Path, name: str, *, broken: int = 2) -> None:
    """Four normal training images, two good and `broken` broken test images of 32 x 32, in MVTec's layout."""
    generator = np.random.default_rng(len(name))
    for place, count in (("train/good", 4), ("test/good", 2), ("test/hole", broken)):
        for i in range(count):
            path = root / name / place / f"{i:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(90, 140, (32, 32, 3), dtype=np.uint8)
            if place == "test/hole":
                pixels[8:16, 8:16] = 0
                truth = root / name / "ground_truth" / "hole" / f"{i:03d}_mask.png"
                truth.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels[:, :, 0] == 0).astype(np.uint8) * 255).save(truth)
            Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_class(root, "nut")
    write_class(root, "screw", broken=3)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PatchCore on one of the two classes, with figures."""
    folder = tmp_path_factory.mktemp("run") / "run"
    system = SYSTEMS["detectors"]
    args = system.tiny(dataset="mvtec", data_path=str(data), obj="nut", figures=True, image_size=[32])
    system.train(system.Args(**{**vars(args), "output_dir": str(folder), "num_workers": 2}))
    return folder


def test_figures_are_drawn_and_recorded(run: Path) -> None:
    assert {"scores.png", "maps.png"} <= {path.name for path in run.iterdir()}
    assert read_json(run / "run.json")["figures"] == ["scores.png", "scores.svg", "maps.png", "maps.svg"]
    assert "hole" in (run / "maps.svg").read_text()


def test_costs_and_options_without_meaning_are_said(run: Path) -> None:
    log = (run / "log.txt").read_text()
    assert "cost: 4 of 4 images to encode with resnet18" in log
    assert "cost: 64 patches of 384 numbers, 0.00 GiB of memory at a time" in log
    assert "num_workers" not in log  # threads that decode ahead of the network


def test_a_detector_scores_another_class_and_refuses_what_changes_nothing(run: Path, data: Path) -> None:
    detector = anomaly_lib.load(run / "checkpoint.pt")
    own, other = detector.items(), detector.items(Choice(obj="screw"))
    assert (len(own.items), len(other.items)) == (4, 5)
    assert {item.class_name for item in other.items} == {"screw"}
    assert detector.score(own).labels.tolist() == [0, 0, 1, 1]
    assert len(detector.items(Choice(dataset="folder", data_path=str(data / "nut"), obj=None, on_error="skip")).items)
    with pytest.raises(UserError, match="shot=4: has no meaning for a trained detectors detector"):
        detector.items(Choice(shot=4))
    assert len(detector.decision.normal) == 4  # each normal image against the other three
    assert detector.decision.false_alarms == 0.2  # the smallest rate that four of them can promise
    found = detector.predict(np.zeros((40, 50, 3), np.uint8))
    assert found.anomalous.tolist() == [True]
    assert found.p_value.tolist() == [0.2]


@pytest.mark.parametrize("model", ["reverse_distillation", "draem"])
def test_a_network_trained_on_all_normal_images_does_not_decide(model: str, tmp_path: Path) -> None:
    system = SYSTEMS["detectors"]
    small = {"model": model, "epochs": 0, "image_size": [32], "protocol": "paper"}
    result = system.train(system.tiny(**small, output_dir=str(tmp_path / "run")))
    detector = anomaly_lib.load(result.checkpoint)
    assert detector.decision is None
    assert detector.predict(np.zeros((40, 50, 3), np.uint8)).anomalous is None
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "all normal images are trained on: no decision (python -m anomaly_lib calibrate" in log
    assert "decision: none: it has no scores of normal data that it was not trained on" in log
    with pytest.raises(UserError, match=r"false_alarms=0\.1: has no effect without calibration_share=\.\.\."):
        system.tiny(**small, false_alarms=0.1)


@pytest.mark.parametrize("model", ["reverse_distillation", "draem_sevnet"])
def test_images_kept_from_training_decide_and_are_never_trained_on(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    batch = Inputs.batch

    def noting(self: Inputs, index: Sequence[int]) -> object:
        seen.extend([self.images.read(index)] if self.learnt else [])
        return batch(self, index)

    monkeypatch.setattr(Inputs, "batch", noting)
    system = SYSTEMS["detectors"]
    args = system.tiny(model=model, epochs=1, output_dir=str(tmp_path / "run"), false_alarms=0.1)
    result = system.train(args)
    items = {one.path.as_posix(): one for one in select(open_class("demo", None, None)[1], split="train", label=0)}
    kept = read_json(result.run_dir / "run.json")["kept_from_training"]
    assert len(set(kept)) == max(10, round(0.2 * len(items)))
    images = ImageDataset([items[name] for name in kept], transform=image_transform(args))
    trained = torch.cat(seen)
    assert len(trained) == len(items) - len(kept)
    for i in range(len(images)):
        assert not bool((trained == images[i]["image"]).flatten(1).all(1).any())
    detector = anomaly_lib.load(result.checkpoint)
    found = detector.predict(torch.stack([images[i]["image"] for i in range(len(images))]))
    np.testing.assert_allclose(detector.decision.normal, np.sort(found.score.numpy()), rtol=1e-5, atol=1e-7)
    assert detector.decision.map_threshold is not None
    assert detector.decision.false_alarms == 0.1


def test_a_left_out_image_is_judged_by_a_memory_fitted_to_the_others(run: Path) -> None:
    detector = anomaly_lib.load(run / "checkpoint.pt")
    train = [one for one in open_class("mvtec", detector.args.data_path, "nut")[1] if one.split == "train"]
    images = ImageDataset(train, transform=detector.transform)
    stack = torch.stack([images[i]["image"] for i in range(4)])
    found = []
    for i in range(4):
        others = stack[[number for number in range(4) if number != i]]
        config = replace(detector.args, coreset_size=45)  # three quarters of 60
        twin = PatchCore(config, extractor=detector.model.extractor).eval().fit(others.split(1))
        found.append(float(twin(stack[i : i + 1]).score))
    np.testing.assert_allclose(detector.decision.normal, sorted(found), rtol=1e-5)
    assert "4 normal images, each judged by a memory of the others" in detector.decision.source


@pytest.mark.parametrize("model", ["patchcore", "padim"])
def test_too_few_images_to_leave_one_out_are_looked_at_again(model: str, tmp_path: Path) -> None:
    write_class(tmp_path, "nut")
    few = 1 if model == "patchcore" else 2
    for path in sorted((tmp_path / "nut" / "train" / "good").iterdir())[few:]:
        path.unlink()
    system = SYSTEMS["detectors"]
    own = {"features": 20} if model == "padim" else {"coreset_size": 8}
    small = {"model": model, "dataset": "mvtec", "data_path": str(tmp_path), "image_size": [32], **own}
    result = system.train(system.tiny(**small, output_dir=str(tmp_path / "run")))
    decision = anomaly_lib.load(result.checkpoint).decision
    assert len(decision.normal) == 4 * few
    assert decision.stand_ins
    assert decision.false_alarms is None
    assert "mild views of" in decision.source
    assert decision.p_values(torch.zeros(1)) is None
    with pytest.raises(UserError, match=r"^false_alarms=0\.1: cannot be promised"):
        decision.at_rate(0.1)


def test_a_moved_weight_file_is_for_detectors_that_read_one(tmp_path: Path) -> None:
    system = SYSTEMS["detectors"]
    result = system.train(system.tiny(model="draem", epochs=0, image_size=[32], output_dir=str(tmp_path / "run")))
    checkpoint = SYSTEMS.read(result.checkpoint)
    with pytest.raises(UserError, match=r"weights=x\.pth: draem reads no frozen network"):
        system.load(checkpoint, weights="x.pth")
    with pytest.raises(UserError, match="averaged"):
        system.load(checkpoint, which="ema")


def test_one_of_several_classes_must_be_named(data: Path, tmp_path: Path) -> None:
    system = SYSTEMS["detectors"]
    with pytest.raises(UserError, match=r"^give obj=, one of the classes nut, screw$"):
        system.train(system.tiny(dataset="mvtec", data_path=str(data), output_dir=str(tmp_path / "run")))


def test_the_branches_of_sevnet_have_figures(tmp_path: Path) -> None:
    system = SYSTEMS["detectors"]
    args = system.tiny(model="draem_sevnet", epochs=0, output_dir=str(tmp_path / "run"))
    result = system.train(args)
    scores = (detector := anomaly_lib.load(result.checkpoint)).score(detector.items())
    assert set(scores.parts) == {"mask_score", "severity"}
    mean = (scores.parts["mask_score"] + scores.parts["severity"]) / 2
    np.testing.assert_allclose(scores.scores, mean, rtol=1e-6)
    assert result.metrics["severity_auroc"] == pytest.approx(auroc(scores.parts["severity"], scores.labels))


# -- HDMAP ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hdmap_demo(tmp_path_factory.mktemp("maps"), train=6, test=5)


@pytest.fixture(scope="module")
def transfer(maps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of PatchCore from domain A to domain B."""
    folder = tmp_path_factory.mktemp("transfer") / "run"
    system = SYSTEMS["hdmap"]
    small = {"scale": "demo", "data_path": str(maps), "resize_method": "black_padding", "output_dir": str(folder)}
    system.train(system.tiny(**small))
    return folder


@pytest.fixture(scope="module")
def detector(transfer: Path) -> TransferDetector:
    return anomaly_lib.load(transfer / "checkpoint.pt")


def test_transfer_figures_by_hand(transfer: Path, detector: TransferDetector) -> None:
    scores = detector.score(detector.items())
    assert scores.groups == ["domain_A"] * 10 + ["domain_B"] * 10
    source, target = (auroc(scores.scores[rows], scores.labels[rows]) for rows in (slice(10), slice(10, 20)))
    limit = np.nextafter(float(scores.scores[:10][scores.labels[:10] == 0].max()), np.inf)
    found = summary(scores, detector.decision)
    assert found["source_auroc"] == found["domain_A_auroc"] == pytest.approx(source)
    assert found["avg_target_auroc"] == found["domain_B_auroc"] == pytest.approx(target)
    assert found["transfer_ratio"] == pytest.approx(target / source)
    assert found["source_f1"] == threshold_metrics(scores.scores[:10], scores.labels[:10], limit)["f1"]
    assert found["image_auroc"] == pytest.approx((source + target) / 2)
    assert read_json(transfer / "run.json")["metrics"] == pytest.approx(found)


def test_the_source_decides(detector: TransferDetector, maps: Path) -> None:
    decision = detector.decision
    assert decision is not None
    source = load_split(maps, "domain_A", "test", size=(32, 96), resize_method="black_padding")
    found = detector.predict_batch(source.images).score
    assert decision.threshold == pytest.approx(float(found[source.labels == 0].max()), rel=1e-5)
    np.testing.assert_allclose(decision.normal, sorted(found[source.labels == 0].tolist()), rtol=1e-5)
    assert decision.source.startswith(
        "at most 16.67% false alarms, from 5 good test maps of the source domain_A, which are reported too; "
    )
    assert decision.map_threshold is not None


def test_the_published_decision_is_the_best_f1_on_the_source(detector: TransferDetector, maps: Path) -> None:
    args = replace(detector.args, protocol="paper", false_alarms=0.05)
    decision = source_decision(detector.model, open_domains(args), args, detector.device)
    source = load_split(maps, "domain_A", "test", size=(32, 96), resize_method="black_padding")
    found = detector.predict_batch(source.images).score
    assert decision.threshold == pytest.approx(f1_max_threshold(found, source.labels), rel=1e-5)
    assert decision.false_alarms is None
    assert decision.source == "best F1 on 10 test maps of the source domain_A, which are reported too"


def test_files_are_scored_as_training_saw_them(detector: TransferDetector, maps: Path) -> None:
    scores = detector.score(detector.items())
    found = detector.predict([maps / "domain_A" / "test" / "good" / "000000.tiff", scores.paths[15]])
    np.testing.assert_allclose(found.score.numpy(), scores.scores[[0, 15]], rtol=1e-5)
    assert found.anomalous.tolist() == (scores.scores[[0, 15]] >= detector.decision.threshold).tolist()
    grey = np.asarray(Image.open(scores.paths[15]))
    np.testing.assert_allclose(detector.predict(grey).score.numpy(), scores.scores[[15]], rtol=1e-5)
    shown = scores.image(3)
    assert (shown.shape, shown.dtype) == ((32, 96, 3), np.uint8)


def test_a_domain_may_be_chosen_and_what_has_no_meaning_is_refused(detector: TransferDetector) -> None:
    other = detector.score(detector.items(Choice(obj="domain_C")))
    assert set(other.groups) == {"domain_C"}
    assert set(other.own) == {"domain_C_auroc"}
    for choice, said in (
        (Choice(dataset="mvtec"), "dataset=mvtec: has no meaning"),
        (Choice(shot=2), "shot=2: has no meaning"),
        (Choice(obj="domain_E"), "unknown HDMAP domain 'domain_E'"),
        (Choice(split="val"), "split=val: hdmap is scored on test only"),
    ):
        with pytest.raises(UserError, match=said):
            detector.items(choice)


def test_a_damaged_map_stops_or_is_skipped_and_listed(detector: TransferDetector, tmp_path: Path) -> None:
    root = write_hdmap_demo(tmp_path, train=3, test=3)
    bad = root / "domain_B" / "test" / "good" / "000001.tiff"
    bad.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"000001\.tiff: unreadable image"):
        detector.items(Choice(data_path=str(root)))
    kept = detector.items(Choice(data_path=str(root), on_error="skip")).items
    assert [len(one) for one in kept] == [6, 5]
    assert [one["path"] for one in kept[1].skipped] == [str(bad)]


def test_the_reader_makes_no_maps_of_its_own() -> None:
    with pytest.raises(UserError, match="give the folder that holds domain_A"):
        load_split(None, "domain_A", "test")


def test_the_epoch_chosen_on_reported_maps_is_remarked(tmp_path: Path) -> None:
    system = SYSTEMS["hdmap"]
    for strategy, remarks in (("source_test", 1), ("held_out", 0)):
        args = system.tiny(
            model="draem", epochs=1, validation_strategy=strategy, repair_width=2, segment_width=2,
            output_dir=str(tmp_path / strategy),
        )  # fmt: skip
        result = system.train(args)
        log = (result.run_dir / "log.txt").read_text()
        assert log.count("[source score: epoch selected on the same maps]") == remarks
        assert result.checkpoint.name == "best_model.pt"
        assert torch.load(result.checkpoint, weights_only=True)["extra"]["decision"]["threshold"] > 0


def test_the_template_s_common_part_has_no_meaning_for_a_memory() -> None:
    config = {"max_epochs": 50, "lr": 0.1, "scheduler": {"type": "steplr", "gamma": 0.5}, "num_neighbors": 3}
    condition = {"name": "c", "config": {"source_domain": "domain_A", "image_size": [64, 64], **config}}
    values = values_of(condition, "patchcore")
    assert training_names(values) == ["epochs", "gamma", "learning_rate", "schedule"]
    assert args_of(values | {"data_path": "x"}).neighbours == 3
    with pytest.raises(UserError, match="neighbours=3: only for model=patchcore"):
        args_of(values_of(condition, "draem"))
    trained = values_of(
        condition | {"config": {"max_epochs": 1, "train_batch_size": 32, "target_size": "64x64"}}, "draem"
    )
    small, full = args_of(trained), args_of(trained | {"scale": "full"})
    assert (small.epochs, small.batch_size, small.image_size) == (1, 16, [32, 96])
    assert (full.epochs, full.batch_size, full.image_size) == (1, 32, [64, 64])
    assert json.loads(json.dumps(vars(full)))["model"] == "draem"


def test_a_condition_names_the_folder_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = SYSTEMS["hdmap"].train(SYSTEMS["hdmap"].tiny(condition="warm_up"))
    assert result.run_dir.parent.name == "hdmap"
    assert result.run_dir.name.startswith("warm_up-patchcore-domain_A-")
