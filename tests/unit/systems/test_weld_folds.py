"""Cross-validation: configurations stay whole, every run is tested once, figures carry a grouped interval."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from anomaly_lib.errors import UserError
from anomaly_lib.systems.registry import SYSTEMS
from anomaly_lib.systems.weld.causal_film.options import tiny
from anomaly_lib.systems.weld.cross_validation import grouped_interval
from anomaly_lib.systems.weld.data.demo import write_weld_demo
from anomaly_lib.systems.weld.data.folds import check_fold, fold_splits
from anomaly_lib.systems.weld.data.manifest import WeldRun

SIZES = {"good": [2, 2, 2, 2, 2, 2, 10], "overlap": [2], "lack_of_fusion": [2, 2], "burnthrough": [2]}
"""Configurations of the 34 real runs, as many as matter here."""


def runs_like_the_real_ones() -> list[WeldRun]:
    return [
        WeldRun(f"{name}{group}-{i}", name, "", Path("x"), f"{name}{group}")
        for name, sizes in SIZES.items()
        for group, size in enumerate(sizes)
        for i in range(size)
    ]


@pytest.mark.parametrize("supervised", [False, True])
def test_each_run_is_tested_once_and_configurations_stay_whole(supervised: bool) -> None:
    runs, tested = runs_like_the_real_ones(), Counter()
    for fold in (1, 2, 3, 4):
        split = fold_splits(runs, folds=4, fold=fold, supervised=supervised)
        assert [run.run_id for run in split] == [run.run_id for run in runs]
        for group in {run.group for run in split}:
            assert len({run.split for run in split if run.group == group}) == 1
        kinds = Counter((run.split, run.label) for run in split)
        assert min(kinds["train", 0], kinds["val", 0], kinds["test", 0], kinds["test", 1]) > 0
        assert bool(kinds["train", 1]) == supervised
        tested.update(run.run_id for run in split if run.split == "test")
    assert set(tested.values()) == {1}
    assert len(tested) == len(runs)
    with pytest.raises(UserError, match="folds=12: there are 11 configurations"):
        fold_splits(runs, folds=12, fold=1)


def test_runs_of_one_configuration_are_no_independent_witnesses() -> None:
    scores, labels = np.array([0.0, 0, 0, 0, 2, 2, 1, 1, 1, 1]), np.array([0] * 6 + [1] * 4)
    alone = grouped_interval(scores, labels, [str(i) for i in range(10)])
    pairs = grouped_interval(scores, labels, [str(i // 2) for i in range(10)])
    assert alone.value == pairs.value == pytest.approx(4 / 6)
    assert pairs.low < alone.low
    with pytest.raises(UserError, match="of one kind"):
        grouped_interval(scores, labels * 0, ["a"] * 10)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 2}, "folds=2: TRAIN, VAL and TEST need at least 3"),
        ({"folds": 3, "fold": 4}, "fold=4: there are 3 folds"),
        ({"fold": 1}, "fold=1: (there are 0 folds|has no effect without folds)"),
        ({"folds": 3, "save_path": "x.pt"}, "save_path=x.pt: has no meaning for all folds"),
    ],
)
def test_folds_that_cannot_be(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        tiny(**options)


def test_a_fold_without_the_videos_it_needs_is_refused_before_any_training() -> None:
    runs = runs_like_the_real_ones()
    two = runs[:2]  # good ones of one configuration, as of the 34 real runs
    said = (
        r"folds=4: fold \d would have no good run to (train|validate) on: of 30 runs 2 have a video; give fewer folds"
    )
    for fold in (1, 2, 3, 4):
        with pytest.raises(UserError, match=said):
            check_fold(runs, two, folds=4, fold=fold, what="a video")
        check_fold(runs, runs, folds=4, fold=fold, what="a video")
    lost = [run for run in fold_splits(runs, folds=4, fold=3) if run.split != "test"]
    with pytest.raises(UserError, match="fold 3 would have no run to test"):
        check_fold(runs, lost, folds=4, fold=3, what="a video")


def test_the_video_auto_encoder_says_first_that_videos_are_too_few(tmp_path: Path) -> None:
    data = write_weld_demo(tmp_path / "data", train=3, good=1, per_defect=0)
    for video in sorted(data.rglob("*.avi"))[2:]:
        video.unlink()
    few = {"data_path": str(data), "backbone": "tiny-dinov2", "video_frames": 2, "epochs": 1, "folds": 3}
    small = SYSTEMS["video_ae"].Args(**few, output_dir=str(tmp_path / "runs"))
    with pytest.raises(UserError, match="this run has no video; give on_error=skip"):
        SYSTEMS["video_ae"].train(small)
    small.on_error = "skip"
    with pytest.raises(UserError, match=r"fold 1 would have no .*: of 5 runs 2 have a readable video"):
        SYSTEMS["video_ae"].train(small)
    small.fold = 2
    with pytest.raises(UserError, match=r"fold 2 would have no .*: of 5 runs 2 have a readable video"):
        SYSTEMS["video_ae"].train(small)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize("system", ["video_ae", pytest.param("causal_film", marks=pytest.mark.slow)])
def test_a_system_is_cross_validated_by_one_option(system: str, tmp_path: Path) -> None:
    small = {"demo_train": 6, "demo_good": 2, "epochs": 1, "folds": 3, "output_dir": str(tmp_path)}
    result = SYSTEMS[system].train(SYSTEMS[system].tiny(**small))
    low, high = result.metrics["image_auroc_low"], result.metrics["image_auroc_high"]
    assert 0 <= low <= result.metrics["image_auroc"] <= high <= 1
    folds = list(csv.DictReader((tmp_path / "folds.csv").read_text().splitlines()))
    assert [row["fold"] for row in folds] == ["1", "2", "3"]
    predictions = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(predictions) == len({row["run"] for row in predictions}) == 10 + 22
    assert (tmp_path / "classes.csv").read_text().startswith("class,n,mean")
    # The checkpoint of a fold knows its own test runs.
    (best,) = (tmp_path / "fold2").glob("best_model.*")
    detector = SYSTEMS.load(best)
    mine = {row["run"] for row in predictions if row["fold"] == "2"}
    assert {run.run_id for run in detector.items().items} == mine
