"""Every option of every program acts, is refused in one line, or is announced: one tiny run a value, compared.

Of the systems, `CONTEXT` says beside which other options an option is tried (what makes its effect visible at tiny
size); `ELSEWHERE` lists the few whose effect is no part of a run's outcome, with the test that shows it. How the other
programs are walked stands in `tests/walks`; a program that is not there fails the first test.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from anomaly_lib.config import Options
from anomaly_lib.systems.promptad.options import SegArgs
from anomaly_lib.systems.registry import SYSTEMS
from tests.support.acting import another_value, only_one, options_of, outcome_of
from tests.support.making import Made
from tests.support.programs import all_programs
from tests.support.walking import silent_options
from tests.walks import WALKS

ELSEWHERE = {
    "condition": "the name of an HDMAP run's folder: tests/unit/systems/test_detectors.py",
    "fresh": "tests/unit/engine/test_engine.py: a finished run is started over",
    "resume": "tests/e2e/test_resume.py: a run goes on from another file",
    "save_every": "tests/unit/engine/test_engine.py: how often a checkpoint is written, not what is in the last one",
    "num_workers": "decoding threads and processes: how fast, not what",
    "on_error": "tests/unit/data/test_readers.py: damaged files, of which built-in data have none",
    "download": "tests/unit/backbones/test_resolution.py: what happens where weights are missing",
    "cache": "tests/e2e/test_cache_features.py: where features lie, not what they are",
    "cache_dir": "tests/e2e/test_cache_features.py",
    "device": "tests/unit/engine/test_engine.py: a device that is not there is refused",
    "compile": "tests/unit/models/test_crystal_models.py: how fast, not what (and the compiler takes minutes)",
    "activation_checkpointing": "tests/unit/models/test_quad_overfit.py: how much memory, not what",
    "encoder_recompute": "tests/unit/backbones/test_top_blocks.py: how much memory, not what",
    "scan_backend": "tests/unit/ops/test_selective_scan.py: how fast, not what",
    "tensorboard": "files of another program",
    "wandb": "another program's run",
    "wandb_project": "another program's run",
    "wandb_name": "another program's run",
}
CONTEXT: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {
    ("crystal", "text_max_tokens"): ({"cross_modal_tokens": True}, 4),
    ("crystal", "warmup_steps"): ({"epochs": 4}, 1),  # the default is longer than a tiny run
    ("crystal", "early_stopping_patience"): ({"epochs": 4, "learning_rate": 0.3}, 1),
    ("promptad", "batch_size"): ({"shot": 2}, 1),
    ("promptad", "false_alarms"): ({"shot": 2}, 0.5),
    ("detectors", "batch_size"): ({"model": "draem", "epochs": 1}, 3),
    ("detectors", "focal_alpha"): ({"model": "draem", "epochs": 1}, 0.5),
    ("detectors", "focal_weight"): ({"model": "draem", "epochs": 1}, 0.5),
    ("detectors", "momentum"): ({"epochs": 2}, 0.2),  # the first step of Adam does not depend on it
    ("detectors", "coreset_ratio"): ({"coreset_size": None}, 0.02),
    ("detectors", "rows"): ({}, "unit"),  # "auto" is "raw" for a ResNet
    ("detectors", "optimizer"): ({}, "sgd"),  # without decay "adamw" is "adam"
    ("detectors", "schedule"): ({"epochs": 3}, "cosine"),
    ("detectors", "combination"): ({}, "maximum"),  # the weight of the other average is 0.5
    ("detectors", "severity_target"): ({"severity_max": 10.0}, "raw"),
    ("detectors", "top_share"): ({}, 0.5),  # there are 16 patches
    ("detectors", "nearest_images"): ({}, 1),
    ("detectors", "tile"): ({"image_size": [96, 96]}, 64),
    ("detectors", "overlap"): ({"image_size": [96, 96], "tile": 64}, 32),
    ("detectors", "keep_aspect"): ({"image_size": [64, 32]}, True),  # drawn pictures are squares
    ("promptad", "tile"): ({"image_size": [96, 96]}, 64),
    ("promptad", "overlap"): ({"image_size": [96, 96], "tile": 64}, 32),
    ("promptad", "keep_aspect"): ({"image_size": [64, 32]}, True),
    ("sowa", "tile"): ({"image_size": [96, 96]}, 64),
    ("sowa", "overlap"): ({"image_size": [96, 96], "tile": 64}, 32),
    ("sowa", "keep_aspect"): ({"image_size": [64, 32]}, True),
    ("sowa", "adapter"): ({}, ["linear"]),  # on so small a grid a soldier is the usual window
    ("sowa", "early_stopping_patience"): ({"epochs": 6, "learning_rate": 1.0}, 1),
    ("sowa", "schedule"): ({"epochs": 3}, "cosine"),
    ("sowa", "truncate"): ({"prompt_length": 80}, True),  # without it such prompts are refused
    ("causal_film", "batch_size"): ({}, 2),
    ("causal_film", "log_every"): ({"batch_size": 2}, 1),
    ("causal_film", "warmup_epochs"): ({"epochs": 6}, 1),
    ("causal_film", "min_lr"): ({"epochs": 4, "warmup_epochs": 1}, 1e-5),
    ("causal_film", "patience"): ({"epochs": 6, "learning_rate": 0.1}, 1),
    ("video_ae", "batch_size"): ({}, 3),
    ("weld_supcon", "log_every"): ({"batch_size": 4}, 1),
    ("weld_supcon", "stop_on"): ({"epochs": 6, "warmup_epochs": 0, "learning_rate": 0.01}, "loss"),
    # Features have length one: "euclidean" ranks them as "cosine" does.
    ("weld_supcon", "metric"): ({"demo_good": 6, "demo_defects": 2, "epochs": 1}, "manhattan"),
    ("weld_supcon", "select"): ({"epochs": 4}, "last"),
    ("weld_supcon", "pretrain_on"): ({"pretrain": "masked"}, ["audio"]),
    ("weld_supcon", "pretrain_ratio"): (
        {"pretrain": "pixels", "pretrain_on": ["audio"], "encoder_training": "last", "encoder_lr": 0.01},
        0.2,
    ),
    ("weld_supcon", "warmup_epochs"): ({"epochs": 6}, 1),
    ("weld_supcon", "warmup_start_lr"): ({"epochs": 6}, 1e-4),
    ("weld_supcon", "min_lr"): ({"epochs": 6}, 1e-4),
    ("weld_supcon", "patience"): ({"epochs": 6}, 1),
}
LAST, LORA = {"encoder_training": "last"}, {"encoder_training": "lora", "encoder_lr": 0.01, "epochs": 4}
CONTEXT |= {
    (system, option): tried
    for system in ("causal_film", "weld_supcon")
    for option, tried in {
        "encoder_training": ({}, "last"),
        "encoder_blocks": (LAST, 2),
        "trained_encoders": (LAST, ["video"]),
        "encoder_lr": (LAST, 0.01),
        "encoder_rank": (LORA, 2),
        "encoder_alpha": (LORA, 64.0),
    }.items()
}
CONTEXT[("hdmap", "early_stopping_patience")] = ({"epochs": 6, "learning_rate": 0.3}, 1)
CONTEXT[("hdmap", "radius")] = ({}, 0)  # there are few patches
CONTEXT |= {("hdmap", option): tried for (system, option), tried in CONTEXT.items() if system == "detectors"}
"""(system, option) -> (options beside it, the value to try)."""


@pytest.mark.slow
@pytest.mark.parametrize("system", sorted(SYSTEMS))
def test_every_option_acts_or_is_refused_or_announced(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # paths given as plain words
    bases: dict[str, Any] = {}

    def base(context: Mapping[str, Any]) -> Any:
        key = repr(sorted(context.items()))
        if key not in bases:
            bases[key] = outcome_of(system, tmp_path / f"base{len(bases)}", context)
        return bases[key]

    silent = []
    for f, chosen in options_of(system):
        if f.name in ELSEWHERE or f.name == "output_dir" or only_one(f):
            continue
        beside, value = CONTEXT.get((system, f.name), ({}, None))
        beside = chosen | beside if f.name != "model" else beside
        if value is None:
            value = another_value(f, getattr(SYSTEMS[system].tiny(**beside), f.name))
        found = outcome_of(system, tmp_path / "-".join([*chosen.values(), f.name]), {**beside, f.name: value})
        if found.refused is not None:
            tried = [str(one) for one in (value if isinstance(value, list) else [value])]
            named = [f.name, f.name.replace("_", " "), *tried, "needs the weights"]  # real encoders were asked for
            said = [word for word in named if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", found.refused)]
            assert said, (f.name, value, found.refused)
            assert "\n" not in found.refused
        elif f"{f.name}=" in found.said and "no meaning" in found.said:
            continue
        elif found.content == base(beside).content:
            silent.append(f"{f.name}={value}")
    assert not silent


PROGRAMS = all_programs()
TRAINS_A_SYSTEM = {SYSTEMS[name].Args: name for name in SYSTEMS} | {SegArgs: "promptad"}
"""Options that are walked with the system; `SegArgs` are PromptAD's with other defaults."""


def test_no_program_is_left_out() -> None:
    assert WALKS.keys() <= PROGRAMS.keys()
    walked = {PROGRAMS[name].Args for name in WALKS}
    assert len(walked) == len(WALKS)  # each class of options once
    assert not {name for name, one in PROGRAMS.items() if not same_options(one.Args, {*walked, *TRAINS_A_SYSTEM})}


def same_options(cls: type[Options], tried: set[type[Options]]) -> bool:
    """Is it one of these, or one with another default or help text and nothing more?"""
    return any(issubclass(cls, one) and names_of(cls) == names_of(one) for one in tried)


def names_of(cls: type[Options]) -> set[str]:
    return {f.name for f in fields(cls)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(WALKS))
def test_every_option_of_the_other_programs_too(
    program: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANOMALY_LIB_DATA", str(made.real()))
    assert not silent_options(PROGRAMS[program], WALKS[program](made), tmp_path)
