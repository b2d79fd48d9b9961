"""Condition files and MATLAB files that are none: one line that names file and condition."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from anomaly_lib.errors import UserError
from anomaly_lib.systems.detectors.hdmap.conditions import args_of, load_experiment_conditions, values_of
from anomaly_lib.systems.detectors.hdmap.convert import read_mat


def condition_file(root: Path, content: Any) -> Path:
    path = root / "c.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def one(config: Any, name: Any = "c") -> dict[str, Any]:
    return {"experiment_conditions": [{"name": name, "config": config}]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (one({"image_size": None}), "condition 0: image_size is null; give it a value or leave it out"),
        (one({"target_domains": None}), "condition 0: target_domains is null"),
        (one({"patch_width_range": None}), "condition 0: patch_width_range is null"),
        (one({"patch_width_range": 5}), r"patch_width_range takes \[from, to\], got 5"),
        (one(None), "condition 0 needs a 'name' and a 'config'"),
        (one({}, None), "condition 0 needs a 'name'"),
        (one({}, "../up"), "condition 0: the name '../up' is to be a folder"),
        (one({}, ".."), "is to be a folder"),
        (one({}, ""), "is to be a folder"),
        (one({}, "a\nb"), "control characters"),
        ({"experiment_conditions": [None]}, "condition 0 needs"),
        ({"experiment_conditions": ["c"]}, "condition 0 needs"),
        ({"experiment_conditions": {"name": "c"}}, "expected"),
        ({"experiment_conditions": [one({})["experiment_conditions"][0]] * 2}, "two conditions share a name"),
        (b"null", "expected"),
        (b"\xff\xff", "not text in UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"", "not valid JSON"),
    ],
)
def test_odd_condition_files(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        load_experiment_conditions(condition_file(tmp_path, content))
    assert "c.json" in str(refused.value) or "control" in said
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"image_size": True}, "image_size"),
        ({"image_size": {}}, "image_size"),
        ({"image_size": ["a", 2]}, "image_size"),
        ({"image_size": 1e999}, "image_size"),
        ({"target_domains": 5}, "target_domains=5: expected 'auto', a domain or a list"),
        ({"target_domains": [5]}, "target_domains"),
        ({"target_domains": ["domain_X"]}, "target_domains"),
        ({"scheduler": 5}, "scheduler 5: expected a name or an object"),
        ({"scheduler": []}, "scheduler"),
        ({"scheduler": {"type": "up"}}, "scheduler"),
        ({"max_epochs": "ten"}, "epochs"),
        ({"max_epochs": [3]}, "epochs"),
        ({"train_batch_size": "x"}, "batch_size"),
        ({"nothing": 3}, "unknown config name 'nothing'"),
        ({"model_type": "padim"}, "is for padim, this script trains draem"),
        ({"source_domain": 5}, "source_domain"),
    ],
)
def test_values_of_the_wrong_kind(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        args_of(values_of(load_experiment_conditions(condition_file(tmp_path, one(config)))[0], "draem"))
    assert "\n" not in str(refused.value)


def test_marked_encodings_of_condition_files(tmp_path: Path) -> None:
    path = condition_file(tmp_path, json.dumps(one({}, "naïve"), ensure_ascii=False).encode("utf-16"))
    assert load_experiment_conditions(path)[0]["name"] == "naïve"


def test_odd_mat_files(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    for content in (b"", b"MATLAB 5.0 MAT-file", b"\x00" * 200, bytes(range(256)) * 4):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.mat: not a readable \.mat file"):
            read_mat(path)
    for data, said in (
        (np.zeros((3, 4)), "must be numbers"),
        (np.zeros((3, 4, 1, 0)), "must be numbers"),
        (np.array([[["a"]]], dtype=object), "must be numbers"),
        (np.full((3, 4, 1, 2), np.nan), "non-finite"),
    ):
        savemat(path, {"Xdata": data})
        with pytest.raises(UserError, match=said):
            read_mat(path)
    savemat(path, {"Xdata": np.arange(24.0).reshape(3, 4, 1, 2)})
    assert read_mat(path).shape == (2, 3, 4)
