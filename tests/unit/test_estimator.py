"""The detector as scikit-learn's: signs, cloning, pipelines, cross-validation, and what its own checks say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone, is_outlier_detector
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks as checks

import anomaly_lib
from anomaly_lib.data.demo.items import write_demo
from anomaly_lib.errors import OptionError, UserError
from anomaly_lib.fitting.estimator import DetectorEstimator

OPTIONS: dict[str, Any] = {"backbone": "demo-clip", "layers": ["layer.1"], "image_size": 64, "figures": False}
FOLDS = StratifiedKFold(2, shuffle=True, random_state=0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_demo(folder, categories=["woven"], size=64, train=10, test_good=4, per_defect=1)
    return folder / "woven"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # runs/


def files_and_truth(parts: Path) -> tuple[list[str], np.ndarray]:
    files = sorted((parts / "test").rglob("*.png")) + sorted((parts / "train").rglob("*.png"))
    return [str(path) for path in files], np.array([1 if path.parent.name == "good" else -1 for path in files])


def test_signs_are_those_of_scikit_learn(parts: Path) -> None:
    fitted = anomaly_lib.fit("padim", parts, **OPTIONS)
    estimator = fitted.as_sklearn()
    files, _ = files_and_truth(parts)
    found = fitted.predict(files)
    assert np.array_equal(estimator.score_samples(files), -found.score.numpy())
    assert np.array_equal(estimator.predict(files) == -1, found.anomalous.numpy())
    assert np.array_equal(estimator.decision_function(files) > 0, estimator.predict(files) == 1)
    assert estimator.get_params() == {"model": "padim", **OPTIONS, "image_size": [64, 64]}
    assert is_outlier_detector(estimator)


def test_clone_pipeline_and_cross_validation(parts: Path) -> None:
    files, truth = files_and_truth(parts)
    estimator = DetectorEstimator("padim", shot=4, **OPTIONS)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert "model='padim'" in repr(copy)
    pipeline = make_pipeline(FunctionTransformer(list), copy).fit(files, truth)
    assert set(pipeline.predict(files)) <= {1, -1}
    scores = cross_val_score(estimator, files, truth, cv=FOLDS, scoring="roc_auc", error_score="raise")
    assert np.isfinite(scores).all()


@pytest.mark.slow
def test_a_search_over_options(parts: Path) -> None:
    files, truth = files_and_truth(parts)
    estimator = DetectorEstimator("padim", **OPTIONS)
    search = GridSearchCV(estimator, {"shot": [2, 4]}, cv=FOLDS, scoring="roc_auc", error_score="raise")
    assert search.fit(files, truth).best_params_["shot"] in (2, 4)


def test_what_is_wrong_is_one_line(parts: Path) -> None:
    with pytest.raises(OptionError, match="shott"):
        DetectorEstimator("padim").set_params(shott=3).fit(files_and_truth(parts)[0])
    with pytest.raises(UserError, match="a table holds no images"):
        DetectorEstimator("padim").fit(np.zeros((5, 4)))
    with pytest.raises(UserError, match="2 labels for 1 images"):
        DetectorEstimator("padim").fit(["a.png"], [1, -1])


# scikit-learn's own suite feeds tables of numbers [n_samples, n_features]; of an estimator that says that it reads none
# (input_tags.two_d_array) `check_estimator` runs nothing. What asks for no table is run here one by one.
APPLY = [
    checks.check_estimator_cloneable,
    checks.check_estimator_repr,
    checks.check_no_attributes_set_in_init,
    checks.check_parameters_default_constructible,
    checks.check_get_params_invariance,
    checks.check_do_not_raise_errors_in_init_or_set_params,
    checks.check_set_params,
    checks.check_estimator_tags_renamed,
    checks.check_valid_tag_types,
    checks.check_mixin_order,
]


@pytest.mark.parametrize("check", APPLY, ids=lambda check: check.__name__)
def test_scikit_learns_checks(check: Callable[[str, Any], None]) -> None:
    check("DetectorEstimator", DetectorEstimator())


def test_no_table_is_fed_to_it() -> None:
    with pytest.warns(checks.SkipTestWarning, match="requires input"):
        asked = [check.func for _, check in checks.estimator_checks_generator(DetectorEstimator())]
    assert set(asked) <= set(APPLY)
